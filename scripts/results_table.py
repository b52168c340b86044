"""Write the tables of docs/ from the CSVs in docs/results/; --check compares only.

    python scripts/results_table.py [--check]

A page names a table between two comments, `<!-- scripts/results_table.py NAME: begin -->` and
`<!-- scripts/results_table.py: end -->`. Every number in it is a value of a CSV, a ratio of two, or
what `longflow plan` of this checkout computes.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from sglang_longflow.planner.geometry import kv_bytes_per_token, load_geometry, weights_bytes  # noqa: E402
from sglang_longflow.planner.plan import make_plan  # noqa: E402
from sglang_longflow.planner.step_time import GPUS  # noqa: E402

DOCS = ROOT / "docs"
BEGIN = r"(<!-- scripts/results_table\.py (\S+): begin -->\n)"
END = r"(<!-- scripts/results_table\.py: end -->)"
MARKED = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)
DEFAULT, PAPER = "longflow-novel", "longflow"
H200 = dict(date="2026-11-29", commit="20adcea", gpu="H200")
SMALL = dict(H200, geometry="qwen3-1.7b", pool="290000")
#: Stock's window that begins one lifetime of a request after the start, and the settled one.
FROM_170_S_LOG, SETTLED = "log, 170 to 1110 s", "log, 555 to 1110 s"
#: What is read within each decode step: Hugging Face names of the geometries.
MODELS = {
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
}
#: Tokens in and out of each workload.
LENGTHS = {
    "16k answers": (512, 16384),
    "4k answers": (512, 4096),
    "1k answers": (700, 1024),
    "8 requests": (512, 3000),
    "22 requests": (512, 4096),
}
PLAN_LIMIT = 0.15


@lru_cache
def read(kind: str) -> tuple[dict[str, str], ...]:
    """The rows of one CSV."""
    with (DOCS / "results" / f"{kind}.csv").open(newline="") as file:
        return tuple(csv.DictReader(file))


def rows_of(kind: str, **where: str | int) -> list[dict[str, str]]:
    """Rows whose columns have these values."""
    wanted = {name: str(value) for name, value in where.items()}
    return [row for row in read(kind) if all(row[name] == value for name, value in wanted.items())]


def value(kind: str, metric: str, **where: str | int) -> float:
    """The one value of a metric; more or fewer than one row is an error."""
    found = rows_of(kind, metric=metric, **where)
    if len(found) != 1:
        raise SystemExit(f"{kind}.csv has {len(found)} rows of {metric} for {where}")
    return float(found[0]["value"])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def times(ratio: float, digits: int = 2) -> str:
    return f"{ratio:.{digits}f}x"


def whole(number: float) -> str:
    """With a comma per thousand; halves round up."""
    return f"{int(number + 0.5):,}"


def percent(share: float, digits: int = 1) -> str:
    """Of 100; halves round up, as `whole` rounds."""
    scale = 10**digits
    return f"{math.floor(share * 100 * scale + 0.5) / scale:.{digits}f} %"


# Throughput ---------------------------------------------------------------------------------------


def speed(system: str, workload: str, budget: int, **where: str | int) -> float:
    """Output tokens/s in the job on two H200."""
    found = {**SMALL, "part": "", **where}
    return value(
        "throughput",
        "output_tokens_per_s",
        system=system,
        workload=workload,
        budget=budget,
        **found,
    )


@dataclass(frozen=True)
class Measured:
    """Output tokens/s of one server, and the requests that it ran at once."""

    speed: float
    running: float


@dataclass(frozen=True)
class Comparison:
    """A line of the headline table: stock, the default policy and the paper's."""

    name: str
    stock: Measured
    default: Measured | None
    paper: Measured


def measured(system: str, workload: str, budget: int, **where: str | int) -> Measured:
    found = {**SMALL, "part": "", **where}
    running = value(
        "throughput",
        "running_mean",
        system=system,
        workload=workload,
        budget=budget,
        **found,
    )
    return Measured(speed(system, workload, budget, **where), running)


def comparisons() -> list[Comparison]:
    def of(name: str, workload: str, budget: int, card: int, part: str = "") -> Comparison:
        stock_card = 0 if workload == "16k answers" else 1
        return Comparison(
            name,
            measured("stock", workload, 0, card=stock_card, part=part),
            measured(DEFAULT, workload, budget, card=1),
            measured(PAPER, workload, budget, card=card),
        )

    rkv = dict(geometry="qwen2.5-math-7b", pool=466554)
    stock = measured("stock", "1k answers", 0, card=1, **rkv)
    single = measured(PAPER, "1k answers", 384, card=1, **rkv)
    fours = measured(PAPER, "1k answers", 384, card=0, part="prefills in fours", **rkv)
    return [
        of("16k answers, budget 3,200", "16k answers", 3200, 0),
        of("16k answers, budget 3,200, stock settled", "16k answers", 3200, 0, SETTLED),
        of("16k answers, budget 1,600", "16k answers", 1600, 0),
        of("16k answers, budget 1,600, stock settled", "16k answers", 1600, 0, SETTLED),
        of("4k answers, budget 1,024", "4k answers", 1024, 1),
        Comparison("1k answers, budget 384", stock, None, single),
        Comparison("1k answers, budget 384, prefills in fours", stock, None, fours),
        of("8 requests with memory to spare, budget 1,024", "8 requests", 1024, 1),
    ]


