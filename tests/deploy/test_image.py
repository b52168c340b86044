# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile and the compose files, as far as can be said without building them."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from programs import load_program
from sglang_longflow import __version__
from sglang_longflow.server.settings import read_settings
from sglang_longflow.settings.release import TESTED_SGLANG

pytestmark = pytest.mark.deploy
ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIANTS = ["compose.yaml", "compose.cpu.yaml"]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def stage(name: str) -> str:
    """The text of one stage, with continued lines joined."""
    text = re.split(rf"^FROM .+ AS {name}$", DOCKERFILE, flags=re.M)[1]
    return re.sub(r"\s*\\\n\s*", " ", re.split(r"^FROM ", text, flags=re.M)[0])


def test_hadolint_is_content(tools):
    done = run(tools / "venv/bin/hadolint", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_complain(tools, tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.replace("USER 1000:1000", "USER root"))
    done = run(tools / "venv/bin/hadolint", bad)
    assert done.returncode == 1 and "DL3002" in done.stdout


def test_bases_are_pinned_or_keep_the_release_back():
    bases = re.findall(r"^ARG \w+_IMAGE=(.+)$", DOCKERFILE, re.M)
    assert len(bases) == 2
    digest = r"(@sha256:[0-9a-f]{64})?"
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+" + digest, base) for base in bases), bases
    # By a tag alone while a line is being prepared; release_notes.py then refuses the release.
    without = [base for base in bases if "@" not in base]
    assert set(without) <= {f"lmsysorg/sglang:v{TESTED_SGLANG[-1]}"}
    refused = load_program("scripts/release_notes.py").unpinned(DOCKERFILE)
    assert len(refused) == len(without) and all(b in line for b, line in zip(without, refused))
    used = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))
    assert used == {"${SGLANG_IMAGE}", "${PYTHON_IMAGE}"}


def test_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sglang = next(d for d in project["dependencies"] if d.startswith("sglang=="))
    tag = re.escape(f"lmsysorg/sglang:v{sglang.removeprefix('sglang==')}")
    assert re.search(rf"^ARG SGLANG_IMAGE={tag}(@|$)", DOCKERFILE, re.M)
    assert set(re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.M)) == {__version__}
    images = re.findall(r"sglang-longflow:([\w.]+)", DOCKERFILE)
    images += [
        tag
        for path in COMPOSE.glob("*.yaml")
        for tag in re.findall(r"image: sglang-longflow:([\w.]+)", path.read_text())
    ]
    assert set(images) == {__version__}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_target_runs_as_a_user_checks_itself_and_ends_well(name):
    text = stage(name)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:1000"
    doctor = lines.index("RUN longflow doctor --no-device")
    assert lines.index("USER 1000:1000") < doctor, "checked as the user that will run it"
    assert 'ENTRYPOINT ["tini", "--", "longflow"]' in lines
    assert "STOPSIGNAL SIGTERM" in lines and "EXPOSE 30000" in lines
    assert 'VOLUME ["/cache"]' in lines
    health = next(line for line in lines if line.startswith("HEALTHCHECK"))
    seconds = {k: int(v) for k, v in re.findall(r"--(\w+)=(\d+)s", health)}
    patience = int(re.search(r'"--max-time", "(\d+)"', health)[1])
    # SGLang waits up to 20 s for the token that /health generates.
    assert 20 < patience < seconds["timeout"]
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in text


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_all_that_is_written_goes_to_the_cache(name):
    environment = next(line for line in stage(name).splitlines() if line.startswith("ENV"))
    values = dict(pair.split("=", 1) for pair in environment.split()[1:])
    assert values.pop("PYTHONUNBUFFERED") == "1"
    assert {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"} <= set(values)
    assert all(value == "/cache" or value.startswith("/cache/") for value in values.values())


def test_the_default_command_is_one_that_serve_reads(tmp_path):
    command = re.search(r"^CMD (\[.+\])$", stage("gpu"), re.M)[1]
    words = yaml.safe_load(command)
    assert words[:3] == ["serve", "--config", "/etc/longflow/config.yaml"]
    assert "COPY configs/default.yaml /etc/longflow/config.yaml" in stage("gpu")
    words[2] = str(ROOT / "configs/default.yaml")
    settings = read_settings(words[1:])
    assert (settings.host, settings.port) == ("0.0.0.0", 30000)
    assert settings.notes == []


def test_everything_that_is_copied_goes_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = [line[1:].rstrip("/") for line in lines if line.startswith("!")]
    copied = set()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M):
        if not line.startswith("--from"):
            copied |= set(line.split()[:-1])
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, kept) or source.startswith(f"{kept}/") for kept in sent)


