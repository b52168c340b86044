# SPDX-License-Identifier: Apache-2.0
"""What a HorizontalPodAutoscaler decides, in plain Python.

Source: "Horizontal Pod Autoscaling" of the Kubernetes documentation (algorithm details,
configurable scaling behavior), for external metrics with an AverageValue, which are what KEDA
creates from a ScaledObject.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

#: kube-controller-manager's --horizontal-pod-autoscaler-tolerance.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Metric:
    """One metric of the autoscaler; `target` is the AverageValue."""

    name: str
    target: float


@dataclass(frozen=True)
class Policy:
    """No more than `value` pods, or percent of them, are added or removed in `period_s`."""

    kind: str  # Pods or Percent
    value: int
    period_s: float


@dataclass(frozen=True)
class Direction:
    """The rules of scaling up, or of scaling down."""

    window_s: float
    policies: tuple[Policy, ...] = ()
    select: str = "Max"


def direction(behavior: dict, default_window_s: float) -> Direction:
    """From ``behavior.scaleUp`` or ``behavior.scaleDown`` of a manifest."""
    policies = tuple(
        Policy(p["type"], int(p["value"]), float(p["periodSeconds"]))
        for p in behavior.get("policies", ())
    )
    window_s = float(behavior.get("stabilizationWindowSeconds", default_window_s))
    return Direction(window_s, policies, behavior.get("selectPolicy", "Max"))


@dataclass
class Autoscaler:
    """Remembers its recommendations and what it changed, as the controller does."""

    metrics: tuple[Metric, ...]
    min_replicas: int
    max_replicas: int
    up: Direction
    down: Direction
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def from_metrics(self, current: int, totals: dict[str, float | None]) -> int:
        """Replicas by the metrics alone; the largest of theirs."""
        proposals, missing = [], False
        for metric in self.metrics:
            total = totals[metric.name]
            if total is None:
                missing = True
                continue
            ratio = total / (metric.target * current)
            close = abs(1 - ratio) <= TOLERANCE
            proposals.append(current if close else math.ceil(total / metric.target))
        if not proposals:
            return current
        # With a metric that cannot be had, replicas are added but none removed.
        return max(max(proposals), current) if missing else max(proposals)

    def _allowed(self, rules: Direction, now: float, current: int, sign: int) -> int:
        """The replica count that the policies allow at most (or at least, going down)."""
        if rules.select == "Disabled":
            return current
        limits = []
        for policy in rules.policies:
            changed = sum(
                change
                for when, change in self._changes
                if when > now - policy.period_s and change * sign > 0
            )
            start = current - changed
            if policy.kind == "Pods":
                limits.append(start + sign * policy.value)
            elif sign > 0:
                limits.append(math.ceil(start * (1 + policy.value / 100)))
            else:
                limits.append(math.floor(start * (1 - policy.value / 100)))
        if not limits:
            return self.max_replicas if sign > 0 else self.min_replicas
        widest = max if (sign > 0) == (rules.select == "Max") else min
        return widest(limits)

    def decide(self, now: float, current: int, totals: dict[str, float | None]) -> int:
        """Replicas from here on, after windows, policies and bounds; `now` in seconds."""
        wanted = self.from_metrics(current, totals)
        self._recommended.append((now, wanted))
        longest = max(self.up.window_s, self.down.window_s)
        while self._recommended[0][0] < now - longest:
            self._recommended.popleft()

        def within(window_s: float) -> list[int]:
            return [count for when, count in self._recommended if when >= now - window_s]

        # Up only as far as all of its window agreed, down no further than any of its window.
        floor, ceiling = min(within(self.up.window_s)), max(within(self.down.window_s))
        desired = min(max(current, floor), ceiling)
        if desired > current:
            desired = min(desired, max(current, self._allowed(self.up, now, current, +1)))
        elif desired < current:
            desired = max(desired, min(current, self._allowed(self.down, now, current, -1)))
        desired = max(self.min_replicas, min(self.max_replicas, desired))
        if desired != current:
            self._changes.append((now, desired - current))
        return desired
