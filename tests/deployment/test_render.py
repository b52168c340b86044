# SPDX-License-Identifier: Apache-2.0
"""`longflow render`: its numbers beside the planner's, and the files it writes."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest
import yaml

from fake_hub import fake_hub
from rendering import SIZE, plan_of, read, render, sized
from sglang_longflow.cli.main import main
from sglang_longflow.cli.render import DEFAULT_PROMETHEUS, TARGETS
from sglang_longflow.deployment import files, sizing
from sglang_longflow.planner.geometry import load_geometry
from sglang_longflow.planner.gpus import GIB
from sglang_longflow.planner.plan import make_plan
from sglang_longflow.server import serve
from sglang_longflow.server import settings as server_settings
from sglang_longflow.server.api_key import key_of_environment
from sglang_longflow.settings.builtin_models import builtin_config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sglang-longflow"


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