def headline() -> str:
    columns = ("Workload", "GPU", "Stock", "Default policy", "Ratio")
    columns += ("`longflow`, the paper's rule", "Ratio", "Running: stock, budget")
    rows = []
    for one in comparisons():
        default, ratio = "not measured", ""
        if one.default is not None:
            default = f"**{whole(one.default.speed)}**"
            ratio = f"**{times(one.default.speed / one.stock.speed)}**"
        rows.append(
            (
                *(one.name, H200["gpu"], whole(one.stock.speed), default, ratio),
                *(whole(one.paper.speed), times(one.paper.speed / one.stock.speed)),
                f"{one.stock.running:,.1f}, {(one.default or one.paper).running:,.1f}",
                *(H200["commit"], H200["date"]),
            )
        )
    return table((*columns, "Commit", "Date"), rows)


def running_table() -> str:
    """Requests that run at once, retractions and inter-token times, same job."""
    shown = [
        ("16k answers", "stock", 0, 0),
        ("16k answers, budget 3,200", DEFAULT, 3200, 1),
        ("16k answers, budget 3,200", PAPER, 3200, 0),
        ("16k answers, budget 1,600", DEFAULT, 1600, 1),
        ("16k answers, budget 1,600", PAPER, 1600, 0),
        ("4k answers", "stock", 0, 1),
        ("4k answers, budget 1,024", DEFAULT, 1024, 1),
        ("4k answers, budget 1,024", PAPER, 1024, 1),
        ("8 requests", "stock", 0, 1),
        ("8 requests, budget 1,024", DEFAULT, 1024, 1),
        ("8 requests, budget 1,024", PAPER, 1024, 1),
    ]
    rows = []
    for name, system, budget, card in shown:
        where = {**SMALL, "workload": name.split(", budget")[0], "system": system, "part": ""}
        where |= {"budget": str(budget), "card": str(card)}
        get = lambda metric, where=where: value("throughput", metric, **where)  # noqa: E731
        gone = get("retracted_requests")
        if name == "16k answers":  # the JSON counts from the start, all else from 170 s
            gone = value("throughput", "retracted_requests", **{**where, "part": FROM_170_S_LOG})
        rows.append(
            (
                *(name, "stock" if system == "stock" else f"`{system}`", str(card)),
                f"{get('running_mean'):.1f} ({get('running_peak'):.0f})",
                f"{gone:.0f}",
                f"{get('inter_token_ms_mean'):.1f} ({get('inter_token_ms_p99'):.1f})",
                f"{get('first_token_s_median'):.1f}",
            )
        )
    columns = ("Workload", "System", "Card", "Running, mean (peak)", "Retracted")
    return table((*columns, "Inter-token ms, mean (p99)", "First token, median s"), rows)


def settling() -> str:
    """Stock's windows of one run, by the lines of its log."""
    rows = []
    for part in ("log, 0 to 555 s", FROM_170_S_LOG, SETTLED):
        where = dict(SMALL, workload="16k answers", system="stock", card=0, part=part)
        get = lambda metric, where=where: value("throughput", metric, **where)  # noqa: E731
        rows.append(
            (
                part.removeprefix("log, ").replace("1110", "1,110"),
                whole(get("output_tokens_per_s")),
                f"{get('running_mean'):.1f} ({get('running_peak'):.0f})",
                f"{get('retracted_requests'):.0f}",
            )
        )
    return table(("Window", "Output tokens/s", "Running, mean (peak)", "Retracted"), rows)


def sweep() -> str:
    """Against the budget, all on one card under the paper's rule."""
    rows = []
    for budget in (512, 800, 1600, 3200, 6400):
        where = dict(SMALL, workload="16k answers", system=PAPER, card=1, budget=budget)
        get = lambda metric, where=where: value("throughput", metric, **where)  # noqa: E731
        rows.append(
            (
                f"{budget:,}",
                whole(get("output_tokens_per_s")),
                f"{get('running_mean'):.0f}",
                f"{get('inter_token_ms_mean'):.1f}",
            )
        )
    return table(("Budget", "Output tokens/s", "Running requests", "Inter-token ms"), rows)


