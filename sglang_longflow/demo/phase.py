# SPDX-License-Identifier: Apache-2.0
"""What is asked in the demo, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.reasoner import answer_of


@dataclass(frozen=True)
class Question:
    """What is sent, as /generate takes it: ``{"text": ...}`` or ``{"input_ids": ...}``.

    `right` is the right answer, if one is known; `kind` says what sort of question it is.
    """

    prompt: dict[str, Any]
    kind: str = ""
    right: str | None = None


@dataclass
class Answer:
    """One request as it comes in; `meta` is the server's ``meta_info``, the last one received."""

    question: Question
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def generated_tokens(self) -> int:
        return int(self.meta.get("completion_tokens", 0))

    @property
    def is_right(self) -> bool:
        """Of a problem of the reasoner: its answer is the right one, and it stopped by itself."""
        stopped = self.meta["finish_reason"]["type"] == "stop"
        return stopped and answer_of(self.text) == self.question.right


@dataclass
class Phase:
    """All questions at once with one budget (0: full KV), and what the server said meanwhile."""

    budget: int
    answers: list[Answer]
    wall_s: float = 0.0
    peak_running: int = 0
    peak_slots: int = 0
    pool_tokens: int = 0

    @property
    def name(self) -> str:
        return f"budget {self.budget}" if self.budget else "full KV"

    @property
    def generated_tokens(self) -> int:
        return sum(answer.generated_tokens for answer in self.answers)

    def observe(self, stats: dict[str, Any]) -> int:
        """Take one answer of GET /longflow/stats; returns the requests running then."""
        if stats["pool"] is None:  # the scheduler has not answered yet
            return 0
        rows, pool = stats["requests"], stats["pool"]
        self.pool_tokens = pool["total_tokens"]
        self.peak_running = max(self.peak_running, len(rows))
        # Not the sum of the rows' lengths: requests may share the slots of a prefix.
        held = pool["total_tokens"] - pool["available_tokens"] - pool["evictable_tokens"]
        self.peak_slots = max(self.peak_slots, held)
        return len(rows)
