# SPDX-License-Identifier: Apache-2.0
"""Where a model's config comes from, against a hub of this machine: order, errors, time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from fake_hub import fake_hub
from sglang_longflow.settings import model_source
from sglang_longflow.settings.builtin_models import builtin_config
from sglang_longflow.settings.model_source import FoundConfig, Missing, Why, find_config, look_up

NAME = "some-lab/Model-1B"
LISTED = "Qwen/Qwen3-8B"
ASK = """
import sys
from sglang_longflow.settings import model_source
model_source.HUB_SECONDS = 60.0  # it is no test of how busy this machine is
found = model_source.look_up(sys.argv[1])
print(getattr(found, "source", found), sorted({"torch", "sglang"} & set(sys.modules)))
"""


def config(**fields) -> bytes:
    return json.dumps({"model_type": "llama", **fields}).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fake_hub() as hub:
        hub.stand_in(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def cache(tmp_path, name: str, content: bytes, commit: str = "c" * 40) -> str:
    """Puts a config into the cache as the hub's library lays it out; returns its folder."""
    top = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    folder = top / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text(commit)
    return str(folder)


def test_folder_then_cache_then_hub_then_the_table(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    hub.refuse(LISTED, 500, "")
    found = look_up(LISTED)
    assert (found.source, found.config) == ("built-in", builtin_config(LISTED))
    assert found.passed_over.why is Why.ERROR

    hub.put(LISTED, "config.json", config(at="hub"))
    found = look_up("qwen3-8b")
    assert (found.source, found.name, found.config["at"]) == ("hub", LISTED, "hub")
    assert found.folder is None and hub.asked[-1][1] == "Bearer hf_secret"

    kept = cache(tmp_path, LISTED, config(at="cache"))
    count = len(hub.asked)
    found = look_up(LISTED)
    assert (found.source, found.folder, found.config["at"]) == ("cache", kept, "cache")

    folder = tmp_path / LISTED
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(config(at="folder"))
    expected = FoundConfig(json.loads(config(at="folder")), "folder", str(folder), "Qwen3-8B")
    assert look_up(LISTED) == look_up(str(folder / "config.json")) == expected
    assert len(hub.asked) == count


def test_a_revision_is_asked_for_and_never_answered_from_the_table(tmp_path, hub):
    hub.put(NAME, "config.json", config(at="v2"), revision="v2")
    assert find_config(NAME, "v2").config["at"] == "v2"
    assert look_up(LISTED, "v2").why is Why.NOT_FOUND
    cache(tmp_path, NAME, config(at="cached"), commit="d" * 40)
    assert find_config(NAME, "d" * 40, hub=False).config["at"] == "cached"
    assert look_up(NAME, "v3", hub=False).why is Why.NOT_ASKED


@pytest.mark.parametrize(
    ("status", "code", "why", "words"),
    [
        (401, "GatedRepo", Why.LOGIN, "hf auth login, or set HF_TOKEN"),
        (403, "GatedRepo", Why.LOGIN, "accept its terms"),
        (403, "", Why.LOGIN, "set HF_TOKEN"),
        (401, "RepoNotFound", Why.NOT_FOUND, "has no such model, or it is private"),
        (404, "", Why.NOT_FOUND, "has no such model"),
        (404, "EntryNotFound", Why.NO_CONFIG, "no config.json"),
        (404, "RevisionNotFound", Why.NO_CONFIG, "at that revision"),
        (503, "", Why.ERROR, "answers 503; try again"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_helps(hub, status, code, why, words):
    hub.refuse(NAME, status, code)
    missing = look_up(NAME)
    assert missing.why is why and words in str(missing)
    assert str(missing).startswith(f"{NAME}: ") and hub.address in str(missing)
    assert "\n" not in str(missing) and find_config(NAME) is None


@pytest.mark.parametrize("content", [b"<html>sign in</html>", b"[1]", b'{"cut', b"\xff\xfe"])
def test_an_answer_that_is_no_config_is_not_taken_for_one(hub, content):
    hub.put(NAME, "config.json", content)
    assert look_up(NAME).why is Why.UNUSABLE
    hub.put(LISTED, "config.json", content)
    assert look_up(LISTED).source == "built-in"


def test_a_redirection_is_followed_and_no_other_host_gets_the_token(hub):
    with fake_hub() as other:
        other.put(NAME, "config.json", config(at="elsewhere"))
        there = f"{other.address.replace('127.0.0.1', 'localhost')}/{NAME}/resolve/main/config.json"
        hub.refuse(NAME, 302, there)
        assert find_config(NAME).config["at"] == "elsewhere"
        assert [token for _, token, _ in other.asked] == [None]
    assert hub.asked[0][1] == "Bearer hf_secret"


def test_a_slow_hub_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(model_source, "HUB_SECONDS", 0.3)
    hub.put(NAME, "config.json", config())
    hub.delay_s = 300.0
    started = time.monotonic()
    missing = look_up(NAME)
    assert time.monotonic() - started < 150
    assert missing.why is Why.TIMED_OUT
    assert f"hf download {NAME} config.json" in str(missing) and "HF_ENDPOINT" in str(missing)


def test_offline_asks_nobody(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.put(NAME, "config.json", config())
    missing = look_up(NAME)
    assert missing.why is Why.OFFLINE and f"hf download {NAME} config.json" in str(missing)
    assert look_up(LISTED).source == "built-in"
    assert hub.asked == []


def test_a_hub_that_is_not_there(hub, monkeypatch):
    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    missing = look_up(NAME)
    assert missing.why is Why.NO_ANSWER and "does not answer; hf download" in str(missing)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Qwen/Qwen3-1.7", "Qwen/Qwen3-1.7B"),
        ("Qwen3-17B", "Qwen/Qwen3-1.7B"),
        ("some-lab/Modell-1B", NAME),
        ("./Qwen3-8B", LISTED),
    ],
)
def test_the_nearest_name_is_named(tmp_path, hub, name, meant):
    cache(tmp_path, NAME, config())
    missing = look_up(name)
    assert isinstance(missing, Missing) and missing.near[0] == meant
    assert f"did you mean {meant}" in str(missing)


def test_paths_and_names_that_nothing_has(tmp_path, hub):
    assert "config.json: No such file" in str(look_up(str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    assert "is not a model config" in str(look_up(str(tmp_path)))
    for name in ("/no/such/folder", "a/b/c", "x" * 400, "org/name with spaces"):
        assert look_up(name).why in (Why.NAME, Why.PATH)
        assert len(str(look_up(name))) < 400
    assert hub.asked == []


def test_the_environment_is_obeyed_without_torch(hub, tmp_path):
    """In a process of its own, where the library reads its variables."""
    hub.put(NAME, "config.json", config())
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}

    def ask(**changes: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", ASK, NAME],
            env={**environment, **changes},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        ).stdout

    assert ask(HF_HUB_OFFLINE="0") == "hub []\n"
    assert "HF_HUB_OFFLINE is set" in ask(HF_HUB_OFFLINE="1")
