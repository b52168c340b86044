# SPDX-License-Identifier: Apache-2.0
"""The parts of `longflow eval` that need no server."""

import json
import re
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sglang_longflow.cli.eval import shipped_or
from sglang_longflow.cli.main import main
from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.accuracy.command import model_of, whole_points
from sglang_longflow.measure.accuracy.records import Record, Records
from sglang_longflow.measure.accuracy.summary import save, summarise, wilson
from sglang_longflow.measure.extra import require_extra
from sglang_longflow.measure.plot import draw
from sglang_longflow.measure.variants import FULL, Variant, parse_budget, parse_variant, plan
from sglang_longflow.reasoner import MODEL_DIR

RECORD = Record("longflow", 64, 0, "machine", True, True, 90, 700, 64, 726, "c0 1")


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("longflow", Variant("longflow")),
        ("streaming:sinks=4", Variant("streaming", 4)),
        ("h2o:recent=8,sinks=2", Variant("h2o", 2, 8)),
    ],
)
def test_a_variant_reads_its_own_name(text, variant):
    assert parse_variant(text) == variant
    assert parse_variant(variant.name) == variant


@pytest.mark.parametrize(
    "text", ["", "oracle", "longflow:sinks", "longflow:top=3", "tova:sinks=-1"]
)
def test_a_wrong_variant_is_named(text):
    with pytest.raises(ConfigError, match="policies='"):
        parse_variant(text)


@pytest.mark.parametrize(
    ("text", "tokens"), [("300", 300), ("20%", 339), ("100%", 1697), (FULL, 0)]
)
def test_budgets(text, tokens):
    assert parse_budget(text, 1697) == tokens


@pytest.mark.parametrize("text", ["", "0", "0%", "-5", "1.5", "half", "5 %"])
def test_a_wrong_budget_is_named(text):
    with pytest.raises(ConfigError, match=f"budgets={text!r}"):
        parse_budget(text, 1697)


def test_what_is_left_to_ask_is_sorted_by_server():
    variants = [parse_variant(t) for t in ("h2o", "longflow", "streaming:sinks=4", "tova")]
    done = {("longflow", 50, 0, 0), ("longflow", 50, 1, 0), ("full", 0, 1, 0), ("tova", 50, 0, 1)}
    parts = plan(variants, [50, 0], [(0, 0), (1, 0)], done)
    assert [(v.name, budget, left) for v, budget, left in parts] == [
        ("h2o", 50, [(0, 0), (1, 0)]),
        ("full", 0, [(0, 0)]),
        ("tova", 50, [(0, 0), (1, 0)]),
        ("streaming:sinks=4", 50, [(0, 0), (1, 0)]),
    ]
    servers = [v.server for v, _, _ in parts]
    assert servers == sorted(servers) and servers[1] == servers[2] != servers[3]


def test_a_broken_off_run_goes_on(tmp_path):
    settings = {"model": "m", "seed": 1}
    with Records(tmp_path, settings) as records:
        for number in range(3):
            records.add(replace(RECORD, number=number))
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text()[:-20])  # killed while it wrote the last line
    with Records(tmp_path, settings) as records:
        assert records.done() == {("longflow", 64, 0, 0), ("longflow", 64, 1, 0)}
        records.add(replace(RECORD, number=2))
    with Records(tmp_path, settings) as records:
        assert [record.number for record in records.all] == [0, 1, 2]
        assert records.all[0] == RECORD


def test_another_seed_needs_another_folder(tmp_path):
    with Records(tmp_path, {"seed": 0}):
        pass  # nothing was answered: a mistake on the command line does not spoil the folder
    with Records(tmp_path, {"seed": 1}) as records:
        records.add(RECORD)
    with pytest.raises(ConfigError, match="another model, task, seed or temperature"):
        Records(tmp_path, {"seed": 2})


def test_a_line_that_is_no_record_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text("{}\n" + json.dumps(asdict(RECORD)) + "\n")
    with pytest.raises(ConfigError, match=r"answers.jsonl:1: not a record"):
        Records(tmp_path, {})


@pytest.mark.parametrize(
    ("right", "answers", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(right, answers, low, high):
    """81 of 263: Newcombe (1998), table I, method 3."""
    assert wilson(right, answers) == pytest.approx((low, high), abs=5e-5)


def test_the_plot_is_drawn_and_its_absence_is_said_early(tmp_path, monkeypatch):
    records = [
        replace(RECORD, number=n, variant=v, budget=b, right=n % 3 < b // 50)
        for n in range(9)
        for v, b in (("longflow", 64), ("longflow", 128), ("tova", 64), ("full", 0))
    ]
    draw(summarise(records), tmp_path / "accuracy.png")
    image = (tmp_path / "accuracy.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000
    require_extra("matplotlib", "plot=True", "add --no-plot")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ConfigError,
        match=r"plot=True: matplotlib is not installed; pip install matplotlib, "
        "or add --no-plot",
    ):
        require_extra("matplotlib", "plot=True", "add --no-plot")


def test_summary(tmp_path):
    records = [replace(RECORD, number=n, right=n < 3) for n in range(4)]
    records += [replace(RECORD, variant="full", budget=0, overwritten_tokens=0)]
    lines = summarise(records)
    assert [(line.variant, line.budget, line.answers) for line in lines] == [
        ("longflow", 64, 4),
        ("full", 0, 1),
    ]
    assert lines[0].accuracy == 0.75 and lines[0].overwrote == 1.0 and lines[1].overwrote == 0.0
    save(tmp_path, lines)
    assert json.loads((tmp_path / "summary.json").read_text())[0]["accuracy"] == 0.75
    assert (tmp_path / "summary.csv").read_text().splitlines()[1].startswith("longflow,64,4,0.75,")


def test_the_shipped_model_has_the_same_name_wherever_it_is_installed(tmp_path, monkeypatch):
    """So a folder of answers can be continued on another machine."""
    monkeypatch.chdir(tmp_path)
    assert shipped_or("reasoner") == MODEL_DIR
    name = model_of(Namespace(model=MODEL_DIR))
    assert re.fullmatch(r"reasoner [0-9a-f]{12}", name)
    (tmp_path / "reasoner").mkdir()  # a user's own folder of that name comes first
    own = shipped_or("reasoner")
    assert own == Path("reasoner") and model_of(Namespace(model=own)) == str(tmp_path / "reasoner")


def test_a_point_that_was_broken_off_is_left_out_and_named():
    """Its short chains have ended, its long ones have not."""
    whole = [replace(RECORD, number=number) for number in range(4)]
    more = [replace(RECORD, variant="full", budget=0, number=number) for number in range(9)]
    part = [replace(RECORD, budget=32, number=number) for number in (0, 1, 3)]
    wanted = {(number, 0) for number in range(4)}
    found, broken_off = whole_points([*part, *whole, *more], wanted)
    assert found == [*whole, *more]
    assert broken_off == {("longflow", 32): 3}


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--model", "reasoner", "--task", "gsm9k"], "; did you mean gsm8k?"),
        (["--model", "some/model"], "task: not set; give --task gsm8k, math500, aime24, or a file"),
        (
            ["--model", "/no/model", "--task", "gsm8k", "--budgets", "96"],
            "model_path='/no/model': no such folder, and not a Hugging",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_written(capsys, tmp_path, argv, text):
    folder = tmp_path / "out"
    assert main(["eval", "--out", str(folder), "--no-plot", *argv]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert not folder.exists()
