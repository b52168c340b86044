# SPDX-License-Identifier: Apache-2.0
"""What is asked in the demo, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.errors import LongFlowError
from sglang_longflow.reasoner import answer_of


class DemoError(LongFlowError):
    """The demo could not be carried through."""

    exit_status = 1


@dataclass(frozen=True)
class Question:
    """What is sent, as /generate takes it: ``{"text": ...}`` or ``{"input_ids": ...}``.

    Of a problem of the reasoner, `kind` says what sort it is, `right` is the right answer, and
    `chain_tokens` the length of the reference chain.
    """

    prompt: dict[str, Any]
    kind: str = ""
    right: str | None = None
    chain_tokens: int = 0


@dataclass
class Answer:
    """One request as it comes in.

    `meta` is the server's ``meta_info``, the last one received. `first_s` and `last_s` tell when
    the first and the latest token came, in seconds since all questions were sent.
    """

    question: Question
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    first_s: float | None = None
    last_s: float = 0.0

    def take(self, text: str, meta: dict[str, Any], now_s: float) -> None:
        """Take a message of the stream: all text so far."""
        self.text, self.meta, self.last_s = text, meta, now_s
        self.first_s = now_s if self.first_s is None else self.first_s

    @property
    def generated_tokens(self) -> int:
        return int(self.meta.get("completion_tokens", 0))

    @property
    def held_slots(self) -> int:
        """KV slots that the request holds."""
        return int(self.meta.get("kv_resident_tokens", 0))

    @property
    def full_slots(self) -> int:
        """KV slots that it would hold with full KV: what is resident, overwritten and cut."""
        lost = ("kv_overwritten_tokens", "kv_cut_tokens")
        return self.held_slots + sum(int(self.meta.get(name, 0)) for name in lost)

    @property
    def is_done(self) -> bool:
        return bool(self.meta.get("finish_reason"))

    @property
    def is_right(self) -> bool:
        """Of a problem of the reasoner: its answer is the right one, and it stopped by itself."""
        stopped = self.meta["finish_reason"]["type"] == "stop"
        return stopped and answer_of(self.text) == self.question.right

    @property
    def verdict(self) -> str:
        return "right" if self.is_right else "wrong"

    @property
    def said(self) -> str:
        """What the model answered, or why there is no answer."""
        return answer_of(self.text) or f"none in {self.generated_tokens:,} tokens"


@dataclass
class Phase:
    """All questions at once with one budget (0: full KV), and what the server said meanwhile."""

    budget: int
    answers: list[Answer]
    wall_s: float = 0.0
    peak_running: int = 0
    peak_slots: int = 0
    pool_tokens: int = 0
    pool_bytes: int = 0

    @property
    def name(self) -> str:
        return f"budget {self.budget}" if self.budget else "full KV"

    @property
    def generated_tokens(self) -> int:
        return sum(answer.generated_tokens for answer in self.answers)

    @property
    def right_answers(self) -> int:
        return sum(answer.is_right for answer in self.answers)

    @property
    def retractions(self) -> int:
        """Times that requests lost their slots to others and started over."""
        return sum(int(answer.meta.get("num_retractions") or 0) for answer in self.answers)

    def mib(self, slots: int) -> float:
        """Memory of so many KV slots, all layers of them."""
        return slots * self.pool_bytes / max(1, self.pool_tokens) / 2**20

    def observe(self, stats: dict[str, Any]) -> int:
        """Take one answer of GET /longflow/stats; returns the requests running then."""
        if stats["pool"] is None:  # the scheduler has not answered yet
            return 0
        rows, pool = stats["requests"], stats["pool"]
        self.pool_tokens = pool["total_tokens"]
        self.pool_bytes = (stats.get("settings") or {}).get("kv_pool_bytes", 0)
        self.peak_running = max(self.peak_running, len(rows))
        # Not the sum of the rows' lengths: requests may share the slots of a prefix.
        held = pool["total_tokens"] - pool["available_tokens"] - pool["evictable_tokens"]
        self.peak_slots = max(self.peak_slots, held)
        return len(rows)
