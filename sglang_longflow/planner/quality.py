# SPDX-License-Identifier: Apache-2.0
"""What is known of a model's answers at a budget: measured, or not. Nothing is interpolated.

Known are this project's own measurements (`measured`) and those that `longflow eval` made on this
machine, one file of JSON per model and task.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.measured import PROJECT, REASONER, REASONER_WEIGHTS_BYTES
from sglang_longflow.planner.runs import Point, Run, variant_name
from sglang_longflow.settings.cache import cache_folder
from sglang_longflow.settings.files import read_json, user_path
from sglang_longflow.settings.flags import DEFAULT_POLICY

#: Budgets of the reasoner at a tenth and a fifth of its mean chain of 1,724 tokens.
_TENTH, _FIFTH = 172, 345
#: Under this share of a request its answers are nearer to those at a tenth.
SMALL_SHARE = 0.15
#: Where fewer of a point's answers overwrote something, it says little about its budget.
ENOUGH_OVERWROTE = 0.5
_MOST_BYTES = 4 << 20
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/[^/]+/?$")


@dataclass(frozen=True)
class Asked:
    """Whose answers are asked about: names of one model, the policy, and the budget in tokens."""

    model: str
    names: frozenset[str]
    policy: str
    budget: int


def server_variant(settings: Mapping[str, Any]) -> str:
    """The policy of a server with what it protects, from its settings by field."""
    protected = (settings.get(f"kv_protect_{which}_tokens") or 0 for which in ("sink", "recent"))
    return variant_name(settings["kv_policy"], *protected)


def known_quality(model: str, policy: str, budget: int, folder: str | None = None) -> str:
    """One line on the answers of a model at a budget, as `quality_line` has it.

    Parameters
    ----------
    model : str
        Folder or name of the hub, as the user gave it.
    policy : str
    budget : int
        In tokens.
    folder : str, optional
        Where the model's files are.
    """
    return quality_line(Asked(model, model_names(model, folder), policy, budget))


def model_names(model: str, folder: str | None = None) -> frozenset[str]:
    """The names under which a model's measurements may be found.

    Parameters
    ----------
    model : str
        As the user gave it: a folder or a name of the hub.
    folder : str, optional
        Where its files are.
    """
    names = {model}
    for place in filter(None, (folder, model)):
        path = user_path(place)
        try:
            if not path.is_dir():
                continue
            names.add(str(path.resolve()))
            names |= _fingerprint(path)
        except OSError:  # such as a name that is too long for a path
            continue
        if snapshot := _SNAPSHOT.search(str(path)):
            names.add(snapshot[1].replace("--", "/"))
    return frozenset(names)


def _fingerprint(folder: Path) -> set[str]:
    """The reasoner that comes with this package, wherever it lies."""
    weights = folder / "model.safetensors"
    if not weights.is_file() or weights.stat().st_size != REASONER_WEIGHTS_BYTES:
        return set()
    return {f"reasoner {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}"} & {REASONER}


def quality_line(asked: Asked, runs: Iterable[Run] | None = None) -> str:
    """One line on the answers at a budget.

    Parameters
    ----------
    asked : Asked
    runs : iterable of Run, optional
        Measurements; left out, the project's own and those of this machine.
    """
    if runs is None:
        runs = (*PROJECT, *known_runs())
    found = [run for run in runs if run.model in asked.names and _beside(run, asked)]
    if not found:
        return f"not measured: {_command(asked, 'math500')}"
    best = min(found, key=lambda run: (_distance(run, asked), _newest(run)))
    points = _beside(best, asked)
    shown = ", ".join(_point_text(best, point) for point in points)
    where = f"({best.task}, {best.questions:,} questions, {best.date})"
    if points[0].budget == asked.budget:
        return f"{shown} {where}"
    command = _command(asked, best.task)
    return f"not measured at {asked.budget:,}; {shown} {where}; {command}"


def small_share_note(budget: int, request_tokens: int, quality: str) -> str | None:
    """What is known of budgets that hold little of a request, where the model is not measured.

    Parameters
    ----------
    budget, request_tokens : int
        In tokens; the latter is prompt and output.
    quality : str
        Of `quality_line`.
    """
    share = budget / request_tokens
    if share >= SMALL_SHARE or not quality.startswith("not measured:"):
        return None
    (run,) = PROJECT
    points = {p.budget: p.solved for p in run.points if p.policy == DEFAULT_POLICY or not p.budget}
    tenth, fifth = (points[budget] / points[0] for budget in (_TENTH, _FIFTH))
    return (
        f"the budget holds {share:.0%} of a request: in the one model measured, a tenth kept "
        f"{tenth:.0%} of full KV's right answers, a fifth {fifth:.0%}"
    )


def _command(asked: Asked, task: str) -> str:
    words = ("--model", asked.model, "--task", task, "--budgets", f"{asked.budget},full")
    return f"longflow eval {shlex.join(words)} --out DIR"


def _beside(run: Run, asked: Asked) -> list[Point]:
    """The point at the budget, else the nearest below and above; none without full KV's answers."""
    points = {p.budget: p for p in run.points if p.policy == asked.policy and p.budget}
    if run.full is None or not run.full.solved:
        return []
    if asked.budget in points:
        return [points[asked.budget]]
    below = max((b for b in points if b < asked.budget), default=None)
    above = min((b for b in points if b > asked.budget), default=None)
    return [points[b] for b in (below, above) if b is not None]


