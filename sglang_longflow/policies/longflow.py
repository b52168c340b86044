"""LongFlow as published: the current query alone decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from longflow_kernels import top_positions
from sglang_longflow.policies.base import FullRows, Policy, PromptEnd


@dataclass(frozen=True)
class LongFlow(Policy):
    """Overwrite the slot that contributes least to this step's attention output.

    Source: arXiv 2603.11504, eq. 6: arg-min over the whole row, the newest token included, of the
    mean over query heads and channels of ``|alpha_i * v_i|``; one victim per (layer, request).
    A prompt over budget - 1 is cut by SnapKV's pick (arXiv 2404.14469): window 32, average pool 5.

    Deviations from the authors' release: scores stay in float32 (theirs are summed in the query's
    dtype with atomics), equal scores go to the lowest row index, and
    ``protect_sink_tokens`` / ``protect_recent_tokens`` exist, both 0 as published.
    """

    name: ClassVar[str] = "longflow"
    prompt_window_tokens: ClassVar[int] = 32
    ranks_by_removal: ClassVar[bool] = True

    def victims(self, rows: FullRows) -> torch.Tensor:
        scores = rows.removal_scores
        if self.protect_sink_tokens or rows.recent is not None:
            scores = scores.clone()
            scores[:, : self.protect_sink_tokens] = torch.inf
            if rows.recent is not None:
                scores.scatter_(1, rows.recent.to(torch.int64), torch.inf)
        return scores.argmin(dim=1)

    def prompt_keep(self, prompt: PromptEnd) -> torch.Tensor:
        window = self.prompt_window_tokens
        earlier = top_positions(
            prompt.score_earlier(window),
            prompt.keep_tokens - window,
            always_first=self.protect_sink_tokens,
        )
        last = torch.arange(
            prompt.prompt_tokens - window, prompt.prompt_tokens, device=prompt.device
        )
        return torch.cat([earlier, last])
