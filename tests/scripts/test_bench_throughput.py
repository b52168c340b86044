# SPDX-License-Identifier: Apache-2.0
"""What the throughput script reads from a server's log, and what it refuses to measure."""

from __future__ import annotations

from types import ModuleType

import pytest

from programs import load_program


@pytest.fixture(scope="module")
def made() -> ModuleType:
    return load_program("scripts/bench_throughput.py")


def test_the_lines_of_a_scheduler(made):
    log = made.Log()
    log.write(b"[12:00:00] max_total_num_tokens=155030, chunked_prefill_size=8192, max_pre")
    assert log.pool == 0  # a line is read once it has ended
    log.write(
        b"fill_tokens=16384\n[12:00:01] Decode batch, #running-req: 151, #token: 149460, "
        b"token usage: 0.96, cuda graph: True, gen throughput (token/s): 15471.65, "
        b"#queue-req: 508\n"
    )
    assert log.pool == 155030
    assert [(line["running"], line["usage"]) for line in log.decode] == [(151, 0.96)]
    log.write(b"[12:00:02] KV cache pool is full. Retract requests. #retracted_reqs: 3, #new\n")
    assert [count for _, count in log.retracted] == [3]


@pytest.mark.parametrize("asked", [0, 290_000])
def test_a_pool_as_asked_for_is_measured(made, asked):
    made.check_pool("stock", asked, 290_000)


@pytest.mark.parametrize("got", [155_030, 0])  # 0: the scheduler never said
def test_a_smaller_pool_is_not_measured(made, got):
    with pytest.raises(SystemExit, match=rf"longflow: its pool holds {got:,} tokens, not 290,000"):
        made.check_pool("longflow", 290_000, got)
