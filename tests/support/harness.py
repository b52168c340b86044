# SPDX-License-Identifier: Apache-2.0
"""Real engines and servers for the end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sglang_longflow.platform.cpu_dtype import fast_dtype

STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
}
#: Beside other processes on two cores, more threads are slower.
CPU_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
TINY = dict(
    vocab_size=512,
    hidden_size=256,
    head_dim=64,  # the smallest that FlashInfer has kernels for
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)


def tiny_config(kind: str, **changes):
    """A tiny configuration of one of the supported geometries."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

    values = {**TINY, **changes}
    if kind == "qwen3":
        return Qwen3Config(**values)
    if kind == "mistral":  # one KV head: MQA
        return MistralConfig(**{**values, "num_key_value_heads": 1}, sliding_window=None)
    if kind == "qwen2":  # as many KV heads as query heads: MHA
        return Qwen2Config(**{**values, "num_key_value_heads": 4})
    if kind == "qwen3_moe":
        moe = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
        return Qwen3MoeConfig(**values, **moe)
    return LlamaConfig(**values)


def build_tiny_model(kind: str, folder: Path, seed: int = 0, **changes) -> Path:
    """Random weights with peaked attention, saved where SGLang and Hugging Face load them."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25 if "embed" in name or "lm_head" in name else 0.1)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def prompt(length: int, seed: int, vocab_size: int = 512) -> list[int]:
    """Random token ids, away from special tokens."""
    generator = random.Random(seed)
    return [generator.randrange(3, vocab_size) for _ in range(length)]


@contextlib.contextmanager
def environment(**values: str):
    """Environment variables for the length of a block (children inherit them)."""
    old = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in old.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _run_with_environment(values: dict[str, str], target, *args, **kwargs) -> None:
    """First thing in a forked process: the fork server's environment is older than the engine."""
    os.environ.clear()
    os.environ.update(values)
    target(*args, **kwargs)


class ForkServer:
    """Stands in for `multiprocessing` in SGLang's engine; processes start in 1 s instead of 20.

    As with SGLang's own "spawn", a process starts with no state of this one; but its imports were
    done before, in the fork server. Hooks are applied after the imports in both.
    """

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["quick_imports"])
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        with environment(PYTHONPATH=os.pathsep.join(paths)):
            multiprocessing.forkserver.ensure_running()

    def __getattr__(self, name: str):
        return getattr(self._context, name)

    def set_start_method(self, method: str, force: bool = False) -> None:
        assert method == "spawn"

    def Process(self, *, target, args=(), kwargs=None, **more):
        return self._context.Process(
            target=_run_with_environment,
            args=(dict(os.environ), target, *args),
            kwargs=kwargs or {},
            **more,
        )


@contextlib.contextmanager
def _fork_server():
    from sglang.srt.entrypoints import engine

    original, engine.mp = engine.mp, ForkServer()
    try:
        yield
    finally:
        engine.mp = original


def free_port() -> int:
    """A port that is free now; workers of a test run have a range each, below the kernel's own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 2_000 * (worker % 6)
    for port in random.SystemRandom().sample(range(first, first + 2_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port from {first} on")


DEVICE = os.environ.get("LONGFLOW_TEST_DEVICE", "cpu")
FAST_START = Path(__file__).parent / "fast_start"


def fast_start(chosen: bool = True) -> dict[str, str]:
    """Environment in which servers import SGLang once, not in each of their three processes.

    Unless `chosen`: the one in which they start as they do without tests.
    """
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in others if path and path != str(FAST_START)]
    if chosen and DEVICE == "cpu":
        paths.insert(0, str(FAST_START))
    return {"PYTHONPATH": os.pathsep.join(paths)}


#: Why no test of this module can go on with its engine.
ENDED: list[str] = []


class EndsTheTest:
    """SGLang's handler of a process that ended kills pytest, and what that process wrote is lost.

    This one fails the test. A process of the fork server says that it was 255 whatever it was: what
    reports an error ends the fork server, its parent, with a SIGQUIT.
    """

    def __init__(self, tokenizer_manager):
        self._manager = tokenizer_manager

    def sigterm_handler(self, signum=None, frame=None) -> None:
        self._manager.gracefully_exit = True

    def running_phase_sigquit_handler(self, signum=None, frame=None) -> None:
        self._manager._subprocess_watchdog.stop()
        ENDED.append("a process of the engine ended; what it wrote is in the output of the test")
        raise SystemExit(ENDED[-1])  # asyncio would keep an Exception for itself


def _stop(engine) -> None:
    """End this engine's processes only; `Engine.shutdown` kills every child of this process."""
    watchdog = engine.tokenizer_manager._subprocess_watchdog
    watchdog.stop()
    for process in watchdog._processes:
        process.kill()
        process.join(30)


