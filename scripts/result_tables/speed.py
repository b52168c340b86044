# SPDX-License-Identifier: Apache-2.0
"""Tables of throughput and of steps; output tokens per second."""

from __future__ import annotations

from dataclasses import dataclass

from result_tables.data import DEFAULT, PAPER, percent, rows_of, table, times, value, whole
from result_tables.kernels import kernel_us

#: The last job with SGLang 0.5.17, which ran most workloads, and the one with 0.5.23.
H200 = dict(date="2026-11-29", commit="20adcea", gpu="H200")
SMALL = dict(H200, geometry="qwen3-1.7b", pool="290000")
NOW = dict(SMALL, date="2026-11-30", commit="709647a")
JOBS = (SMALL, NOW)
SGLANG = {"20adcea": "0.5.17", "709647a": "0.5.23"}
#: Stock's window that begins one lifetime of a request after the start, and the settled one.
FROM_170_S_LOG, SETTLED = "log, 170 to 1110 s", "log, 555 to 1110 s"


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
    job: dict[str, str]


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
    def of(
        name: str,
        workload: str,
        budget: int,
        card: int,
        part: str = "",
        job: dict[str, str] = SMALL,
    ) -> Comparison:
        stock_card = 0 if workload == "16k answers" else 1
        return Comparison(
            name,
            measured("stock", workload, 0, **job, card=stock_card, part=part),
            measured(DEFAULT, workload, budget, **job, card=1),
            measured(PAPER, workload, budget, **job, card=card),
            job,
        )

    rkv: dict[str, str | int] = dict(geometry="qwen2.5-math-7b", pool=466554)
    stock = measured("stock", "1k answers", 0, card=1, **rkv)
    single = measured(PAPER, "1k answers", 384, card=1, **rkv)
    fours = measured(PAPER, "1k answers", 384, card=0, part="prefills in fours", **rkv)
    return [
        of("16k answers, budget 3,200", "16k answers", 3200, 1, FROM_170_S_LOG, NOW),
        of("16k answers, budget 3,200, stock settled", "16k answers", 3200, 1, SETTLED, NOW),
        of("16k answers, budget 3,200, stock settled", "16k answers", 3200, 0, SETTLED),
        of("16k answers, budget 1,600", "16k answers", 1600, 0),
        of("16k answers, budget 1,600, stock settled", "16k answers", 1600, 0, SETTLED),
        of("4k answers, budget 1,024", "4k answers", 1024, 1, job=NOW),
        Comparison("1k answers, budget 384", stock, None, single, SMALL),
        Comparison("1k answers, budget 384, prefills in fours", stock, None, fours, SMALL),
        of("8 requests with memory to spare, budget 1,024", "8 requests", 1024, 1),
    ]


def headline() -> str:
    columns = ["Workload", "GPU", "Stock", "Default policy", "Ratio"]
    columns += ["`longflow`, the paper's rule", "Ratio", "Running: stock, budget"]
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
                *(SGLANG[one.job["commit"]], one.job["commit"], one.job["date"]),
            )
        )
    return table([*columns, "SGLang", "Commit", "Date"], rows)


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


def step_ms(system: str, rows: int, job: dict[str, str] = SMALL) -> float:
    """Median decode step with every row at its budget of 3,200."""
    where = dict(job, card=1, workload=f"{rows} full rows", part="")
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


def releases() -> str:
    """Ratios with SGLang 0.5.17 and with 0.5.23, each beside its own stock server."""

    def settled(system: str, job: dict[str, str]) -> float:
        stock = speed("stock", "16k answers", 0, **{**job, "card": 0, "part": SETTLED})
        return speed(system, "16k answers", 3200, **job, card=1) / stock

    def short(system: str, job: dict[str, str]) -> float:
        ours = speed(system, "4k answers", 1024, **job, card=1)
        return ours / speed("stock", "4k answers", 0, **job, card=1)

    def equal(job: dict[str, str]) -> float:
        where = dict(job, workload="equal resident tokens", part="204,800 tokens")
        ours, stock = (
            value("throughput", "step_ms_median", system=one, **where) for one in (PAPER, "stock")
        )
        return ours / stock

    def inert(job: dict[str, str]) -> float:
        where = {"workload": "22 requests", "part": "", **job}
        del where["pool"]
        ours, stock = (
            value("throughput", "output_tokens_per_s", system=one, **where)
            for one in ("inert", "stock")
        )
        return ours / stock

    def kernel(system: str, batch: int, commit: str) -> float:
        rival, ours = (
            kernel_us(one, "32/8/128", batch, 3200, commit) or 0 for one in ("flashinfer", system)
        )
        return ours / rival

    def step(rows: int, job: dict[str, str]) -> float:
        return step_ms(DEFAULT, rows, job) / step_ms(PAPER, rows, job)

    names = {DEFAULT: "default", PAPER: "`longflow`"}
    lines: list[tuple[str, bool, float, float]] = []
    for what, function in (
        ("Tokens/s over stock, 16k answers, budget 3,200, stock settled", settled),
        ("Tokens/s over stock, 4k answers, budget 1,024", short),
    ):
        for system, name in names.items():
            lines.append((f"{what}: {name}", True, *(function(system, one) for one in JOBS)))
    lines.append(("A step over stock's, 204,800 resident tokens", False, *map(equal, JOBS)))
    for rows in (64, 8):
        what = f"The default's step over `longflow`'s, {rows} full rows"
        lines.append((what, False, *(step(rows, one) for one in JOBS)))
    for system, name in names.items():
        for batch in (128, 32, 8, 1):
            what = f"Decode kernel over FlashInfer's, batch {batch}: {name}"
            found = (kernel(system, batch, one) for one in ("97920c3", NOW["commit"]))
            lines.append((what, False, *found))
    lines.append(("Plugin without a budget, tokens/s over stock", True, *map(inert, JOBS)))
    rows_shown = []
    for what, more_is_better, old, new in lines:
        better = new / old - 1 if more_is_better else 1 - new / old
        verdict = "" if better >= -0.02 else "**missed**"
        change = f"{100 * better:+.1f} %"
        rows_shown.append((what, times(old, 3), times(new, 3), change, verdict))
    columns = ("", "0.5.17", "0.5.23", "Better by", "Goal: no ratio worse by more than 2 %")
    return table(columns, rows_shown)
