# SPDX-License-Identifier: Apache-2.0
"""Metrics, SGLang's side: Prometheus."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from typing import Any

from sglang_longflow.core import runtime
from sglang_longflow.core.counters import RowStats, gauges, rows_used_ratio
from sglang_longflow.hooks.guard import watching
from sglang_longflow.hooks.sglang_types import Req, ScheduleBatch, Scheduler, TokenizerManager
from sglang_longflow.monitor.history import LATENCIES, Histogram, Local

#: Seconds between two updates of the gauges; steps in between cost nothing.
GAUGE_INTERVAL_S = 1.0


class Exporter:
    """Prometheus metrics of the scheduler, on SGLang's /metrics.

    ``sglang_longflow_`` and not ``sglang_longflow:``: promtool rejects colons in metric names.
    The schedulers of a data-parallel server have the label ``dp_rank``, as in SGLang's metrics:
    they share one folder, where the last to write a series would stand for all.
    """

    def __init__(
        self,
        model_name: str,
        row_capacity: int | None,
        dp_rank: int | None = None,
        planned_rows: int | None = None,
    ):
        # Imported late: SGLang sets the multiprocess folder first.
        from prometheus_client import Counter, Gauge

        self._labels = {"model_name": model_name}
        if dp_rank is not None:
            self._labels["dp_rank"] = str(dp_rank)
        names = list(self._labels)
        self._gauges = {
            name: Gauge(f"sglang_longflow_{name}", text, names, multiprocess_mode="mostrecent")
            for name, text in (
                ("rows_at_budget", "Running requests whose row holds its whole KV budget."),
                ("budgeted_tokens", "KV slots held by running requests that have a budget."),
                ("saved_tokens", "KV slots that full KV would hold beyond those for them."),
            )
        }
        self._stalled = Gauge(
            "sglang_longflow_stalled_seconds",
            "How long requests have waited although nothing runs.",
            names,
            multiprocess_mode="mostrecent",
        )
        self._counters = {
            name: Counter(f"sglang_longflow_{name}", text, names)
            for name, text in (
                ("overwritten_tokens", "Decode steps that overwrote a KV slot, summed over rows."),
                ("cut_tokens", "Prompt tokens dropped at the end of prefill."),
                ("retracted_rows", "Budgeted rows that were retracted (should stay 0)."),
                ("failed_hooks", "Requests ended by an error of the plugin (should stay 0)."),
            )
        }
        for name, rows, text in (
            (
                "row_capacity",
                row_capacity,
                "Requests that run at once at the server's default KV budget.",
            ),
            (
                "planned_rows",
                planned_rows,
                "Requests at the default KV budget that the plan expects.",
            ),
        ):
            if rows is not None:
                gauge = Gauge(
                    f"sglang_longflow_{name}", text, names, multiprocess_mode="mostrecent"
                )
                gauge.labels(**self._labels).set(rows)
        # For endpoint pickers: they read a load from one gauge and divide nothing.
        self._row_capacity = row_capacity
        self._rows_used = None
        if rows_used_ratio(0, row_capacity) is not None:
            self._rows_used = Gauge(
                "sglang_longflow_rows_used_ratio",
                "Running requests per request that fits at the server's default KV budget.",
                names,
                multiprocess_mode="mostrecent",
            )
            self._rows_used.labels(**self._labels).set(0)
        self._seen = dict.fromkeys(self._counters, 0)
        self._due = 0.0

    def update(self, state: runtime.Runtime, rows: list[RowStats]) -> None:
        self._due = time.monotonic() + GAUGE_INTERVAL_S
        live = gauges(rows)
        for name, metric in self._gauges.items():
            metric.labels(**self._labels).set(getattr(live, name))
        self._stalled.labels(**self._labels).set(state.stall.seconds(time.monotonic()))
        used = rows_used_ratio(len(rows), self._row_capacity)
        if self._rows_used is not None and used is not None:
            self._rows_used.labels(**self._labels).set(used)
        totals = {
            "overwritten_tokens": state.counters.overwritten_tokens,
            "cut_tokens": state.counters.cut_tokens,
            "retracted_rows": state.counters.retracted_budgeted_rows,
            "failed_hooks": state.counters.failed_hooks,
        }
        for name, total in totals.items():
            self._counters[name].labels(**self._labels).inc(total - self._seen[name])
            self._seen[name] = total

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due


@functools.cache  # a process may register a metric once
def _refusals() -> Any:
    # Imported late: SGLang sets the multiprocess folder first.
    from prometheus_client import Counter

    text = "Requests refused for their KV budget."
    return Counter("sglang_longflow_refusals", text, ["model_name", "reason"])


def count_refusal(reason: str, model_name: str) -> None:
    """Count a refused request by reason, in whichever process refused it.

    `model_name` is ``--served-model-name``, as in the other metrics, so that they can be joined.
    """
    with watching("the count of refusals"):
        _refusals().labels(model_name=model_name, reason=reason).inc()


def local_counts(manager: TokenizerManager) -> Local:
    """What the HTTP process has counted: refusals, and SGLang's latencies if it measures them."""
    refused = sum(
        s.value for m in _refusals().collect() for s in m.samples if s.name.endswith("_total")
    )
    if not manager.enable_metrics:
        return Local(int(refused), missing=dict.fromkeys(LATENCIES, "needs --enable-metrics"))
    collector = manager.metrics_collector
    return Local(
        int(refused),
        {
            # A request that is not streamed is first heard of after 50 tokens, or at its end.
            "time_to_first_token": _histogram(collector.histogram_time_to_first_token, "true"),
            "inter_token": _histogram(collector.histogram_inter_token_latency),
        },
    )


