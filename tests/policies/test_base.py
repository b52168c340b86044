"""What holds for every policy."""

import pytest

from sglang_longflow.policies import make_policy, policy_names


@pytest.mark.parametrize("name", policy_names())
def test_the_fused_kernel_can_serve_every_policy(name):
    """It ranks by a score of the kernel's, or is told the victim: exactly one of the two."""
    policy = make_policy(name)
    assert policy.ranks_by in (None, "removal", "attention")
    assert (policy.ranks_by is None) == (policy.known_victim(100, 7) is not None)
