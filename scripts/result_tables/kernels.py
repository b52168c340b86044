# SPDX-License-Identifier: Apache-2.0
"""Tables of the decode kernels, beside FlashInfer's; microseconds."""

from __future__ import annotations

from collections.abc import Iterable

from result_tables.data import DEFAULT, PAPER, rows_of, table, times


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
    columns = ["Query/KV heads/size", "Batch", "Row", "FlashInfer", "`longflow-novel`"]
    columns += ["`longflow-peak`", "`longflow`", "`longflow`, a victim per KV head"]
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