def _distance(run: Run, asked: Asked) -> float:
    budgets = [point.budget for point in _beside(run, asked)]
    return min(max(b, asked.budget) / min(b, asked.budget) for b in budgets)


def _newest(run: Run) -> int:
    return -int(run.date.replace("-", "") or 0)


def _point_text(run: Run, point: Point) -> str:
    assert run.full is not None
    share = point.solved / run.full.solved * 100
    nearly = 99.5 <= share < 100  # which is not all
    percent = f"{math.floor(share * 10) / 10}" if nearly else f"{share:.0f}"
    text = f"{percent} % of full KV's right answers at {point.budget:,}"
    if point.overwrote < ENOUGH_OVERWROTE:
        text += f", where {point.overwrote:.0%} of them reached the budget"
    return text


def quality_folder() -> Path:
    """Where `longflow eval` leaves what it measured, for every later plan."""
    return cache_folder() / "quality"


def known_runs(folder: Path | None = None) -> list[Run]:
    """The measurements of this machine; a file that is none is left out."""
    try:
        files = sorted((folder or quality_folder()).glob("*.json"))
    except (OSError, ConfigError):  # no folder, none of ours, or none that may be read
        return []
    return [run for run in map(_read, files) if run is not None]


def _read(file: Path) -> Run | None:
    try:
        fields = read_json(file, _MOST_BYTES)
        points = tuple(Point(**point) for point in fields.pop("points"))
        run = Run(**fields, points=points)
        return run if run.is_sound else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep_run(run: Run, settings: Mapping[str, object], folder: Path | None = None) -> Path:
    """Write a run, with the points of an earlier one that it has not; returns the file.

    `settings` are what must be the same for points to be compared, such as task and seed.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    place = folder or quality_folder()
    place.mkdir(parents=True, exist_ok=True)
    same = json.dumps({**settings, "model": run.model, "questions": run.questions}, sort_keys=True)
    short = re.sub(r"[^A-Za-z0-9.-]+", "-", run.model).strip("-")[-60:]
    file = place / f"{short}-{hashlib.sha256(same.encode()).hexdigest()[:12]}.json"
    points = {(point.policy, point.budget): point for point in run.points}
    if (earlier := _read(file)) is not None:
        points = {(point.policy, point.budget): point for point in earlier.points} | points
    whole = replace(run, points=tuple(points.values()))
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(asdict(whole), indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    return file
