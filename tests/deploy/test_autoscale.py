# SPDX-License-Identifier: Apache-2.0
"""The chart's ScaledObject scales real servers out and in, and no request is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from autoscale_manifest import scaled_object
from autoscale_proof import Phase, Settings, run
from fleet import text_model

pytestmark = [pytest.mark.deploy, pytest.mark.long]


def busy_on_both(controller) -> bool:
    return len(controller.ready) == 2


def one_left(controller) -> bool:
    return bool(controller.exit_statuses) and len(controller.ready) == 1


def test_scales_out_and_in_without_losing_a_request(tools, tmp_path):
    tokenizer = Path(os.environ["LONGFLOW_TEST_MODEL"])
    settings = Settings()
    phases = [
        Phase("calm", 2, lambda c: c.rows and c.rows[-1]["running"] == 2, 4),
        Phase("burst", 14, busy_on_both),
        Phase("both", 14, lambda c: True, 15),
        Phase("calm again", 4, one_left),
        Phase("after", 4, lambda c: True, 4),
    ]
    result = asyncio.run(
        run(
            settings,
            scaled_object(tools, **settings.autoscaling),
            phases,
            folder=tmp_path,
            model=text_model(tmp_path / "model", tokenizer),
            tools=tools,
        )
    )
    story = "\n".join(result.events)
    print(story)
    load, rows = result.load, result.rows
    assert not load.open and not load.lost, [vars(one) for one in load.lost] + result.events
    assert {one.stream for one in load.sent} == {True, False}
    # One replica was enough, then too little by the metrics, then enough again.
    assert result.thresholds == {"load": 6, "queue": 3}
    calm, burst = ([row for row in rows if row["phase"] == name] for name in ("calm", "burst"))
    assert {row["desired"] for row in calm} == {1}
    assert max(row["load"] for row in burst) > 6 * 1.1 and max(r["queued"] for r in burst) >= 1
    # On both, more ran at once than one server has rows.
    assert max(row["running"] for row in rows if row["phase"] == "both") > settings.rows
    # One was drained, with requests in flight, and ended of itself.
    assert result.exit_statuses == [0], story
    (held,) = (line for line in result.events if "out of the router" in line)
    assert not held.endswith(", 0 requests in flight"), story
    # Back to one, which goes on serving.
    assert (rows[-1]["desired"], rows[-1]["ready"], rows[-1]["draining"]) == (1, 1, 0)
