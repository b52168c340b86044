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


class Board:
    """Arrays in a folder: a place for each text, a line for each time that one is compared.

    Attributes
    ----------
    tokens : int32 [places, steps]
        What is forced.
    log_probs : float16 [places, steps, vocabulary]
        Natural logarithms with full KV.
    top : int32 [places, steps]
        The token with the largest logit with full KV; -1 where none was kept yet. float16 would
        not tell close ones apart.
    results : float32 [2, lines, steps]
        KL(full || budget) in nats, and 1 where the two most likely tokens are the same, else 0;
        NaN where nothing was compared yet.
    """

    ARRAYS = ("tokens", "log_probs", "top", "results")

    def __init__(self, folder: Path, mode: Literal["r+", "r"] = "r+"):
        self.tokens, self.log_probs, self.top, self.results = (
            np.load(folder / f"{name}.npy", mmap_mode=mode) for name in self.ARRAYS
        )

    @classmethod
    def create(cls, folder: Path, places: int, steps: int, vocabulary: int, lines: int) -> Board:
        """New files; they take their room on the disk as they are written."""
        shapes: list[tuple[Any, tuple[int, ...]]] = [
            (np.int32, (places, steps)),
            (np.float16, (places, steps, vocabulary)),
            (np.int32, (places, steps)),
            (np.float32, (2, lines, steps)),
        ]
        for name, (dtype, shape) in zip(cls.ARRAYS, shapes, strict=True):
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)  # type: ignore[no-untyped-call]
        return cls(folder)

    @staticmethod
    def size_bytes(places: int, steps: int, vocabulary: int) -> int:
        """Room that a full board takes on the disk, but for its results."""
        return places * steps * (2 * vocabulary + 4 + 4)


# A mapped file keeps its room on the disk until it is closed: one server, one board.
@lru_cache(maxsize=1)
def _board(folder: str) -> Board:
    return Board(Path(folder))


class ForcedText:
    """SGLang's custom logit processor; ``custom_params`` has `KEY` with these fields.

    folder : str
        Of the board.
    place : int
        Of the text on the board.
    line : int or None
        Where what comparing finds goes; None keeps the distributions, with nothing to compare.
    """

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]]
    ) -> torch.Tensor:
        rows, places, steps, lines = [], [], [], []
        for row, params in enumerate(custom_param_list):
            board = _board(params[KEY]["folder"])
            step = step_of(params["__req__"])
            # Neither a chunk in the midst of the prompt, nor overlap's step beyond the end.
            if 0 <= step < board.tokens.shape[1]:
                rows.append(row)
                places.append(params[KEY]["place"])
                steps.append(step)
                lines.append(params[KEY]["line"])
        if not rows:
            return logits
        own = logits[rows].float()
        if _is_first_rank():
            kept = [i for i, line in enumerate(lines) if line is None]
            compared = [i for i, line in enumerate(lines) if line is not None]
            if kept:
                where, when = _taken(kept, places, steps)
                keep_rows(board, where, when, own[kept])
            if compared:
                which, where, when = _taken(compared, lines, places, steps)
                compare_rows(board, which, where, when, own[compared])
        forced = torch.from_numpy(board.tokens[places, steps].astype(np.int64)).to(logits.device)
        logits[rows] = torch.full_like(own, float("-inf")).to(logits.dtype)
        logits[rows, forced] = 0.0
        return logits


def step_of(req: Any) -> int:
    """Which token of its output a request's row is about to sample, from 0; below 0 in a chunk.

    Both counts are the scheduler's own and made as a step is scheduled. `output_ids` would lag a
    step behind under overlap scheduling. A row that was retracted starts over with its output as
    a part of the prompt.
    """
    return int(req.extend_range.end - len(req.origin_input_ids) + req.decode_batch_idx)


def _taken(which: list[int], *lists: list[int]) -> list[list[int]]:
    return [[each[i] for i in which] for each in lists]


def keep_rows(board: Board, places: list[int], steps: list[int], logits: torch.Tensor) -> None:
    """Keep the distributions of logits [n, vocabulary]."""
    log_probs = logits.log_softmax(-1).clamp(min=LOWEST)
    board.log_probs[places, steps] = log_probs.half().cpu().numpy()
    board.top[places, steps] = logits.argmax(-1).int().cpu().numpy()


def compare_rows(
    board: Board, lines: list[int], places: list[int], steps: list[int], logits: torch.Tensor
) -> None:
    """Compare logits [n, vocabulary] with what was kept at the same places, in float32."""
    kept = torch.from_numpy(board.log_probs[places, steps]).to(logits.device)
    board.results[0][lines, steps] = kl_of(kept, logits).cpu().numpy()
    same = logits.argmax(-1).cpu().numpy() == board.top[places, steps]
    board.results[1][lines, steps] = same


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