def _histogram(metric: Any, is_streaming: str | None = None) -> Histogram:
    """This process's observations, summed over labels; `is_streaming` is a label's value."""
    reached: Counter[float] = Counter()  # observations up to a bound
    for sample in metric.collect()[0].samples:
        if sample.name.endswith("_bucket") and is_streaming == sample.labels.get("is_streaming"):
            reached[float(sample.labels["le"])] += int(sample.value)
    bounds = sorted(reached)
    steps = [0, *(reached[bound] for bound in bounds)]
    return Histogram(tuple(bounds), tuple(b - a for a, b in itertools.pairwise(steps)))


def row_stats(req: Req) -> RowStats:
    """A running request in the stats; ``seq_len`` and ``kv_len`` in tokens of stored K/V."""
    row = getattr(req, "longflow_row", None)
    kv = req.kv
    kv_len, tree_tokens = kv.kv_committed_len, kv.cache_protected_len
    return RowStats(  # by position: half the time of keywords, and there may be a thousand rows
        req.rid,
        max(len(req.origin_input_ids) + len(req.output_ids) - 1, kv_len),
        kv_len,
        row.budget.tokens if row else 0,
        row.budget.policy.name if row else "",
        kv.kv_allocated_len - tree_tokens,
        tree_tokens,
    )


def observe_batch(state: runtime.Runtime, batch: ScheduleBatch) -> None:
    """Before each decode step: totals always, gauges once a second."""
    state.stall.running()
    counters = state.counters
    counters.decoded_tokens += len(batch.reqs)
    counters.peak_running_requests = max(counters.peak_running_requests, len(batch.reqs))
    if state.exporter is not None and state.exporter.is_due:
        with watching("the metrics"):  # a full disk, say: Prometheus' files are mapped
            state.exporter.update(state, [row_stats(req) for req in batch.reqs])


def on_idle(result: None, self: Scheduler) -> None:
    """After ``Scheduler.on_idle``, which is called in each turn of its loop that runs nothing."""
    state = runtime.current()
    if state is None:
        return
    if self.running_batch.is_empty() and self.chunked_req is None:
        # SGLang looks at its queue again only where this is False, and resets it only where a row
        # ends. On an empty batch it can be nothing but stale.
        self.running_batch.batch_is_full = False
    state.stall.idle_turn(len(self.waiting_queue), time.monotonic())
    if state.exporter is not None and state.exporter.is_due:
        state.exporter.update(state, [])
