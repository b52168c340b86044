# SPDX-License-Identifier: Apache-2.0
"""``longflow render``: deployment files with the numbers of a plan filled in."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sglang_longflow import __version__
from sglang_longflow.cli.plan import add_plan_arguments, plan_from
from sglang_longflow.deployment import compose, helm, keda, kustomize
from sglang_longflow.deployment.advice import CLUSTER, image_commands, image_comment, needs, notes
from sglang_longflow.deployment.files import Output
from sglang_longflow.deployment.node_labels import PRODUCT, affinity, node_selector, products
from sglang_longflow.deployment.secrets import SecretKey
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import Sizing, make_sizing
from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.api import integer, one_of
from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.planner.plan import Plan
from sglang_longflow.settings.parsers import REASONING_PARSERS, reasoning_parser

TARGETS: dict[str, Callable[[Sizing, Settings], tuple[Output, list[str]]]] = {
    "compose": compose.output,
    "kustomize": kustomize.output,
    "helm": helm.output,
    "keda": keda.output,
}
DEFAULT_REPLICAS_MAX = 4
DEFAULT_IMAGE = f"sglang-longflow:{__version__}"
NO_PARSER = "none"
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
    add("--image", help=f"default {DEFAULT_IMAGE}, which is in no registry")
    add(
        "--hf-secret",
        metavar="NAME[:KEY]",
        help="Secret with the Hugging Face token; KEY is `token` if left out (kustomize, helm)",
    )
    add(
        "--api-key-secret",
        metavar="NAME[:KEY]",
        help="Secret with the key that clients must send; KEY is `api-key` if left out "
        "(kustomize, helm)",
    )
    add(
        "--node-selector",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a label of the nodes to run on, in place of the one of --gpu; may be repeated",
    )
    add("--no-pin", action="store_true", help=f"leave out the {PRODUCT} that --gpu stands for")
    add(
        "--reasoning-parser",
        metavar="NAME",
        help="SGLang's parser for the model's thinking, or none; default: by the model's name",
    )
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
    path = given or ("" if plan.model_source == "folder" else plan.model)
    if not path:
        raise ConfigError(
            f"--model-path: not set; --model {model} is on this machine, and the container needs "
            "a Hugging Face name or a path of its own"
        )
    if not path.isprintable() or any(c.isspace() or c in "\"'`$#" for c in path):
        raise ConfigError(f"--model-path {path!r:.200}: expected a path without spaces or quotes")
    return path


def _replicas(args: argparse.Namespace, target: str) -> tuple[int, int]:
    least = integer("--replicas-min", args.replicas_min)
    if args.replicas_max is not None:
        return least, integer("--replicas-max", args.replicas_max)
    return least, max(least, 1 if target == "compose" else DEFAULT_REPLICAS_MAX)


def _parser(given: str | None, model_path: str) -> str:
    if given is None:
        return reasoning_parser(model_path)
    found = one_of("--reasoning-parser", given, (*REASONING_PARSERS, NO_PARSER))
    return "" if found == NO_PARSER else found


def _refuse_unused(args: argparse.Namespace, target: str) -> None:
    """Refuse flags about pods where the target writes none."""
    if target in CLUSTER:
        if args.no_pin and args.node_selector:
            raise ConfigError("--no-pin: contradicts --node-selector; give one of them")
        return
    why = {
        "compose": "--target compose has no pods; its compose/.env has HF_TOKEN and API_KEY",
        "keda": "--target keda scales a Deployment that exists",
    }
    for flag in ("hf_secret", "api_key_secret", "node_selector", "no_pin"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag.replace('_', '-')}: {why[target]}")
    if args.router and target == "keda":
        raise ConfigError(f"--router: {why[target]}")


def _settings(args: argparse.Namespace, target: str, plan: Plan, note: str) -> Settings:
    selector = node_selector(args.node_selector)
    settings = Settings(
        out=shlex.quote(args.out),
        image=DEFAULT_IMAGE if args.image is None else args.image,
        name=args.name,
        namespace=args.namespace,
        prometheus=args.prometheus,
        router=args.router,
        note=note,
        hf_secret=SecretKey.parse("--hf-secret", args.hf_secret, "token"),
        api_key_secret=SecretKey.parse("--api-key-secret", args.api_key_secret, "api-key"),
        node_selector=selector,
        affinity={} if selector or args.no_pin else affinity(plan.gpu),
    )
    comment = image_comment(target, settings, args.image is not None)
    return replace(settings, note=note + comment)


def _nodes(settings: Settings, plan: Plan) -> list[tuple[str, str]]:
    if settings.node_selector:
        labels = ", ".join(f"{key}={value}" for key, value in settings.node_selector.items())
        return [("nodes", f"with {labels}")]
    if not settings.affinity:
        return []
    return [
        (
            "nodes",
            f"with {PRODUCT} {' or '.join(products(plan.gpu))}, by GPU feature discovery; on GKE, "
            "or with Karpenter, --node-selector",
        )
    ]


def summary(target: str, sizing: Sizing, settings: Settings) -> list[tuple[str, str]]:
    """Label and text of the numbers that were filled in, for a target of `TARGETS`."""
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
    if sizing.reasoning_parser:
        rows.append(("thinking", f"into reasoning_content (parser {sizing.reasoning_parser})"))
    if target in CLUSTER:
        rows += _nodes(settings, plan)
    if needed := needs(target, sizing):
        rows.append(("cluster needs", ", ".join(needed)))
    if sizing.autoscaled:
        text = f"{sizing.load_threshold:,} running and queued, or {sizing.queue_threshold:,} queued"
        rows.insert(4, ("one more at", f"{text} requests each"))
    if not plan.helps:
        rows.append(("verdict", plan.verdict))
    if plan.quality:
        rows.append(("quality", plan.quality))
    return rows + [("note", note) for note in plan.notes]


def run(args: argparse.Namespace) -> int:
    """Write the files that ``args`` asks for; 0, or an error that names field, value and limit."""
    target = one_of("--target", args.target, TARGETS)
    plan = plan_from(args)
    limit = args.max_total_tokens
    least, most = _replicas(args, target)
    if target == "keda" and most == least:
        raise PlanError(f"--replicas-max {most} must be above --replicas-min {least} for keda")
    _refuse_unused(args, target)
    model_path = _model_path(args.model, args.model_path, plan)
    sizing = make_sizing(
        plan,
        model_path=model_path,
        replicas_min=least,
        replicas_max=most,
        max_total_tokens=None if limit is None else integer("--max-total-tokens", limit),
        reasoning_parser=_parser(args.reasoning_parser, model_path),
        revision=args.revision,
    )
    asked = f"  --model {shlex.quote(args.model)} --budget {sizing.budget_tokens}"
    asked += f" --gpu {plan.gpu}" if plan.gpu else f" --memory-gb {args.memory_gb}"
    asked = "".join(c if c.isprintable() else "?" for c in asked)  # a comment of YAML is text
    note = f"Written by longflow render {__version__} --target {target}\n{asked} --tp {plan.tp}"
    settings = _settings(args, target, plan, note)
    output, commands = TARGETS[target](sizing, settings)
    written = output.write(Path(args.out), args.force)
    count = "1 file" if len(written) == 1 else f"{len(written)} files"
    has_image = args.image is not None
    advice = notes(target, sizing, settings, has_image=has_image, is_pinned=not args.no_pin)
    lines = [*summary(target, sizing, settings), *(("note", note) for note in advice)]
    lines.append(("written", f"{count} in {args.out}"))
    lines += [("next", line) for line in (*image_commands(target, settings, has_image), *commands)]
    print("\n".join(f"{label:<14}{text}" for label, text in lines))
    return 0
