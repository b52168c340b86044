"""What holds for every policy."""

import pytest

from sglang_longflow.policies import make_policy, policy_names


@pytest.mark.parametrize("name", policy_names())
def test_the_fused_kernel_can_serve_every_policy(name):
    """It scores by removal, or is told the victim: a policy is exactly one of the two."""
    policy = make_policy(name)
    assert policy.ranks_by_removal == (policy.known_victim(100, 7) is None)
