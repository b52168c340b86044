# SPDX-License-Identifier: Apache-2.0
"""``longflow doctor``: what would stop a budget server on this machine, each with its fix."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sglang_longflow.errors import LongFlowError
from sglang_longflow.server.preflight import ModelLook, check_model, kv_facts
from sglang_longflow.server.process import last_error
from sglang_longflow.server.settings import judged, read_settings
from sglang_longflow.settings import device
from sglang_longflow.settings.installed import reinstall_command
from sglang_longflow.settings.models import untried
from sglang_longflow.settings.problem import Problem
from sglang_longflow.settings.release import TESTED_SGLANG, line, remedy, untested_sglang

if TYPE_CHECKING:
    from sglang_longflow.hooks.verify import HookStatus

PLUGIN, PLATFORM = "longflow", "longflow_cpu"
TORCH_SERIES = "2.14"
#: Of the longest name but those of hooks; rows are printed before the last one is known.
NAME_WIDTH = 24


@dataclass(frozen=True)
class Check:
    """One row of the report; `fix` says what to do about a `status` of "warn" or "fail".

    Also "ok", and "skip" for what was not looked at.
    """

    name: str
    status: str
    detail: str
    fix: str = ""


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Keep what SGLang prints while it is imported off the screen, also what C libraries print.

    Yields a function that returns the most telling line of it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in saved:
            os.dup2(sink.fileno(), fd)

        def telling() -> str:
            sys.stderr.flush()
            sink.seek(0)
            return last_error(sink.read().decode(errors="replace").splitlines())

        try:
            yield telling
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(name: str) -> str | None:
    """The version of a package that the installed SGLang pins with ``==``."""
    try:
        requirements = importlib.metadata.requires("sglang") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (r.split(";")[0].strip() for r in requirements)
    return next((pin.split("==")[1] for pin in pins if pin.startswith(f"{name}==")), None)


def check_versions(tested_sglang: tuple[str, ...]) -> list[Check]:
    """Python, SGLang, torch, transformers."""
    python = platform.python_version()
    rows = [
        Check("python", "ok", python)
        if (3, 11) <= sys.version_info[:2] < (3, 14)
        else Check(
            "python", "fail", f"{python}: needs 3.11 to 3.13", "use Python 3.11, 3.12 or 3.13"
        )
    ]
    sglang = _installed("sglang")
    known = ", ".join(tested_sglang)
    if sglang in tested_sglang:
        rows.append(Check("sglang", "ok", sglang))
    else:
        rows.append(
            Check("sglang", "fail", f"{sglang or 'missing'}: tested with {known}", remedy())
        )
    torch = _installed("torch")
    if torch is None or not torch.startswith(f"{TORCH_SERIES}."):
        install = f"pip install torch=={TORCH_SERIES}.1"
        other = f"comes with SGLang {known}"  # beside another release it would break that one too
        detail = f"{torch or 'missing'}: SGLang {known} needs {TORCH_SERIES}"
        rows.append(Check("torch", "fail", detail, install if sglang in tested_sglang else other))
    else:
        rows.append(Check("torch", "ok", torch))
    transformers, wanted = _installed("transformers"), _required("transformers")
    if transformers is None:
        rows.append(Check("transformers", "fail", "missing", "pip install transformers"))
    elif wanted and transformers != wanted:
        detail = f"{transformers}: SGLang pins {wanted}"
        rows.append(Check("transformers", "warn", detail, f"pip install transformers=={wanted}"))
    else:
        rows.append(Check("transformers", "ok", transformers))
    return rows


def check_entry_points(environ: dict[str, str] | os._Environ[str], has_cuda: bool) -> list[Check]:
    """Whether SGLang finds the plugin, and no environment variable keeps it from loading it."""
    rows = []
    for group, name in (("sglang.srt.plugins", PLUGIN), ("sglang.srt.platforms", PLATFORM)):
        found = {point.name for point in importlib.metadata.entry_points(group=group)}
        label = f"entry point {name}"
        if name in found:
            rows.append(Check(label, "ok", group))
        else:
            rows.append(Check(label, "fail", f"{group} does not list it", reinstall_command()))
    needed = [PLUGIN] if has_cuda else [PLUGIN, PLATFORM]
    allowed = [
        name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()
    ]
    missing = [name for name in needed if name not in allowed]
    if allowed and missing:
        detail = f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']!r} keeps out {' and '.join(missing)}"
        fix = f"unset SGLANG_PLUGINS, or export SGLANG_PLUGINS={','.join([*allowed, *missing])}"
        rows.append(Check("SGLANG_PLUGINS", "fail", detail, fix))
    else:
        rows.append(Check("SGLANG_PLUGINS", "ok", ",".join(allowed) or "not set"))
    selected = environ.get("SGLANG_PLATFORM", "")
    # SGLang drops every plugin of a package whose platform was not selected.
    if selected and (selected != PLATFORM or has_cuda):
        reason = "needs a machine without CUDA" if selected == PLATFORM else "keeps longflow out"
        detail = f"SGLANG_PLATFORM={selected!r} {reason}"
        rows.append(Check("SGLANG_PLATFORM", "fail", detail, "unset SGLANG_PLATFORM"))
    else:
        rows.append(Check("SGLANG_PLATFORM", "ok", selected or "not set"))
    if environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        detail = "SGLANG_USE_CPU_ENGINE=1 selects SGLang's own CPU engine instead of longflow_cpu"
        fix = "unset SGLANG_USE_CPU_ENGINE"
        rows.append(Check("SGLANG_USE_CPU_ENGINE", "warn", detail, fix))
    return rows


def check_kernels_package() -> Check:
    """The package ``kernels`` must be Hugging Face's, not a folder of that name."""
    fix = "pip install 'kernels>=0.14.1,<0.15', and keep folders named kernels off PYTHONPATH"
    spec = importlib.util.find_spec("kernels")
    if spec is None:
        return Check("kernels package", "fail", "not installed", fix)
    if spec.origin is None:
        where = ", ".join(spec.submodule_search_locations or [])
        return Check("kernels package", "fail", f"the folder {where} hides it", fix)
    try:
        importlib.import_module("kernels")
    except Exception as error:
        return Check("kernels package", "fail", f"cannot be imported: {error}", fix)
    version = _installed("kernels")
    if version is None:
        return Check("kernels package", "fail", f"{spec.origin} is another package", fix)
    return Check("kernels package", "ok", f"{version} (Hugging Face)")


