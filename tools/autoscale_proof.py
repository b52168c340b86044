# SPDX-License-Identifier: Apache-2.0
"""Autoscaling without a cluster: everything is real but the HPA's clock and the kubelet.

The ScaledObject is the chart's, rendered for these servers. Every interval its PromQL goes to a
real Prometheus, which scrapes real servers; `autoscale_hpa` decides as an HPA does; replicas are
started and drained by the small controller here, behind the real router.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoscale_load import Load
from autoscale_manifest import NAMESPACE, RELEASE, ScaledObject
from fleet import Prometheus, Replica, Router

COLUMNS = (
    *("seconds", "phase", "clients", "open_requests", "running", "queued", "load", "queue"),
    *("wanted_by_metrics", "desired", "ready", "starting", "draining"),
)
SCRAPE = "sum(max by (pod) (sglang:num_{}_reqs))"
PRE_STOP_S = 2.0  # the pods' preStop sleep is 15 s


@dataclass(frozen=True)
class Settings:
    """A server of `rows` rows, and the autoscaler's interval (15 s in Kubernetes)."""

    budget: int = 64
    rows: int = 8
    tokens: tuple[int, int] = (300, 700)
    interval_s: float = 2.0
    scale_down_s: int = 12
    scale_down_period_s: int = 10

    @property
    def server_arguments(self) -> list[str]:
        # Rows at their budget, and a prompt that is being prefilled.
        pool = self.budget * self.rows + 64
        return [
            *(f"--kv-budget={self.budget}", f"--max-total-tokens={pool}", "--device=cpu"),
            *(f"--max-running-requests={self.rows}", "--sleep-on-idle", "--random-seed=1"),
            "--stream-interval=8",
        ]

    @property
    def autoscaling(self) -> dict:
        """Values of the chart; the windows are shorter than its own, for a run of minutes."""
        return {
            "minReplicas": 1,
            "maxReplicas": 2,
            "rowsPerReplica": self.rows,
            "scaleDownSeconds": self.scale_down_s,
            "scaleDownPeriodSeconds": self.scale_down_period_s,
        }


@dataclass
class Phase:
    """Clients until a condition holds, at least `least_s` and at most `most_s` seconds."""

    name: str
    clients: int
    until: Callable[[Controller], bool]
    least_s: float = 0.0
    most_s: float = 900.0


