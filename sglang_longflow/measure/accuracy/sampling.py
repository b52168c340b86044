# SPDX-License-Identifier: Apache-2.0
"""How answers are drawn: greedily, or several for each question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_longflow.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of every request.

    Greedy decoding repeats itself but for rounding (a batch of another size may round another way).
    Sampled answers do not: SGLang reads a request's ``sampling_seed`` only under
    ``--enable-deterministic-inference``. Seeds are sent anyway, another one for each
    question and sample and the same one at every budget: with that flag requests without a seed
    would all draw with 42, and the samples of a question would be one answer.

    Attributes
    ----------
    temperature : float
        0 is greedy.
    top_p : float
        In (0, 1].
    samples : int
        Answers per question.

    Raises
    ------
    ConfigError
        A value out of range, or several greedy samples, which would be one answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}: expected a number >= 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: expected a number > 0 and <= 1")
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples}: expected at least 1")
        if self.samples > 1 and not self.temperature:
            raise ConfigError(
                f"samples={self.samples}: greedy answers to a question are all the same; "
                f"set --temperature"
            )
        if self.top_p < 1 and not self.temperature:
            raise ConfigError(f"top_p={self.top_p}: has no effect on greedy answers")

    def settings(self) -> dict[str, Any]:
        """What must not change within a folder: nothing if answers are greedy.

        So folders from before there was a choice go on as what they are. The number of samples may
        change: more of them can be asked for later.
        """
        return dict(temperature=self.temperature, top_p=self.top_p) if self.temperature else {}

    def parameters(self, number: int, sample: int) -> dict[str, Any]:
        """/generate's ``sampling_params`` of one sample of one question."""
        if not self.temperature:
            return {"temperature": 0}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "sampling_seed": (sample << 32) + number,
        }
