# SPDX-License-Identifier: Apache-2.0
"""A short soak; `scripts/soak.py` is the long one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fleet import text_model
from soak_run import Soak, as_text
from soak_traffic import KINDS

pytestmark = [pytest.mark.deploy, pytest.mark.long]


def test_mixed_traffic_and_a_killed_scheduler(tools, tmp_path):
    model = text_model(tmp_path / "model", Path(os.environ["LONGFLOW_TEST_MODEL"]))
    report = asyncio.run(Soak(tmp_path, model, tools, minutes=3, clients=4).run())
    print(as_text(report))
    assert report.problems == []
    kinds = {outcome.split(": ")[0] for outcome in report.outcomes}
    assert kinds == set(KINDS)
    assert {"abort: aborted", "malformed: refused", "hang up: hung up"} <= set(report.outcomes)
    assert report.outcomes["generate: ok"] >= 10 and report.outcomes["prefill only: ok"] >= 3
    assert report.overwritten_tokens > 100 and report.memory
