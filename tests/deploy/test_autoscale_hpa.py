# SPDX-License-Identifier: Apache-2.0
"""The simulated autoscaler against what the Kubernetes documentation says of the real one."""

from autoscale_hpa import Autoscaler, Direction, Metric, Policy, direction

AT_ONCE = Direction(0)


def autoscaler(up=AT_ONCE, down=AT_ONCE, most=10, **targets):
    metrics = tuple(Metric(name, target) for name, target in (targets or {"load": 10}).items())
    return Autoscaler(metrics, 1, most, up, down)


def decide(scaler, now, current, **totals):
    return scaler.decide(now, current, totals)


def test_the_total_over_the_target_rounded_up():
    assert decide(autoscaler(), 0, 2, load=41) == 5
    assert decide(autoscaler(), 0, 5, load=20) == 2


def test_a_ratio_within_the_tolerance_changes_nothing():
    assert decide(autoscaler(), 0, 2, load=21.9) == 2
    assert decide(autoscaler(), 0, 2, load=22.1) == 3
    assert decide(autoscaler(), 0, 2, load=18.1) == 2
    assert decide(autoscaler(), 0, 3, load=26.9) == 3  # 2.69 rounds up to what there is


def test_bounds():
    assert decide(autoscaler(most=3), 0, 1, load=1000) == 3
    assert decide(autoscaler(), 0, 2, load=0) == 1


def test_the_metric_that_asks_for_most_wins():
    assert decide(autoscaler(load=10, queue=2), 0, 1, load=5, queue=7) == 4


def test_a_missing_metric_stops_scaling_down_only():
    scaler = autoscaler(load=10, queue=2)
    assert decide(scaler, 0, 3, load=5, queue=None) == 3
    assert decide(scaler, 1, 3, load=50, queue=None) == 5
    assert decide(scaler, 2, 5, load=None, queue=None) == 5


def test_scaling_down_waits_for_the_whole_window():
    scaler = autoscaler(down=Direction(30))
    assert decide(scaler, 0, 1, load=20) == 2
    assert [decide(scaler, now, 2, load=5) for now in (10, 20, 30)] == [2, 2, 2]
    assert decide(scaler, 31, 2, load=5) == 1


def test_scaling_up_goes_as_far_as_all_of_its_window():
    scaler = autoscaler(up=Direction(30))
    assert decide(scaler, 0, 1, load=5) == 1
    assert decide(scaler, 15, 1, load=50) == 1
    assert decide(scaler, 31, 1, load=30) == 3


def test_policies_limit_the_change_in_their_period():
    up = Direction(0, (Policy("Percent", 100, 60), Policy("Pods", 2, 60)))
    scaler = autoscaler(up=up)
    assert decide(scaler, 0, 1, load=99) == 3  # one and two more, not one and 100 %
    assert decide(scaler, 30, 3, load=99) == 3
    assert decide(scaler, 61, 3, load=99) == 6
    scaler = autoscaler(down=Direction(0, (Policy("Pods", 1, 120),)))
    assert decide(scaler, 0, 4, load=5) == 3
    assert decide(scaler, 119, 3, load=5) == 3
    assert decide(scaler, 121, 3, load=5) == 2


def test_select_policy():
    policies = (Policy("Percent", 100, 60), Policy("Pods", 4, 60))
    assert decide(autoscaler(up=Direction(0, policies, "Min")), 0, 1, load=99) == 2
    assert decide(autoscaler(up=Direction(0, policies, "Disabled")), 0, 1, load=99) == 1


def test_read_from_a_manifest():
    text = {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}]}
    assert direction(text, 300) == Direction(300, (Policy("Pods", 1, 120),), "Max")
    assert direction({"stabilizationWindowSeconds": 0}, 300).window_s == 0
