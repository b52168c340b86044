# SPDX-License-Identifier: Apache-2.0
"""The image's steps carried out in a clean root, and its server started there as it will run.

The Dockerfile's target `cpu`, from the file itself (`clean_root.py`); only the installation of
SGLang is not repeated: the packages of this environment, installed from the same pins, are laid in
its place. The server runs as uid 1000, without capabilities, on a read-only root.

For an image with the whole installation, built by hand: LONGFLOW_TEST_IMAGE names the folder that
`clean_root.py build` filled, with what it printed in the file `log`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from harness import free_port
from metric_names import MONITORING, dashboard_queries, names_in, rule_queries, rules
from waiting import until

pytestmark = [pytest.mark.deploy, pytest.mark.long]
TOOLS_DIR = Path(__file__).parents[2] / "tools"
START_S = 900
CONFIG = """\
model-path: /model
device: cpu
kv-budget: 96
kv-budget-min: 64
max-total-tokens: 2400
max-running-requests: 8
kv-planned-rows: 25
enable-metrics: true
random-seed: 1
"""


@pytest.fixture(scope="module")
def built(tools, tmp_path_factory):
    """The folder of the built image, and what the build printed."""
    if os.geteuid() != 0:
        pytest.fail("needs root: mounts, and processes of another user")
    if by_hand := os.environ.get("LONGFLOW_TEST_IMAGE"):
        yield Path(by_hand), (Path(by_hand) / "log").read_text()
        return
    folder = tmp_path_factory.mktemp("image")
    script = [tools / "venv/bin/python", TOOLS_DIR / "clean_root.py"]
    log = folder / "log"
    # The clean root is given this machine's certificates; pip is to use them.
    pip_conf = folder / "pip.conf"
    pip_conf.write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    packages = Path(sysconfig.get_path("purelib"))
    with log.open("w") as out:
        for words in (
            ["base", folder / "base", "--python", sys.base_prefix],
            [
                *("build", folder / "work", "--base", folder / "base"),
                *("--packages", packages, "--pip-conf", pip_conf),
            ],
        ):
            done = subprocess.run([*script, *words], stdout=out, stderr=subprocess.STDOUT)
            assert done.returncode == 0, log.read_text()[-4000:]
    yield folder / "work", log.read_text()
    shutil.rmtree(folder)


def descendants(pid: int) -> list[int]:
    """Live processes below `pid`, nearest first."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


class Container:
    """A running `clean_root.py run`."""

    def __init__(self, tools: Path, work: Path, folder: Path, model: Path):
        # It listens a minute later: no port that an outgoing connection may get by then.
        self.port = free_port()
        self.image = json.loads((work / "image.json").read_text())
        assert self.image["volumes"] == ["/cache"]
        for name in ("cache", "model"):
            (folder / name).mkdir()
        for file in model.iterdir():  # whoever owns it: uid 1000 must read it
            shutil.copyfile(file, folder / "model" / file.name)
            (folder / "model" / file.name).chmod(0o644)
        (folder / "config.yaml").write_text(CONFIG)
        os.chown(folder / "cache", 1000, 1000)
        self.words = [str(self.port) if w == "30000" else w for w in self.image["cmd"]]
        self.log = folder / "log"
        volumes = [f"{folder}/cache:/cache", f"{folder}/model:/model:ro"]
        volumes.append(f"{folder}/config.yaml:/etc/longflow/config.yaml:ro")
        script = [tools / "venv/bin/python", TOOLS_DIR / "clean_root.py", "run", work]
        options = [f"--volume={volume}" for volume in volumes]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*script, *options, "--", *self.words], stdout=out, stderr=subprocess.STDOUT
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while "ready in " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.5)

    @property
    def init(self) -> int:
        """Process 1 of the container, as the host numbers it."""
        return next(p for p in descendants(self.process.pid) if name_of(p) == "tini")

    def run(self, *words: str) -> subprocess.CompletedProcess:
        """What `docker exec` would: a command in the container, as its user."""
        enter = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--ipc", "--root", "--wd"]
        user = ["--setgid=1000", "--setuid=1000", "env", "-i"]
        user += [f"{key}={value}" for key, value in self.image["env"].items()]
        return subprocess.run([*enter, *user, *words], capture_output=True, text=True, timeout=600)

    def health(self) -> int:
        """The image's own HEALTHCHECK, but for the port."""
        words = [word.replace(":30000/", f":{self.port}/") for word in self.image["healthcheck"]]
        assert words[-1].endswith(f":{self.port}/health")
        return self.run(*words).returncode

    def get(self, path: str) -> str:
        with self.open(f"http://127.0.0.1:{self.port}{path}", 600) as answer:
            return answer.read().decode()

    def open(self, request: str | urllib.request.Request, timeout_s: float):
        """The open response; if nobody listens, what the container said last."""
        try:
            return urllib.request.urlopen(request, timeout=timeout_s)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-4000:]}") from error

    def generate(self, tokens: int, budget: int | None = None, stream: bool = False):
        """The response of /generate, open."""
        params: dict = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        if budget is not None:
            params["custom_params"] = {"kv_budget": budget}
        body = {"text": "Once upon a time", "sampling_params": params, "stream": stream}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/generate",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return self.open(request, 900)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture(scope="module")
