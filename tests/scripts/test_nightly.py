# SPDX-License-Identifier: Apache-2.0
"""scripts/nightly.py and its issue: what is red, what comes first, what counts as half on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import nightly
from nightly import Outcome, Run, StepFailed

from sglang_longflow.settings.release import TESTED_SGLANG

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
OTHER = "0.5.99"
REFUSED = f"longflow: error: SGLang {OTHER}: not tested with KV budgets"

#: Stands for every command of an environment: a server that answers as `plan` says.
PROGRAM = """#!{python}
import http.server, json, sys
plan = json.loads({plan!r})
flags = dict(zip(sys.argv, sys.argv[1:]))
budget = int(flags["--kv-budget"]) if "--kv-budget" in flags else None
config = open(flags["--config"]).read() if "--config" in flags else ""
if plan["says"] and (budget or "kv-budget" in config):
    sys.exit(plan["says"])
print(plan["log"], flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        self.answer(200, {{"settings": {{"kv_budget": plan["stats"]}}}})
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sampling = json.loads(body)["sampling_params"]
        if "custom_params" in sampling:
            return self.answer(plan["request"], {{}})
        ids = [plan["token"]] * sampling["max_new_tokens"]
        self.answer(200, {{"output_ids": ids, "meta_info": plan["meta"] if budget else {{}}}})

http.server.HTTPServer(("127.0.0.1", int(flags["--port"])), Handler).serve_forever()
"""
PLAN = {
    "says": "",
    "log": "ready",
    "stats": 96,
    "request": 400,
    "token": 7,
    "meta": {"kv_resident_tokens": 96, "kv_overwritten_tokens": 143},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a release whose commands behave as `change` says."""

    def made(release: str, **change: object) -> Run:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        plan = json.dumps({**PLAN, **change})
        # One that says nothing runs on, and is waited for; one that ends may take its time.
        monkeypatch.setattr(nightly, "REFUSE_S", 300 if change.get("says") else 3)
        for name in ("python", "sglang", "longflow"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, plan=plan))
            (folder / name).chmod(0o755)
        return Run(tmp_path, release, folder / "python", stock_ids=[7] * nightly.OUTPUT_TOKENS)

    return made


def test_a_tested_release_with_a_budget_that_works(run):
    made = run(TESTED_SGLANG[-1])
    assert nightly.budget(made) == "200 tokens in 96 slots, 143 overwritten"
    assert nightly.off(made).startswith("stock's tokens")
    assert nightly.stock(made) == "200 tokens"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"meta": {}}, "None resident"),  # half on: the flag was read and dropped
        ({"meta": {"kv_resident_tokens": 239, "kv_overwritten_tokens": 0}}, "239 resident"),
        ({"stats": None}, "/longflow/stats answered 200"),
        ({"log": "Traceback (most recent call last):"}, "a traceback in budget.log"),
        ({"says": "it does not start"}, "ended with 1: it does not start"),
    ],
)
def test_a_tested_release_whose_budget_does_not_work(run, change, says):
    with pytest.raises(StepFailed, match=says.replace("(", r"\(")):
        nightly.budget(run(TESTED_SGLANG[-1], **change))


@pytest.mark.parametrize(
    ("release", "change", "says"),
    [
        (TESTED_SGLANG[-1], {"token": 8}, "other tokens than stock's"),
        (TESTED_SGLANG[-1], {"request": 200}, "a request for a budget got 200"),
        (TESTED_SGLANG[-1], {"log": "longflow stays off: x"}, "1 lines of its log"),
        (OTHER, {}, "0 lines of its log"),
    ],
)
def test_a_server_that_is_not_stocks_without_a_budget(run, release, change, says):
    with pytest.raises(StepFailed, match=says):
        nightly.off(run(release, **change))


def test_another_release_refuses_in_one_line(run):
    made = run(OTHER, says=REFUSED)
    assert nightly.budget(made).startswith("refused in one line by sglang serve, launch_server")


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("", "sglang serve with a budget ran: status 124"),  # it starts: the silent start of 0.5.20
        ("something else", "no refusal in one line: something else"),
        (f"Traceback (most recent call last):\n{REFUSED}", "no refusal in one line"),
        (f"{REFUSED}\n{REFUSED}", "no refusal in one line"),
    ],
)
def test_another_release_that_does_not_refuse(run, says, found):
    with pytest.raises(StepFailed, match=found):
        nightly.budget(run(OTHER, says=says))


def test_the_first_that_failed_is_told_and_the_others_run(tmp_path, monkeypatch, capsys):
    def fails(run: Run) -> str:
        raise StepFailed("a | b")

    def second(run: Run) -> str:
        raise StepFailed("later")

    steps = {
        "newest": (lambda run: "there", ""),
        "install": (fails, ""),
        "doctor": (lambda run: "never", "python"),
        "core": (second, ""),
    }
    monkeypatch.setattr(nightly, "STEPS", steps)
    report, title = tmp_path / "new/report.md", tmp_path / "title.txt"
    words = ["--work", str(tmp_path), "--release", OTHER]
    words += ["--report", str(report), "--title", str(title), "--steps", *steps]
    assert nightly.main(words) == 1
    assert capsys.readouterr().out.endswith("first failed line: install: a | b\n")
    assert title.read_text() == f"Nightly: SGLang {OTHER}: install failed"
    lines = report.read_text().splitlines()
    assert lines[:3] == [f"## SGLang {OTHER}", "", "First failed line: **install: a | b**"]
    assert r"| install | FAILED | 0 | a \| b |" in lines
    assert "| doctor | not run | 0 | there is no python |" in lines
    monkeypatch.setitem(nightly.STEPS, "install", (lambda run: "", ""))
    monkeypatch.setitem(nightly.STEPS, "core", (lambda run: "", ""))
    assert nightly.main(words) == 0
    assert title.read_text() == f"Nightly: SGLang {OTHER} is out, and not tested"


def test_a_tested_release_without_a_failure_has_no_title():
    run = Run(ROOT, TESTED_SGLANG[-1])
    assert nightly.title(run, [Outcome("newest", "ok", "there")]) == ""


def test_files_that_core_names_are_there():
    assert [name for name in nightly.CORE if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("title", "open_issue", "calls"),
    [
        ("", "", []),
        ("Nightly: red", "", ["list", "create --title Nightly: red"]),
        ("Nightly: red", "12", ["list", "edit 12"]),
    ],
)
def test_one_issue_per_title(tmp_path, title, open_issue, calls):
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/bin/bash\necho "${{@:2}}" >> {tmp_path}/calls\n'
        f'if [[ $2 == list ]]; then [[ -n $TITLE ]] && echo -n "{open_issue}"; fi\n'
        f"[[ ${{*: -2:1}} != --body-file ]] || cp ${{@: -1}} {tmp_path}/body\n"
    )
    gh.chmod(0o755)
    (tmp_path / "title").write_text(title)
    (tmp_path / "report").write_text("r" * 70_000)
    subprocess.run(
        ["bash", ROOT / "scripts/nightly_issue.sh", tmp_path / "title", tmp_path / "report"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    log = tmp_path / "calls"
    made = log.read_text().splitlines() if log.exists() else []
    assert len(made) == len(calls)
    assert all(line.startswith(call) for line, call in zip(made, calls, strict=True)), made
    if calls:
        assert (tmp_path / "body").read_text() == "r" * 60_000
