# SPDX-License-Identifier: Apache-2.0
"""`longflow render`: its numbers beside the planner's, what it refuses, and what it installs."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fake_hub import fake_hub
from sglang_longflow.cli.main import main
from sglang_longflow.cli.render import DEFAULT_PROMETHEUS, TARGETS
from sglang_longflow.deployment import files, sizing
from sglang_longflow.deployment.node_labels import PRODUCT, node_selector, products
from sglang_longflow.deployment.settings import Settings
from sglang_longflow.errors import ConfigError
from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.planner.gpus import GIB, GPUS
from sglang_longflow.planner.plan import make_plan
from sglang_longflow.server import serve
from sglang_longflow.server import settings as server_settings
from sglang_longflow.server.api_key import key_of_environment
from sglang_longflow.settings.builtin_models import builtin_config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sglang-longflow"
TINY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "head_dim": 64, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
SIZE = ("--model", "qwen3-1.7b", "--gpu", "H100-80G", "--budget", "3200")


def is_number_for_go(text: str) -> bool:
    """As YAML 1.2 and Go's readers take a bare word; Python's numbers have the same forms."""
    if text[:1] not in tuple("+-.0123456789"):
        return False
    for kind in (float, lambda word: int(word, 0)):
        try:
            kind(text.replace("_", ""))
        except ValueError:
            continue
        return True
    return False


def test_a_text_stays_a_text_for_other_readers():
    """PyYAML writes 1e3 bare, and kubectl reads a label of 1000, which is none."""
    draw, bare = random.Random(1), 0
    words = ["7e12345", "0o17", "1e3", "v1.2.3", "16Gi", "30s"]
    words += [
        "".join(draw.choices("0123456789e.-+xo_ab", k=draw.randint(1, 7))) for _ in range(3000)
    ]
    for word in words:
        written = files.dump({"tag": word}, "").removeprefix("tag: ").strip()
        assert yaml.safe_load(written) == word
        if written == word:
            bare += 1
            assert not is_number_for_go(word), word
    assert bare > 500


@pytest.mark.parametrize("image", ["x;id:1", "`id`:1", "x:1&&id", "x|y:1", "x\ny:1", "$(id):1"])
def test_an_image_is_what_references_consist_of(tmp_path, capsys, image):
    """It stands in commands that are printed to be copied."""
    out = ("--target", "helm", "--out", str(tmp_path / "out"))
    assert main(["render", *out, *SIZE, f"--image={image}"]) == 2
    assert "--image" in capsys.readouterr().err


def plan_of(model="Qwen/Qwen3-1.7B", gpu="H100-80G", budget=3200, **more):
    return make_plan(load_geometry(model), gpu=GPUS[gpu], budget_tokens=budget, **more)


def sized(plan, least=1, most=4, **more):
    return sizing.make_sizing(plan, model_path="a/b", replicas_min=least, replicas_max=most, **more)


def render(out: Path, target: str, *flags: str, size: tuple[str, ...] = SIZE) -> int:
    return main(["render", "--target", target, "--out", str(out), *size, *map(str, flags)])


def refusal(capsys, out: Path, target: str, *flags: str, size: tuple[str, ...] = SIZE) -> str:
    assert render(out, target, *flags, size=size) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("longflow render: error: ")
    assert not out.exists() or not list(out.glob("*.yaml"))
    return line


def read(path: Path):
    return yaml.safe_load(path.read_text())


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpu", "budget", "tp"),
    [
        ("Qwen/Qwen3-1.7B", "H100-80G", 3200, 1),
        ("Qwen/Qwen3-8B", "L40S-48G", 1600, 1),
        ("meta-llama/Llama-3.3-70B-Instruct", "H200-141G", 2048, 2),
    ],
)
def test_numbers_follow_the_plan(model, gpu, budget, tp):
    plan = plan_of(model, gpu, budget, tp=tp)
    found = sized(plan)
    assert plan.helps and found.rows == plan.max_running_requests == plan.rows_budget
    assert found.load_threshold == found.rows * 80 // 100
    assert found.queue_threshold == found.rows * 40 // 100
    assert found.gpus == tp and found.cpus == 4 * tp and found.shared_memory_gib == 8 * tp
    assert found.cache_gib > plan.weights_bytes / GIB * 1.5
    assert found.memory_limit_gib >= (
        found.memory_request_gib + plan.weights_bytes / GIB + found.shared_memory_gib
    )
    config = found.server_config()
    assert config["max-running-requests"] == config["kv-planned-rows"] == found.rows
    assert config["kv-budget"] == config["kv-budget-max"] == budget
    assert config["mem-fraction-static"] == plan.mem_fraction_static


def test_qwen3_on_an_h100_by_hand():
    found = sized(plan_of())
    # The README's plan: a pool of 599,468 tokens, 187 rows, about 7,322 tokens/s.
    assert (found.rows, found.load_threshold, found.queue_threshold) == (187, 149, 74)
    seconds = 2 * 16_384 / (7_322 / 187)
    assert found.longest_generation_s == math.ceil(seconds / 60) * 60 == 840
    assert (found.memory_request_gib, found.memory_limit_gib, found.cache_gib) == (14, 26, 10)


def test_the_longest_generation_follows_the_output():
    short, long = plan_of(output_tokens=64), plan_of(output_tokens=65_536)
    assert sized(short).longest_generation_s == 300
    assert sized(long).longest_generation_s > 3000
    unknown = make_plan(load_geometry("qwen3-8b"), memory_bytes=40 * GIB, budget_tokens=2000)
    assert sized(unknown).longest_generation_s == 1800


def test_one_row_has_thresholds_of_one():
    plan = plan_of("Qwen/Qwen3-8B", "L4-24G", 14_000)
    found = sized(plan)
    assert found.rows == plan.pool_tokens // 14_000 == 1
    assert (found.load_threshold, found.queue_threshold) == (1, 1)


def test_the_chart_computes_the_same_thresholds():
    scaling = read(CHART / "values.yaml")["autoscaling"]
    assert scaling["targetPercent"] == sizing.TARGET_PERCENT
    assert scaling["queuePercent"] == sizing.QUEUE_PERCENT
    helpers = (CHART / "templates/_helpers.tpl").read_text()
    assert f"longestGenerationSeconds {sizing.GRACE_MARGIN_S} -" in helpers
    router = (CHART / "templates/router.yaml").read_text()
    assert f"rowsPerReplica {100 // sizing.BALANCE_PERCENT}) }}" in router


# --- files ------------------------------------------------------------------------------------


def test_keda(tmp_path):
    assert render(tmp_path, "keda", "--namespace", "chat", "--name", "llm") == 0
    (file,) = tmp_path.iterdir()
    content = read(file)
    assert content["metadata"] == {"name": "llm", "namespace": "chat"}
    assert content["spec"]["scaleTargetRef"]["name"] == "llm"
    assert (content["spec"]["minReplicaCount"], content["spec"]["maxReplicaCount"]) == (1, 4)
    load, queue = content["spec"]["triggers"]
    assert (load["metadata"]["threshold"], queue["metadata"]["threshold"]) == ("149", "74")
    for trigger in (load, queue):
        assert trigger["metadata"]["serverAddress"] == DEFAULT_PROMETHEUS
        query = trigger["metadata"]["query"]
        assert query.count('namespace="chat"') == query.count('pod=~"llm-[') == query.count("{")
        assert '"longflow' not in query


def test_helm(tmp_path):
    assert render(tmp_path, "helm", "--image", "registry:5000/a/b:1", "--replicas-max", 2) == 0
    values = read(tmp_path / "values.yaml")
    assert values["image"] == {"repository": "registry:5000/a/b", "tag": "1"}
    assert values["autoscaling"]["rowsPerReplica"] == 187
    assert values["autoscaling"]["maxReplicas"] == 2
    shipped = read(CHART / "values.yaml")
    assert values.keys() <= shipped.keys()
    config = {key: value for key, value in values["config"].items() if value is not None}
    wanted = sized(plan_of(), reasoning_parser="qwen3").server_config()
    assert config == wanted | {"model-path": "Qwen/Qwen3-1.7B"}
    assert values["config"].keys() >= shipped["config"].keys()  # the chart's others are removed
    assert (tmp_path / "sglang-longflow/templates/_helpers.tpl").is_file()
    assert (tmp_path / "sglang-longflow/.helmignore").is_file()


def test_kustomize(tmp_path):
    assert render(tmp_path, "kustomize", "--tp", 2, "--router") == 0
    top = read(tmp_path / "kustomization.yaml")
    assert [Path(name).name for name in top["components"]] == [
        *("monitoring", "shared-cache", "router", "router-monitoring", "keda")
    ]
    for name in (*top["resources"], *top["components"]):
        assert (tmp_path / name / "kustomization.yaml").is_file()
    server = read(tmp_path / "patches/server.yaml")["spec"]["template"]["spec"]["containers"][0]
    assert server["args"][-1] == "--tp-size=2" and server["args"][0] == "serve"
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert read(tmp_path / "config.yaml")["max-running-requests"] == 384


def test_a_fixed_number_of_servers_has_no_autoscaler(tmp_path):
    fixed = ("--replicas-min", "3", "--replicas-max", "3")
    assert render(tmp_path / "k", "kustomize", *fixed) == 0
    top = read(tmp_path / "k/kustomization.yaml")
    assert top["components"] == ["components/shared-cache"]
    assert top["replicas"] == [{"name": "longflow", "count": 3}]
    assert render(tmp_path / "h", "helm", *fixed) == 0
    values = read(tmp_path / "h/values.yaml")
    assert values["replicas"] == 3
    assert values["autoscaling"] == {"kind": "none", "rowsPerReplica": 187}


def test_compose(tmp_path):
    assert render(tmp_path, "compose", "--tp", 2, "--image", "x@sha256:" + "a" * 64) == 0
    lines = (tmp_path / "compose/.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    assert settings == {
        "MODEL": "Qwen/Qwen3-1.7B", "CONFIG": "../config.yaml", "SHM_SIZE": "16gb",
    }  # fmt: skip
    assert read(tmp_path / "config.yaml")["tp-size"] == 2
    compose = read(tmp_path / "compose/compose.yaml")
    endpoint = compose["services"]["endpoint"]
    assert endpoint["image"] == "x@sha256:" + "a" * 64 and "build" not in endpoint
    (device,) = endpoint["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == 2
    # Every file that the services name is there, at the path they name it by.
    for service in compose["services"].values():
        assert (tmp_path / "compose" / service["extends"]["file"]).is_file()
        for volume in service["volumes"]:
            source = volume.split(":")[0].replace("${CONFIG", settings["CONFIG"])
            if source.startswith("."):
                assert (tmp_path / "compose" / source).exists(), volume


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_variable_of_an_environment_file_is_used(tmp_path, target):
    """A variable that no file reads says nothing: an API_KEY was one, on an open server."""
    size = ("--replicas-max", "1") if target == "compose" else ()
    assert render(tmp_path, target, *size) == 0
    environments = [path for path in tmp_path.rglob("*") if path.name.startswith(".env")]
    assert [path.name for path in environments] == ([".env"] if target == "compose" else [])
    for path in environments:
        names = set(re.findall(r"^#?([A-Z][A-Z_]*)=", path.read_text(), re.MULTILINE))
        assert names == {"MODEL", "CONFIG", "SHM_SIZE", "HF_TOKEN", "API_KEY", "BIND"}
        files = [read(file) for file in path.parent.glob("*.yaml")]
        text = "\n".join(map(str, files))  # without comments
        passed_on = {
            name
            for file in files
            for service in file["services"].values()
            for name, value in (service.get("environment") or {}).items()
            if value is None
        }
        assert names - passed_on - set(re.findall(r"\$\{([A-Z_]+)", text)) == set()


@pytest.mark.sglang
def test_a_rendered_api_key_closes_the_server(tmp_path, monkeypatch):
    """From .env through the service's environment to an argument of SGLang's."""
    assert render(tmp_path, "compose") == 0
    services = read(tmp_path / "compose/services.yaml")["services"]
    (variable,) = [
        name
        for name, value in services["endpoint"]["environment"].items()
        if value == "${API_KEY:-}"
    ]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    words = [str(model), "--port=30999", "--config", str(tmp_path / "config.yaml")]
    monkeypatch.setattr(server_settings, "check_port", lambda *_: None)
    for value, given in (("", None), (" secret\n", "secret")):
        monkeypatch.setenv(variable, value)
        settings, _ = server_settings.prepare(words, key=key_of_environment())
        assert settings.values.get("api_key") == given
        assert ("--api-key=secret" in settings.arguments) is (given is not None)
    assert "secret" not in str(serve.banner(settings, None))
    words.append("--api-key=mine")
    settings, _ = server_settings.prepare(words, key=key_of_environment())
    assert settings.values["api_key"] == "mine" and "secret" not in str(settings.arguments)


def test_max_total_tokens_limits_plan_and_server(tmp_path):
    assert render(tmp_path, "kustomize", "--max-total-tokens", 290_000) == 0
    config = read(tmp_path / "config.yaml")
    assert config["max-total-tokens"] == 290_000 and config["max-running-requests"] == 90


def test_a_model_of_the_hub_at_a_revision(tmp_path, monkeypatch):
    """The server loads what was planned: the name and the revision, quantized weights counted."""
    with fake_hub() as hub:
        hub.stand_in(monkeypatch, tmp_path / "cache")
        found = {**(builtin_config("Qwen/Qwen3-8B") or {}), "quantization_config": {"bits": 8}}
        hub.put("some-lab/Qwen3-8B-FP8", "config.json", json.dumps(found).encode(), "v2")
        index = {"metadata": {"total_size": 8 * GIB}, "weight_map": {}}
        name = "model.safetensors.index.json"
        hub.put("some-lab/Qwen3-8B-FP8", name, json.dumps(index).encode(), "v2")
        words = ["--model", "some-lab/Qwen3-8B-FP8", "--revision", "v2", "--gpu", "l40s"]
        out = tmp_path / "out"
        command = ["render", "--target", "kustomize", "--out", str(out), "--budget", "3200"]
        assert main([*command, *words]) == 0
    config = read(out / "config.yaml")
    assert (config["model-path"], config["revision"]) == ("some-lab/Qwen3-8B-FP8", "v2")
    pool = (int(44.4 * GIB) * 0.85 - 8 * GIB) // (36 * 2 * 8 * 128 * 2)
    assert config["max-running-requests"] == pool // 3200


def test_it_says_what_it_did(tmp_path, capsys):
    assert render(tmp_path / "o", "kustomize") == 0
    text = capsys.readouterr().out
    assert "187 at the budget of 3,200" in text
    assert "149 running and queued, or 74 queued requests each" in text
    assert f"next          kubectl apply -k {tmp_path}/o" in text
    assert "nodes         with nvidia.com/gpu.product NVIDIA-H100-80GB-HBM3" in text
    assert "thinking      into reasoning_content (parser qwen3)" in text
    assert render(tmp_path / "p", "keda", "--output-tokens", 100) == 0
    assert "verdict       does NOT help" in capsys.readouterr().out


# --- what a pod would otherwise find out ---------------------------------------------------------

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


# --- installation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What a wheel holds, built by setup.py from a copy of the checkout."""
    source, lib = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("lib")
    for name in ("configs", "deploy", "kernels", "sglang_longflow"):
        skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(lib)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return lib


def test_every_deployment_file_is_installed_where_render_looks(built, monkeypatch):
    data = built / "sglang_longflow" / "deployment" / "data"
    for name in ("configs", "deploy"):
        there = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob("*") if p.is_file()}
        assert len(there) >= 3
        for file in there:
            assert (data / name / file).read_bytes() == (ROOT / name / file).read_bytes()
    monkeypatch.setattr(files, "__file__", str(data.parent / "files.py"))
    assert files.deploy_folder() == data / "deploy"


def test_the_wheel_has_the_packages_and_their_data(built):
    for name in ("py.typed", "demo/data/gsm8k_demo.jsonl", "monitor/static/index.html"):
        assert (built / "sglang_longflow" / name).is_file(), name
    assert (built / "longflow_kernels" / "attend_score_evict" / "op.py").is_file()


def test_it_runs_without_torch_and_sglang(tmp_path):
    code = (
        "import sys\nfrom sglang_longflow.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'sglang', 'transformers'} & set(sys.modules)"
    )
    argv = ["render", "--target", "keda", "--out", str(tmp_path / "out"), *SIZE]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
