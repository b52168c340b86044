# SPDX-License-Identifier: Apache-2.0
"""`longflow render`: what a pod would otherwise find out it says, and it refuses what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rendering import SIZE, TINY, read, refusal, render
from sglang_longflow.deployment import files
from sglang_longflow.deployment.node_labels import PRODUCT, node_selector, products
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.gpus import GPUS

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sglang-longflow"

REGISTRY = ("--image", "registry.example.com/a/b:1")
SECRETS = ("--hf-secret", "hf:hf-token", "--api-key-secret", "clients")
LLAMA = ("--model", "meta-llama/Llama-3.1-8B-Instruct", *SIZE[2:])


def said(capsys, out: Path, target: str, *flags: str, size=SIZE) -> dict[str, list[str]]:
    """What is printed, by label."""
    assert render(out, target, *flags, size=size) == 0
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if "shape is the built-in one" in line:  # of the plan, as no hub is asked here
            continue
        found.setdefault(line[:14].strip(), []).append(line[14:])
    return found


@pytest.mark.parametrize("target", ["kustomize", "helm", "compose"])
def test_a_missing_image_comes_first(tmp_path, capsys, target):
    found = said(capsys, tmp_path, target)
    name = "sglang-longflow:" if target == "compose" else "REGISTRY/sglang-longflow:"
    assert found["next"][0].startswith(f"docker build -t {name}")
    assert ("docker push REGISTRY/" in found["next"][0]) == (target != "compose")
    assert "no public image exists" in found["note"][0]
    main = {"kustomize": "kustomization", "helm": "values", "compose": "compose/compose"}[target]
    assert "# No public image exists: build" in (tmp_path / f"{main}.yaml").read_text()


def test_nothing_is_missing_where_all_is_given(tmp_path, capsys):
    for target in ("kustomize", "helm"):
        found = said(capsys, tmp_path / target, target, *REGISTRY, *SECRETS, size=LLAMA)
        assert "note" not in found
        assert found["next"][0] == "kubectl create namespace longflow"
        assert found["next"][1:3] == [
            'kubectl -n longflow create secret generic hf --from-literal=hf-token="$HF_TOKEN"',
            "kubectl -n longflow create secret generic clients "
            '--from-literal=api-key="$(openssl rand -hex 32)"',
        ]
    assert read(tmp_path / "helm/values.yaml")["secrets"] == {
        "huggingFace": "hf", "huggingFaceKey": "hf-token",
        "apiKey": "clients", "apiKeyKey": "api-key",
    }  # fmt: skip


def test_a_cluster_is_told_what_the_objects_need(tmp_path, capsys):
    for target in ("kustomize", "helm"):
        (text,) = said(capsys, tmp_path / target, target)["cluster needs"]
        assert "KEDA" in text and "Prometheus operator" in text and "ReadWriteMany" in text
    fixed = ("--replicas-min", "2", "--replicas-max", "2")
    (text,) = said(capsys, tmp_path / "fixed", "helm", *fixed)["cluster needs"]
    assert "KEDA" not in text and "ReadWriteMany" in text
    assert "cluster needs" not in said(capsys, tmp_path / "one", "helm", "--replicas-max", "1")
    assert not {"cluster needs", "nodes"} & set(said(capsys, tmp_path / "compose", "compose"))


def test_server_and_router_are_told_the_key(tmp_path):
    assert render(tmp_path, "kustomize", *REGISTRY, *SECRETS, "--router", "--tp", "2") == 0
    for name in ("server", "router"):
        patch = read(tmp_path / f"patches/{name}.yaml")
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        # `longflow serve` reads the variable; the router takes a flag alone.
        assert ("--api-key=$(LONGFLOW_API_KEY)" in container["args"]) == (name == "router")
        found = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container["env"]}
        assert found["LONGFLOW_API_KEY"] == {"name": "clients", "key": "api-key"}
        assert ("HF_TOKEN" in found) == (name == "server")


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("longflow:1", "longflow:1 names no registry, so nodes ask Docker Hub"),
        ("team/longflow:1", "kind load docker-image team/longflow:1"),
        ("localhost:5001/longflow:1", None),
        ("localhost/longflow:1", None),
        ("registry.example.com/longflow:1", None),
    ],
)
def test_an_image_without_a_registry_is_named(tmp_path, capsys, image, text):
    found = said(capsys, tmp_path, "helm", "--image", image, "--api-key-secret", "k")
    assert text in "".join(found["note"]) if text else "note" not in found
    assert found["next"][0].startswith("kubectl create namespace")


@pytest.mark.parametrize(
    ("target", "fix"),
    [("kustomize", "--hf-secret NAME"), ("helm", "--hf-secret NAME"), ("compose", "HF_TOKEN in")],
)
def test_a_model_that_asks_for_a_login_is_named(tmp_path, capsys, target, fix):
    notes = said(capsys, tmp_path, target, size=LLAMA)["note"]
    assert any("models of meta-llama" in note and fix in note for note in notes)
    assert not any("login" in note for note in said(capsys, tmp_path / "q", target)["note"])


def test_an_open_server_is_named(tmp_path, capsys):
    for target, is_named in (("kustomize", True), ("helm", True), ("compose", False)):
        notes = said(capsys, tmp_path / target, target)["note"]
        assert any("without --api-key-secret" in note for note in notes) == is_named


def test_a_card_is_pinned_or_said_not_to_be(tmp_path, capsys):
    def pod(name: str, *flags: str, size=SIZE):
        found = said(capsys, tmp_path / name, "kustomize", *REGISTRY, *flags, size=size)
        patch = read(tmp_path / name / "patches/server.yaml")["spec"]["template"]["spec"]
        notes = [note for note in found.get("note", []) if "pinned" in note]
        return patch.get("affinity"), patch.get("nodeSelector"), notes

    affinity, selector, notes = pod("card")
    assert "NVIDIA-H100-80GB-HBM3" in str(affinity) and selector is None and notes == []
    affinity, selector, notes = pod("label", "--node-selector", "a.b/c=d", "--node-selector", "e=f")
    assert (affinity, selector, notes) == (None, {"a.b/c": "d", "e": "f"}, [])
    assert pod("not", "--no-pin") == (None, None, [])
    memory = ("--model", "qwen3-1.7b", "--memory-gb", "40", "--budget", "3200")
    affinity, selector, (note,) = pod("memory", size=memory)
    assert (affinity, selector) == (None, None)
    assert note.startswith("no --gpu: servers are not pinned") and "--node-selector KEY" in note


def test_every_card_of_the_planner_has_a_label_of_its_own():
    found = [(name, label) for name in GPUS for label in products(name)]
    assert {name for name, _ in found} == set(GPUS)
    assert len({label for _, label in found}) == len(found)
    for _, label in found:
        assert node_selector([f"{PRODUCT}={label}"]) == {PRODUCT: label}


@pytest.mark.parametrize(
    ("gpu", "labels"),
    [
        ("H100-80G", ("NVIDIA-H100-80GB-HBM3",)),
        ("A100-40G", ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB")),
        ("RTX4090-24G", ("NVIDIA-GeForce-RTX-4090",)),
        ("X9", ()),
        (None, ()),
    ],
)
def test_labels_are_what_gpu_feature_discovery_writes(gpu, labels):
    assert products(gpu) == labels


@pytest.mark.parametrize("target", ["kustomize", "helm", "compose"])
def test_the_reasoning_parser_is_kept(tmp_path, target):
    def parser(name: str, *flags: str, size=SIZE):
        assert render(tmp_path / name, target, *flags, size=size) == 0
        if target == "helm":
            return read(tmp_path / name / "values.yaml")["config"]["reasoning-parser"]
        return read(tmp_path / name / "config.yaml").get("reasoning-parser")

    assert parser("known") == "qwen3"
    assert parser("given", "--reasoning-parser", "Deepseek-R1") == "deepseek-r1"
    assert parser("none", "--reasoning-parser", "none") is None
    assert parser("plain", size=LLAMA) is None


# --- refusals ---------------------------------------------------------------------------------


def test_a_folder_with_files_is_kept(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    line = refusal(capsys, tmp_path, "keda")
    assert f"--out {tmp_path}: not empty; --force" in line
    assert render(tmp_path, "keda", "--force") == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert capsys.readouterr().out.count("1 file in") == 1
    assert "not a folder" in refusal(capsys, tmp_path / "mine.txt", "keda", "--force")


@pytest.mark.parametrize(
    ("target", "flags", "text"),
    [
        ("swarm", (), "--target swarm is not one of: compose, kustomize, helm, keda"),
        ("kustomise", (), "helm, keda; did you mean kustomize?"),
        ("helm", ("--reasoning-parser", "qwen"), "; did you mean qwen3 or qwen3-thinking?"),
        ("helm", ("--hf-secret", "My_Secret"), "--hf-secret 'My_Secret': expected a Secret's NAME"),
        ("helm", ("--api-key-secret", "a:"), "--api-key-secret 'a:': expected"),
        ("helm", ("--node-selector", "a"), "--node-selector 'a': expected KEY=VALUE"),
        ("helm", ("--node-selector", "a=b c"), "--node-selector 'a=b c'"),
        ("helm", ("--node-selector", "a=b", "--node-selector", "a=c"), "a: given twice"),
        ("helm", ("--no-pin", "--node-selector", "a=b"), "--no-pin: contradicts"),
        ("compose", ("--hf-secret", "a"), "--hf-secret: --target compose has no pods"),
        ("keda", ("--api-key-secret", "a"), "--api-key-secret: --target keda scales"),
        ("compose", ("--node-selector", "a=b"), "--node-selector: --target compose"),
        ("helm", ("--budget", "37"), "--budget 37 must be an integer >= 38"),
        ("helm", ("--budget", "600000"), "--budget 600000 is over the model's context of 40960"),
        ("helm", ("--replicas-min", "0"), "--replicas-min 0 must be an integer >= 1"),
        (
            "helm",
            ("--replicas-min", "3", "--replicas-max", "2"),
            "--replicas-max 2 must be at least --replicas-min 3",
        ),
        ("keda", ("--replicas-max", "1"), "--replicas-max 1 must be above --replicas-min 1"),
        ("keda", ("--router",), "--router: --target keda"),
        ("compose", ("--replicas-max", "2"), "--replicas-max 2: --target compose runs 1 server"),
        ("compose", ("--router",), "--router: --target compose has none"),
        ("kustomize", ("--name", "chat"), "--name chat: the objects of --target kustomize"),
        ("helm", ("--name", "Chat"), "--name 'Chat': expected 1 to 40"),
        ("keda", ("--namespace", "a" * 41), "expected 1 to 40"),
        ("keda", ("--namespace", 'a"'), "--namespace 'a\"'"),
        ("helm", ("--image", "a/b"), "--image 'a/b': expected NAME:TAG"),
        ("helm", ("--image", "registry:5000/b"), "expected NAME:TAG"),
        ("helm", ("--image", "a@sha256:12"), "a digest is sha256: and 64 hex digits"),
        ("keda", ("--prometheus", "prometheus:9090"), "--prometheus 'prometheus:9090'"),
        ("helm", ("--model-path", "a b"), "--model-path 'a b'"),
        ("helm", ("--tp", "3"), "--tp 3 must divide"),
    ],
)
def test_refusals(tmp_path, capsys, target, flags, text):
    assert text in refusal(capsys, tmp_path / "out", target, *flags)


def test_a_folder_needs_the_path_in_the_container(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY))
    size = ("--model", str(model), "--memory-gb", "1", "--budget", "100")
    line = refusal(capsys, tmp_path / "out", "helm", size=size)
    assert "--model-path: not set" in line
    assert render(tmp_path / "out", "helm", "--model-path", "/models/m", size=size) == 0
    assert read(tmp_path / "out/values.yaml")["config"]["model-path"] == "/models/m"


def test_a_name_in_the_cache_is_no_folder(tmp_path, monkeypatch):
    """The container downloads it by its name, whatever lies on this machine."""
    from huggingface_hub import constants

    repository = tmp_path / "hub/models--me--llama"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/config.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    size = ("--model", "me/llama", "--memory-gb", "1", "--budget", "100")
    assert render(tmp_path / "out", "helm", size=size) == 0
    assert read(tmp_path / "out/values.yaml")["config"]["model-path"] == "me/llama"


def test_users_who_all_fit_leave_no_budget(tmp_path, capsys):
    size = (*SIZE[:4], "--users", "2")
    assert "give --budget" in refusal(capsys, tmp_path / "out", "helm", size=size)


def test_an_incomplete_installation_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "deploy_folder", lambda: tmp_path / "deploy")
    with pytest.raises(ConfigError, match=r"helm.* is missing: the installation is incomplete"):
        files.Output(copies={"a": "helm"}).write(tmp_path / "out", force=False)


@pytest.mark.parametrize(
    ("image", "name", "tag"),
    [
        ("a:1", "a", "1"),
        ("r:5000/a/b:1.2-cpu", "r:5000/a/b", "1.2-cpu"),
        ("a@sha256:" + "0" * 64, "a", "sha256:" + "0" * 64),
    ],
)
def test_image_names(image, name, tag):
    found = Settings("o", image, "n", "n", "http://p", False, "")
    assert (found.image_name, found.image_tag) == (name, tag)
