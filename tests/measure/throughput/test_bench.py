# SPDX-License-Identifier: Apache-2.0
"""`longflow bench`: the command line, what is written, how much time is left."""

from __future__ import annotations

import csv
import json

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.measure.throughput import command, report
from sglang_longflow.measure.throughput.point import Result
from sglang_longflow.settings.device import Card

BASE = dict(
    requests=4, concurrency=4, input_tokens=8, output_tokens=16, wall_s=1.0, first_token_s_mean=0.1,
    first_token_s_p50=0.1, first_token_s_p99=0.2, inter_token_ms_mean=5.0, inter_token_ms_p50=4.0,
    inter_token_ms_p99=9.0, running_peak=4, retractions=0, resident_tokens_mean=12.0,
)  # fmt: skip


def result(system: str, budget: int, rate: float, reached: float | None = None) -> Result:
    return Result(
        system=system, budget=budget, output_tokens_per_s=rate, reached_share=reached, **BASE
    )


SETTINGS = {
    "model": "org/name",
    "policy": "longflow-novel",
    "requests": 4,
    "input_tokens": 8,
    "output_tokens": 16,
    "servers": {"longflow": {"device": "NVIDIA H200"}, "stock": {"device": "NVIDIA H200"}},
}
RESULTS = [
    result("longflow", 800, 200.0, 1.0),
    result("longflow", 1600, 150.0, 0.1),
    result("longflow", 0, 90.0),
    result("stock", 0, 100.0),
    result("stock-same", 0, 80.0),
]


def test_what_is_written(tmp_path):
    report.save(tmp_path / "new", {"seed": 1}, RESULTS)
    content = json.loads((tmp_path / "new/bench.json").read_text())
    assert content["settings"] == {"seed": 1}
    assert [Result(**point) for point in content["points"]] == RESULTS
    rows = list(csv.DictReader((tmp_path / "new/bench.csv").open()))
    assert [(row["system"], row["budget"]) for row in rows] == [
        (x.system, str(x.budget)) for x in RESULTS
    ]
    assert float(rows[0]["output_tokens_per_s"]) == 200.0


@pytest.mark.parametrize("results", [RESULTS, RESULTS[:1], RESULTS[2:3]])
def test_the_picture(tmp_path, results):
    report.draw(results, tmp_path / "bench.png", report.title_of(SETTINGS))
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_the_title_says_what_was_measured_and_on_what(tmp_path):
    assert report.title_of(SETTINGS) == (
        "org/name on NVIDIA H200, policy longflow-novel, 4 x 8 + 16 tokens"
    )
    running = {"server": {"model": str(tmp_path), "device": "cpu"}}
    found = report.title_of(SETTINGS | {"model": None, "servers": running})
    assert found.startswith(f"{tmp_path.name} on a CPU, policy ")


def test_a_card_is_named_where_it_is_this_machines(monkeypatch):
    card = Card("NVIDIA H200", 1, (9, 0))
    monkeypatch.setattr(command, "cards", lambda: (card, card))
    assert command.device_of({"device": "cuda"}, is_ours=True) == "NVIDIA H200"
    assert command.device_of({"device": "cuda"}, is_ours=False) == "cuda"
    assert command.device_of({"device": "cpu"}, is_ours=True) == "cpu"
    monkeypatch.setattr(command, "cards", tuple)
    assert command.device_of({"device": "cuda"}, is_ours=True) == "cuda"
    assert command.device_of({}, is_ours=True) is None


def test_speeds_of_a_cpu_come_with_a_word_of_caution(capsys):
    report.show(RESULTS, SETTINGS)
    assert "reference decode" not in capsys.readouterr().out
    report.show(RESULTS, SETTINGS | {"servers": {"longflow": {"device": "cpu"}}})
    assert "says nothing about a GPU" in capsys.readouterr().out


def test_ratios_are_to_stock_with_its_own_defaults():
    assert [row[3] for row in report.rows_of(RESULTS)] == [
        "2.00x",
        "1.50x",
        "0.90x",
        "1.00x",
        "0.80x",
    ]
    without = [x for x in RESULTS if not x.system.startswith("stock")]
    assert report.rows_of(without)[0][3] == "2.22x"
    assert report.rows_of(RESULTS[:1])[0][3] == ""


def test_a_budget_that_was_not_reached_is_said():
    (line,) = report.warnings(RESULTS)
    assert line.startswith("warning: budget 1,600: 10% of the requests reached it")


def test_time_left():
    progress = command.PointProgress(points=4, tokens_per_point=100)
    assert progress.left_s(0, 3.0) is None
    assert progress.left_s(50, 10.0) == pytest.approx(70.0)  # 5 tokens a second, 350 left
    progress.done_points, progress.measured_s = 3, 30.0
    assert progress.left_s(100, 10.0) == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "one of the arguments --url --model is required"),
        (["--url", "u", "--model", "m"], "not allowed with"),
        (["--url", "localhost:30000"], "url='localhost:30000': expected http"),
        (["--url", "http://x", "--requests", "0"], "requests=0: expected at least 1"),
        (["--url", "http://x", "--concurrency", "-1"], "concurrency=-1"),
        (["--url", "http://x", "--budgets", ""], "budgets=''"),
        (["--url", "http://x", "--budgets", "many"], "budgets='many'"),
        (["--url", "http://x", "--policy", "best"], "policy='best'"),
        (["--url", "http://x", "--", "--tp", "2"], "'--tp 2': only with --model"),
        (["--model", "o/m", "--baselines", "vllm"], "baselines='vllm'"),
        (["--model", "o/m", "--baselines", "stok"], "did you mean stock?"),
        pytest.param(
            ["--model", "/no/folder"], "model_path='/no/folder'", marks=pytest.mark.sglang
        ),
        (["--model", "o/m", "--", "--kv-budget=9"], "--kv-budget=9"),
        (["--model", "o/m", "--vocab-size", "3"], "vocab_size=3"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(capsys, tmp_path, argv, text):
    words = ["bench", "--out", str(tmp_path), *argv]
    assert main(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("longflow bench: error: ") and text in line


def test_no_server_at_the_url(capsys, tmp_path):
    assert main(["bench", "--out", str(tmp_path), "--url", "http://127.0.0.1:9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9/model_info" in line
