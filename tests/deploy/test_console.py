# SPDX-License-Identifier: Apache-2.0
"""The console in headless Chromium on a real server under load, and a fuzzer on its routes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import harness

pytestmark = [pytest.mark.deploy, pytest.mark.e2e]
KEY = "right-key"
POOL, BUDGET, ROWS = 3000, 96, 12
SHOTS = ("light", "dark", "phone", "key", "busy", "gone", "try", "try-phone")
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny random Llama with SmolLM2's tokenizer and chat template: the Try tab needs text.

    With a context in which requests outlast the browser.
    """
    from transformers import AutoTokenizer

    from sglang_longflow.demo.model import prepare_model

    source = os.environ.get("LONGFLOW_TEST_MODEL") or prepare_model()
    sizes = {"vocab_size": 49152, "num_hidden_layers": 2, "max_position_embeddings": 100_000}
    folder = harness.build_tiny_model("llama", tmp_path_factory.mktemp("console"), **sizes)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    arguments = ["--model-path", str(model), "--dtype", "float32"]
    arguments += ["--max-total-tokens", str(POOL), "--kv-budget", str(BUDGET)]
    arguments += ["--kv-budget-allow-full", "--max-running-requests", str(ROWS)]
    arguments += ["--api-key", KEY, "--served-model-name", "tiny-llama", "--enable-metrics"]
    with harness.Server(arguments) as running:
        yield running.wait_ready()


def send(server, path: str, body: dict) -> None:
    """POST, whatever becomes of it: these requests end with the server."""
    request = urllib.request.Request(server.url + path, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", f"Bearer {KEY}")
    with contextlib.suppress(OSError, http.client.HTTPException):
        with urllib.request.urlopen(request) as response:
            response.read()


def start_load(server) -> None:
    """Twelve rows, two of them with full KV, and three that wait.

    Those with a budget end with the server; full KV has to fit the pool.
    """
    shared = harness.prompt(24, 5)
    for number in range(15):
        budget = {3: 0, 7: 0, 4: 160, 9: 200}.get(number, BUDGET)
        params = {"temperature": 0, "max_new_tokens": 90_000, "ignore_eos": True}
        params["custom_params"] = {"kv_budget": budget}
        if budget == 0:
            params["max_new_tokens"] = 800
        body = {
            "input_ids": shared + harness.prompt(20 + number, number),
            "rid": EVIL if number == ROWS - 1 else f"chat-{1000 + number * 37}",
            "sampling_params": params,
            "stream": number % 2 == 0,
        }
        # The last row is last in the table, out of the pictures; those after it wait, whatever
        # order a busy machine starts threads in.
        if number >= ROWS - 1:
            until_running(server, min(number, ROWS))
        threading.Thread(target=send, args=(server, "/generate", body), daemon=True).start()


def until_running(server, rows: int, timeout_s: float = 300) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.url + "/longflow/stats", headers=headers)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            if len(json.load(response)["requests"]) >= rows:
                return
        time.sleep(0.1)
    raise AssertionError(f"fewer than {rows} requests run after {timeout_s:g} s")


@contextlib.contextmanager
def relay_of(server):
    """The address of a ``longflow console``."""
    command = [sys.executable, "-m", "sglang_longflow.cli", "console", "--port", "0"]
    with subprocess.Popen(
        [*command, "--url", server.url], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.endswith("/longflow\n"), line
            yield line.split()[-1].removesuffix("/longflow")
        finally:
            process.kill()


def test_a_fuzzer_finds_no_server_error(server, tools, tmp_path):
    """schemathesis on our part of the server's OpenAPI, with values that fit and that do not."""
    done = subprocess.run(
        [
            tools / "venv/bin/schemathesis", "run", f"{server.url}/openapi.json",
            "--include-path-regex", "^/longflow", "--header", f"Authorization: Bearer {KEY}",
            "--max-examples", "40", "--seed", "1", "--no-color", "--suppress-health-check", "all",
            # The size of the pool, which bounds lengths, is not in the schema.
            "--exclude-checks", "positive_data_acceptance",
        ],
        capture_output=True, text=True, timeout=900, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Selected: 3/" in done.stdout, done.stdout
    send(server, "/generate", {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 3}})
    assert server.process.poll() is None


def run_code(name: str, code: str) -> subprocess.CompletedProcess:
    """What the Try tab shows, in a shell or in Python, with the key where it says that it is."""
    command = ["bash", "-c", code] if "curl" in name else [sys.executable, "-c", code]
    code_env = {**os.environ, "LONGFLOW_API_KEY": KEY}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=code_env)


