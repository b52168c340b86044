# SPDX-License-Identifier: Apache-2.0
"""Tables of right answers, and of the distance from full KV on real text."""

from __future__ import annotations

from collections.abc import Callable

from result_tables.data import DEFAULT, PAPER, percent, rows_of, table, value


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
