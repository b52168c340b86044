# SPDX-License-Identifier: Apache-2.0
"""What ``longflow top`` shows of the stats: a screen, one snapshot, or a line."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sglang_longflow.monitor.client import state_text
from sglang_longflow.monitor.owners import owners

PLAIN_WIDTH = 100  # of a snapshot that goes to a file
BAR_CELLS = 60
OTHER_LINES = 13  # of a screen: all but the table's rows
#: Kind of owner, its name, style and a letter for terminals without colours.
OWNERS = (
    ("budgeted", "with a budget", "green", "#"),
    ("full", "full KV", "yellow", "F"),
    ("prefill", "in prefill", "magenta", "p"),
    ("held", "prefix cache in use", "blue", "c"),
    ("evictable", "evictable", "bright_black", "e"),
    ("other", "between owners", "white", "o"),
    ("free", "free", "dim", "."),
)


def printable(text: str) -> str:
    """A user's request id, with a question mark for whatever could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _used(stats: dict[str, Any]) -> int:
    pool = stats["pool"]
    return int(pool["total_tokens"] - pool["available_tokens"] - pool["evictable_tokens"])


def _speed(speed: dict[str, float] | None) -> str:
    if speed is None:
        return "- tokens/s, - overwritten/s"
    return (
        f"{speed['decoded_tokens_per_s']:,.0f} tokens/s, "
        f"{speed['overwritten_tokens_per_s']:,.0f} overwritten/s"
    )


def line(stats: dict[str, Any], speed: dict[str, float] | None) -> str:
    """Everything that matters in one line of text."""
    state = state_text(stats)
    if stats["pool"] is None:
        return state
    sums, total = stats["sums"], stats["pool"]["total_tokens"]
    used = _used(stats)
    text = (
        f"pool {used:,} of {total:,} ({used / total:.0%}) | running {sums['running_requests']:,}, "
        f"{sums['at_budget_requests']:,} at budget | queued {stats['queued_requests']:,} | "
        f"saved {sums['saved_tokens']:,} | {_speed(speed)}"
    )
    return f"{state} | {text}" if state else text


def pool_bar(stats: dict[str, Any]) -> Text:
    """The pool by owner; every owner of a slot has at least one place."""
    found, total, bar = owners(stats), stats["pool"]["total_tokens"], Text()
    taken = 0
    for kind, _, style, letter in OWNERS[:-1]:
        width = max(1, round(BAR_CELLS * found[kind] / total)) if found[kind] else 0
        width = min(width, BAR_CELLS - taken)
        taken += width
        bar.append(letter * width, style)
    bar.append(OWNERS[-1][3] * (BAR_CELLS - taken), OWNERS[-1][2])
    return bar


def _legend(stats: dict[str, Any]) -> Text:
    found, text = owners(stats), Text()
    for kind, name, style, letter in OWNERS:
        if found[kind]:
            text.append(f"{letter} ", style)
            text.append(f"{name} {found[kind]:,}   ")
    return text


def requests_table(stats: dict[str, Any], most: int) -> Table:
    """The first `most` running requests."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("request", overflow="ellipsis", no_wrap=True, max_width=36)
    for name in ("logical", "resident", "budget", "saved"):
        table.add_column(name, justify="right")
    table.add_column("policy")
    for row in stats["requests"][:most]:
        budget, length = row["kv_budget"], row["seq_len"]
        saved = max(0, length - row["kv_len"]) if budget else 0
        table.add_row(
            Text(printable(row["rid"])),
            f"{length:,}",
            f"{row['kv_len']:,}",
            f"{budget:,}" if budget else "full KV",
            f"{saved / length:.0%}" if saved else "-",
            row["kv_policy"] if budget else "-",
        )
    if hidden := len(stats["requests"]) - most:
        table.caption = f"and {hidden:,} more" if hidden > 0 else None
    return table


def view(
    stats: dict[str, Any],
    speed: dict[str, float] | None,
    url: str,
    problem: str,
    is_gone: bool,
    height: int,
) -> RenderableType:
    """One screen of `height` lines; `problem` says since when there is no answer, `is_gone` that it
    is too long ago for a busy server."""
    head = Text.assemble(
        ("longflow top  ", "bold"), printable(stats["server"]["model"]), f"  {url}", overflow="fold"
    )
    if problem:
        head.append(f"\nno answer {problem}", "bold red" if is_gone else "bold yellow")
    elif state := state_text(stats):
        head.append(f"\n{state}", "bold yellow")
    if stats["pool"] is None:
        return head
    sums = stats["sums"]
    rows = Text(
        f"\n{sums['running_requests']:,} running, {sums['at_budget_requests']:,} at their budget, "
        f"{stats['queued_requests']:,} queued   {_speed(speed)}\n"
        f"{sums['saved_tokens']:,} slots saved now   "
        f"{stats['counters']['overwritten_tokens']:,} overwritten so far"
    )
    pool = Text(f"\npool  {_used(stats):,} of {stats['pool']['total_tokens']:,} slots in use")
    table = requests_table(stats, max(1, height - OTHER_LINES))
    return Group(head, rows, pool, pool_bar(stats), _legend(stats), Text(), table)


def print_once(stats: dict[str, Any]) -> None:
    """One snapshot; without colours and as wide as it needs where it goes to a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
    console.print(line(stats, None))
    if stats["pool"] is None:
        return
    console.print(pool_bar(stats), _legend(stats), sep="\n")
    if stats["requests"]:
        console.print(requests_table(stats, len(stats["requests"])))
    else:
        console.print("no request is running")
