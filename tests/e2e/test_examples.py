# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/ as a user runs them, against one server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).parents[2] / "examples"
DEFAULT = 128


@pytest.fixture(scope="module")
def server(tiny_with_tokenizer):
    arguments = ["--model-path", str(tiny_with_tokenizer), "--max-total-tokens", "4000"]
    arguments += [f"--kv-budget={DEFAULT}", "--kv-budget-max=512", "--kv-budget-allow-full"]
    with harness.Server([*arguments, "--random-seed=1"]) as running:
        yield running.wait_ready()


def run(name: str, *arguments: str) -> str:
    """What an example prints; it must end well."""
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai_client(server):
    out = run("openai_client.py", "--url", server.url, "--budget=64", "--max-tokens=90")
    budgeted, full = re.findall(r"^budget (\w+): (\d+) .* (\d+) resident .* (\d+) over", out, re.M)
    assert budgeted[0] == "64" and full[0] == "full"
    assert int(budgeted[2]) <= 64 and int(full[3]) == 0
    assert re.search(r"^refused: kv_budget=1\b.*minimum", out, re.M), out


def test_streaming(server):
    out = run("streaming.py", "--url", server.url, "--budget=64", "--max-tokens=90")
    told = re.search(r"(\d+) tokens generated, (\d+) slots held .*budget 64\), (\d+) over", out)
    assert told and 0 < int(told[1]) <= 90 and int(told[2]) <= 64
    body = {
        "text": "The history of the steam engine begins",
        "sampling_params": {"max_new_tokens": 90, "custom_params": {"kv_budget": 64}},
    }
    assert server.generate(body)["meta_info"]["prompt_tokens"] > 0
    assert len(out.rpartition("\n")[0].strip()) > 0


def test_batch_budgets(server):
    budgets = ["48", "64", "96"]
    out = run("batch_budgets.py", "--url", server.url, "--budgets", *budgets, "--max-tokens=90")
    head, *rows, pool = out.splitlines()
    assert head.split() == ["budget", "generated", "resident", "overwritten"]
    assert [row.split()[0] for row in rows] == budgets
    for row in rows:
        budget, generated, resident, overwritten = map(int, row.split())
        assert 0 < generated <= 90 and 0 < resident <= budget
        assert resident == budget or overwritten == 0
    assert "4,000 tokens" in pool


def test_batch_budgets_tells_why_a_budget_is_refused(server):
    command = [sys.executable, str(EXAMPLES / "batch_budgets.py"), "--url", server.url]
    done = subprocess.run([*command, "--budgets", "5"], capture_output=True, text=True)
    assert done.returncode == 1 and "kv_budget=5" in done.stderr


def test_frontend_program(server):
    out = run("frontend_program.py", "--url", server.url, "--budget=64", "--max-tokens=70")
    told = re.findall(r"^(\w+): budget (\d+), (\d+) tokens generated, (\d+) resident$", out, re.M)
    assert [(name, budget) for name, budget, _, _ in told] == [
        ("draft", "64"),
        ("check", "128"),
        ("answer", "64"),
    ]
    assert all(0 < int(resident) <= int(budget) for _, budget, _, resident in told)


def test_every_example_has_its_test():
    tests = Path(__file__).read_text()
    tests += (Path(__file__).parents[1] / "examples" / "test_planner.py").read_text()
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(names) == 5 and all(f'run("{name}"' in tests for name in names)
