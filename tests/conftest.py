"""Shared by all tests: every test starts from the same random state."""

import random

import pytest


@pytest.fixture(autouse=True)
def seed():
    """Seed Python and torch; returns the seed for tests that make their own generators."""
    import torch

    random.seed(1234)
    torch.manual_seed(1234)
    return 1234