def published() -> str:
    """Every run of the workload that R-KV's authors publish."""
    rows = []
    for row in rows_of("throughput", workload="1k answers", metric="output_tokens_per_s"):
        where = {name: row[name] for name in ("commit", "system", "part")}
        found = rows_of("throughput", workload="1k answers", metric="running_mean", **where)
        system = "stock" if row["system"] == "stock" else f"`{row['system']}`, budget 384"
        name = ", ".join(filter(None, (system, row["part"])))
        running = whole(float(found[0]["value"]))
        speed_text = whole(float(row["value"]))
        rows.append((row["date"], row["gpu"], row["commit"], name, running, speed_text))
    columns = ("Date", "GPU", "Commit", "System", "Running requests", "Output tokens/s")
    return table(columns, rows)


def default_cost() -> str:
    """What the default policy costs beside the paper's rule, one card."""
    rows = []
    for name, workload, budget in (
        ("16k answers, budget 3,200", "16k answers", 3200),
        ("16k answers, budget 1,600", "16k answers", 1600),
        ("4k answers, budget 1,024", "4k answers", 1024),
        ("8 requests, budget 1,024", "8 requests", 1024),
    ):
        ours, paper = (speed(one, workload, budget, card=1) for one in (DEFAULT, PAPER))
        rows.append(
            (name, f"{whole(ours)} tokens/s", f"{whole(paper)} tokens/s", times(ours / paper))
        )
    for count in (64, 8):
        ours, paper = (step_ms(one, count) for one in (DEFAULT, PAPER))
        name = f"a step, {count} full rows of 3,200"
        rows.append((name, f"{ours:.2f} ms", f"{paper:.2f} ms", times(ours / paper, 3)))
    return table(("", "`longflow-novel`", "`longflow`", "Ratio"), rows)


def step_ms(system: str, rows: int) -> float:
    """Median decode step with every row at its budget of 3,200."""
    where = dict(SMALL, card=1, workload=f"{rows} full rows", part="")
    return value("throughput", "step_ms_median", system=system, **where)


def set_aside() -> str:
    """A step with part of the L2 cache set aside for scores, and without; inter-token times."""
    rows = []
    for count in (64, 8):
        where = dict(commit="2198c06", workload=f"{count} full rows", system=PAPER)
        parts = ("", "nothing set aside in the L2 cache")
        mean, last = (
            [value("throughput", metric, part=part, **where) for part in parts]
            for metric in ("inter_token_ms_mean", "inter_token_ms_p99")
        )
        rows.append(
            (
                f"{count} rows of 3,200",
                *(f"{a:.2f} ({b:.2f})" for a, b in zip(mean, last, strict=True)),
                times(mean[0] / mean[1], 3),
            )
        )
    return table(("", "8.9 MiB set aside, ms (p99)", "Nothing set aside, ms (p99)", "Ratio"), rows)


def prompt_cut() -> str:
    """Eight prompts of 32,768 tokens at once, with the cut at the end of prefill and without."""
    rows = []
    for gpu, commit in (("H200", "2198c06"), ("H100", "0602442")):
        seconds = [
            value(
                "throughput",
                "first_token_s_last",
                commit=commit,
                workload="8 prompts of 32k",
                budget=budget,
                system=PAPER,
            )
            for budget in (3200, 0)
        ]
        more = percent(seconds[0] / seconds[1] - 1)
        rows.append((gpu, commit, f"{seconds[0]:.2f} s", f"{seconds[1]:.2f} s", more))
    return table(("GPU", "Commit", "Budget 3,200", "Full KV", "Longer by"), rows)


# The planner --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A measured point beside what `longflow plan` computes for it; tokens/s."""

    name: str
    gpu: str
    commit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """Of the plan, as a share of the measured speed."""
        return self.planned / self.measured - 1


