# SPDX-License-Identifier: Apache-2.0
"""Goals of speed, met and missed, and the last runs of the tests on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from result_tables.data import DEFAULT, PAPER, percent, read, table, times, value
from result_tables.kernels import kernel_us, newest_kernels
from result_tables.plan import MODELS, PLAN_LIMIT, planned
from result_tables.speed import NOW, comparisons, speed, step_ms
from sglang_longflow.planner.geometry import kv_bytes_per_token, load_geometry
from sglang_longflow.planner.weights import weights_bytes


@dataclass(frozen=True)
class Goal:
    """A goal, what both policies reach, and whether that is enough; None was not measured."""

    what: str
    asked: float
    at_least: bool
    default: float | None
    paper: float | None
    show: Callable[[float], str]

    def verdict(self) -> str:
        def meets(found: float) -> bool:
            return found >= self.asked if self.at_least else found <= self.asked

        met = [meets(found) for found in (self.default, self.paper) if found is not None]
        if all(met):
            return "met"
        if not any(met):
            return "**missed**"
        default_met = self.default is not None and meets(self.default)
        return f"**missed** by {'`longflow`' if default_met else 'the default'}"


def ceiling(system: str, workload: str, budget: int, card: int) -> float:
    """Weights and resident K/V over the copy rate, as a share of the mean step."""
    where = dict(NOW, workload=workload, system=system, budget=budget, card=card, part="")
    geometry = load_geometry(MODELS["qwen3-1.7b"], hub=False)
    read_bytes = weights_bytes(geometry)
    read_bytes += value("throughput", "pool_tokens_mean", **where) * kv_bytes_per_token(geometry)
    copy = value("kernels", "copy_rate", commit="d3331b4") * 1e12
    step = value("throughput", "running_mean", **where) / speed(
        system, workload, budget, **{**NOW, "card": card}
    )
    return read_bytes / copy / step


def goals() -> list[Goal]:
    named = {one.name: one for one in comparisons()}

    def gain(name: str, asked: float) -> Goal:
        one = named[name]
        default = None if one.default is None else one.default.speed / one.stock.speed
        what = f"Output tokens/s over stock, {name}"
        return Goal(what, asked, True, default, one.paper.speed / one.stock.speed, times)

    def share(workload: str, budget: int, paper_card: int) -> Goal:
        what = f"Share of the ceiling that memory sets, {workload}, budget {budget:,}"
        default = ceiling(DEFAULT, workload, budget, 1)
        paper = ceiling(PAPER, workload, budget, paper_card)
        return Goal(what, 0.85, True, default, paper, lambda x: percent(x, 0))

    def kernel(batch: int, asked: float) -> Goal:
        at = ("32/8/128", batch, 3200, newest_kernels())
        rival = kernel_us("flashinfer", *at)
        ours, paper = kernel_us(DEFAULT, *at), kernel_us(PAPER, *at)
        assert rival and ours and paper
        what = f"Decode kernel over FlashInfer's, full rows of 3,200, batch {batch}"
        return Goal(what, asked, False, ours / rival, paper / rival, lambda x: times(x, 3))

    def not_full() -> float:
        return max(
            (kernel_us("rows not full", "32/8/128", batch, 3200, newest_kernels()) or 0)
            / (kernel_us("flashinfer", "32/8/128", batch, 3200, newest_kernels()) or 1)
            for batch in (128, 32, 8, 1)
        )

    plugin = speed("inert", "22 requests", 0, **{**NOW, "pool": 110000, "card": 1})
    plugin /= speed("stock", "22 requests", 0, **NOW, card=1)
    equal = dict(NOW, workload="equal resident tokens", part="204,800 tokens")
    equal_step = [
        value("throughput", "step_ms_median", system=s, **equal) for s in (PAPER, "stock")
    ]
    cut = [
        value(
            "throughput",
            "first_token_s_last",
            commit="2198c06",
            workload="8 prompts of 32k",
            budget=budget,
            system=PAPER,
        )
        for budget in (3200, 0)
    ]
    loop = value("throughput", "output_tokens_per_s", system="transformers")
    beside_loop = dict(commit="57b8d4b", workload="16k answers", budget=3200, system=PAPER)
    loop_gain = value("throughput", "output_tokens_per_s", **beside_loop) / loop
    worst = max((one for one in planned() if one.gpu == "H200"), key=lambda one: abs(one.error))
    wide, narrow = (8 / (2 * heads * size * 2) for heads, size in ((8, 128), (2, 64)))
    three = lambda x: times(x, 3)  # noqa: E731
    load = speed(PAPER, "16k answers", 3200, **NOW, card=1)
    load /= speed(DEFAULT, "16k answers", 3200, **NOW, card=1)
    state = "State on the device beside the pool"
    return [
        gain("16k answers, budget 3,200", 2.6),
        gain("16k answers, budget 1,600", 4.8),
        gain("4k answers, budget 1,024", 2.0),
        share("16k answers", 3200, paper_card=1),
        share("4k answers", 1024, paper_card=1),
        Goal(
            "The default's step over `longflow`'s, 64 full rows of 3,200",
            1.05,
            False,
            step_ms(DEFAULT, 64, NOW) / step_ms(PAPER, 64, NOW),
            None,
            three,
        ),
        Goal(
            "The same with 8 full rows",
            1.05,
            False,
            step_ms(DEFAULT, 8, NOW) / step_ms(PAPER, 8, NOW),
            None,
            three,
        ),
        Goal(
            "The same under load, 16k answers, budget 3,200 (tokens/s)",
            1.05,
            False,
            load,
            None,
            three,
        ),
        kernel(128, 1.06),
        kernel(32, 1.06),
        kernel(8, 1.25),
        kernel(1, 1.6),
        Goal("The same, rows that are not full, worst batch", 1.02, False, None, not_full(), three),
        Goal(
            "A step over stock's at equal resident tokens, 64 rows",
            1.03,
            False,
            None,
            equal_step[0] / equal_step[1],
            times,
        ),
        Goal(
            "Cut of 8 prompts of 32k: last first token later by",
            0.05,
            False,
            None,
            cut[0] / cut[1] - 1,
            percent,
        ),
        Goal("Plugin installed, no budget: tokens/s over stock", 0.99, True, None, plugin, three),
        Goal("Over a Hugging Face loop, 16k answers (H100)", 11.8, True, None, loop_gain, times),
        Goal(
            f"`longflow plan` off by, worst of the H200's points ({worst.name})",
            PLAN_LIMIT,
            False,
            None,
            abs(worst.error),
            lambda x: percent(x, 0),
        ),
        Goal(f"{state}, 8 KV heads of 128 (arithmetic)", 0.01, False, wide, None, percent),
        Goal(f"{state}, 2 KV heads of 64 (arithmetic)", 0.01, False, narrow, None, percent),
    ]


def goals_table() -> str:
    rows = [
        (
            goal.what,
            f"{'≥' if goal.at_least else '≤'} {goal.show(goal.asked)}",
            goal.show(goal.default) if goal.default is not None else "",
            goal.show(goal.paper) if goal.paper is not None else "",
            goal.verdict(),
        )
        for goal in goals()
    ]
    return table(("Goal", "Asked", "Default policy", "`longflow`", ""), rows)


def gpu_tests() -> str:
    """The last run of each test by each way to decode, a line per run."""
    last = {(row["test"], row["decode"]): row for row in read("gpu-tests")}  # oldest first
    runs = dict.fromkeys((row["date"], row["gpu"], row["commit"]) for row in last.values())
    rows = []
    for date, gpu, commit in runs:
        cells = []
        for decodes in (("fused", ""), ("reference",)):
            named = [
                test + ("" if row["value"] == "passed" else f" ({row['value']})")
                for (test, decode), row in last.items()
                if decode in decodes and (row["date"], row["commit"]) == (date, commit)
            ]
            cells.append("; ".join(named))
        rows.append((commit, gpu, date, *cells))
    columns = ("Last ran at", "GPU", "Date", "Fused kernel", "Reference decode")
    return table(columns, rows)
