# SPDX-License-Identifier: Apache-2.0
"""A short soak; `scripts/soak.py` is the long one."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from fleet import text_model
from soak_run import Soak, as_text
from soak_traffic import KINDS

pytestmark = [pytest.mark.deploy, pytest.mark.long]


def test_mixed_traffic_and_a_killed_scheduler(tools, tmp_path):
    model = text_model(tmp_path / "model", Path(os.environ["LONGFLOW_TEST_MODEL"]))
    wanted = {("abort", "aborted"), ("malformed", "refused"), ("hang up", "hung up")}

    def enough(outcomes: Counter) -> bool:
        kinds = {kind for kind, outcome in outcomes if outcome != "open"}
        answered = outcomes["generate", "ok"] >= 10 and outcomes["prefill only", "ok"] >= 3
        return kinds == set(KINDS) and wanted <= set(outcomes) and answered

    soak = Soak(tmp_path, model, tools, minutes=3, clients=4, enough=enough)
    report = asyncio.run(soak.run())
    print(as_text(report))
    assert report.problems == []
    assert report.overwritten_tokens > 100 and report.memory
