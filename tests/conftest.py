"""Shared by all tests: Triton's interpreter where there is no GPU, and the same random state."""

import os
import random

import pytest

if os.environ.get("LONGFLOW_TEST_DEVICE", "cpu") == "cpu":
    # Triton decides when a function is defined. Servers that tests start are not to inherit it.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon.language  # noqa: F401 (the first launch would, too late)

    import longflow_kernels.attend_score_evict.op
    import longflow_kernels.compress_prompt.op  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def seed():
    """Seed Python and torch; returns the seed for tests that make their own generators."""
    import torch

    random.seed(1234)
    torch.manual_seed(1234)
    return 1234
