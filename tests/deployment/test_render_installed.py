# SPDX-License-Identifier: Apache-2.0
"""`longflow render` of an installation: the files it copies and the packages it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rendering import SIZE
from sglang_longflow.deployment import files

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sglang-longflow"


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