@dataclass
class Controller:
    """Deployment controller, kubelet and endpoints, as far as this needs them."""

    settings: Settings
    scaled: ScaledObject
    folder: Path
    model: Path
    router: Router
    prometheus: Prometheus
    load: Load
    ready: list[Replica] = field(default_factory=list)
    starting: list[Replica] = field(default_factory=list)
    draining: list[Replica] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    exit_statuses: list[int] = field(default_factory=list)
    served: set[str] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)
    _tasks: list[asyncio.Task] = field(default_factory=list)
    _count: int = 0

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def note(self, text: str) -> None:
        self.events.append(f"{self.seconds():6.1f} s  {text}")

    async def start_replica(self) -> None:
        """A pod is made, becomes ready, and then gets requests."""
        self._count += 1
        name = f"{RELEASE}-proof-{self._count}"
        replica = Replica(name, self.folder, self.model, self.settings.server_arguments)
        self.starting.append(replica)
        self.note(f"{name}: starts")
        replica.start()
        while not await asyncio.to_thread(lambda: replica.is_ready):
            await asyncio.sleep(0.3)
        self.prometheus.add(replica, {"namespace": NAMESPACE, "pod": name})
        await self.router.add(replica.url)
        replica.give_way()
        self.starting.remove(replica)
        self.ready.append(replica)
        self.note(f"{name}: ready, behind the router")

    async def drain_replica(self, replica: Replica) -> None:
        """The router forgets it, then SIGTERM; Prometheus scrapes it to the end, as a pod."""
        self.ready.remove(replica)
        self.draining.append(replica)
        await self.router.remove(replica.url)
        stats = await asyncio.to_thread(replica.stats)
        held = len(stats["requests"]) + stats["queued_requests"]
        self.note(f"{replica.name}: out of the router, {held} requests in flight")
        await asyncio.sleep(PRE_STOP_S)
        self.exit_statuses.append(await replica.drain(600))
        self.draining.remove(replica)
        self.prometheus.remove(replica)
        self.note(f"{replica.name}: drained, exit status {self.exit_statuses[-1]}")

    def scale_to(self, desired: int) -> None:
        """Start what is missing; drain the newest that is too many."""
        for _ in range(desired - len(self.ready) - len(self.starting)):
            self._tasks.append(asyncio.create_task(self.start_replica()))
        if not self.starting:
            for replica in self.ready[desired:]:
                self._tasks.append(asyncio.create_task(self.drain_replica(replica)))

    async def control(self, phase: Callable[[], str]) -> None:
        """The autoscaler's loop."""
        scaler = self.scaled.autoscaler()
        current = self.scaled.min_replicas
        ask = self.prometheus.query
        while True:
            for task in self._tasks:
                if task.done():
                    task.result()  # what went wrong in it ends the run
            queries = self.scaled.queries
            totals = {n: await asyncio.to_thread(ask, q) for n, q in queries.items()}
            running = await asyncio.to_thread(ask, SCRAPE.format("running"))
            queued = await asyncio.to_thread(ask, SCRAPE.format("queue"))
            wanted = scaler.from_metrics(current, totals)
            current = scaler.decide(self.seconds(), current, totals)
            self.scale_to(current)
            await asyncio.sleep(0)  # the tasks say what they do
            numbers = (
                *(round(self.seconds(), 1), phase(), self.load.clients, self.load.open),
                *(running, queued, *(totals[name] for name in ("load", "queue"))),
                *(wanted, current, len(self.ready), len(self.starting), len(self.draining)),
            )
            self.rows.append(dict(zip(COLUMNS, numbers, strict=True)))
            await asyncio.sleep(self.settings.interval_s)


@dataclass
class Result:
    """What a run gives: its record, and what became of every request."""

    rows: list[dict]
    events: list[str]
    load: Load
    exit_statuses: list[int]
    thresholds: dict[str, float]

    def write_csv(self, file: Path) -> None:
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


async def run(
    settings: Settings,
    scaled: ScaledObject,
    phases: list[Phase],
    *,
    folder: Path,
    model: Path,
    tools: Path,
) -> Result:
    """Run the phases one after the other; raises where a replica, a query or the router fails."""
    # Retries would hide a request that was lost on its way.
    router = Router(folder, tools, "sglang-router", "--disable-retries")
    prometheus = Prometheus(folder)
    load = Load(router.url, settings.tokens)
    controller = Controller(settings, scaled, folder, model, router, prometheus, load)
    current = ["start"]
    loop = None
    try:
        await asyncio.gather(router.start(), prometheus.start(), controller.start_replica())
        loop = asyncio.create_task(controller.control(lambda: current[0]))
        for phase in phases:
            current[0] = phase.name
            controller.note(f"phase {phase.name}: {phase.clients} clients")
            load.set_clients(phase.clients)
            began = time.monotonic()
            while not (time.monotonic() - began >= phase.least_s and phase.until(controller)):
                if loop.done():
                    loop.result()
                if time.monotonic() - began > phase.most_s:
                    raise TimeoutError(f"phase {phase.name}: " + "\n".join(controller.events))
                await asyncio.sleep(0.2)
        await load.finish(600)
    finally:
        if loop is not None:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await loop
        for program in (
            *(*controller.ready, *controller.starting, *controller.draining),
            *(router, prometheus),
        ):
            program.kill()
    return Result(
        controller.rows, controller.events, load, controller.exit_statuses, scaled.thresholds
    )
