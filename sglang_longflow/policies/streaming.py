# SPDX-License-Identifier: Apache-2.0
"""Attention sinks and a ring: the cheapest policy, and the usual baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sglang_longflow.policies.base import Policy, PromptEnd

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Streaming(Policy):
    """Keep the first ``protect_sink_tokens`` tokens and overwrite the oldest of the others.

    Source: StreamingLLM, arXiv 2309.17453. Deviations: keys keep the RoPE position they were
    written with (the paper re-rotates them to their place in the cache), and the number of sinks is
    the server's ``protect_sink_tokens`` (the paper uses 4).
    """

    name: ClassVar[str] = "streaming"
    prompt_window_tokens: ClassVar[int] = 0

    def known_victim(self, budget_tokens: int, overwrites: int) -> int:
        sinks = self.protect_sink_tokens
        return sinks + overwrites % (budget_tokens - sinks)

    def prompt_keep(self, prompt: PromptEnd) -> torch.Tensor:
        import torch

        sinks = self.protect_sink_tokens
        recent = prompt.keep_tokens - sinks
        return torch.cat(
            [
                torch.arange(sinks, device=prompt.device),
                torch.arange(
                    prompt.prompt_tokens - recent, prompt.prompt_tokens, device=prompt.device
                ),
            ]
        )