def check_hooks() -> list[Check]:
    """Every hook applied, every target as expected; a row for each that is not."""
    from sglang_longflow.hooks import verify

    if problem := untested_sglang():  # the plugin stays off there
        return [Check("hooks", "fail", problem, remedy())]
    rows = []
    with _quiet() as telling:
        before = verify.check_all(applied=False)
        from sglang.srt.plugins import load_plugins

        load_plugins()
        after = verify.check_all(applied=True)
        patches = verify.check_patches(load=True)
        extensions = verify.check_extensions()
        reason = telling()
    broken = [status for status in before if status.problem]
    if not broken:
        rows.append(Check("hook targets", "ok", f"{len(before)} of {len(before)} as expected"))
    for status in broken:
        fix = "pip install sglang==0.5.23, or a newer release of this package"
        rows.append(Check(f"hook {status.hook.target}", "fail", status.problem, fix))
    names = {status.hook.target for status in broken}
    rest = [status for status in after if status.problem and status.hook.target not in names]
    if not rest and not broken:
        rows.append(Check("hooks applied", "ok", f"{len(after)} of {len(after)} in this process"))
    for status in rest:
        detail = f"{status.problem}: {reason}" if reason else status.problem
        fix = "see SGLANG_PLUGINS and SGLANG_PLATFORM above"
        rows.append(Check(f"hook {status.hook.target}", "fail", detail, fix))
    rows += _targets("extension", "extension points", extensions)
    rows += _targets("patch", "patch targets", patches)
    return rows


def _targets(kind: str, kinds: str, found: list[HookStatus]) -> list[Check]:
    """A row for all that are as expected, or one for each that is not."""
    fix = "pip install --force-reinstall sglang==0.5.23 (it brings what it works with)"
    gone = [
        Check(f"{kind} {status.hook.target}", "fail", status.problem, fix)
        for status in found
        if status.problem
    ]
    return gone or [Check(kinds, "ok", f"{len(found)} of {len(found)} as expected")]


def check_device() -> list[Check]:
    """The cards that the driver names, or the CPU; nothing is imported for it."""
    cards = device.cards()
    if not cards and (count := device.gpu_count()):
        detail = f"{count} x GPU, of unknown name: CUDA is there without NVML"
        return [Check("device", "warn", detail, "add utility to NVIDIA_DRIVER_CAPABILITIES")]
    if not cards:
        return [Check("device", "ok", "CPU platform (for trying out)")]
    card = cards[0]
    major, minor = card.capability
    detail = f"{len(cards)} x {card.name}, {card.memory_bytes / 2**30:.0f} GiB, compute capability "
    detail += f"{major}.{minor}, driver {_driver_version() or 'unknown'}"
    if major < 8:
        fix = "use a GPU of compute capability 8.0 or newer"
        return [Check("device", "warn", f"{detail}: FlashInfer and bfloat16 need 8.0", fix)]
    return [Check("device", "ok", detail)]