@contextlib.contextmanager
def engine(
    model: Path,
    *,
    probe: bool = False,
    interpret: bool = False,
    fresh: bool = False,
    scheduler=None,
    env: dict[str, str] | None = None,
    **arguments,
):
    """An `sglang.Engine` fed with token ids, strict memory checks on.

    With ``interpret`` its Triton kernels run on a CPU, in Triton's interpreter. With ``fresh`` its
    processes import SGLang by themselves, for the variables in `env` that are read on import.

    `scheduler` replaces SGLang's entry point of a scheduler process, a function of a module.

    With ``probe`` the scheduler runs under `probe.run_scheduler_process`; the engine then has
    ``probe_report()``.
    """
    from sglang.srt.entrypoints.engine import Engine

    report_file = Path(tempfile.mkstemp(suffix=".json")[1])
    defaults = dict(
        model_path=str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        max_total_tokens=4000,
        random_seed=1,
        sleep_on_idle=True,
        log_level="error",
        port=free_port(),
        nccl_port=free_port(),  # SGLang's own choice may be some connection's by then
    )
    if "kv_budget" in arguments:
        defaults["kv_policy"] = "longflow"  # not the default: what the oracle ranks by
    if DEVICE == "cuda":
        defaults["dtype"] = "bfloat16"  # FlashInfer has no float32 kernels
        if "kv_budget" in arguments:
            defaults["kv_decode_kernel"] = os.environ.get("LONGFLOW_TEST_KERNEL", "auto")
    else:
        defaults["device"] = "cpu"
        env = {**CPU_THREADS, **(env or {})}
    cls = Engine
    if scheduler is not None:
        replaced = {"run_scheduler_process_func": staticmethod(scheduler)}
        cls = type("OtherSchedulerEngine", (Engine,), replaced)
    if probe:
        import probe as probe_module

        class ProbedEngine(Engine):
            run_scheduler_process_func = staticmethod(probe_module.run_scheduler_process)

            def probe_report(self) -> dict:
                """What happened since the last report, once the scheduler idles."""
                asked, deadline = time.time(), time.monotonic() + 300
                while report_file.stat().st_mtime <= asked:
                    assert time.monotonic() < deadline, "the scheduler did not become idle"
                    time.sleep(0.05)
                report = json.loads(report_file.read_text())
                report_file.with_suffix(".reset").touch()
                return report

        cls = ProbedEngine
    if interpret:  # read when SGLang and Triton are imported
        env = {**(env or {}), "TRITON_INTERPRET": "1"}
    own_imports = fresh or interpret or DEVICE != "cpu"
    starts = contextlib.nullcontext() if own_imports else _fork_server()
    with environment(**STRICT, LONGFLOW_PROBE_FILE=str(report_file), **(env or {})), starts:
        running = cls(**{**defaults, **arguments})
    running.tokenizer_manager.signal_handler_class = EndsTheTest
    ENDED.clear()
    try:
        yield running
    finally:
        _stop(running)
        for suffix in (".json", ".reset", ".tmp"):
            report_file.with_suffix(suffix).unlink(missing_ok=True)


