# SPDX-License-Identifier: Apache-2.0
"""The fused decode of hybrid models, in Triton's interpreter: the oracle's tokens too."""

from __future__ import annotations

import pytest

import harness
import kind_cases
from hybrid_models import FLOAT32_STATES, FULL_LAYERS
from token_oracle import load

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(
    ("kind", "new_tokens"),
    [("lfm2", 40), pytest.param("qwen3_next", 12, marks=pytest.mark.variant)],
)
def test_the_fused_kernels_go_by_the_layers_with_keys_and_values(tiny_models, kind, new_tokens):
    """Prompts that are cut and that fill in decode, full KV beside them. Qwen3-Next has heads of
    256, eight of them for each of K and V."""
    folder = tiny_models(kind)
    model = load(folder)
    settings = dict(kind_cases.FUSED_SETTINGS, max_mamba_cache_size=40)
    with harness.engine(folder, probe=True, env=FLOAT32_STATES, **settings) as engine:
        kind_cases.assert_fused_tokens(engine, model, len(FULL_LAYERS[kind]), new_tokens)
        report = engine.probe_report()
        assert report["peak_full_rows"] == 3 and report["radix"]
        # LFM2 has no states that a tree can keep under overlap: SGLang goes without.
        assert report["overlap"] is (kind != "lfm2")
