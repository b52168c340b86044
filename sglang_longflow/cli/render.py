# SPDX-License-Identifier: Apache-2.0
"""``longflow render``: deployment files with the numbers of a plan filled in."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from sglang_longflow import __version__
from sglang_longflow.cli.plan import add_plan_arguments, plan_from
from sglang_longflow.deployment import compose, helm, keda, kustomize
from sglang_longflow.deployment.files import Output
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import Sizing, make_sizing
from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.api import integer, one_of
from sglang_longflow.planner.geometry import PlanError, load_geometry
from sglang_longflow.planner.plan import Plan

TARGETS: dict[str, Callable[[Sizing, Settings], tuple[Output, list[str]]]] = {
    "compose": compose.output,
    "kustomize": kustomize.output,
    "helm": helm.output,
    "keda": keda.output,
}
DEFAULT_REPLICAS_MAX = 4
DEFAULT_PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow render``; `run` checks the numbers and names."""
    add = parser.add_argument
    add("--target", required=True, help=f"one of {', '.join(TARGETS)}")
    add("--out", required=True, metavar="DIR", help="folder to write; must be empty or new")
    add("--force", action="store_true", help="write into a folder that is not empty")
    add_plan_arguments(parser)
    add(
        "--model-path",
        help="what the server loads: a Hugging Face name or a path in the container; needed where "
        "--model is a folder",
    )
    add("--image", default=f"sglang-longflow:{__version__}", help="default %(default)s")
    add("--replicas-min", default=1, help="servers at least, default %(default)s")
    add(
        "--replicas-max",
        help=f"servers at most, default {DEFAULT_REPLICAS_MAX} (compose: 1); the same as "
        "--replicas-min for a fixed number",
    )
    add("--router", action="store_true", help="put sglang-router in front (kustomize, helm)")
    add("--namespace", default="longflow", help="default %(default)s")
    add("--name", default="longflow", help="Helm release, or the Deployment that KEDA scales")
    add("--prometheus", default=DEFAULT_PROMETHEUS, help="for KEDA; default %(default)s")


def _model_path(model: str, given: str | None, plan: Plan) -> str:
    folder = load_geometry(model).folder
    path = given or (plan.model if folder is None else "")
    if not path:
        raise ConfigError(
            f"--model-path: not set; --model {model} is on this machine, and the container needs "
            "a Hugging Face name or a path of its own"
        )
    if any(character.isspace() or character in "\"'$#" for character in path):
        raise ConfigError(f"--model-path {path!r}: expected a path without spaces or quotes")
    return path


def _replicas(args: argparse.Namespace, target: str) -> tuple[int, int]:
    least = integer("--replicas-min", args.replicas_min)
    if args.replicas_max is not None:
        return least, integer("--replicas-max", args.replicas_max)
    return least, max(least, 1 if target == "compose" else DEFAULT_REPLICAS_MAX)


def summary(sizing: Sizing) -> list[tuple[str, str]]:
    """Label and text of the numbers that were filled in."""
    plan = sizing.plan
    servers = f"{sizing.replicas_min}"
    if sizing.autoscaled:
        servers += f" to {sizing.replicas_max}"
    rows = [
        ("model", f"{sizing.model_path}, {plan.dtype}, {plan.tp} x {plan.gpu or 'GPU'}"),
        ("pool", f"{plan.pool_tokens:,} tokens a server"),
        ("rows", f"{sizing.rows:,} at the budget of {sizing.budget_tokens:,}"),
        ("servers", servers),
        ("drain", f"up to {sizing.longest_generation_s:,} s for the longest request"),
        ("memory", f"{sizing.memory_request_gib} to {sizing.memory_limit_gib} GiB"),
        ("models' disk", f"{sizing.cache_gib} GiB"),
    ]
    if sizing.autoscaled:
        text = f"{sizing.load_threshold:,} running and queued, or {sizing.queue_threshold:,} queued"
        rows.insert(4, ("one more at", f"{text} requests each"))
    if not plan.helps:
        rows.append(("note", f"this budget {plan.verdict}"))
    return rows + [("note", note) for note in plan.notes]


def run(args: argparse.Namespace) -> int:
    """Write the files that ``args`` asks for; 0, or an error that names field, value and limit."""
    target = one_of("--target", args.target, TARGETS)
    plan = plan_from(args)
    limit = args.max_total_tokens
    least, most = _replicas(args, target)
    if target == "keda" and most == least:
        raise PlanError(f"--replicas-max {most} must be above --replicas-min {least} for keda")
    if target == "keda" and args.router:
        raise ConfigError("--router: --target keda scales a Deployment that exists")
    sizing = make_sizing(
        plan,
        model_path=_model_path(args.model, args.model_path, plan),
        replicas_min=least,
        replicas_max=most,
        max_total_tokens=None if limit is None else integer("--max-total-tokens", limit),
    )
    asked = f"  --model {shlex.quote(args.model)} --budget {sizing.budget_tokens}"
    asked += f" --gpu {plan.gpu}" if plan.gpu else f" --memory-gb {args.memory_gb}"
    settings = Settings(
        out=shlex.quote(args.out),
        image=args.image,
        name=args.name,
        namespace=args.namespace,
        prometheus=args.prometheus,
        router=args.router,
        note=f"Written by longflow render {__version__} --target {target}\n{asked} --tp {plan.tp}",
    )
    output, commands = TARGETS[target](sizing, settings)
    written = output.write(Path(args.out), args.force)
    count = "1 file" if len(written) == 1 else f"{len(written)} files"
    lines = [*summary(sizing), ("written", f"{count} in {args.out}")]
    lines += [("next", command) for command in commands]
    print("\n".join(f"{label:<14}{text}" for label, text in lines))
    return 0
