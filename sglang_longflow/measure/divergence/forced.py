# SPDX-License-Identifier: Apache-2.0
"""A text forced on a server token by token, and the distributions before each of its tokens.

SGLang calls a request's custom logit processor with the logits of each step, in the scheduler's
process, before it samples. Ours leaves only the text's next token to sample. Before that it keeps
the distribution (full KV), or compares with the one kept. The two sides meet in a folder of arrays
that both have mapped.
"""

from __future__ import annotations

import json
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

KEY = "forced_text"
#: Stands for -inf, so that 0 * log(0 / 0) is 0.
LOWEST = -1e4


class DistributionStore:
    """Arrays in a folder: of every text forced at once, and of every time that one is compared.

    Attributes
    ----------
    tokens : int32 [texts, steps]
        What is forced.
    log_probs : float16 [texts, steps, vocabulary]
        Natural logarithms with full KV.
    top : int32 [texts, steps]
        The token with the largest logit with full KV; -1 if none is kept yet. float16 would
        not tell close ones apart.
    results : float32 [2, results, steps]
        KL(full || budget) in nats, and 1 if the two most likely tokens are the same, else 0;
        NaN where nothing was compared yet.
    """

    ARRAYS = ("tokens", "log_probs", "top", "results")

    def __init__(self, folder: Path, mode: Literal["r+", "r"] = "r+"):
        self.tokens, self.log_probs, self.top, self.results = (
            np.load(folder / f"{name}.npy", mmap_mode=mode) for name in self.ARRAYS
        )

    @classmethod
    def create(
        cls, folder: Path, texts: int, steps: int, vocabulary: int, results: int
    ) -> DistributionStore:
        """New files; they take their room on the disk as they are written."""
        shapes: list[tuple[Any, tuple[int, ...]]] = [
            (np.int32, (texts, steps)),
            (np.float16, (texts, steps, vocabulary)),
            (np.int32, (texts, steps)),
            (np.float32, (2, results, steps)),
        ]
        for name, (dtype, shape) in zip(cls.ARRAYS, shapes, strict=True):
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)  # type: ignore[no-untyped-call]
        return cls(folder)

    @staticmethod
    def size_bytes(texts: int, steps: int, vocabulary: int) -> int:
        """What a full store takes on the disk, its results excepted."""
        return texts * steps * (2 * vocabulary + 4 + 4)


# A mapped file keeps its room on the disk until it is closed: one server, one store.
@lru_cache(maxsize=1)
def _store(folder: str) -> DistributionStore:
    return DistributionStore(Path(folder))


class ForcedText:
    """SGLang's custom logit processor; ``custom_params`` has `KEY` with these fields.

    folder : str
        Of the store.
    text_index : int
        Of the text in the store.
    result_index : int or None
        Where what comparing finds goes; None keeps the distributions, with nothing to compare.
    """

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]]
    ) -> torch.Tensor:
        rows, texts, steps, results = [], [], [], []
        for row, params in enumerate(custom_param_list):
            store = _store(params[KEY]["folder"])
            step = step_of(params["__req__"])
            # Neither a chunk in the midst of the prompt, nor overlap's step beyond the end.
            if 0 <= step < store.tokens.shape[1]:
                rows.append(row)
                texts.append(params[KEY]["text_index"])
                steps.append(step)
                results.append(params[KEY]["result_index"])
        if not rows:
            return logits
        own = logits[rows].float()
        if _is_first_rank():
            kept = [i for i, result in enumerate(results) if result is None]
            compared = [i for i, result in enumerate(results) if result is not None]
            if kept:
                where, when = _taken(kept, texts, steps)
                keep_rows(store, where, when, own[kept])
            if compared:
                which, where, when = _taken(compared, results, texts, steps)
                compare_rows(store, which, where, when, own[compared])
        forced = torch.from_numpy(store.tokens[texts, steps].astype(np.int64)).to(logits.device)
        logits[rows] = torch.full_like(own, float("-inf")).to(logits.dtype)
        logits[rows, forced] = 0.0
        return logits


def step_of(req: Any) -> int:
    """Which token of its output a request's row is about to sample, from 0; below 0 in a chunk.

    Both counts are the scheduler's own and made as a step is scheduled. `output_ids` would lag a
    step behind under overlap scheduling. A row that was retracted starts over with its output as
    a part of the prompt.
    """
    return int(req.extend_end - len(req.origin_input_ids) + req.decode_batch_idx)


def _taken(which: list[int], *lists: list[int]) -> list[list[int]]:
    return [[each[i] for i in which] for each in lists]


def keep_rows(
    store: DistributionStore, texts: list[int], steps: list[int], logits: torch.Tensor
) -> None:
    """Keep the distributions of logits [n, vocabulary]."""
    log_probs = logits.log_softmax(-1).clamp(min=LOWEST)
    store.log_probs[texts, steps] = log_probs.half().cpu().numpy()
    store.top[texts, steps] = logits.argmax(-1).int().cpu().numpy()


def compare_rows(
    store: DistributionStore,
    results: list[int],
    texts: list[int],
    steps: list[int],
    logits: torch.Tensor,
) -> None:
    """Compare logits [n, vocabulary] with what was kept of the same texts and steps, in float32."""
    kept = torch.from_numpy(store.log_probs[texts, steps]).to(logits.device)
    store.results[0][results, steps] = kl_of(kept, logits).cpu().numpy()
    same = logits.argmax(-1).cpu().numpy() == store.top[texts, steps]
    store.results[1][results, steps] = same


def kl_of(kept: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(kept || softmax(logits)) in nats, [n].

    Parameters
    ----------
    kept : float16 [n, vocabulary]
        Log-probabilities. They are normalised again: rounded ones do not sum to 1, and KL would
        be off by as much, also below 0.
    logits : float32 [n, vocabulary]
    """
    full = kept.float().log_softmax(-1)
    ours = logits.log_softmax(-1).clamp(min=LOWEST)
    return (full.exp() * (full - ours)).sum(-1)


def processor_text() -> str:
    """For a request's ``custom_logit_processor``.

    What SGLang's ``CustomLogitProcessor.to_str`` makes of a class that the server can import.
    """
    return json.dumps({"callable": pickle.dumps(ForcedText).hex()})


def _is_first_rank() -> bool:
    """All ranks of a server force the token, one writes."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not ready or torch.distributed.get_rank() == 0
