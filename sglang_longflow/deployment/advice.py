# SPDX-License-Identifier: Apache-2.0
"""What someone who applies the written files would otherwise find out from a pod that waits."""

from __future__ import annotations

from sglang_longflow.deployment.secrets import needs_login
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.deployment.sizing import Sizing

#: Targets whose files start servers on a cluster.
CLUSTER = ("kustomize", "helm")


def image_comment(target: str, settings: Settings, is_given: bool) -> str:
    """A line for the head of the written files; empty where the image was named."""
    if is_given or target == "keda":
        return ""
    then = ", push it, render again with --image" if target in CLUSTER else ""
    return f"\nNo public image exists: build {settings.image}{then}."


def image_commands(target: str, settings: Settings, is_given: bool) -> list[str]:
    """What comes before all other commands where no image was named."""
    if is_given or target == "keda":
        return []
    if target not in CLUSTER:
        return [f"docker build -t {settings.image} .  # in a checkout"]
    name = f"REGISTRY/{settings.image}"
    return [
        f"docker build -t {name} . && docker push {name}  # in a checkout",
        f"longflow render ... --image {name} --force  # the same with your image",
    ]


def needs(target: str, sizing: Sizing) -> list[str]:
    """What the written objects ask of a cluster beside the nodes, a few words each."""
    if target not in CLUSTER:
        return []
    found = []
    if sizing.autoscaled:
        found += ["KEDA 2.17 or newer", "the Prometheus operator"]
    if sizing.replicas_max > 1:
        found.append(
            "a default storage class that is ReadWriteMany (all servers share the claim of the "
            "models)"
        )
    return found


def notes(
    target: str, sizing: Sizing, settings: Settings, *, has_image: bool, is_pinned: bool
) -> list[str]:
    """What is missing or open, a line each.

    Parameters
    ----------
    target : str
        As ``--target``.
    sizing, settings
        What was written.
    has_image, is_pinned : bool
        An image was named; a card was to be pinned.
    """
    if target == "keda":
        return []
    found = []
    if not has_image:
        found.append(f"no public image exists: build {settings.image} from a checkout, as below")
    if needs_login(sizing.model_path) and not settings.hf_secret:
        organisation = sizing.model_path.split("/")[0]
        fix = "--hf-secret NAME" if target in CLUSTER else "set HF_TOKEN in compose/.env"
        found.append(
            f"models of {organisation} mostly ask for a login, without which the server cannot "
            f"start: {fix}"
        )
    if target not in CLUSTER:
        return found
    if has_image and not settings.has_registry:
        found.append(
            f"--image {settings.image} names no registry, so nodes ask Docker Hub; right where the "
            f"nodes have it already (kind load docker-image {settings.image})"
        )
    if not settings.api_key_secret:
        found.append(
            "without --api-key-secret NAME the servers answer everyone inside the cluster whom the "
            "NetworkPolicy lets through"
        )
    if is_pinned and not settings.placement:
        card = f"no node label is known for {sizing.plan.gpu}" if sizing.plan.gpu else "no --gpu"
        found.append(
            f"{card}: servers are not pinned to a card, and on another one the rows are wrong; "
            "--node-selector KEY=VALUE pins them"
        )
    return found
