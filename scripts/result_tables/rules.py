# SPDX-License-Identifier: Apache-2.0
"""Tables of rules that were explored without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from result_tables.data import percent, rows_of, table, whole

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
