# SPDX-License-Identifier: Apache-2.0
"""What SGLang has had since 0.5.17 on scheduling and sampling, and does not change a token.

What does not go with a budget is refused: `settings.compatibility`.
"""

from __future__ import annotations

import pytest

import harness
from harness import prompt
from token_oracle import expected, load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]

#: By name: arguments and variables of SGLang.
SWITCHES: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "decode rounds between prefills": ({"prefill_decode_interval": 3}, {}),
    "another order, eviction and a late draw": (
        {
            "schedule_policy": "shortest-prefill-first",
            "radix_eviction_policy": "slru",
            "radix_eviction_policy_config": {"protected_threshold": 4},
            "chunked_prefill_size": 64,
        },
        {"SGLANG_ENABLE_DELAY_SAMPLE": "1"},
    ),
    "retraction by priority": (
        {
            "retraction_policy": "priority",
            "enable_priority_scheduling": True,
            "disable_priority_preemption": True,
        },
        {},
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_tokens_and_slots_stay_as_they_are(tiny_models, name):
    folder = tiny_models("llama")
    model = load(folder)
    arguments, variables = SWITCHES[name]
    cases = [(prompt(length, 70 + length), budget) for length in (30, 150) for budget in (48, 97)]
    wanted = [expected(model, ids, budget, 90) for ids, budget in cases]
    with harness.engine(
        folder, probe=True, env=variables, kv_budget=64, kv_budget_max=97, **arguments
    ) as engine:
        for got in harness.two_runs(engine, cases, 90):
            assert got == wanted
        assert engine.probe_report()["peak_full_rows"] >= 2