def planned() -> list[Planned]:
    """Points under the paper's rule and stock; the plan does not know policies."""
    points = []
    shown: tuple[tuple[str, str, str, int, str, dict[str, str]], ...] = (
        *(("16k answers", PAPER, "20adcea", b, "H200", {"card": "1"}) for b in (512, 800)),
        *(("16k answers", PAPER, "20adcea", b, "H200", {"card": "0"}) for b in (1600, 3200)),
        ("16k answers", PAPER, "20adcea", 6400, "H200", {}),
        ("16k answers", "stock", "20adcea", 0, "H200", {"part": SETTLED}),
        ("4k answers", PAPER, "20adcea", 1024, "H200", {}),
        ("4k answers", "stock", "20adcea", 0, "H200", {}),
        ("8 requests", PAPER, "20adcea", 1024, "H200", {}),
        ("8 requests", "stock", "20adcea", 0, "H200", {}),
        ("22 requests", "stock", "20adcea", 0, "H200", {}),
        ("1k answers", PAPER, "20adcea", 384, "H200", {"part": ""}),
        ("1k answers", PAPER, "20adcea", 384, "H200", {"part": "prefills in fours"}),
        ("1k answers", "stock", "20adcea", 0, "H200", {}),
        ("16k answers", PAPER, "2f669e9", 512, "H100", {}),
        ("16k answers", PAPER, "0602442", 800, "H100", {}),
        ("16k answers", PAPER, "0602442", 1600, "H100", {}),
        ("16k answers", PAPER, "0602442", 3200, "H100", {}),
        ("16k answers", PAPER, "57b8d4b", 6400, "H100", {}),
        ("16k answers", "stock", "0602442", 0, "H100", {}),
        ("4k answers", PAPER, "0602442", 1024, "H100", {}),
        ("4k answers", "stock", "0602442", 0, "H100", {}),
        ("8 requests", PAPER, "57b8d4b", 1024, "H100", {}),
        ("8 requests", "stock", "57b8d4b", 0, "H100", {}),
        ("16k answers", PAPER, "7c78fb3", 3200, "H100", {"geometry": "qwen3-8b"}),
        ("16k answers", "stock", "67d95d7", 0, "H100", {"geometry": "qwen3-8b"}),
        ("1k answers", PAPER, "52c00f0", 384, "H100", {"part": ""}),
        ("1k answers", PAPER, "52c00f0", 384, "H100", {"part": "prefills in fours"}),
        ("1k answers", "stock", "52c00f0", 0, "H100", {}),
    )
    for workload, system, commit, budget, gpu, more in shown:
        where = {"commit": commit, "gpu": gpu, "workload": workload, "system": system}
        where |= {"budget": str(budget), "part": "", **more}
        if "geometry" not in where:
            where["geometry"] = "qwen2.5-math-7b" if workload == "1k answers" else "qwen3-1.7b"
        measured = value("throughput", "output_tokens_per_s", **where)
        name = workload + (", Qwen3-8B" if where["geometry"] == "qwen3-8b" else "")
        name += ", stock" if system == "stock" else f", budget {budget:,}"
        if where["part"] == "prefills in fours":
            name += ", prefills in fours"
        point = plan_of(where["geometry"], gpu, workload, budget)
        points.append(Planned(name, gpu, commit, point, measured))
    return points


def plan_of(geometry: str, gpu: str, workload: str, budget: int) -> float:
    """Output tokens/s that `longflow plan` computes for a workload and the pool it was run with."""
    pools = {"qwen2.5-math-7b": 466_554, "qwen3-8b": 391_726}
    pool = pools.get(geometry, 110_000 if workload == "22 requests" else 290_000)
    prompt, output = LENGTHS[workload]
    users = int(workload.split()[0]) if workload.endswith("requests") else None
    name = next(name for name in GPUS if name.startswith(gpu) and "40G" not in name)
    plan = make_plan(
        load_geometry(MODELS[geometry]),
        gpu=GPUS[name],
        budget_tokens=budget or 64,  # any; full_tokens_per_s does not depend on it
        users=users,
        prompt_tokens=prompt,
        output_tokens=output,
        pool_tokens=pool,
    )
    found = plan.budget_tokens_per_s if budget else plan.full_tokens_per_s
    assert found is not None
    return found


def plan_table() -> str:
    rows = []
    for one in planned():
        off = f"{one.error * 100:+.1f} %"
        if abs(one.error) > PLAN_LIMIT:
            off = f"**{off}**"
        numbers = (whole(one.planned), whole(one.measured), off)
        rows.append((one.name, one.gpu, one.commit, *numbers))
    return table(("Workload", "GPU", "Commit", "Planned", "Measured", "Off by"), rows)


# Kernels ------------------------------------------------------------------------------------------


def kernel_us(system: str, heads: str, batch: int, row_tokens: int, commit: str) -> float | None:
    where = dict(heads=heads, batch=batch, row_tokens=row_tokens, commit=commit, system=system)
    found = rows_of("kernels", metric="median_us", **where)
    return float(found[0]["value"]) if found else None


