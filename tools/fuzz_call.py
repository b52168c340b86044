# SPDX-License-Identifier: Apache-2.0
"""One request of the fuzzer, and which requests it does not send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Tokens: an answer of at most this length has to come; longer ones are hung up on.
SHORT_TOKENS = 64
HANG_UP_S = 2.0
SWEEP_HANG_UP_S = 0.5
SESSIONS = ("s0", "s1", "s2")

#: Routes that are not asked, each with the reason.
EXCLUDED: dict[str, str] = {
    "/start_profile": "profiles by design: writes a trace for every step, and slows all of them",
    "/stop_profile": "belongs to /start_profile",
    "/slow_down": "sleeps in every step by design, for as long as it is told",
    "/configure_logging": "writes dumps and logs of whole requests by design",
    "/set_trace_level": "belongs to tracing, which needs an OpenTelemetry collector",
    "/release_memory_occupation": "lets go of weights and pool by design until resumed",
    "/resume_memory_occupation": "belongs to /release_memory_occupation",
    "/init_weights_update_group": "waits in the scheduler for a trainer to join, by design",
    "/init_weights_send_group_for_remote_instance": "waits in the scheduler for another server",
    "/send_weights_to_remote_instance": "belongs to /init_weights_send_group_for_remote_instance",
    "/v1/audio/transcriptions": "multipart uploads to a speech model; no JSON body",
}
#: Bodies that change what a neighbour's tokens are, or when, by design.
DESTRUCTIVE = (
    '"reset_tensors"',  # /weights_checker: random weights
    '"dummy"',  # load_format of /update_weights_from_disk: random weights
)


@dataclass(frozen=True)
class Limits:
    """The lengths at which a server's behaviour changes."""

    budget_tokens: int
    pool_tokens: int
    context_tokens: int
    model: str
    radix_cache: bool = True


@dataclass(frozen=True)
class Call:
    """One HTTP request. `body` None sends none; bytes are sent as they are."""

    method: str
    path: str
    body: Any = None
    content_type: str = "application/json"
    hang_up_s: float | None = None
    resume_s: float | None = None  # after this /pause_generation, continue so much later

    def payload(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()

    def to_json(self) -> dict[str, Any]:
        found = {key: value for key, value in vars(self).items() if value is not None}
        if isinstance(self.body, bytes):
            found["body"] = {"hex": self.body.hex()}
            found["raw"] = True
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Call:
        values = {key: found[key] for key in found if key in cls.__dataclass_fields__}
        if found.get("raw"):
            values["body"] = bytes.fromhex(found["body"]["hex"])
        return cls(**values)


TOKEN_KEYS = (
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
)
ANSWERING = (
    "/generate",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/invocations",
    "/vertex_generate",
)


def longest(body: Any) -> int | None:
    """The most tokens that a body asks for; None if it may be as many as fit."""
    found: list[int | None] = []

    def visit(value: Any) -> None:
        if isinstance(value, list):
            for one in value[:8]:
                visit(one)
        elif isinstance(value, dict):
            for key, one in value.items():
                if key in TOKEN_KEYS:
                    found.append(one if isinstance(one, int) and one <= SHORT_TOKENS else None)
                else:
                    visit(one)

    visit(body)
    return None if not found or None in found else max(one for one in found if one is not None)


def is_destructive(call: Call) -> bool:
    """Whether a call is known to change the weights, by design."""
    payload = (call.payload() or b"").decode(errors="replace")
    return any(text in payload for text in DESTRUCTIVE)