def cold(engine) -> None:
    """Empty the radix cache; SGLang refuses while a request's last step is still running."""
    deadline = time.monotonic() + 300
    while not engine.flush_cache().success:
        assert time.monotonic() < deadline, "the cache could not be flushed"
        time.sleep(0.05)


#: SGLang admits requests with ``ignore_eos`` by their whole length, and never too many. Others it
#: expects to end early; these could, and never do where the model is ``endless``.
COULD_END = {"ignore_eos": False}


def greedy(new_tokens: int, **custom_params) -> dict:
    """Sampling parameters of a greedy request; keywords are its ``custom_params``."""
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    if custom_params:
        params["custom_params"] = custom_params
    return params


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Index of the first token that differs; None where the outputs are equal."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((i for i, (a, b) in pairs if a != b), None)


def outputs(results) -> list[list[int]]:
    return [item["output_ids"] for item in (results if isinstance(results, list) else [results])]


def two_runs(
    engine, cases: list[tuple[list[int], int]], new_tokens: int
) -> Iterator[list[list[int]]]:
    """Output ids of all (prompt ids, budget) at once, then again on slots that hold leftovers."""
    for _ in range(2):
        yield outputs(
            engine.generate(
                input_ids=[ids for ids, _ in cases],
                sampling_params=[greedy(new_tokens, kv_budget=budget) for _, budget in cases],
            )
        )


class Server:
    """`python -m sglang.launch_server` in a process group of its own, and a small client."""

    def __init__(
        self,
        arguments: list[str],
        env: dict[str, str] | None = None,
        command: tuple[str, ...] = ("-m", "sglang.launch_server"),
    ):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        device = ["--device", "cpu"] if DEVICE == "cpu" else []
        if device and not any(word.startswith("--dtype") for word in arguments):
            device += ["--dtype", fast_dtype()]
        threads = CPU_THREADS if device else {}
        ports = ["--port", str(self.port), "--nccl-port", str(free_port())]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command, *ports, *device, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **STRICT, **threads, **(env or {})},
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = 900) -> Server:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"server ended ({self.process.returncode}):\n{self.tail()}")
            if "The server is fired up" in self.log.read_text():
                return self
            time.sleep(0.5)
        raise TimeoutError(self.tail())

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text().splitlines()[-lines:])

    def request(
        self,
        path: str,
        body: dict | None = None,
        timeout_s: float | None = 600,
        headers: dict[str, str] | None = None,
    ):
        """(status, parsed JSON or text)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text

    def generate(self, body: dict):
        status, answer = self.request("/generate", body)
        assert status == 200, answer
        return answer

    def stats(self, timeout_s: float = 300) -> dict:
        """What the schedulers say now; of a busy machine's long step the end is waited for."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, found = self.request("/longflow/stats?max_age_s=0")
            assert status == 200, found
            if found["state"] == "ok":
                return found
        raise TimeoutError(self.tail())

    @contextlib.contextmanager
    def busy_with(self, *bodies: dict, headers: dict[str, str] | None = None):
        """Requests of /generate, each with its ``rid``, that run until the end of the block.

        However long that takes: one that ends before is sent again.
        """
        over = threading.Event()

        def keep(body: dict) -> None:
            while not over.is_set():
                status, _ = self.request("/generate", body, timeout_s=None, headers=headers)
                if status != 200:
                    over.wait(0.1)

        threads = [threading.Thread(target=keep, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            # Again and again: a thread may be about to send.
            while any(thread.is_alive() for thread in threads):
                for body in bodies:
                    self.request("/abort_request", {"rid": body["rid"]}, headers=headers)
                threads[0].join(0.2)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.unlink(missing_ok=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def longflow_eval(
    *arguments: str, env: dict | None = None, address_bytes: int | None = None
) -> subprocess.CompletedProcess:
    """`longflow eval` as a user runs it, with so much address space for each of its processes."""

    def limit() -> None:
        if address_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))

    command = [sys.executable, "-W", "ignore", "-m", "sglang_longflow.cli", "eval", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=root, timeout=900, env=env, preexec_fn=limit
    )
