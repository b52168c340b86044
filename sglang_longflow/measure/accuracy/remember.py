# SPDX-License-Identifier: Apache-2.0
"""What was measured, kept where `longflow plan`, the banner and the console look for it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_longflow import __version__
from sglang_longflow.measure.accuracy.summary import Line
from sglang_longflow.planner.quality import keep_run
from sglang_longflow.planner.runs import Point, Run


def remember(settings: Mapping[str, Any], lines: Sequence[Line], questions: int) -> str:
    """Keep the tables' points on this machine; returns the line that says so, or why not.

    Parameters
    ----------
    settings : mapping
        What must not change within a folder of answers; names model and task.
    lines : sequence of Line
        Whole points alone.
    questions : int
        That each point was asked.
    """
    points = tuple(Point(x.variant, x.budget, x.accuracy, x.overwrote) for x in lines)
    if not points:
        return "not kept for longflow plan: no policy and budget has all its answers"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run = Run(settings["model"], settings["task"], questions, today, __version__, points)
    try:
        file = keep_run(run, settings)
    except OSError as error:
        return f"not kept for longflow plan: {error.filename}: {error.strerror}"
    return f"kept for longflow plan in {file}"