def check_cuda(has_gpu: bool) -> list[Check]:
    """Whether torch can use the cards that the driver names, and FlashInfer is there for them."""
    if not has_gpu:
        return []
    import torch

    if not torch.cuda.is_available():
        detail = f"torch {torch.__version__} sees none of the driver's cards"
        fix = "update the NVIDIA driver, or install a torch that was built for its CUDA"
        return [Check("torch and CUDA", "fail", detail, fix)]
    rows = [Check("torch and CUDA", "ok", f"CUDA {torch.version.cuda}")]
    try:
        importlib.import_module("flashinfer")
    except Exception as error:
        fix = "pip install --force-reinstall sglang==0.5.23 (it brings the right FlashInfer)"
        rows.append(Check("flashinfer", "fail", f"cannot be imported: {error}", fix))
    else:
        rows.append(Check("flashinfer", "ok", _installed("flashinfer_python") or "importable"))
    return rows


def _driver_version() -> str | None:
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def check_server_arguments(words: list[str]) -> list[Check]:
    """What `longflow serve` would refuse of these words, and what it would start."""
    name = "server arguments"
    try:
        settings = read_settings(words)
        if settings.model:
            check_model(settings.model)
        look, problems = judged(settings)
        kv = None if problems else kv_facts(settings.values)
    except LongFlowError as error:
        look, problems, kv = ModelLook(), [Problem.of(error)], None
    if problems:
        return [Check(name, "fail", problem.what, problem.fix) for problem in problems]
    if kv is None:
        detail = "no kv-budget: the server would run stock SGLang"
        return [Check(name, "warn", detail, "add --kv-budget TOKENS")]
    budget = f"{kv['kv_budget']:,} tokens" if kv["kv_budget"] else "by request"
    rows = [Check(name, "ok", f"go together; KV budget {budget}, policy {kv['kv_policy']}")]
    if settings.model and look.unjudged:
        fix = "hf download it, or give a folder, to have it judged before the start"
        rows.append(Check("model", "warn", f"{settings.model}: not judged: {look.unjudged}", fix))
    elif look.config and (word := untried(look.config)):
        fix = "longflow eval compares answers with and without a budget"
        rows.append(Check("model", "warn", f"{settings.model}: {word}", fix))
    elif settings.model:
        rows.append(Check("model", "ok", f"{settings.model}: goes together with a KV budget"))
    else:
        fix = "add MODEL, or --model-path"
        rows.append(Check("model", "skip", "none was given, so none was judged", fix))
    return rows


def checks(
    server_arguments: list[str],
    with_device: bool = True,
    tell: Callable[[str], None] = lambda words: None,
) -> Iterator[Check]:
    """Every check: what takes milliseconds first, what imports torch and SGLang last.

    `tell` gets what is about to take long.
    """
    has_gpu = device.gpu_count() > 0  # asked before torch is there and would be asked instead
    yield Check("line", "ok", line())
    yield from check_versions(TESTED_SGLANG)
    yield from check_entry_points(os.environ, has_gpu)
    if server_arguments:
        yield from check_server_arguments(server_arguments)
    if with_device:
        yield from check_device()
    else:
        yield Check("device", "skip", "not looked at (--no-device)")
    with _quiet():
        kernels = check_kernels_package()
    yield kernels
    if with_device:
        with _quiet():
            cuda = check_cuda(has_gpu)
        yield from cuda
    tell("importing SGLang for the hooks: 15 seconds, minutes if the machine is busy")
    try:
        hooks = check_hooks()
    except Exception as error:  # SGLang itself cannot be imported: report it as a row
        hooks = [Check("hooks", "fail", f"{type(error).__name__}: {error}", "reinstall SGLang")]
    yield from hooks


def _print(row: Check) -> None:
    print(f"{row.status:<5} {row.name:<{NAME_WIDTH}}  {' '.join(row.detail.split())}", flush=True)
    if row.fix:
        print(f"{'':<5} {'':<{NAME_WIDTH}}  fix: {row.fix}", flush=True)


def run(server_arguments: list[str], *, device: bool, as_json: bool) -> int:
    """Print each row once it is known; 1 if a budget server would not work, else 0."""

    def tell(words: str) -> None:
        print(f"longflow doctor: {words}", file=sys.stderr, flush=True)

    rows = []
    for row in checks(server_arguments, device, tell):
        rows.append(row)
        if not as_json:
            _print(row)
    ok = all(row.status != "fail" for row in rows)
    if as_json:
        report: dict[str, Any] = {"ok": ok, "checks": [asdict(row) for row in rows]}
        print(json.dumps(report, indent=2))
        return 0 if ok else 1
    what = "ready for a KV budget" if device else "installed for a KV budget"
    print(what if ok else "a server with a KV budget would not work here")
    return 0 if ok else 1
