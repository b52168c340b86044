# SPDX-License-Identifier: Apache-2.0
"""Real processes of a small deployment on one machine: replicas, a router, Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from harness import CPU_THREADS, STRICT, build_tiny_model, free_port  # noqa: E402, F401

READY_S = 300
#: The router's module by name of its package. Both are the "SGLang Model Gateway".
ROUTERS = {"sglang-router": "sglang_router.launch_router", "smg": "smg.launch_router"}
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def text_model(folder: Path, tokenizer_from: Path) -> Path:
    """A tiny random Llama with a real tokenizer and chat template."""
    from transformers import AutoTokenizer

    build_tiny_model("llama", folder, vocab_size=49152, num_hidden_layers=2)
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return folder


def call(method: str, url: str, body: dict | None = None, timeout_s: float = 120):
    """(status, JSON or text); 0 if nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except (OSError, urllib.error.URLError) as error:
        return 0, str(error)
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, text


async def until(condition, timeout_s: float, what: str, poll_s: float = 0.2):
    """Wait until `condition()` is true, in a separate thread; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := await asyncio.to_thread(condition)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        await asyncio.sleep(poll_s)
    return value


def _end_with_parent() -> None:
    """In the child: SIGKILL when the test ends, also where it was killed itself."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Program:
    """A child process with its output in a file."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen | None = None

    def launch(self, command: list[str], env: dict[str, str] | None = None) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                env={**os.environ, **(env or {})},
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 30) -> str:
        found = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(found[-lines:])

    def kill(self) -> None:
        """For cleaning up; a server of `longflow serve` ends with its supervisor."""
        if self.process is None:
            return
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.process.wait()


class Replica(Program):
    """One `longflow serve`."""

    def __init__(self, name: str, folder: Path, model: Path, arguments: list[str]):
        super().__init__(name, folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.model, self.arguments = model, arguments
        self._starts = 0

    def start(self) -> None:
        self._starts += 1
        command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "serve", self.model]
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        self.launch(
            [*command, f"--port={self.port}", *self.arguments],
            {**CPU_THREADS, "PYTHONPATH": path},
        )

    @property
    def is_ready(self) -> bool:
        """Whether `longflow serve` said so, for its latest start."""
        if not self.alive:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
        said = self.log.read_text(errors="replace").count("\nready in ")
        return said >= self._starts

    def stats(self, timeout_s: float = READY_S) -> dict:
        """What the schedulers say now; the end of a busy machine's long step is waited for."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, answer = call("GET", self.url + "/longflow/stats?max_age_s=0")
            if status != 200:
                raise RuntimeError(f"{self.name}: /longflow/stats answered {status}: {answer}")
            if answer["state"] == "ok":
                return answer
        raise RuntimeError(f"{self.name}: busy for {timeout_s:.0f} s:\n{self.tail()}")

    def parts(self) -> dict[str, psutil.Process]:
        """The HTTP process and the scheduler."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if "sglang.launch_server" in line and child.ppid() == self.process.pid:
                    found["http"] = child
                elif line.startswith("sglang::scheduler"):
                    found["scheduler"] = child
        return found

    def give_way(self) -> None:
        """Lower its priority: beside busy servers, on two cores, another starts for minutes."""
        family = psutil.Process(self.process.pid)
        for process in (family, *family.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                process.nice(10)

    async def drain(self, timeout_s: float) -> int:
        """SIGTERM, as a kubelet sends it; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        await until(lambda: not self.alive, timeout_s, f"{self.name} did not end after SIGTERM")
        return self.process.returncode