@pytest.mark.parametrize("path", sorted(COMPOSE.glob("*.yaml")), ids=lambda path: path.name)
def test_compose_files_follow_the_schema(tools, path):
    checker = tools / "venv/bin/check-jsonschema"
    done = run(checker, "--builtin-schema", "vendor.compose-spec", path)
    assert done.returncode == 0, done.stdout
    lint = run(tools / "venv/bin/yamllint", "-s", "-c", "deploy/yamllint.yaml", path)
    assert lint.returncode == 0, lint.stdout


def test_the_compose_schema_would_complain(tools, tmp_path):
    bad = tmp_path / "compose.yaml"
    bad.write_text((COMPOSE / "compose.yaml").read_text().replace("image:", "imag:"))
    done = run(tools / "venv/bin/check-jsonschema", "--builtin-schema", "vendor.compose-spec", bad)
    assert done.returncode == 1


def services(variant: str) -> dict[str, dict]:
    """The services of a variant on top of what they extend."""
    common = yaml.safe_load((COMPOSE / "services.yaml").read_text())["services"]
    own = yaml.safe_load((COMPOSE / variant).read_text())["services"]
    for service in own.values():
        assert service["extends"]["file"] == "services.yaml"
    return {name: {**common[own[name]["extends"]["service"]], **own[name]} for name in own}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_service_is_pinned_and_locked_down(variant):
    found = services(variant)
    assert set(found) == {"endpoint", "prometheus", "grafana"}
    for name, service in found.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-cpu)?", service["image"]), name
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"]), name
    assert found["endpoint"]["build"]["target"] in ("gpu", "cpu")
    assert ("deploy" in found["endpoint"]) is (variant == "compose.yaml")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mounted_file_is_there_and_every_volume_declared(variant):
    declared = set(yaml.safe_load((COMPOSE / variant).read_text())["volumes"])
    named = set()
    for name, service in services(variant).items():
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
            else:
                named.add(source)
    assert named == declared


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_of_the_endpoint_is_one_that_serve_reads(variant):
    service = services(variant)["endpoint"]
    words = shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["command"]))
    volume = next(v for v in service["volumes"] if v.endswith(":/etc/longflow/config.yaml:ro"))
    config = COMPOSE / re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
    words[words.index("/etc/longflow/config.yaml")] = str(config)
    assert words.pop(0) == "serve"
    settings = read_settings(words)
    assert settings.notes == [] and settings.model.count("/") == 1
    assert settings.host == "0.0.0.0" and settings.values["enable_metrics"] is True
    # What is published, what is scraped, and what listens are the same port.
    assert all(port.endswith(f":{settings.port}") for port in service["ports"])
    scraped = (ROOT / "deploy/monitoring/prometheus.yml").read_text()
    assert f"endpoint:{settings.port}" in scraped


def test_the_example_environment_names_variables_that_are_used():
    text = "".join(path.read_text() for path in COMPOSE.glob("*.yaml"))
    used = set(re.findall(r"\$\{(\w+)", text)) | {"HF_TOKEN"}
    offered = set(re.findall(r"^#(\w+)=", (COMPOSE / ".env.example").read_text(), re.M))
    assert offered == used
