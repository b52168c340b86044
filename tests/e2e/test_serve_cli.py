# SPDX-License-Identifier: Apache-2.0
"""``longflow serve`` with real servers: what it says when they fail, and what it leaves behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import harness

pytestmark = pytest.mark.e2e
REAL_START = True
START_S = 300


@pytest.fixture(scope="module")
def model(tiny_with_tokenizer) -> str:
    return str(tiny_with_tokenizer)


@pytest.fixture
def port() -> int:
    """Below those that an outgoing connection may get before the server listens."""
    return harness.free_port()


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, real: bool = True):
    """A running ``longflow serve``; its output goes to files, so that nothing can block.

    Unless `real`, its server imports SGLang once (`harness.fast_start`).
    """
    env = {**os.environ, **harness.CPU_THREADS, **harness.fast_start(not real)}
    command = [sys.executable, "-m", "sglang_longflow.cli", "serve", *arguments]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def descendants(pid: int) -> dict[int, str]:
    """Live processes below `pid` with their command lines."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = {}, [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                found[child] = text.decode(errors="replace")
                todo.append(child)
    return found


def alive(pids) -> list[int]:
    """Which of them still run; a zombie that waits for its parent does not."""
    running = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                running.append(pid)
    return running


def gone(pids, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.2)
    return not alive(pids)


def scheduler_of(pid: int) -> int:
    """The scheduler process, once SGLang has renamed it, while the server is still starting."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for child, text in descendants(pid).items():
            if text.startswith("sglang::scheduler"):
                return child
        time.sleep(0.1)
    raise AssertionError("no scheduler process appeared")


def test_scheduler_killed_during_start(tmp_path, model, port):
    with serving(tmp_path, model, "--kv-budget=96", f"--port={port}", real=False) as process:
        victim = scheduler_of(process.pid)
        family = descendants(process.pid)
        os.kill(victim, signal.SIGKILL)
        status = process.wait(START_S)
    assert status == 1
    last = (tmp_path / "err").read_text().rstrip().splitlines()[-1]
    assert last.startswith("longflow serve: error: the server ended during start-up (")
    assert "killed by the kernel (signal 9), probably out of memory; --max-total-tokens " in last
    assert "ready in" not in (tmp_path / "out").read_text()
    assert gone(family), "processes were left behind"


class SlowReader(http.client.HTTPConnection):
    """Asks for a stream of many megabytes, and leaves it to the sockets' buffers at first."""

    json_headers = {"Content-Type": "application/json"}
    body = {
        "text": "Hello",
        "stream": True,
        "return_logprob": True,
        "top_logprobs_num": 20,
        "sampling_params": {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True},
    }

    def connect(self):
        super().connect()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)

    def ask(self) -> http.client.HTTPResponse:
        self.request("POST", "/generate", json.dumps(self.body), self.json_headers)
        return self.getresponse()


def test_sigterm_drains_what_a_client_has_not_read(tmp_path, model, port):
    arguments = ("--kv-budget=96", "--max-total-tokens=1200", f"--port={port}")
    with serving(tmp_path, model, *arguments, real=False) as process:
        end = time.monotonic() + START_S
        while "ready in" not in (tmp_path / "out").read_text() and time.monotonic() < end:
            assert process.poll() is None, (tmp_path / "err").read_text()[-2000:]
            time.sleep(0.5)
        family = descendants(process.pid)
        slow = SlowReader("127.0.0.1", port, timeout=120)
        response = slow.ask()
        first = response.readline()
        process.terminate()
        while "SIGTERM received" not in (tmp_path / "err").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(12)  # longer than two polls of SGLang's own drain
        # Until the end requests are answered, and their clients sent elsewhere.
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        other.request("POST", "/generate", json.dumps({"text": "Hi"}), SlowReader.json_headers)
        late = other.getresponse()
        assert (late.status, late.getheader("connection")) == (200, "close")
        rest = response.read()
        status = process.wait(120)
    assert status == 0
    assert response.getheader("connection") is None and first.startswith(b"data: ")
    *_, last, end_mark = [line for line in rest.split(b"\n") if line.startswith(b"data: ")]
    assert end_mark == b"data: [DONE]"
    assert json.loads(last[6:])["meta_info"]["completion_tokens"] == 300
    assert f"http://127.0.0.1:{port}/longflow/stats" in (tmp_path / "out").read_text()
    assert gone(family), "processes were left behind"


def test_every_line_of_a_json_log_is_an_object(tmp_path, model, port):
    def records() -> list[dict]:
        whole = (tmp_path / "err").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    arguments = ("--kv-budget=96", "--max-total-tokens=1200", f"--port={port}", "--log-format=json")
    with serving(tmp_path, model, *arguments) as process:
        end = time.monotonic() + START_S
        while "ready" not in [record["message"] for record in records()]:
            assert process.poll() is None and time.monotonic() < end, records()[-3:]
            time.sleep(0.5)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"text": "Hi", "sampling_params": {"max_new_tokens": 4}}
        client.request("POST", "/generate", json.dumps(body), SlowReader.json_headers)
        assert client.getresponse().status == 200
        process.terminate()
        assert process.wait(120) == 0
    found = records()
    assert (tmp_path / "out").read_text() == ""
    assert all({"time", "level", "logger", "message"} <= set(record) for record in found)
    (start,) = (record for record in found if record["message"] == "starting")
    assert start["settings"]["KV budget"].startswith("96 tokens per request, policy longflow-novel")
    assert start["level"] == "INFO" and start["logger"] == "longflow.serve"
    assert any(record.get("process", "").startswith("sglang::scheduler") for record in found)
    asked = [record for record in found if "POST /generate" in record["message"]]
    assert asked and asked[0]["message"].endswith("200 OK") and asked[0]["level"] == "INFO"


def test_supervisor_killed_leaves_no_server(tmp_path, model, port):
    """SIGKILL cannot be handled: the kernel tells the server that its parent is gone."""
    with serving(tmp_path, model, "--kv-budget=96", f"--port={port}") as process:
        end = time.monotonic() + START_S
        while not (family := descendants(process.pid)) or not any(
            "launch_server" in text for text in family.values()
        ):
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(2)
        family = descendants(process.pid)
        process.kill()
        assert gone(family, 60), "processes were left behind"


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang_longflow.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S)


def test_port_in_use(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_serve(model, "--kv-budget=96", f"--port={port}")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"port={port}" in line and "--port " in line


def test_model_folder_missing():
    done = run_serve("./no-such-model", "--kv-budget=96")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("longflow serve: error: model_path='./no-such-model'")
