# SPDX-License-Identifier: Apache-2.0
"""Forces texts on servers and compares each budget's next-token distributions with full KV's."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_longflow.errors import ConfigError, EvalError
from sglang_longflow.measure.accuracy.ask import post
from sglang_longflow.measure.divergence.forced import KEY, DistributionStore, processor_text
from sglang_longflow.measure.divergence.summary import TextRecord
from sglang_longflow.measure.divergence.texts import TextTask
from sglang_longflow.measure.servers import running_server
from sglang_longflow.measure.variants import FULL, Variant, WorkItem, point_title
from sglang_longflow.monitor.client import activity
from sglang_longflow.server.pool_cap import tokens_for
from sglang_longflow.server.progress import shared

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
    needed = DistributionStore.size_bytes(setup.at_once, steps, vocabulary)
    if needed > free:
        raise ConfigError(
            f"concurrency={setup.at_once}: the distributions of so many texts ({steps:,} tokens, "
            f"{vocabulary:,} words, float16) take {needed / 2**30:.1f} GiB in {folder}, which has "
            f"{free / 2**30:.1f} GiB free: enough for "
            f"{free // DistributionStore.size_bytes(1, steps, vocabulary)}"
        )
    return int(vocabulary)


def measure(setup: Setup, parts: list[WorkItem], keep: Callable[[TextRecord], None]) -> None:
    """Measure what `plan` left; `keep` gets each record as it comes.

    Each server is compared with its own full KV: what remains is the budget, not the kernels.
    """
    vocabulary = check_room(setup, setup.out)
    for key, group in itertools.groupby(parts, key=lambda part: part[0].server):
        of_server = list(group)
        served = [variant.name for variant, _, _ in of_server]
        more = ["--enable-custom-logit-processor", *setup.server]
        # All texts at once, at every budget of the server; a pass of full KV has fewer rows.
        most = tokens_for(setup.at_once * len(of_server), setup.task.text_tokens)
        # The files outlive the server, which has them mapped, and no longer.
        with (
            tempfile.TemporaryDirectory(prefix="full-kv-", dir=setup.out) as folder,
            running_server(setup.model, key, more, served, setup.verbose, most) as url,
            shared().sign_of_life(lambda: f"  {activity(url)}"),
        ):
            path = Path(folder).resolve()
            results = setup.at_once * len(of_server)
            store = DistributionStore.create(
                path, setup.at_once, setup.task.forced_tokens, vocabulary, results
            )
            _ForcedRuns(setup, url, store, path).run(of_server, keep)


@dataclass(frozen=True)
class ForcedRun:
    """One text forced once.

    Attributes
    ----------
    number, text_index : int
        Of the text in the task, and in the store.
    result_index : int or None
        Of the store's results; None keeps the distributions.
    """

    variant: Variant
    budget: int
    number: int
    text_index: int
    result_index: int | None = None


class _ForcedRuns:
    """Texts through one server: first with full KV, then at all budgets side by side."""

    def __init__(self, setup: Setup, url: str, store: DistributionStore, folder: Path):
        self.setup, self.url, self.store, self.folder = setup, url, store, folder

    def run(self, parts: list[WorkItem], keep: Callable[[TextRecord], None]) -> None:
        size = self.setup.at_once
        wanted = sorted({number for _, _, left in parts for (number,) in left})
        for first in range(0, len(wanted), size):
            together = wanted[first : first + size]
            for text_index, number in enumerate(together):
                text = self.setup.texts[number]
                self.store.tokens[text_index] = text[self.setup.task.prompt_tokens :]
            self.store.top[:] = -1
            started = time.monotonic()
            for _ in self._forced(
                [ForcedRun(*FULL_KV, n, text_index) for text_index, n in enumerate(together)]
            ):
                pass
            if (self.store.top[: len(together)] < 0).any():
                raise EvalError(f"{self.url}: the server left tokens out with full KV")
            self._report("full KV, kept", len(together), started)
            self._compare(parts, together, keep)

    def _compare(
        self, parts: list[WorkItem], together: list[int], keep: Callable[[TextRecord], None]
    ) -> None:
        started = time.monotonic()
        self.store.results[:] = np.nan
        results = itertools.count()
        runs = [
            ForcedRun(variant, budget, number, text_index, next(results))
            for variant, budget, left in parts
            for text_index, number in enumerate(together)
            if (number,) in left
        ]
        found: dict[tuple[str, int], list[float]] = {}
        for done, meta in self._forced(runs):
            kl, agreement = np.array(self.store.results[:, done.result_index], dtype=np.float64)
            if np.isnan(kl).any():
                raise EvalError(f"{self.url}: the server left tokens out at budget {done.budget}")
            record = TextRecord(
                variant=done.variant.name,
                budget=done.budget,
                number=done.number,
                kl=float(kl.mean()),
                agreement=float(agreement.mean()),
                prompt_tokens=meta["prompt_tokens"],
                forced_tokens=meta["completion_tokens"],
                resident_tokens=meta["kv_resident_tokens"],
                overwritten_tokens=meta["kv_overwritten_tokens"],
                cut_tokens=meta["kv_cut_tokens"],
            )
            found.setdefault((record.variant, record.budget), []).append(record.kl)
            keep(record)
        for point, values in found.items():
            mean = sum(values) / len(values)
            self._report(f"{point_title(*point)}: KL {mean:.4g}", len(values), started)

    def _forced(self, runs: list[ForcedRun]) -> Iterator[tuple[ForcedRun, dict[str, Any]]]:
        """Each pass with its `meta_info`, in order; the server gets them all at once."""
        # Waits, because the last rows may not be free yet.
        post(f"{self.url}/flush_cache?timeout=60", {})
        pool = ThreadPoolExecutor(len(runs))
        try:
            yield from zip(runs, pool.map(self._force_one, runs), strict=True)
        finally:
            # After an error or Ctrl+C nobody waits for the other texts: the server ends them.
            pool.shutdown(wait=False, cancel_futures=True)

    def _force_one(self, one: ForcedRun) -> dict[str, Any]:
        task, text = self.setup.task, self.setup.texts[one.number]
        where = {
            "folder": str(self.folder),
            "text_index": one.text_index,
            "result_index": one.result_index,
        }
        params: dict[str, Any] = {"kv_budget": one.budget, KEY: where}
        if one.variant.policy != FULL:
            params["kv_policy"] = one.variant.policy
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
                f"text {one.number} at budget {one.budget}: the server did not follow it to the "
                f"end; it answered {len(answer['output_ids'])} of {task.forced_tokens} tokens"
            )
        meta: dict[str, Any] = answer["meta_info"]
        if one.budget and meta.get("num_retractions"):
            raise EvalError(
                f"text {one.number} at budget {one.budget}: was retracted and started over; give "
                f"the server a larger pool, or a smaller --concurrency"
            )
        return meta

    def _report(self, title: str, texts: int, started: float) -> None:
        seconds = time.monotonic() - started
        shared().say(f"  {title}, {texts} texts in {seconds:.1f} s")