@pytest.fixture(scope="module")
def seen(server, tools, tmp_path_factory) -> dict:
    """What the browser reported. The server ends with it."""
    facts: dict = {"folder": tmp_path_factory.mktemp("screenshots")}
    script = Path(__file__).with_name("console_browser.mjs")
    with relay_of(server) as relay:
        command = ["node", script, tools / "node/node_modules", server.url, relay, KEY]
        with subprocess.Popen(
            [*command, facts["folder"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as browser:
            for line in browser.stdout:
                said = json.loads(line)
                if said.get("at") == "load":
                    start_load(server)
                elif said.get("at") == "code":
                    facts["ran"] = {
                        name: run_code(name, text) for name, text in facts["code"].items()
                    }
                elif said.get("at") == "gone":
                    server.stop()
                facts |= said
                if "at" in said:
                    browser.stdin.write("\n")
                    browser.stdin.flush()
        assert browser.returncode == 0, f"{browser.returncode} after {facts}"
    return facts


def test_no_errors_no_dialogs_nothing_from_outside(seen):
    assert (seen["errors"], seen["dialogs"], seen["outside"]) == ([], 0, [])


def test_states(seen):
    assert (seen["loading"], seen["loading_state"]) == ("Loading", "loading")
    assert seen["empty"] is True and seen["empty_running"] == "0"
    assert seen["silent"].startswith("No answer since ")
    assert seen["gone"].startswith("Gone: no answer since ")
    assert seen["gone_title"].startswith("✕ gone since ")
    assert seen["silent_title"].startswith("● no answer for ")
    assert seen["live_title"] == "tiny-llama - longflow"
    assert len(seen["gone_as_of"]) == 3
    assert all(text.startswith("as of ") for text in seen["gone_as_of"])
    assert "fills as soon as" not in seen["gone_text"]
    assert seen["gone_when"].startswith("last answer ")
    assert "does not answer" in seen["gone_notice"] and "last answer" in seen["gone_notice"]
    assert seen["gone_rows"] >= 4


def test_an_answer_with_a_budget_beside_full_kv(seen):
    """A prompt of some 50 tokens and 150 of an answer, in 64 slots and in as many as it is long."""
    trial = seen["trial"]
    assert trial["tab"] == ["to-try", "#try", True] and trial["unnamed"] == []
    assert trial["start"][0] == "96" and trial["start"][2:] == ["38", f"{POOL:,}"]
    # Two layers, K and V, two heads of 64, float32.
    assert trial["start"][1] == f"{96 * 2 * 2 * 2 * 64 * 4 / 2**20:.1f} MiB of KV cache"
    assert "longflow-novel (default)" in trial["policies"] and "h2o" not in trial["policies"]
    budgeted, full = trial["answers"]["budget"], trial["answers"]["full"]
    length = int(full["kv"].split(" of ")[1].split()[0])
    assert length > 180
    assert (
        budgeted["kv"] == f"64 of {length} tokens" and full["kv"] == f"{length} of {length} tokens"
    )
    assert budgeted["saved"] == f"{round(100 * (length - 64) / length)}%" and full["saved"] == "0%"
    assert budgeted["fill"] == pytest.approx(budgeted["bar"] * 64 / length, abs=1)
    assert full["fill"] == pytest.approx(full["bar"]) and full["bar"] == budgeted["bar"] > 100
    for column in (budgeted, full):
        assert column["tokens"] == "150 tokens" and column["finish"] == "cut at max tokens"
        assert float(column["first"].split()[0]) > 0 and column["speed"].endswith(" tokens/s")
        assert column["answer"].strip()
    assert len({bar for bar in trial["bars"] if bar.startswith("64 of ")}) > 10, "not live"
    assert trial["said"].startswith("A budget of 64 tokens: 150 tokens, ")
    assert trial["phone"] == 390
    assert trial["plain"]["budget"]["kv"].startswith("64 of ")


def test_what_the_server_refuses_is_shown_and_full_kv_goes_on(seen):
    assert "kv_budget=5: below 38" in seen["trial"]["refused"]
    assert seen["trial"]["full_although"] == "cut at max tokens"


def test_stop_aborts_on_the_server(seen):
    for column in seen["trial"]["stopped"].values():
        tokens = int(column["tokens"].split()[0].replace(",", ""))
        assert column["finish"] == "stopped here" and tokens < 2500
    assert seen["trial"]["running_after"] == 0


def test_the_first_token_that_differs_is_marked_and_text_is_no_markup(seen):
    trial = seen["trial"]
    for name, end, finish in (
        ("budget", "c", "cut at max tokens"),
        ("full", "b", "ended by the model"),
    ):
        column = trial["made_up"][name]
        assert column["answer"] == f'hm <img src="x" onerror="alert(1)"> a {end}'
        assert (column["thought"], column["images"], column["marked"]) == ("hm ", 0, [end])
        assert column["finish"] == finish and column["kv"] == "2 of 6 tokens"
    assert trial["made_up_same"].startswith("Same text up to token 3;")
    assert "drawn by chance" in trial["drawn"]["same"] and trial["drawn"]["marked"] == []
    assert trial["broken"] == "The answer broke off before its end."


def test_without_full_kv_the_box_says_what_allows_it(seen):
    checked, why = seen["trial"]["no_full"]
    assert checked is False and "--kv-budget-allow-full" in why


def test_the_code_that_is_shown_runs_and_holds_no_key(seen):
    """In a shell and in Python, through the relay, which the page of a server with a key needs."""
    for name, done in seen["ran"].items():
        assert done.returncode == 0, (name, done.stderr)
        assert '"kv_resident_tokens":64' in done.stdout.replace(" ", "").replace("'", '"'), name
        code = seen["code"][name]
        assert KEY not in code and "LONGFLOW_API_KEY" in code and '"kv_budget": 64' in code
    chat, plain = seen["relayed"]["chat"], seen["relayed"]["plain"]
    assert chat["finish"] == plain["finish"] == "cut at max tokens" and chat["error"] == ""
    # A program prints what the page has shown: the same request.
    assert chat["answer"].strip() in seen["ran"]["chat_python"].stdout
    assert plain["answer"].strip() in seen["ran"]["plain_python"].stdout


def test_a_busy_scheduler_is_amber_and_its_rows_stay(seen):
    busy = seen["busy"]
    assert (busy["state"], busy["colour"], busy["notice"]) == ("busy", "rgb(138, 90, 0)", False)
    assert busy["rows"] >= 4 and busy["rows_then"] >= 4
    assert busy["said"].startswith("Busy: ")  # once, to a screen reader
    assert busy["title"] == "● busy 7 s - tiny-llama - longflow"


def test_the_state_stays_in_sight(seen):
    assert seen["busy"]["scrolled"] > 300 and seen["busy"]["header"] == [0, True]


def test_charts_come_from_the_server_and_survive_a_reload(seen):
    charts = seen["charts"]
    assert charts["titles"] == [
        "Tokens per second", "Requests", "Time to first token", "Time between tokens", "KV pool",
    ]  # fmt: skip
    assert charts["missing"] == 0 and charts["drawn"] == charts["after_reload"] == 5
    before, after = charts["points"]
    assert after > 0.9 * before > 5
    assert charts["running"] == f"{ROWS}"
    # From the server's first reading on, but no fewer values than these.
    assert 24 <= charts["values"] < 120 and charts["hour"] == ["true", 24]


def test_charts_are_read_with_the_keyboard(seen):
    keys = seen["charts"]["keys"]
    assert keys["newest"].split(": ")[1].startswith("running ") and "waiting " in keys["newest"]
    assert keys["before"] != keys["newest"] and keys["marked"] == 5
    assert keys["first"].split(": ")[0] < keys["before"].split(": ")[0]
    assert keys["after_escape"] == 0


def test_settings_are_in_words_and_units(seen):
    settings = seen["settings_text"]
    assert settings["Budget of a request"] == "96 tokens" and settings["Prefix cache"] == "yes"
    assert settings["KV pool"].endswith("MiB") and settings["Up for"].split()[1] in ("s", "min")
    assert not any("_" in name for name in settings)


def test_tabs(seen):
    tabs = seen["tabs"]
    assert tabs["panel"] == "tabpanel" and tabs["selected"] == "true" and tabs["labelled"] is True


def test_rows_and_pool(seen):
    rows = {row[0]: row[1:] for row in seen["rows"]}
    assert EVIL in rows and seen["scripts_in_table"] == 0
    logical, resident, budget, saved, policy = rows[EVIL]
    assert (resident, budget, policy) == ("96", "96", "longflow-novel")
    assert int(logical.replace(",", "")) > 96 and saved.endswith("%")
    assert any(row[2] == "full KV" for row in rows.values())
    assert seen["cells"]["all"] == 480 and seen["cells"]["budgeted"] > 100
    assert seen["cells"]["full"] > 0 and seen["cells"]["free"] > 0
    assert sum(seen["legend"]) == POOL
    assert seen["queue"] >= 1 and seen["settings"] > 15 and seen["model"] == "tiny-llama"


def test_the_slider_asks_the_planner(seen):
    plan = seen["plan"]
    assert (plan["budget"], plan["start"]) == ("96", f"{POOL // 96} at once")
    assert (plan["whole_budget"], plan["whole_pool"]) == (f"{POOL:,}", "1 at once")
    assert plan["least"] == f"{POOL // 38} at once" and plan["verdict"].startswith("Helps: ")
    assert "prompt_tokens" in plan["error"] and "99999999" in plan["error"]


def test_themes(seen):
    themes = seen["themes"]
    assert themes["light"] == themes["chosen_light"] == themes["system"]
    assert themes["dark"] == themes["chosen_dark"] != themes["light"]


def test_a_phone_does_not_scroll_sideways(seen):
    assert seen["phone"]["scroll"] == seen["phone"]["width"] == 390
    assert seen["phone"]["widest"] <= 390


def test_the_key_is_asked_for_and_stays_in_the_tab(seen):
    keys = seen["keys"]
    assert (keys["asked"], keys["focus"]) == ("API key needed", "key")
    assert "refused" in keys["refused"] and keys["form_hidden"] is True
    assert keys["stored"] == [[KEY], [], ""]
    assert keys["other_tab"] == "API key needed"


def test_screenshots_were_taken(seen):
    names = {file.name for file in seen["folder"].glob("*.png") if file.stat().st_size > 10_000}
    assert names == {f"console-{name}.png" for name in SHOTS}