def container(tools, built, tmp_path_factory):
    work, _ = built
    folder = tmp_path_factory.mktemp("container")
    folder.chmod(0o755)
    model = Path(os.environ["LONGFLOW_TEST_MODEL"])
    running = Container(tools, work, folder, model)
    try:
        running.wait_ready()
        yield running
    finally:
        # unshare --kill-child: the whole container goes with the process that was started.
        running.process.kill()
        running.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_build_looks_at_the_installation(built):
    _, log = built
    rows = dict(
        re.findall(r"^(?:ok|skip) +(hook targets|hooks applied|device|sglang) +(.+)$", log, re.M)
    )
    assert rows["sglang"] == "0.5.23"
    assert rows["device"] == "not looked at (--no-device)"
    assert rows["hook targets"].endswith("as expected")
    assert "installed for a KV budget" in log


def test_the_package_is_the_image_s_own(container):
    """Not the checkout: the wheel that the Dockerfile built."""
    words = ("python", "-c", "import sglang_longflow as p, longflow_kernels as k; print(p, k)")
    out = container.run(*words).stdout
    assert out.count("/usr/local/lib/python3.") == 2, out


def test_it_runs_as_a_user_who_can_get_no_rights(container):
    members = [container.init, *descendants(container.init)]
    assert len(members) >= 4, "tini, longflow, SGLang and its scheduler"
    for pid in members:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["1000"] * 4, fields["Name"]
        assert fields["Gid"].split() == ["1000"] * 4 and fields["Groups"].strip() == ""
        assert fields["NoNewPrivs"] == "1"
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0


def test_only_the_named_places_can_be_written(container):
    for folder in ("/", "/usr/local/bin", "/etc/longflow", "/home", "/var/tmp"):
        refused = container.run("touch", f"{folder}/new")
        assert refused.returncode == 1 and "ead-only file system" in refused.stderr, folder
    for folder in ("/cache", "/tmp", "/dev/shm"):
        assert container.run("touch", f"{folder}/new").returncode == 0, folder
    # Packages: a layer of its own in this test.
    packages = container.run("python", "-c", "import sglang_longflow as p; print(p.__path__[0])")
    refused = container.run("touch", f"{packages.stdout.strip()}/new")
    assert refused.returncode == 1 and "ead-only file system" in refused.stderr


def test_nothing_failed_to_be_written(container):
    text = container.log.read_text()
    for complaint in ("Read-only file system", "Permission denied", "Errno 30", "Errno 13"):
        assert complaint not in text, text


def test_it_answers_with_a_budget_and_is_healthy(container):
    with container.generate(120, budget=64) as response:
        meta = json.load(response)["meta_info"]
    assert meta["completion_tokens"] == 120
    assert meta["kv_budget"] == meta["kv_resident_tokens"] == 64
    assert meta["kv_overwritten_tokens"] == meta["prompt_tokens"] + 120 - 1 - 64
    assert container.health() == 0


def test_rules_and_dashboard_name_what_the_server_exports(container, tools):
    """After one answer and one refusal, every metric is there but for what has not happened."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        container.generate(1, budget=7)
    assert refusal.value.code == 400
    with container.generate(4, stream=True) as response:
        assert response.read()
    dashboard = json.loads((MONITORING / "grafana/dashboards/longflow.json").read_text())
    named = names_in({**rule_queries(), **dashboard_queries(dashboard)}, tools)
    wanted = {name for names in named.values() for name in names}
    recorded = {rule["record"] for rule in rules() if "record" in rule}

    def missing() -> set[str]:
        text = container.get("/metrics")
        exported = set(re.findall(r"^([a-zA-Z_:]\w*(?::\w+)*)", text, re.M))
        return wanted - exported - recorded - {"up"}

    until(lambda: missing() <= NOT_YET)  # gauges are set once a second
    assert missing() == NOT_YET


#: Series that begin with the first event.
NOT_YET = {"sglang:num_retracted_requests_total", "sglang:num_aborted_requests_total"}


def test_sigterm_drains(container):
    """Last: a long answer is finished, health says no meanwhile, and the status is 0."""
    tokens, pieces = 600, []
    response = container.generate(tokens, stream=True)
    first = threading.Event()

    def read() -> None:
        for line in response:
            if line.startswith(b"data: {"):
                pieces.append(json.loads(line[6:]))
                first.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(600)
    at_signal = pieces[-1]["meta_info"]["completion_tokens"]
    os.kill(container.init, getattr(signal, container.image["stopsignal"]))
    while (status := container.health()) == 0:
        assert reader.is_alive(), "healthy to the end of its last answer"
    assert status == 22, "curl's status for an HTTP error: 503"
    assert reader.is_alive() and at_signal < tokens / 2, "the answer was under way"
    reader.join(900)
    assert pieces[-1]["meta_info"]["completion_tokens"] == tokens
    assert pieces[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": tokens}
    assert container.process.wait(600) == 0
