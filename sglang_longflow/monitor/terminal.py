# SPDX-License-Identifier: Apache-2.0
"""What ``longflow top`` shows of the stats: a screen, one snapshot, or a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from sglang_longflow.monitor.client import state_text
from sglang_longflow.monitor.owners import owners
from sglang_longflow.monitor.request_order import SORTS, printable
from sglang_longflow.monitor.request_table import plain_table, requests_table

PLAIN_WIDTH = 100  # of a snapshot that goes to a file
BAR_CELLS = 60
OTHER_LINES = 17  # of a screen: all but the table's rows
BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY = "tokens/s so far  "
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


def pool_bar(stats: dict[str, Any], cells: int = BAR_CELLS) -> Text:
    """The pool by owner; every owner of a slot has at least one place."""
    found, total, bar = owners(stats), stats["pool"]["total_tokens"], Text()
    taken = 0
    for kind, _, style, letter in OWNERS[:-1]:
        width = max(1, round(cells * found[kind] / total)) if found[kind] else 0
        width = min(width, cells - taken)
        taken += width
        bar.append(letter * width, style)
    bar.append(OWNERS[-1][3] * (cells - taken), OWNERS[-1][2])
    return bar


def _legend(stats: dict[str, Any]) -> Text:
    found, text = owners(stats), Text()
    for kind, name, style, letter in OWNERS:
        if found[kind]:
            text.append(f"{letter} ", style)
            text.append(f"{name} {found[kind]:,}   ")
    return text


@dataclass(frozen=True)
class Look:
    """How a screen is looked at.

    Attributes
    ----------
    width, height : int
        Cells and lines.
    sort : str
        A name of `request_table.SORTS`.
    history : tuple of float
        Decoded tokens per second of the looks before, the oldest first.
    """

    width: int
    height: int
    sort: str = "arrival"
    history: tuple[float, ...] = ()


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks, the largest of them a full one; empty without two."""
    last = list(values)[-width:] if width > 0 else []
    if len(last) < 2 or max(last) <= 0:
        return ""
    return "".join(BLOCKS[round(value / max(last) * (len(BLOCKS) - 1))] for value in last)


def _footer(sort: str) -> Text:
    text = Text("\nsorted by ", "dim").append(sort, "bold")
    text.append("   keys:", "dim")
    for name, (key, _) in SORTS.items():
        text.append(f" {key}", "bold").append(f" {name}", "dim")
    return text.append("  q", "bold").append(" quit", "dim")


def view(
    stats: dict[str, Any],
    speed: dict[str, float] | None,
    url: str,
    problem: str,
    is_gone: bool,
    look: Look,
) -> RenderableType:
    """One screen; `problem` says since when there is no answer, `is_gone` that it is too long ago
    for a busy server."""
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
    rows = Text.assemble(
        f"\n{sums['running_requests']:,} running, ",
        (f"{sums['at_budget_requests']:,} at their budget", "green"),
        ", ",
        (f"{stats['queued_requests']:,} queued", "yellow" if stats["queued_requests"] else ""),
        f"   {_speed(speed)}\n",
        (f"{sums['saved_tokens']:,} slots saved now", "green" if sums["saved_tokens"] else ""),
        f"   {stats['counters']['overwritten_tokens']:,} overwritten so far",
    )
    if blocks := sparkline(look.history, look.width - len(HISTORY)):
        rows.append(f"\n{HISTORY}").append(blocks, "cyan")
    pool = Text(f"\npool  {_used(stats):,} of {stats['pool']['total_tokens']:,} slots in use")
    bar = pool_bar(stats, min(BAR_CELLS, look.width))
    most = max(1, look.height - OTHER_LINES)
    table: RenderableType = Text("no request is running", "dim")
    if stats["requests"]:
        table = requests_table(stats, most, look.sort, look.width)
    parts = (head, rows, pool, bar, _legend(stats), Text(), table, _footer(look.sort))
    return Group(*parts)


def print_once(stats: dict[str, Any], sort: str) -> None:
    """One snapshot; without colours, with whole ids and as wide as it needs in a file."""
    console = Console(highlight=False)
    is_screen = console.is_terminal
    if not is_screen:
        console = Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
    # In a file each is one line: what cuts or searches it should not meet a break.
    console.print(line(stats, None), soft_wrap=not is_screen)
    if stats["pool"] is None:
        return
    console.print(pool_bar(stats))
    console.print(_legend(stats), soft_wrap=not is_screen)
    if not stats["requests"]:
        console.print("no request is running")
    elif is_screen:
        console.print(requests_table(stats, len(stats["requests"]), sort, console.width))
    else:
        console.print(plain_table(stats, sort))
