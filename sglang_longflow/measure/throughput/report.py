# SPDX-License-Identifier: Apache-2.0
"""A bench on disk and on the terminal: CSV, JSON, PNG, a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sglang_longflow.measure.plot import budget_axis
from sglang_longflow.measure.table import print_table
from sglang_longflow.measure.throughput.point import ENOUGH_REACHED, Result
from sglang_longflow.measure.variants import budget_text

_LABELS = {
    "longflow": "full KV on the budget server",
    "server": "full KV",
    "stock": "stock SGLang, its own defaults",
    "stock-same": "stock SGLang, the budget server's settings",
}
#: As SGLang names it.
CPU = "cpu"
_STYLES = {"longflow": ":", "server": "--", "stock": "--", "stock-same": "-."}


def save(folder: Path, settings: dict[str, Any], results: Sequence[Result]) -> None:
    """Write ``bench.csv`` and ``bench.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "points": [asdict(result) for result in results]}
    (folder / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    with (folder / "bench.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, [item.name for item in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)


def title_of(settings: dict[str, Any]) -> str:
    """What was measured, and on what: model, device, policy, lengths of a request in tokens."""
    names = [server.get("model") for server in settings["servers"].values()]
    model = settings["model"] or next(filter(None, names), "")
    if Path(model).is_dir():
        model = Path(model).resolve().name
    devices = dict.fromkeys(filter(None, (s.get("device") for s in settings["servers"].values())))
    where = ", ".join("a CPU" if device == CPU else device for device in devices)
    return (
        f"{model}{f' on {where}' if where else ''}, policy {settings['policy']}, "
        f"{settings['requests']:,} x {settings['input_tokens']:,} + "
        f"{settings['output_tokens']:,} tokens"
    )


def draw(results: Sequence[Result], path: Path, title: str) -> None:
    """Output tokens per second and inter-token latency against the budget; lines are full KV."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bounded = sorted((x for x in results if x.budget), key=lambda x: x.budget)
    budgets = [result.budget for result in bounded]
    figure, (rate, delay) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    rate.plot(budgets, [x.output_tokens_per_s for x in bounded], marker="o", label="with a budget")
    for name, marker in (("p50", "o"), ("p99", "^")):
        values = [getattr(x, f"inter_token_ms_{name}") for x in bounded]
        delay.plot(budgets, values, marker=marker, label=f"with a budget, {name}")
    for result in results:
        if not result.budget:
            style = dict(linestyle=_STYLES[result.system], color="black", linewidth=1.2)
            label = _LABELS[result.system]
            rate.axhline(result.output_tokens_per_s, label=label, **style)
            if result.inter_token_ms_p50 is not None:
                delay.axhline(result.inter_token_ms_p50, label=f"{label}, p50", **style)
    for axes, unit in ((rate, "output tokens per second"), (delay, "between tokens (ms)")):
        budget_axis(axes, budgets)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _number(value: float | None, form: str = ",.1f") -> str:
    return "?" if value is None else format(value, form)


def rows_of(results: Sequence[Result]) -> list[list[str]]:
    """The table's rows, as texts; the ratio is to the first of `stock`, `stock-same`, full KV."""
    full = {x.system: x for x in results if not x.budget}
    against = next(
        (full[n] for n in ("stock", "stock-same", "longflow", "server") if n in full), None
    )
    return [
        [
            x.system,
            budget_text(x.budget),
            _number(x.output_tokens_per_s),
            f"{x.output_tokens_per_s / against.output_tokens_per_s:.2f}x" if against else "",
            _number(x.first_token_s_p50, ",.2f"),
            _number(x.inter_token_ms_mean),
            _number(x.inter_token_ms_p50),
            _number(x.inter_token_ms_p99),
            "?" if x.running_peak is None else f"{x.running_peak:,}",
            f"{x.retractions:,}",
            "" if x.reached_share is None else f"{x.reached_share:.0%}",
        ]
        for x in results
    ]


COLUMNS = (
    *("tokens/s", "ratio", "first token s", "inter-token ms", "inter-token p50", "inter-token p99"),
    *("peak running", "retracted", "reached"),
)


def warnings(results: Sequence[Result]) -> list[str]:
    """What the reader must know before believing the table."""
    return [
        f"warning: budget {x.budget:,}: {x.reached_share:.0%} of the requests reached it, fewer "
        f"than {ENOUGH_REACHED:.0%}; this point says nothing about the budget. Give more "
        f"--output-tokens or a smaller budget."
        for x in results
        if not x.is_about_its_budget
    ]


def notes(settings: dict[str, Any]) -> list[str]:
    """What the speeds say nothing about."""
    if all(server.get("device") != CPU for server in settings["servers"].values()):
        return []
    return [
        "note: on a CPU budgets run in the reference decode, plain PyTorch, and full KV in "
        "SGLang's own attention: that a budget is slower here says nothing about a GPU."
    ]


def show(results: Sequence[Result], settings: dict[str, Any]) -> None:
    """Print the table, the warnings and notes."""
    print_table(title_of(settings), COLUMNS, rows_of(results), first="server")
    for line in (*warnings(results), *notes(settings)):
        print(line)
