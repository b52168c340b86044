# SPDX-License-Identifier: Apache-2.0
"""Whatever a server writes, what comes out is one JSON object a line."""

import io
import json
import logging
import logging.config
import os

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.server import serve
from sglang_longflow.server.json_log import (
    JsonFormatter,
    JsonLines,
    logging_config,
    record,
    texts_of,
)
from sglang_longflow.server.process import last_error

TRACEBACK = """\
Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
ValueError: kv_budget=3: below the minimum 34
"""


def converted(*chunks: bytes):
    out = io.BytesIO()
    lines = JsonLines(out)
    for chunk in chunks:
        assert lines.write(chunk) == len(chunk)
    lines.finish()
    assert out.getvalue().endswith(b"\n") or not out.getvalue()
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_has_a_time_a_level_a_logger_and_a_message():
    found = json.loads(record('a "b"\nc', logger="x", time=1.5, rows=3))
    assert found == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "INFO",
        "logger": "x",
        "message": 'a "b"\nc',
        "rows": 3,
    }


def test_log_records_become_lines_with_their_exception(capsys):
    logging.config.dictConfig(logging_config("warning"))
    try:
        log = logging.getLogger("sglang.test")
        log.info("not shown")
        try:
            raise ValueError("wrong")
        except ValueError:
            log.exception("it %s", "broke")
    finally:
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == (
        "ERROR",
        "sglang.test",
        "it broke",
    )
    assert found["exception"].endswith("ValueError: wrong") and found["process"]
    assert texts_of(line)[0] == "it broke" and last_error([line]) == "ValueError: wrong"


def test_other_lines_are_wrapped_and_json_ones_passed_on():
    ours = record("ready", logger="longflow.serve", seconds=3)
    text = f"plain\n{ours}\n[2026-11-23 07:00:00] WARNING:  slow\nINFO:     up\n\n".encode()
    found = converted(text[:9], text[9:])
    assert [(r["level"], r["message"]) for r in found] == [
        ("INFO", "plain"),
        ("INFO", "ready"),
        ("WARNING", "slow"),
        ("INFO", "up"),
    ]
    assert found[1]["logger"] == "longflow.serve" and found[0]["logger"] == "output"


def test_a_line_in_pieces_a_progress_bar_and_bytes_that_are_no_text():
    found = converted(b"load 1%\rload 50%", b"\rload 100%\n\xff\xfe\n", b"no end")
    assert [r["message"] for r in found] == ["load 100%", "\ufffd\ufffd", "no end"]


@pytest.mark.parametrize("end", ["", "then\n"])
def test_a_traceback_is_one_record(end):
    found = converted(f"before\n{TRACEBACK}{end}".encode())
    assert found[1]["level"] == "ERROR"
    assert found[1]["message"] == "ValueError: kv_budget=3: below the minimum 34"
    assert found[1]["exception"] == TRACEBACK.rstrip()
    assert len(found) == (3 if end else 2)


def test_a_traceback_that_was_cut_off_is_not_lost():
    found = converted(TRACEBACK.split("ValueError", maxsplit=1)[0].encode())
    assert found[0]["message"] == "    g()" and "Traceback" in found[0]["exception"]


def test_what_looks_like_json_and_is_none_is_text():
    assert texts_of('{"time": "broken') == ['{"time": "broken']
    assert converted(b'{"other": 1}\n')[0]["message"] == '{"other": 1}'


def test_a_process_without_a_title_gives_its_own_name():
    made = logging.LogRecord("x", logging.INFO, "f", 1, "hi", None, None)
    assert json.loads(JsonFormatter().format(made))["process"] == made.processName


@pytest.mark.parametrize(
    ("argv", "variable", "expected"),
    [
        ([], None, ("text", [])),
        (["--log-format", "json", "m"], None, ("json", ["m"])),
        (["m", "--log-format=text"], "json", ("text", ["m"])),
        (["--log-level", "info"], "json", ("json", ["--log-level", "info"])),
        ([], "", ("text", [])),
    ],
)
def test_the_flag_wins_over_the_variable(monkeypatch, argv, variable, expected):
    monkeypatch.delenv("LONGFLOW_LOG_FORMAT", raising=False)
    if variable is not None:
        monkeypatch.setitem(os.environ, "LONGFLOW_LOG_FORMAT", variable)
    assert serve.take_log_format(argv) == expected


def test_other_formats_are_refused_by_name(capsys, monkeypatch):
    assert main(["serve", "--log-format=xml"]) == 2
    expected = "log_format='xml': expected one of text, json; set --log-format text"
    assert capsys.readouterr().err == f"longflow serve: error: {expected}\n"
    monkeypatch.setitem(os.environ, "LONGFLOW_LOG_FORMAT", "yaml")
    assert main(["serve"]) == 2
    assert "LONGFLOW_LOG_FORMAT='yaml': expected one of" in capsys.readouterr().err


@pytest.mark.sglang
def test_an_error_before_the_start_is_json_too(capsys):
    assert main(["serve", "/no/such/model", "--log-format", "json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["level"] == "ERROR" and found["message"].startswith("model_path='/no/such/model'")
