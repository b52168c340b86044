"""Forces texts on servers and compares each budget's next-token distributions with full KV's."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sglang_longflow.errors import ConfigError, EvalError
from sglang_longflow.evaluation.ask import post
from sglang_longflow.evaluation.forced import KEY, Board, processor_text
from sglang_longflow.evaluation.servers import running_server
from sglang_longflow.evaluation.text_summary import TextRecord
from sglang_longflow.evaluation.texts import TextTask
from sglang_longflow.evaluation.variants import FULL, Part, Variant, point_title

FULL_KV = Variant(FULL), 0


@dataclass(frozen=True)
class Setup:
    """What all servers of a run have in common.

    Attributes
    ----------
    at_once : int
        Texts that a server gets together.
    out : Path
        Results; also where the distributions of full KV lie meanwhile.
    server : sequence of str
        The user's server arguments.
    """

    model: Path
    task: TextTask
    texts: list[list[int]]
    at_once: int
    out: Path
    server: Sequence[str] = ()
    verbose: bool = False


def check_room(setup: Setup, folder: Path) -> int:
    """Refuse more texts at once than the disk has room for; returns the size of the vocabulary.

    Raises
    ------
    ConfigError
    """
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(setup.model).get_text_config().vocab_size
    steps, free = setup.task.forced_tokens, shutil.disk_usage(folder).free
    needed = Board.size_bytes(setup.at_once, steps, vocabulary)
    if needed > free:
        raise ConfigError(
            f"concurrency={setup.at_once}: the distributions of so many texts ({steps:,} tokens, "
            f"{vocabulary:,} words, float16) take {needed / 2**30:.1f} GiB in {folder}, which has "
            f"{free / 2**30:.1f} GiB free: enough for "
            f"{free // Board.size_bytes(1, steps, vocabulary)}"
        )
    return vocabulary


def measure(setup: Setup, parts: list[Part], keep: Callable[[TextRecord], None]) -> None:
    """Measure what `plan` left; `keep` gets each record as it comes.

    Each server is compared with its own full KV: what remains is the budget, not the kernels.
    """
    vocabulary = check_room(setup, setup.out)
    for key, group in groupby(parts, key=lambda part: part[0].server):
        of_server = list(group)
        served = [variant.name for variant, _, _ in of_server]
        more = ["--enable-custom-logit-processor", *setup.server]
        # The files outlive the server, which has them mapped, and no longer.
        with (
            tempfile.TemporaryDirectory(prefix="full-kv-", dir=setup.out) as folder,
            running_server(setup.model, key, more, served, setup.verbose) as url,
        ):
            path = Path(folder).resolve()
            board = Board.create(path, setup.at_once, setup.task.forced_tokens, vocabulary)
            _Passes(setup, url, board, path).run(of_server, keep)


class _Passes:
    """Texts through one server: first with full KV, then at each budget."""

    def __init__(self, setup: Setup, url: str, board: Board, folder: Path):
        self.setup, self.url, self.board, self.folder = setup, url, board, folder

    def run(self, parts: list[Part], keep: Callable[[TextRecord], None]) -> None:
        size = self.setup.at_once
        wanted = sorted({number for _, _, left in parts for (number,) in left})
        for first in range(0, len(wanted), size):
            together = wanted[first : first + size]
            for place, number in enumerate(together):
                text = self.setup.texts[number]
                self.board.tokens[place] = text[self.setup.task.prompt_tokens :]
            self.board.top[:] = -1
            started = time.monotonic()
            self._force(*FULL_KV, dict(enumerate(together)), keep=True)
            if (self.board.top[: len(together)] < 0).any():
                raise EvalError(f"{self.url}: the server left tokens out with full KV")
            self._report("full KV, kept", len(together), started)
            for variant, budget, left in parts:
                places = {p: number for p, number in enumerate(together) if (number,) in left}
                if places:
                    self._compare(variant, budget, places, keep)

    def _compare(
        self,
        variant: Variant,
        budget: int,
        places: dict[int, int],
        keep: Callable[[TextRecord], None],
    ) -> None:
        started = time.monotonic()
        self.board.results[:] = np.nan
        records = []
        for place, meta in self._force(variant, budget, places, keep=False).items():
            kl, agreement = np.array(self.board.results[:, place], dtype=np.float64)
            if np.isnan(kl).any():
                raise EvalError(f"{self.url}: the server left tokens out at budget {budget}")
            records.append(
                TextRecord(
                    variant=variant.name,
                    budget=budget,
                    number=places[place],
                    kl=float(kl.mean()),
                    agreement=float(agreement.mean()),
                    prompt_tokens=meta["prompt_tokens"],
                    forced_tokens=meta["completion_tokens"],
                    resident_tokens=meta["kv_resident_tokens"],
                    overwritten_tokens=meta["kv_overwritten_tokens"],
                    cut_tokens=meta["kv_cut_tokens"],
                )
            )
            keep(records[-1])
        title = point_title(variant.name, budget)
        mean = sum(record.kl for record in records) / len(records)
        self._report(f"{title}: KL {mean:.4g}", len(records), started)

    def _force(
        self, variant: Variant, budget: int, places: dict[int, int], keep: bool
    ) -> dict[int, dict[str, Any]]:
        """All texts at once, {place: number}; returns each place's `meta_info`."""
        # Waits, since the last rows may not be free yet.
        post(f"{self.url}/flush_cache?timeout=60", {})
        pool = ThreadPoolExecutor(len(places))
        try:
            metas = pool.map(
                lambda place: self._force_one(variant, budget, place, places[place], keep), places
            )
            return dict(zip(places, metas, strict=True))
        finally:
            # After an error or Ctrl+C nobody waits for the other texts: the server ends them.
            pool.shutdown(wait=False, cancel_futures=True)

    def _force_one(
        self, variant: Variant, budget: int, place: int, number: int, keep: bool
    ) -> dict[str, Any]:
        task, text = self.setup.task, self.setup.texts[number]
        where = {"folder": str(self.folder), "place": place, "keep": keep}
        params: dict[str, Any] = {"kv_budget": budget, KEY: where}
        if variant.policy != FULL:
            params["kv_policy"] = variant.policy
        sampling = {
            "temperature": 0,
            "max_new_tokens": task.forced_tokens,
            "ignore_eos": True,
            "custom_params": params,
        }
        answer = post(
            f"{self.url}/generate",
            {
                "input_ids": text[: task.prompt_tokens],
                "sampling_params": sampling,
                "custom_logit_processor": processor_text(),
            },
        )
        if answer["output_ids"] != text[task.prompt_tokens :]:
            raise EvalError(
                f"text {number} at budget {budget}: the server did not follow it to the end; "
                f"it answered {len(answer['output_ids'])} of {task.forced_tokens} tokens"
            )
        meta = answer["meta_info"]
        if budget and meta.get("num_retractions"):
            raise EvalError(
                f"text {number} at budget {budget}: was retracted and started over; give the "
                f"server a larger pool, or a smaller --concurrency"
            )
        return meta

    def _report(self, title: str, texts: int, started: float) -> None:
        seconds = time.monotonic() - started
        print(f"  {title}, {texts} texts in {seconds:.1f} s", flush=True)
