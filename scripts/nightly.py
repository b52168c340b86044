# SPDX-License-Identifier: Apache-2.0
"""The newest SGLang: is it served, and if it is not, does a budget end the start in one line?

    python scripts/nightly.py                                  # the newest on the package index
    python scripts/nightly.py --release 0.5.23 --work /tmp/n   # that one; where it is installed
    python scripts/nightly.py --python .venv/bin/python        # the one of that environment

In this order: `newest` finds the release; `audit` reads its wheel with scripts/check_release.py;
`older` has that read older releases, whose seams it must name; `install` makes an environment;
`doctor`; `stock` is a server through our CPU platform without the plugin; `off` has the plugin and
no budget; `budget` has one: on a release that is in `TESTED_SGLANG` it must keep within it, on any
other it must not start. `core` are end-to-end tests (CORE); on a release that is not tested they
run in a copy of the tree that calls it tested, and say how far a port would be.

A step that fails does not keep those behind it from running, unless they need what it makes. The
report (`--report`, Markdown) begins with the first line that failed. Ends with 1 if a step failed.
What is only found out about a release that is not tested (`audit`, `core`) is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fault_check import copy_tree

from sglang_longflow.settings.release import TESTED_SGLANG

ROOT = Path(__file__).resolve().parents[1]
CORE = tuple(
    f"tests/e2e/test_{name}.py"
    for name in ("parity", "prefix", "tokens", "longflow_oracle", "http", "hooks_stop_the_start")
)
MODEL = ROOT / "sglang_longflow/reasoner/model"
#: Seams of older releases that the audit must see; else it says nothing by what it does not find.
OLDER = {
    "0.5.22": ("Scheduler has no send_abort_output",),
    "0.5.17": (
        "default prefix tree: RadixCache",
        "PrefillBudget is missing",
        "get_prefill_adder_class: is missing",
        "has no ALLOC_FOR_DECODE_FUNCS",
        "Req has no extend_end",
    ),
}
TEST_TOOLS = ("pytest", "hypothesis", "requests", "accelerate", "gguf")
BUDGET_TOKENS, OUTPUT_TOKENS = 96, 200
START_S, ANSWER_S, STOP_S, REFUSE_S, CORE_S = 600, 120, 60, 300, 2700
PROMPT_IDS = [*range(5, 45)]
OUR_WORDS = re.compile(r"longflow|^Traceback", re.M | re.I)


class StepFailed(Exception):
    """What a step found wrong, in one line."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "ok", "FAILED", "found" (no failure, but something to read), "not run"."""

    step: str
    how: str
    says: str
    seconds: float = 0.0


@dataclass
class Run:
    """One release in one environment; steps fill in what later ones need."""

    work: Path
    release: str = ""
    python: Path | None = None
    wheel: Path | None = None
    stock_ids: list[int] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    @property
    def tested(self) -> bool:
        return self.release in TESTED_SGLANG

    def tool(self, name: str) -> str:
        """A command of the environment."""
        assert self.python is not None
        return str(self.python.parent / name)


def environment(**more: str) -> dict[str, str]:
    """This process's, less what would set SGLang or the plugin up in another way."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "LONGFLOW_KV"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def call(*command: str | Path, timeout_s: float, cwd: Path, **more: str) -> tuple[int, str]:
    """Exit status and both outputs of a command; 124 if it ran longer."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            words, cwd=cwd, env=environment(**more), stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        return status, out.read()