def kernel_rows(shapes: Iterable[tuple[str, int, int]], commit: str) -> str:
    """Times in microseconds; in brackets to FlashInfer's time, or for policies that remember to
    `longflow`'s."""

    def beside(time: float | None, rival: float | None) -> str:
        if time is None or rival is None:
            return ""
        return f"{time:.1f} ({time / rival:.3f}x)"

    rows = []
    for heads, batch, row_tokens in shapes:
        at = (heads, batch, row_tokens, commit)
        flashinfer, paper = kernel_us("flashinfer", *at), kernel_us(PAPER, *at)
        assert flashinfer is not None
        rows.append(
            (
                *(heads, str(batch), f"{row_tokens:,}", f"{flashinfer:.1f}"),
                beside(kernel_us(DEFAULT, *at), paper),
                beside(kernel_us("longflow-peak", *at), paper),
                beside(paper, flashinfer),
                beside(kernel_us("victim per KV head", *at), flashinfer),
                beside(kernel_us("rows not full", *at), flashinfer),
            )
        )
    columns = ("Query/KV heads/size", "Batch", "Row", "FlashInfer", "`longflow-novel`")
    columns += ("`longflow-peak`", "`longflow`", "`longflow`, a victim per KV head")
    return table((*columns, "Rows that are not full"), rows)


def newest_kernels() -> str:
    """Commit of the last run of bench_kernels.py."""
    return rows_of("kernels", system="flashinfer", metric="median_us")[-1]["commit"]


def all_kernels() -> str:
    found = rows_of("kernels", commit=newest_kernels(), system="flashinfer", metric="median_us")
    shapes = [(row["heads"], int(row["batch"]), int(row["row_tokens"])) for row in found]
    run = f"\n{found[0]['gpu']} at {found[0]['commit']}, {found[0]['date']}.\n"
    return kernel_rows(shapes, newest_kernels()) + run


def h100_kernels() -> str:
    found = rows_of("kernels", commit="67d95d7", system="flashinfer", metric="median_us")
    shapes = [(row["heads"], int(row["batch"]), int(row["row_tokens"])) for row in found]
    return kernel_rows(shapes, "67d95d7")


def l2() -> str:
    """Full rows' time as a share of FlashInfer's, by megabytes set aside for scores."""
    found = rows_of("kernels", commit="d3331b4", metric="times_flashinfer")
    sizes = (0, 15, 18, 22, 26)
    shapes = dict.fromkeys((row["heads"], row["batch"], row["row_tokens"]) for row in found)
    rows = []
    for heads, batch, tokens in shapes:
        scores = int(batch) * int(tokens) * int(heads.split("/")[0]) * 2 / 1e6
        cells = []
        for size in sizes:
            where = dict(heads=heads, batch=batch, row_tokens=tokens)
            where["part"] = f"L2 set aside: {size} MB"
            cell = rows_of("kernels", commit="d3331b4", metric="times_flashinfer", **where)
            cells.append(times(float(cell[0]["value"]), 3) if cell else "")
        rows.append((heads, batch, f"{int(tokens):,}", f"{scores:.0f} MB", *cells))
    columns = ("Query/KV heads/size", "Batch", "Row", "Scores", "Nothing set aside")
    return table((*columns, *(f"{size} MB" for size in sizes[1:])), rows)


# Goals --------------------------------------------------------------------------------------------


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
    where = dict(SMALL, workload=workload, system=system, budget=budget, card=card, part="")
    geometry = load_geometry(MODELS["qwen3-1.7b"])
    read_bytes = weights_bytes(geometry)
    read_bytes += value("throughput", "pool_tokens_mean", **where) * kv_bytes_per_token(geometry)
    copy = value("kernels", "copy_rate", commit="d3331b4") * 1e12
    step = value("throughput", "running_mean", **where) / speed(system, workload, budget, card=card)
    return read_bytes / copy / step


