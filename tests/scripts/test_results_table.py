# SPDX-License-Identifier: Apache-2.0
"""The pages of results say what the CSVs say, and those what the packed raw files hold."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from programs import load_program

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
MOST_FILES = 30


@pytest.fixture(scope="module")
def made() -> ModuleType:
    return load_program("scripts/results_table.py")


@pytest.fixture(scope="module")
def packer() -> ModuleType:
    return load_program("scripts/pack_results.py")


@pytest.mark.parametrize(("page", "most"), [("results.md", 100), ("accuracy.md", 150)])
def test_the_two_pages_stay_short(page: str, most: int) -> None:
    assert len((DOCS / page).read_text().splitlines()) <= most


def test_every_table_of_a_page_is_the_one_of_the_csvs(made: ModuleType) -> None:
    pages = [page for page in DOCS.rglob("*.md") if made.MARKED.search(page.read_text())]
    assert DOCS / "results.md" in pages and DOCS / "accuracy.md" in pages
    for page in pages:
        assert made.current(page.read_text()) == page.read_text(), page


def test_a_changed_number_is_noticed(made: ModuleType) -> None:
    text = (DOCS / "results.md").read_text()
    assert "8,455" in text
    assert made.current(text.replace("8,455", "8,456")) == text


def test_every_table_stands_on_some_page(made: ModuleType) -> None:
    named = {
        found[1] for page in DOCS.rglob("*.md") for found in made.MARKED.findall(page.read_text())
    }
    assert named == set(made.TABLES)


def test_every_speed_of_the_headline_is_a_value_of_the_csv(made: ModuleType) -> None:
    speeds = {
        made.speed.whole(float(row["value"]))
        for job in made.speed.JOBS
        for row in made.speed.rows_of(
            "throughput", metric="output_tokens_per_s", commit=job["commit"]
        )
    }
    lines = made.speed.headline().splitlines()[2:]
    assert len(lines) >= 8
    for line in lines:
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        stock, default, ratio, paper, paper_ratio = cells[2:7]
        assert stock in speeds and paper in speeds
        assert paper_ratio == f"{number(paper) / number(stock):.2f}x"
        if default != "not measured":
            assert default in speeds
            assert ratio == f"{number(default) / number(stock):.2f}x"


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_default_policy_comes_before_the_papers(made: ModuleType) -> None:
    head = made.speed.headline().splitlines()[0]
    assert head.index("Default policy") < head.index("`longflow`")


def test_a_value_that_is_missing_or_there_twice_is_an_error(made: ModuleType) -> None:
    with pytest.raises(SystemExit, match="has 0 rows"):
        made.speed.value("throughput", "output_tokens_per_s", commit="none")
    with pytest.raises(SystemExit, match=r"has \d+ rows"):
        made.speed.value("throughput", "output_tokens_per_s", commit="20adcea")


@pytest.mark.parametrize(
    ("at_least", "default", "paper", "verdict"),
    [
        (True, 2.1, 2.2, "met"),
        (True, 1.9, 1.8, "**missed**"),
        (True, 1.9, 2.2, "**missed** by the default"),
        (True, 2.2, 1.9, "**missed** by `longflow`"),
        (False, 1.9, None, "met"),
        (False, None, 2.1, "**missed**"),
    ],
)
def test_a_goal_is_judged_by_its_numbers(
    made: ModuleType, at_least: bool, default: float | None, paper: float | None, verdict: str
) -> None:
    assert made.goals.Goal("", 2.0, at_least, default, paper, str).verdict() == verdict


def test_the_csvs_are_what_the_archives_hold(packer: ModuleType) -> None:
    for kind, text in packer.tables(RESULTS / "raw").items():
        assert (RESULTS / f"{kind}.csv").read_text() == text, kind


def test_the_folder_stays_small(packer: ModuleType) -> None:
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert len(files) < MOST_FILES
    assert all(file.stat().st_size <= packer.LARGEST_BYTES for file in files)


def test_numbers_in_the_prose_of_the_results_stand_in_a_csv_or_beside_it(made: ModuleType) -> None:
    """Throughputs, at least: what looks like one must be one."""
    speeds = {
        made.speed.whole(float(row["value"]))
        for row in made.speed.rows_of("throughput", metric="output_tokens_per_s")
    }
    for page in (DOCS / "results.md", *(DOCS / "experiments").glob("*.md")):
        text = made.MARKED.sub("", page.read_text())
        for found in re.finditer(r"([\d,]+)(?: to ([\d,]+))? tokens/s", text):
            for one in filter(None, found.groups()):
                assert one in speeds or one in PUBLISHED, f"{page.name}: {one} tokens/s"


#: What R-KV's authors publish.
PUBLISHED = {"12,442", "12,597"}


def run_of(folder: Path, speed: float) -> Path:
    folder.mkdir(parents=True)
    result = {
        "geometry": "qwen3-1.7b",
        "pool": 290000,
        "name": "C",
        "system": "longflow-novel",
        "budget": 1024,
        "output_tokens_per_s": speed,
        "running_mean": None,
    }
    (folder / "C-longflow-novel.json").write_text(json.dumps(result))
    return folder


def test_a_run_is_packed_and_appended(
    packer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    packed = ["pack_results.py", "--kind", "throughput", "--gpu", "H100", "--out", str(out)]
    for date, speed in (("2026-12-01", 100.0), ("2026-12-02", 200.0)):
        folder = run_of(tmp_path / date, speed)
        more = ["--add", str(folder), "--date", date, "--commit", "abc1234"]
        monkeypatch.setattr(sys, "argv", [*packed, *more])
        assert packer.main() == 0
    rows = (out / "throughput.csv").read_text().splitlines()
    assert len(rows) == 3  # null values are left out
    assert rows[1].startswith("2026-12-01,abc1234,H100,,qwen3-1.7b,290000,4k answers,longflow-nov")
    assert ",200.0,tokens/s,2026-12-02-h100-throughput:C-longflow-novel.json" in rows[2]

    monkeypatch.setattr(sys, "argv", ["pack_results.py", "--check", "--out", str(out)])
    assert packer.main() == 0
    (out / "throughput.csv").write_text("\n".join(rows[:2]) + "\n")
    assert packer.main() == 1


def test_a_folder_may_describe_itself(
    packer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").write_text("4 passed in 9 s")
    part = {"kind": "gpu-tests", "files": "log.txt", "date": "2026-12-01", "commit": "abc1234"}
    results = [["Two ranks", "fused", "4 passed", "4 passed"]]
    parts = [{**part, "gpu": "H200", "results": results}]
    (folder / "run.json").write_text(json.dumps({"parts": parts}))
    words = ["pack_results.py", "--add", str(folder), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    assert packer.main() == 0
    row = (tmp_path / "out" / "gpu-tests.csv").read_text().splitlines()[1]
    start = "2026-12-01,abc1234,H200,Two ranks,fused,result,4 passed,,"
    assert row == f"{start}2026-12-01-h200-gpu-tests:log.txt"


def test_a_run_is_not_packed_over_another(
    packer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    folder = run_of(tmp_path / "run", 100.0)
    words = ["--add", str(folder), "--kind", "throughput", "--gpu", "H100", "--commit", "abc1234"]
    words += ["--out", str(out), "--date", "2026-12-01"]
    monkeypatch.setattr(sys, "argv", ["pack_results.py", *words])
    assert packer.main() == 0
    with pytest.raises(SystemExit, match="exists"):
        packer.main()


def test_a_run_that_cannot_be_read_leaves_no_archive(
    packer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "C-stock.json").write_text("{}")
    words = ["--add", str(folder), "--kind", "throughput", "--gpu", "H100", "--commit", "abc1234"]
    monkeypatch.setattr(sys, "argv", ["pack_results.py", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(KeyError):
        packer.main()
    assert not list((tmp_path / "out").rglob("*.tar.xz"))


def test_archives_depend_on_their_contents_alone(packer: ModuleType, tmp_path: Path) -> None:
    for name in ("first", "second"):
        packer.pack({"b": b"2", "a": b"1"}, [], tmp_path / f"{name}.tar.xz")
    first, second = (tmp_path / f"{name}.tar.xz" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_record_belongs_to_the_first_part_that_names_it(
    packer: ModuleType, tmp_path: Path
) -> None:
    lines = [
        {
            "variant": variant,
            "budget": 86,
            "number": 0,
            "kind": "machine",
            "right": True,
            "finished": True,
            "prompt_tokens": 1,
            "generated_tokens": 1,
            "resident_tokens": 1,
            "overwritten_tokens": 0,
            "answer": "1",
        }
        for variant in ("h2o", "tova")
    ]
    part = {"kind": "accuracy", "files": "answers.jsonl", "workload": "reasoner", "date": "d"}
    packer.pack(
        {"answers.jsonl": "\n".join(json.dumps(line) for line in lines).encode()},
        [
            {**part, "commit": "first", "gpu": "H100", "policies": ["h2o"]},
            {**part, "commit": "second", "gpu": "H200"},
        ],
        tmp_path / "run.tar.xz",
    )
    rows = packer.tables(tmp_path)["accuracy"].splitlines()[1:]
    runs = {(row.split(",")[1], row.split(",")[4]) for row in rows}
    assert runs == {("first", "h2o"), ("second", "tova")}


def test_the_logs_words_bear_a_gpu_tests_result(packer: ModuleType, tmp_path: Path) -> None:
    part = {"kind": "gpu-tests", "files": "log.txt", "date": "d", "commit": "c", "gpu": "H200"}
    results = [["kernels", "fused", "138 passed", "138 passed"]]
    packer.pack({"log.txt": b"137 passed"}, [{**part, "results": results}], tmp_path / "a.tar.xz")
    with pytest.raises(SystemExit, match="does not say"):
        packer.tables(tmp_path)