def download(run: Run, release: str) -> Path:
    """The wheel of a release, or of the newest, from the package index."""
    folder = run.work / "wheels" / (release or "newest")
    shutil.rmtree(folder, ignore_errors=True)
    wanted = f"sglang=={release}" if release else "sglang"
    command = ("-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder)
    status, out = call(sys.executable, *command, wanted, timeout_s=600, cwd=run.work)
    found = list(folder.glob("sglang-*.whl"))
    if status or len(found) != 1:
        raise StepFailed(f"{wanted} was not downloaded: {last_line(out)}")
    return found[0]


def newest(run: Run) -> str:
    """Downloads the wheel of the release that was asked for, or of the newest."""
    if run.python is not None and not run.release:
        code = "import importlib.metadata as m; print(m.version('sglang'))"
        status, out = call(run.python, "-c", code, timeout_s=60, cwd=run.work)
        if status:
            raise StepFailed(f"no SGLang in the environment of {run.python}")
        run.release = out.split()[-1]
    run.wheel = download(run, run.release)
    run.release = run.wheel.name.split("-")[1]
    known = "tested" if run.tested else f"not tested ({', '.join(TESTED_SGLANG)} is)"
    return f"SGLang {run.release}, {known}"


def check_release(run: Run, wheel: Path) -> tuple[int, str]:
    script = ROOT / "scripts/check_release.py"
    more = {"timeout_s": 300, "cwd": run.work, "PYTHONPATH": str(ROOT)}
    return call(sys.executable, script, wheel, **more)


def audit(run: Run) -> str:
    """What of the hooks and of what handlers touch is not there."""
    assert run.wheel is not None
    status, out = check_release(run, run.wheel)
    run.details.append(f"### Audit\n\n```\n{out.strip()}\n```\n")
    if "hook targets fit" not in out:
        raise StepFailed(f"the wheel could not be read: {last_line(out)}")
    gone = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    says = f"{len(gone)} seams differ" + (f", first: {gone[0]}" if gone else "")
    if status and run.tested:
        raise StepFailed(says)
    return says


def older(run: Run) -> str:
    """The audit is red on releases that were served, or passed over, and says by what."""
    for release, seams in OLDER.items():
        status, out = check_release(run, download(run, release))
        unseen = [seam for seam in seams if seam not in out]
        if unseen or not status:
            raise StepFailed(f"{release}, status {status}: not seen: {', '.join(unseen) or '-'}")
    return f"{sum(map(len, OLDER.values()))} seams of {' and '.join(OLDER)} seen"


def install(run: Run) -> str:
    """An environment with that release; the plugin with its pins only where it follows it."""
    folder = run.work / "env"
    shutil.rmtree(folder, ignore_errors=True)
    status, out = call(sys.executable, "-m", "venv", folder, timeout_s=300, cwd=run.work)
    run.python = folder / "bin/python"
    pip = (run.python, "-m", "pip", "install", "-q", "--no-compile")
    pins = ("-c", ROOT / "requirements/constraints.txt") if run.tested else ()
    for what in ((f"sglang=={run.release}", *pins), (*TEST_TOOLS, *pins), ("--no-deps", ROOT)):
        if not status:
            status, out = call(*pip, *what, timeout_s=3000, cwd=run.work)
    if status:
        run.python = None
        raise StepFailed(f"pip: {last_line(out)}")
    _, out = call(run.python, "-m", "pip", "check", timeout_s=120, cwd=run.work)
    return f"pip check: {last_line(out)}"


def doctor(run: Run) -> str:
    """Passes on a tested release, and names the release on another."""
    status, out = call(run.tool("longflow"), "doctor", "--no-device", timeout_s=300, cwd=run.work)
    run.details.append(f"### Doctor\n\n```\n{out.strip()}\n```\n")
    failed = [line for line in out.splitlines() if line.startswith("fail")]
    if run.tested and (status or failed):
        raise StepFailed(failed[0] if failed else f"status {status}: {last_line(out)}")
    if not run.tested and not (status and f"{run.release}: tested with" in out):
        raise StepFailed(f"status {status} on a release that is not tested: {last_line(out)}")
    return last_line(out)


@dataclass
class Server:
    """A running server and its log."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON (or text) of a GET, or of a POST of `body`."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        with contextlib.suppress(json.JSONDecodeError):
            return status, json.loads(text)
        return status, text

    def generate(self, **parameters: Any) -> tuple[list[int], dict[str, Any]]:
        """Greedy tokens and meta_info of the one prompt."""
        sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": OUTPUT_TOKENS}
        body = {"input_ids": PROMPT_IDS, "sampling_params": {**sampling, **parameters}}
        status, answer = self.ask("/generate", body)
        if status != 200:
            raise StepFailed(f"/generate answered {status}: {str(answer)[:200]}")
        return answer["output_ids"], answer["meta_info"]


@contextlib.contextmanager
def serving(run: Run, name: str, *command: str, **more: str) -> Iterator[Server]:
    """A server that answers; SIGTERM must end it with status 0.

    Raises
    ------
    StepFailed
        It ended or did not answer in START_S, or was not ended by SIGTERM.
    """
    port, log = free_port(), run.work / f"{name}.log"
    words = [*command, "--model-path", str(MODEL), "--port", str(port), "--device", "cpu"]
    words += ["--host", "127.0.0.1", "--random-seed", "1", "--max-total-tokens", "4096"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, cwd=run.work, env=environment(**more), stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    server = Server(port, log, process)
    try:
        _wait_until_it_answers(server)
        yield server
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"not ended {STOP_S} s after SIGTERM, see {name}.log") from None
        if status not in (0, -signal.SIGTERM, -signal.SIGKILL):  # SGLang's own end is a SIGKILL
            raise StepFailed(f"ended with status {status} after SIGTERM, see {name}.log")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        text = log.read_text(errors="replace").strip().splitlines()
        run.details.append(
            f"### {name}, end of its log\n\n```\n" + "\n".join(text[-30:]) + "\n```\n"
        )


def _wait_until_it_answers(server: Server) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            text = server.log.read_text(errors="replace")
            raise StepFailed(f"ended with {server.process.returncode}: {last_line(text)}")
        with contextlib.suppress(OSError):
            if server.ask("/health")[0] == 200:
                return
        time.sleep(1)
    raise StepFailed(f"does not answer after {START_S} s, see {server.log.name}")


def stock(run: Run) -> str:
    """SGLang alone through our platform: it answers, and the plugin says nothing."""
    command = (run.tool("python"), "-m", "sglang.launch_server")
    with serving(run, "stock", *command, SGLANG_PLUGINS="longflow_cpu") as server:
        run.stock_ids, _ = server.generate()
        if len(run.stock_ids) != OUTPUT_TOKENS:
            raise StepFailed(f"{len(run.stock_ids)} tokens of {OUTPUT_TOKENS}")
        text = server.log.read_text(errors="replace")
        if "Traceback" in text:
            raise StepFailed(f"a traceback in stock.log: {last_line(text)}")
    return f"{len(run.stock_ids)} tokens"


def off(run: Run) -> str:
    """The plugin without a budget: stock's tokens, and no budget for a request either."""
    command = (run.tool("python"), "-m", "sglang.launch_server")
    with serving(run, "off", *command) as server:
        ids, _ = server.generate()
        if run.stock_ids and ids != run.stock_ids:
            raise StepFailed("other tokens than stock's")
        body = {"input_ids": PROMPT_IDS, "sampling_params": {"custom_params": {"kv_budget": 96}}}
        status, answer = server.ask("/generate", body)
        if status != 400:
            raise StepFailed(f"a request for a budget got {status}: {str(answer)[:200]}")
        text = server.log.read_text(errors="replace")
        if "Traceback" in text:
            raise StepFailed("a traceback in off.log")
        told = [line for line in text.splitlines() if "longflow stays off" in line]
        if bool(told) == run.tested:
            raise StepFailed(f"{len(told)} lines of its log say that longflow stays off")
    return f"stock's tokens; a request for a budget is a 400; {len(told)} warnings"


def budget(run: Run) -> str:
    """It works, or it does not start: never half on."""
    return _works(run) if run.tested else _refuses(run)


def _works(run: Run) -> str:
    flag = ("--kv-budget", str(BUDGET_TOKENS))
    with serving(run, "budget", run.tool("longflow"), "serve", *flag) as server:
        ids, meta = server.generate()
        held, overwritten = meta.get("kv_resident_tokens"), meta.get("kv_overwritten_tokens")
        # The last token is never written.
        expected = len(PROMPT_IDS) + OUTPUT_TOKENS - 1 - BUDGET_TOKENS
        if (len(ids), held, overwritten) != (OUTPUT_TOKENS, BUDGET_TOKENS, expected):
            raise StepFailed(f"{len(ids)} tokens, {held} resident, {overwritten} overwritten")
        status, stats = server.ask("/longflow/stats")
        if status != 200 or stats["settings"]["kv_budget"] != BUDGET_TOKENS:
            raise StepFailed(f"/longflow/stats answered {status}: {str(stats)[:200]}")
        if "Traceback" in server.log.read_text(errors="replace"):
            raise StepFailed("a traceback in budget.log")
    return f"{len(ids)} tokens in {held} slots, {overwritten} overwritten"


def _refuses(run: Run) -> str:
    settings = run.work / "budget.yaml"
    settings.write_text(f"model-path: {MODEL}\ndevice: cpu\nkv-budget: {BUDGET_TOKENS}\n")
    plain = ("--model-path", str(MODEL), "--device", "cpu", "--kv-budget", str(BUDGET_TOKENS))
    python = run.tool("python")
    ways = {
        "sglang serve": (run.tool("sglang"), "serve", *plain),
        "launch_server": (python, "-m", "sglang.launch_server", *plain),
        "launch_server --config": (python, "-m", "sglang.launch_server", "--config", str(settings)),
        "longflow serve": (run.tool("longflow"), "serve", *plain),
    }
    for name, command in ways.items():
        port = free_port()
        status, out = call(*command, "--port", str(port), timeout_s=REFUSE_S, cwd=run.work)
        said = [line for line in out.splitlines() if ": error: " in line]
        line = f"error: SGLang {run.release}: not tested with KV budgets"
        run.details.append(f"### {name}\n\n```\nstatus {status}\n{out.strip()[-1500:]}\n```\n")
        if status in (0, 124):
            raise StepFailed(f"{name} with a budget ran: status {status}")
        if len(said) != 1 or line not in said[0] or "Traceback" in out:
            raise StepFailed(f"{name}: no refusal in one line: {last_line(out)}")
    return f"refused in one line by {', '.join(ways)}"


def core(run: Run) -> str:
    """End-to-end tests; on a release that is not tested, in a copy that calls it tested."""
    with tempfile.TemporaryDirectory(prefix="longflow-nightly-") as name:
        tree = ROOT if run.tested else Path(name)
        if not run.tested:
            copy_tree(tree)
            file = tree / "sglang_longflow/settings/release.py"
            text, count = re.subn(
                r"^TESTED_SGLANG = .*$",
                f'TESTED_SGLANG = ("{run.release}",)',
                file.read_text(),
                flags=re.M,
            )
            assert count == 1
            file.write_text(text)
        model = os.environ.get("LONGFLOW_TEST_MODEL") or _test_model(run)
        path = f"{tree}:{tree / 'kernels'}"
        status, out = call(
            *(run.tool("python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE),
            timeout_s=CORE_S,
            cwd=tree,
            PYTHONPATH=path,
            COLUMNS="200",
            LONGFLOW_TEST_MODEL=model,
        )
    run.details.append(f"### End-to-end tests\n\n```\n{out.strip()[-6000:]}\n```\n")
    red = re.findall(r"^(?:FAILED|ERROR) .*$", out, re.M)
    says = last_line(out).strip("= ") + (f"; first: {red[0]}" if red else "")
    if status and run.tested:
        raise StepFailed(f"ran over {CORE_S} s" if status == 124 else says)
    return says


def _test_model(run: Run) -> str:
    """The folder of the small chat model, which is fetched where it is not yet."""
    command = ("-m", "sglang_longflow.demo.model", "--path")
    status, out = call(run.tool("python"), *command, timeout_s=600, cwd=run.work)
    if status:
        raise StepFailed(f"no model for the tests: {last_line(out)}")
    return last_line(out)


#: In order; by its name: what it does, and what of a `Run` it needs.
STEPS: dict[str, tuple[Callable[[Run], str], str]] = {
    "newest": (newest, ""),
    "audit": (audit, "wheel"),
    "older": (older, ""),
    "install": (install, "release"),
    "doctor": (doctor, "python"),
    "stock": (stock, "python"),
    "off": (off, "python"),
    "budget": (budget, "python"),
    "core": (core, "python"),
}


def carried_out(run: Run, names: list[str]) -> list[Outcome]:
    """Every step with how it ended, told as it happens."""
    outcomes = []
    for name in names:
        step, needs = STEPS[name]
        begin = time.monotonic()
        if needs and not getattr(run, needs):
            outcome = Outcome(name, "not run", f"there is no {needs}")
        else:
            try:
                says = step(run)
                found = name in ("audit", "core") and not run.tested
                outcome = Outcome(name, "found" if found else "ok", says, time.monotonic() - begin)
            except StepFailed as error:
                outcome = Outcome(name, "FAILED", str(error), time.monotonic() - begin)
        outcomes.append(outcome)
        print(f"{outcome.how:7} {outcome.seconds:5.0f} s  {name}: {outcome.says}", flush=True)
    return outcomes


def first_failed(outcomes: list[Outcome]) -> str:
    """The step and line that failed first; empty if none did."""
    failed = [f"{o.step}: {o.says}" for o in outcomes if o.how == "FAILED"]
    return failed[0] if failed else ""


def title(run: Run, outcomes: list[Outcome]) -> str:
    """One line for an issue; empty if there is nothing to tell. The same for a release and step."""
    failed = next((o.step for o in outcomes if o.how == "FAILED"), "")
    release = f"SGLang {run.release or '?'}"
    if failed:
        return f"Nightly: {release}: {failed} failed"
    return "" if run.tested else f"Nightly: {release} is out, and not tested"


def markdown(run: Run, outcomes: list[Outcome]) -> str:
    """The report: what failed first, a line for each step, what they printed."""
    failed = first_failed(outcomes)
    head = f"First failed line: **{failed}**" if failed else "No step failed."
    rows = ["| Step | | Seconds | Says |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {o.step} | {o.how} | {o.seconds:.0f} | {o.says.replace('|', chr(92) + '|')} |"
        for o in outcomes
    ]
    name = f"## SGLang {run.release or '?'}"
    return "\n\n".join([name, head, "\n".join(rows), *run.details]) + "\n"


def last_line(text: str) -> str:
    """The last line with text, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="", help="such as 0.5.23; without: the newest")
    parser.add_argument("--python", type=Path, help="of an environment; nothing is installed")
    parser.add_argument("--work", type=Path, default=ROOT / "build/nightly", help="logs, wheel")
    parser.add_argument("--report", type=Path, help="where the Markdown report goes")
    parser.add_argument("--title", type=Path, help="where the title of an issue goes, if any")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    options = parser.parse_args(argv)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    run = Run(work, options.release, options.python and options.python.absolute())
    names = [name for name in STEPS if name in ("newest", *options.steps)]
    if options.python:
        names = [name for name in names if name != "install"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    outcomes = carried_out(run, names)
    for file in (options.report, options.title):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    if options.report:
        options.report.write_text(markdown(run, outcomes), encoding="utf-8")
    if options.title:
        options.title.write_text(title(run, outcomes), encoding="utf-8")
    failed = first_failed(outcomes)
    print(f"first failed line: {failed}" if failed else "no step failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