def goals() -> list[Goal]:
    named = {one.name: one for one in comparisons()}

    def gain(name: str, asked: float) -> Goal:
        one = named[name]
        default = None if one.default is None else one.default.speed / one.stock.speed
        what = f"Output tokens/s over stock, {name}"
        return Goal(what, asked, True, default, one.paper.speed / one.stock.speed, times)

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

    inert = dict(pool=110000, card=1)
    plugin = speed("inert", "22 requests", 0, **inert) / speed("stock", "22 requests", 0, **inert)
    equal = dict(SMALL, workload="equal resident tokens", part="204,800 tokens")
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
    load = speed(PAPER, "16k answers", 3200, card=1) / speed(DEFAULT, "16k answers", 3200, card=1)
    state = "State on the device beside the pool"
    return [
        gain("16k answers, budget 3,200", 2.6),
        gain("16k answers, budget 1,600", 4.8),
        gain("4k answers, budget 1,024", 2.0),
        Goal(
            "Share of the ceiling that memory sets, 16k answers, budget 3,200",
            0.85,
            True,
            ceiling(DEFAULT, "16k answers", 3200, 1),
            ceiling(PAPER, "16k answers", 3200, 0),
            lambda x: percent(x, 0),
        ),
        Goal(
            "Share of the ceiling that memory sets, 4k answers, budget 1,024",
            0.85,
            True,
            ceiling(DEFAULT, "4k answers", 1024, 1),
            ceiling(PAPER, "4k answers", 1024, 1),
            lambda x: percent(x, 0),
        ),
        Goal(
            "The default's step over `longflow`'s, 64 full rows of 3,200",
            1.05,
            False,
            step_ms(DEFAULT, 64) / step_ms(PAPER, 64),
            None,
            three,
        ),
        Goal(
            "The same with 8 full rows",
            1.05,
            False,
            step_ms(DEFAULT, 8) / step_ms(PAPER, 8),
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


# Accuracy -----------------------------------------------------------------------------------------


def answer(
    policy: str, budget: int, metric: str = "accuracy", part: str = "", **more: str
) -> float:
    where = {"workload": "reasoner", **more}
    return value("accuracy", metric, policy=policy, budget=budget, part=part, **where)


def policy_names(kind: str, workload: str) -> list[str]:
    """Policies of a workload's main run, in the CSV's order."""
    names = (row["policy"] for row in rows_of(kind, workload=workload, part=""))
    return list(dict.fromkeys(name for name in names if name != "full" and ":recent" not in name))


def emphasised(policy: str) -> str:
    return f"**`{policy}`**" if policy == DEFAULT else f"`{policy}`"


def accuracy() -> str:
    """Right answers by policy and budget with 95 % intervals, the best at 20 % first."""
    budgets = (86, 172, 345, 689)
    shares = (5, 10, 20, 40)
    names = policy_names("accuracy", "reasoner")
    names.sort(key=lambda name: -answer(name, 345))
    rows = []
    for name in names:
        cells = []
        for budget in budgets:
            right = percent(answer(name, budget))
            low, high = (answer(name, budget, f"accuracy_{end}") * 100 for end in ("low", "high"))
            cells.append(f"{right} ({low:.1f} to {high:.1f})")
        rows.append((emphasised(name), *cells))
    columns = [f"{budget} ({share} %)" for budget, share in zip(budgets, shares, strict=True)]
    return table(("Policy", *columns), rows)


def divergence(workload: str) -> Callable[[], str]:
    def made() -> str:
        budgets = (205, 410, 819, 1638)

        def kl(name: str, budget: int, metric: str = "kl") -> float:
            where = dict(workload=workload, policy=name, budget=budget, part="")
            return value("divergence", metric, **where)

        names = sorted(policy_names("divergence", workload), key=lambda name: kl(name, 410))
        rows = [
            (
                emphasised(name),
                *(f"{kl(name, b):.4f} ({percent(kl(name, b, 'agreement'))})" for b in budgets),
            )
            for name in names
        ]
        columns = [f"{b:,} ({s} %)" for b, s in zip(budgets, (5, 10, 20, 40), strict=True)]
        title = {"math": "MATH", "gsm8k": "GSM8K"}[workload]
        return table((title, *columns), rows)

    return made


def accuracy_goals() -> str:
    full = answer("full", 0)
    best = max(
        answer(name, 345)
        for name in policy_names("accuracy", "reasoner")
        if name not in (DEFAULT, "longflow-peak", PAPER, "random", "streaming:sinks=4")
    )
    window = full - max(answer("streaming:sinks=4", 345), answer("random", 345))

    def verdict(met: bool) -> str:
        return "met" if met else "**missed**"

    def points(share: float) -> str:
        return f"{share * 100:.1f} points"

    def below(workload: str, budget: int) -> float:
        where = dict(workload=workload, budget=budget, part="")
        ours, paper = (value("divergence", "kl", policy=p, **where) for p in (DEFAULT, PAPER))
        return 1 - ours / paper

    lost, ahead = full - answer(DEFAULT, 345), answer(DEFAULT, 345) - best
    rows = [
        ("Full KV solves at least", "97 %", percent(full), verdict(full >= 0.97)),
        (
            "A window and random choice lose at least",
            "30 points",
            points(window),
            verdict(window >= 0.3),
        ),
        ("The default at 20 % loses at most", "1 point", points(lost), verdict(lost <= 0.01)),
        (
            "The default at 20 % is above the best published rule by at least",
            "3 points",
            points(ahead),
            verdict(ahead >= 0.03),
        ),
    ]
    for workload, title in (("math", "MATH"), ("gsm8k", "GSM8K")):
        found = {budget: below(workload, budget) for budget in (205, 410, 819, 1638)}
        missed = [f"{budget:,}" for budget, share in found.items() if share < 0.25]
        rows.append(
            (
                f"The default's KL is below `longflow`'s at 205, 410, 819 and 1,638 slots, {title}",
                "25 %",
                ", ".join(percent(share, 0) for share in found.values()),
                f"**missed** at {', '.join(missed)}" if missed else "met",
            )
        )
    return table(("Goal", "Asked", "Measured", ""), rows)


def forms_of_novelty() -> str:
    """The three forms that `longflow-novel` had, through a server."""
    forms = (
        ("6 means of the row's scores", "novelty worth 6 means of the row"),
        ("twice the level, in every row", "novelty worth twice the level, in every row"),
        ("by the recall (the form that ships)", ""),
    )
    rows = []
    for name, part in forms:
        cells = [percent(answer(DEFAULT, budget, part=part)) for budget in (86, 172, 345, 689)]
        for budget in (205, 410, 819, 1638):
            where = dict(workload="math", budget=budget)
            found = rows_of("divergence", metric="kl", policy=DEFAULT, part=part, **where)
            cells.append(f"{float(found[0]['value']):.4f}" if found else "")
        rows.append((name, *cells))
    columns = [f"right at {budget}" for budget in (86, 172, 345, 689)]
    columns += [f"KL at {budget:,}" for budget in (205, 410, 819, 1638)]
    return table(("Novelty counts", *columns), rows)


def two_stages() -> str:
    """Right answers at 345 slots after the first stage of training and after both."""
    first = "first stage of training"
    asked = rows_of("accuracy", metric="answers", part=first, budget=345, value=500)
    names = [
        row["policy"] for row in asked if row["policy"] in policy_names("accuracy", "reasoner")
    ]
    rows = [("full KV", *(percent(answer("full", 0, part=part)) for part in (first, "")))]
    for name in sorted(names, key=lambda name: -answer(name, 345)):
        rows.append((f"`{name}`", *(percent(answer(name, 345, part=part)) for part in (first, ""))))
    return table(("Policy", "First stage", "Both stages"), rows)


def hugging_face_loop() -> str:
    """The loop beside a server with a budget, on an H100."""
    loop = dict(system="transformers", commit="860633d")
    server = dict(system=PAPER, commit="57b8d4b", workload="16k answers", budget=3200)
    found = [
        (
            name,
            value("throughput", count, **where),
            value("throughput", "output_tokens_per_s", **where),
        )
        for name, count, where in (
            ("Hugging Face loop, full KV, H100", "batch", loop),
            ("`longflow`, budget 3,200, H100", "running_mean", server),
        )
    ]
    rows = [(name, f"{count:.0f}", whole(tokens)) for name, count, tokens in found]
    rows.append(("ratio", "", times(found[1][2] / found[0][2])))
    return table(("", "Sequences at once", "Output tokens/s"), rows)


def long_chains() -> str:
    """Rules asked about problems with long chains, through a server."""
    names = {
        "w50": "novelty worth 50 levels",
        "w100": "100 levels",
        "w200": "200 levels",
        "w100r32": "100 levels, 32 recent tokens protected",
        "w100d97": "100 levels, decay 0.97",
        "w100s3": "100 levels, the level of 0.3 of the slots",
        "w100a85": "100 levels, similarity counted from 0.85",
        "w100a93": "100 levels, similarity counted from 0.93",
        "shipped": "16 levels, as shipped, unfinished",
    }
    rows = []
    for part, name in names.items():
        where = dict(part=part, workload="reasoner, long search chains")
        asked = answer(DEFAULT, 345, "answers", **where)
        right = round(answer(DEFAULT, 345, **where) * asked)
        rows.append((name, f"{asked:.0f}", f"{right}"))
    return table(("Rule", "Asked", "Solved"), rows)


# Rules that were explored without a server --------------------------------------------------------

METRIC_NAMES = {
    "solved": "Solved",
    "search_solved": "`search` solved",
    "machine": "`machine`",
    "affine": "`affine`",
    "search": "`search`",
    "wrong": "Wrong per million tokens",
    "kl": "KL",
    "top1": "Same token",
}


def explored(file: str) -> dict[tuple[str, ...], dict[str, float]]:
    """Metrics of each line of a file: by training, tokens, seed, problems and rule."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows_of("rules", source=f"2026-11-24-rules:{file}.csv"):
        key = tuple(row[name] for name in ("training", "tokens", "seed", "problems", "rule"))
        found.setdefault(key, {})[row["metric"]] = float(row["value"])
    if not found:
        raise SystemExit(f"rules.csv has nothing of {file}")
    return found


def explored_cell(metric: str, found: float | None) -> str:
    if found is None:
        return ""
    if metric == "kl":
        return f"{found:.4f}"
    return whole(found) if metric == "wrong" else percent(found, 1 if metric == "top1" else 0)


def explored_table(
    file: str,
    metrics: Sequence[str],
    *,
    told: dict[str, str] | None = None,
    beside: str = "",
    beside_metrics: Sequence[str] = (),
    renamed: Callable[[str], str] = str,
    keep: Callable[[tuple[str, ...]], bool] = lambda key: True,
    only_shared: bool = False,
) -> Callable[[], str]:
    """A table of a file's rules, best first; `told` are columns of conditions, `beside` another
    file's metrics of the same rule, whose name there `renamed` gives."""

    def made() -> str:
        names = ("training", "tokens", "seed", "problems")
        other = {key[-1]: value for key, value in explored(beside).items()} if beside else {}
        lines = [(key, value) for key, value in explored(file).items() if keep(key)]
        lines.sort(key=lambda line: line[1][metrics[0]] * (1 if metrics[0] == "kl" else -1))
        rule_names = [key[-1] for key, _ in lines]
        rows = []
        for key, value in lines:
            conditions = dict(zip(names, key, strict=False))
            more = other.get(renamed(key[-1]), {})
            rows.append(
                (
                    f"`{key[-1]}`",
                    *(conditions[name] for name in told or {}),
                    *(explored_cell(metric, value.get(metric)) for metric in metrics),
                    *(explored_cell(metric, more.get(metric)) for metric in beside_metrics),
                )
            )
        for name in other:  # rules that only the other file has
            if not only_shared and name not in {renamed(one) for one in rule_names}:
                blank = ("",) * (len(told or {}) + len(metrics))
                cells = [
                    explored_cell(metric, other[name].get(metric)) for metric in beside_metrics
                ]
                rows.append((f"`{name}`", *blank, *cells))
        suffix = ", GSM8K" if beside.endswith("gsm8k") else ""
        columns = ["Rule", *(told or {}).values(), *(METRIC_NAMES[metric] for metric in metrics)]
        return table([*columns, *(METRIC_NAMES[m] + suffix for m in beside_metrics)], rows)

    return made


def added_novelty(rule: str) -> str:
    """The rule as it is written in the runs on SmolLM2, whose rows are shorter."""
    return rule.replace("recent=64", "recent=45")


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "goals": goals_table,
    "gpu-tests": gpu_tests,
    "running": running_table,
    "settling": settling,
    "sweep": sweep,
    "published": published,
    "default-cost": default_cost,
    "set-aside": set_aside,
    "prompt-cut": prompt_cut,
    "plan": plan_table,
    "kernels": all_kernels,
    "kernels-h100": h100_kernels,
    "l2": l2,
    "accuracy": accuracy,
    "accuracy-goals": accuracy_goals,
    "kl-math": divergence("math"),
    "kl-gsm8k": divergence("gsm8k"),
    "forms-of-novelty": forms_of_novelty,
    "long-chains": long_chains,
    "two-stages": two_stages,
    "hugging-face-loop": hugging_face_loop,
    "rules-reasoner": explored_table(
        "reasoner-shipped", ("solved", "machine", "affine", "search", "wrong")
    ),
    "rules-smollm2": explored_table(
        "smollm2", ("kl", "top1"), beside="smollm2-gsm8k", beside_metrics=("kl", "top1")
    ),
    "rules-added": explored_table(
        "reasoner-search",
        ("search_solved", "wrong"),
        keep=lambda key: key[0] == "hide and drop",
        beside="smollm2",
        beside_metrics=("kl",),
        renamed=added_novelty,
        only_shared=True,
    ),
    "rules-levels": explored_table(
        "reasoner-long", ("solved", "wrong"), beside="smollm2-long", beside_metrics=("kl",)
    ),
    "rules-recall": explored_table(
        "reasoner-recall",
        ("solved", "wrong"),
        told={"tokens": "Tokens", "seed": "Seed", "problems": "Chains"},
    ),
    "rules-hidden": explored_table(
        "reasoner-hidden",
        ("solved", "machine", "affine", "search", "wrong"),
        told={"training": "Steps", "tokens": "Tokens"},
    ),
    "rules-hide": explored_table(
        "reasoner-search", ("search_solved", "wrong"), keep=lambda key: key[0] == "hide"
    ),
}


def current(text: str) -> str:
    """A page's text with its tables as the CSVs have them."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is not current")
    parser.add_argument("--show", choices=TABLES, help="print one table only")
    args = parser.parse_args()
    if args.show:
        print(TABLES[args.show](), end="")
        return 0
    stale = [
        page for page in sorted(DOCS.rglob("*.md")) if current(page.read_text()) != page.read_text()
    ]
    for page in stale:
        if args.check:
            print(
                f"{page}: not what docs/results says; run scripts/results_table.py", file=sys.stderr
            )
        else:
            page.write_text(current(page.read_text()))
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