class Router(Program):
    """The real router, told of its workers through its API."""

    def __init__(self, folder: Path, tools: Path, package: str, *arguments: str):
        super().__init__(package, folder)
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(tools / "venv/bin/python", "-m", ROUTERS[package]),
            *("--host", "127.0.0.1", "--port", self.port),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", self.metrics_port),
            # Spread by load already at small differences: few requests fit a replica here.
            *("--policy", "cache_aware", "--balance-abs-threshold", 1),
            *("--balance-rel-threshold", 1.1, "--log-level", "warn"),
            *("--worker-startup-check-interval", 1, *arguments),
        ]

    async def start(self) -> None:
        self.launch(self._command)
        url = self.url + "/workers"
        await until(
            lambda: call("GET", url)[0] == 200, READY_S, f"{self.name} answers\n{self.tail()}"
        )

    def workers(self) -> dict[str, dict]:
        status, answer = call("GET", self.url + "/workers")
        if status != 200:
            raise RuntimeError(f"{self.name}: GET /workers answered {status}: {answer}")
        return {worker["url"].rstrip("/"): worker for worker in answer["workers"]}

    async def add(self, url: str) -> None:
        status, answer = await asyncio.to_thread(call, "POST", self.url + "/workers", {"url": url})
        if status not in (200, 201, 202):
            raise RuntimeError(f"{self.name}: POST /workers answered {status}: {answer}")
        healthy = lambda: self.workers().get(url, {}).get("is_healthy")  # noqa: E731
        await until(healthy, READY_S, f"{self.name} takes {url}")

    async def remove(self, url: str) -> None:
        worker = (await asyncio.to_thread(self.workers))[url]["id"]
        status, answer = await asyncio.to_thread(call, "DELETE", f"{self.url}/workers/{worker}")
        if status not in (200, 202, 204):
            raise RuntimeError(f"{self.name}: DELETE /workers answered {status}: {answer}")
        await until(lambda: url not in self.workers(), READY_S, f"{self.name} drops {url}")

    def metric(self, pattern: str) -> float:
        """Sum of its own metrics whose name matches."""
        _, text = call("GET", f"http://127.0.0.1:{self.metrics_port}/metrics")
        lines = re.findall(rf"^(?:{pattern})(?:\{{[^}}]*\}})? ([\d.e+]+)$", str(text), re.M)
        return sum(map(float, lines))


class Prometheus(Program):
    """The real Prometheus; targets come and go through a file it watches."""

    def __init__(self, folder: Path, scrape_interval_s: float = 1.0):
        super().__init__("prometheus", folder)
        if shutil.which("prometheus") is None:
            raise RuntimeError("prometheus is not on PATH; `make test-deploy` installs it")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._targets = folder / "targets.json"
        self._labels: dict[str, dict[str, str]] = {}
        self._write_targets()
        scrape = {
            "job_name": "longflow",
            "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}],
        }
        interval = f"{round(scrape_interval_s * 1000)}ms"
        config = {"global": {"scrape_interval": interval}, "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _write_targets(self) -> None:
        entries = [{"targets": [t], "labels": labels} for t, labels in self._labels.items()]
        temporary = self._targets.with_suffix(".tmp")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._targets)

    def add(self, replica: Replica, labels: dict[str, str]) -> None:
        self._labels[f"127.0.0.1:{replica.port}"] = labels
        self._write_targets()

    def remove(self, replica: Replica) -> None:
        self._labels.pop(f"127.0.0.1:{replica.port}", None)
        self._write_targets()

    async def start(self) -> None:
        self.launch(
            [
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ]
        )
        ready = lambda: call("GET", self.url + "/-/ready")[0] == 200  # noqa: E731
        await until(ready, READY_S, f"prometheus is ready\n{self.tail()}")

    def query(self, expression: str) -> float | None:
        """The one value of an instant query, None for an empty result."""
        query = urllib.parse.urlencode({"query": expression})
        status, answer = call("GET", f"{self.url}/api/v1/query?{query}")
        if status != 200 or answer.get("status") != "success":
            raise RuntimeError(f"prometheus answered {status} to {expression!r}: {answer}")
        data = answer["data"]
        if data["resultType"] == "scalar":
            return float(data["result"][1])
        if len(data["result"]) > 1:
            raise RuntimeError(f"{len(data['result'])} series instead of one: {expression!r}")
        return float(data["result"][0]["value"][1]) if data["result"] else None
