# SPDX-License-Identifier: Apache-2.0
"""A tiny SGLang with the shapes of settings and start-up that releases have had, in a folder.

Its plugin loader, hook registry and resolution hooks are copies of the installed ones; the rest is
what a start passes through: settings from a command line or of an engine, their resolution, a
scheduler in a process of its own, its first report.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

#: The class of the settings as SGLang 0.5.23 has it: sealed once it is worked out.
STRUCT = """
class ServerArgs:
    def resolve_once(self):
        if getattr(self, "_resolution_finished", False):
            return
        self._input_frozen = True
        self._resolved_overrides = list(getattr(self, "_resolved_overrides", ()))
        try:
            run_resolution_pipeline(self)
        finally:
            self._input_frozen = False
        self._resolution_finished = True

    def __setattr__(self, name, value):
        frozen = ("_input_frozen", "_resolution_finished")
        if not name.startswith("_") and any(getattr(self, one, False) for one in frozen):
            raise AttributeError(f"server_args.{name} assigned after resolution")
        msgspec.Struct.__setattr__(self, name, value)

    def __reduce__(self):
        return _rebuild, (type(self), msgspec.structs.asdict(self), dict(self.__dict__))

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path")
        parser.add_argument("--device")

    @classmethod
    def from_cli_args(cls, args):
        names = [name for name in cls.__struct_fields__ if hasattr(args, name)]
        return cls(**{name: getattr(args, name) for name in names})

def _rebuild(cls, fields, bookkeeping):
    record = cls(**fields)
    record.__dict__.update(bookkeeping)
    return record

left_out = ("__dict__", "__weakref__", "__annotations__")
ServerArgs = msgspec.defstruct(
    "ServerArgs",
    [("model_path", str)]
    + [(n, Any, None) for n in ("device", "page_size", "attention_backend", "served_model_name")]
    + [(n, bool, False) for n in ("enable_metrics", "sleep_on_idle")],
    namespace={k: v for k, v in vars(ServerArgs).items() if k not in left_out},
    dict=True,
)
"""
#: A dataclass that works itself out when it is made, as SGLang 0.5.17 had it.
DATACLASS = """
@dataclasses.dataclass
class ServerArgs:
    model_path: str
    device: str = None
    page_size: int = None
    enable_metrics: bool = False
    attention_backend: str = None

    def __post_init__(self):
        self.device = self.device or 'cpu'

    def resolve_once(self):
        pass

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path")
        parser.add_argument("--device")

    @classmethod
    def from_cli_args(cls, args):
        names = [name for name in cls.__dataclass_fields__ if hasattr(args, name)]
        return cls(**{name: getattr(args, name) for name in names})
"""
FIRST, LAST = "handle_missing_default_values", "validate_deepep_v2_dispatch_token_budget"
PIPELINE = f"""
def {FIRST}(server_args):
    if resolving_view(server_args).device is None:
        declare_resolution(server_args, "{FIRST}", device="cpu")

def {LAST}(server_args):
    pass

def run_resolution_pipeline(server_args):
    run_hook({FIRST}, server_args)
    run_hook({LAST}, server_args)
"""
PREPARE = """
def prepare_server_args(argv):
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return ServerArgs.from_cli_args(parser.parse_args(argv))
"""
PREPARE_PAST_THE_HOOKS = """
def prepare_server_args(argv):
    parser = argparse.ArgumentParser(prog="sglang serve")
    parser.add_argument("--model-path")
    args, _ = parser.parse_known_args(argv)
    return ServerArgs(args.model_path)
"""
PREPARE_PAST_FROM_CLI_ARGS = (
    PREPARE.replace("ServerArgs.from_cli_args(", "read(")
    + "\ndef read(args):\n    return ServerArgs(args.model_path)\n"
)


def _change(text: str, pattern: str, new: str) -> str:
    """`text` with the one place of `pattern` changed."""
    changed, places = re.subn(pattern, new, text, flags=re.DOTALL)
    assert places == 1, (pattern, places)
    return changed


#: A class of another plugin's in the place of SGLang's.
DERIVED = """
stock = ServerArgs

class Derived(stock, dict=True):
    {change}

Derived.__name__ = Derived.__qualname__ = "ServerArgs"
Derived.__module__ = __name__
ServerArgs = Derived
"""
#: By kind: the class, its resolution, and how a command line becomes one.
SETTINGS = {
    "as tested": (STRUCT, PIPELINE, PREPARE),
    "dataclass": (DATACLASS, PIPELINE, PREPARE),
    "past from_cli_args": (STRUCT, PIPELINE, PREPARE_PAST_FROM_CLI_ARGS),
    "past the hooks": (STRUCT, PIPELINE, PREPARE_PAST_THE_HOOKS),
    "no place for others": (_change(STRUCT, "dict=True", "dict=False"), PIPELINE, PREPARE),
    "lost in pickling": (
        _change(STRUCT, r"dict\(self.__dict__\)", "{}"),
        PIPELINE,
        PREPARE,
    ),
    "no first step": (STRUCT, _change(PIPELINE, rf"run_hook\({FIRST}, ", f"{FIRST}("), PREPARE),
    "no last step": (STRUCT, _change(PIPELINE, rf"run_hook\({LAST}, ", f"{LAST}("), PREPARE),
    "steps run twice": (
        STRUCT,
        _change(PIPELINE, rf"(    run_hook\({FIRST}, server_args\)\n)", r"\1\1"),
        PREPARE,
    ),
    "a derived class": (STRUCT + DERIVED.format(change="pass"), PIPELINE, PREPARE),
    "a derived class that resolves nothing": (
        STRUCT + DERIVED.format(change="def resolve_once(self):\n        pass"),
        PIPELINE,
        PREPARE,
    ),
}
SCHEDULER = """
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.plugins import load_plugins

class Scheduler:
    def __init__(self, server_args, port_args):
        self.max_total_num_tokens = 1000
        {made_inside}

    def get_prefill_adder_class(self):
        return PrefillAdder

class Past(Scheduler):
    def __init__(self, *args):
        pass

class Derived(Scheduler):
    pass

class OtherAdmission(Scheduler):
    def get_prefill_adder_class(self):
        return PrefillAdder

def run_scheduler_process(server_args, port_args, writer):
    load_plugins()
    import sglang_longflow.hooks.scheduler as hooks
    hooks._check_pools = lambda scheduler, state: None
    {before}
    server_args.resolve_once()
    {made}(server_args, port_args)
    writer.send("ready")
"""
LAUNCH = """
import multiprocessing
import os
import sys

from sglang.srt.{module} import prepare_server_args
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.plugins import load_plugins

if __name__ == "__main__":
    load_plugins()
    {before}
    server_args = prepare_server_args(sys.argv[1:])
    {between}
    server_args.resolve_once()
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(False)
    process = spawn.Process(target=run_scheduler_process, args=(server_args, None, writer))
    process.start()
    writer.close()
    try:
        print("STARTED", reader.recv(), getattr(server_args, "kv_budget", None))
    except EOFError:
        sys.exit(3)
"""
#: The manifest is cut to what this SGLang has; the pools that it has not are not looked at.
INIT = """
__version__ = "{version}"

import sglang_longflow.hooks.manifest as manifest

HAS = ("sglang.srt.server_args.", "sglang.srt.managers.scheduler.Scheduler.__init__",
       "sglang.srt.managers.scheduler.Scheduler.get_prefill_adder_class")
manifest.MANIFEST = tuple(hook for hook in manifest.MANIFEST if hook.target.startswith(HAS))
manifest.PATCHES = tuple(p for p in manifest.PATCHES if p.target.startswith("multiprocessing"))
"""
ENGINE = """
from sglang.srt.{module} import ServerArgs

class Engine:
    server_args_class = ServerArgs
"""
POLICY = """
class AddReqResult:
    CONTINUE = NO_TOKEN = OTHER = None

class PrefillAdder:
    def _get_running_request_total_token_offset(self, req):
        return 0

    def add_one_req(self, req, has_chunked_req, truncation_align_size):
        pass

    def add_chunked_req(self, req):
        pass
"""
ALLOCATION = """
from collections import defaultdict

alloc_token_slots = None

def alloc_for_decode_default(batch, token_per_req):
    pass

ALLOC_FOR_DECODE_FUNCS = defaultdict(lambda: alloc_for_decode_default)
"""
CONTEXT = """
class Ranks:
    tp_rank = 1
    dp_rank = None

def get_parallel():
    return Ranks
"""
OVERRIDES = """
class View:
    def __init__(self, record):
        self._record = record

    def __getattr__(self, name):
        for _, fields in reversed(getattr(self._record, "_resolved_overrides", ())):
            if name in fields:
                return fields[name]
        return getattr(self._record, name)

def resolving_view(record):
    return View(record)

def declare_resolution(record, source, **fields):
    if unknown := set(fields) - set(record.__struct_fields__):
        raise AttributeError(f"{source}: {unknown} are not ServerArgs fields")
    record._resolved_overrides.append((source, fields))

def model_config_of(record):
    from types import SimpleNamespace

    text = SimpleNamespace(model_type="llama", to_dict=lambda: {"model_type": "llama"})
    return SimpleNamespace(
        hf_config=text, hf_text_config=text, is_multimodal=False, attention_arch=1,
        num_attention_heads=4, get_total_num_kv_heads=lambda: 2, head_dim=64, v_head_dim=64,
        context_len=4096,
    )
"""
ENVIRON = """
import os

class _Variable:
    def __set_name__(self, owner, name):
        self.name = name

    def get(self):
        return os.environ.get(self.name)

class envs:
    SGLANG_PLUGINS = _Variable()
    SGLANG_PLATFORM = _Variable()
    SGLANG_RUST_SERVER = _Variable()
    SGLANG_ENABLE_METADATA_GLUE_GRAPH = _Variable()
    SGLANG_CRASH_ON_TRITON_LOAD_AFTER_READY = _Variable()
    SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK = _Variable()
"""


def build(
    folder: Path,
    kind: str = "as tested",
    *,
    version: str = "0.5.23",
    settings_module: str = "server_args",
    scheduler: str = "Scheduler",
    without: str = "",
    before: str = "pass",
    between: str = "pass",
    in_scheduler: str = "pass",
    made_inside: str = "pass",
) -> Path:
    """Write the package and its metadata into a folder that goes on PYTHONPATH.

    Parameters
    ----------
    folder : Path
    kind : str
        A key of `SETTINGS`.
    version : str
    settings_module, scheduler : str
        Name of the module of the settings, and of the class that a scheduler's process makes.
    without : str
        Last name of a function that this SGLang has under another name.
    before, between : str
        Statements of the first process once plugins are loaded: before its settings are made, and
        before they are worked out.
    in_scheduler, made_inside : str
        Statements of the scheduler's process once plugins are loaded, and of its ``__init__``.
    """
    settings, pipeline, prepare = SETTINGS[kind]
    real = Path(importlib.util.find_spec("sglang").origin).parent
    root = folder / "sglang"
    shutil.copytree(real / "srt" / "plugins", root / "srt" / "plugins")
    hooks = (real / "srt" / "arg_groups" / "resolution_hooks.py").read_text(encoding="utf-8")
    imports = (
        "import argparse, dataclasses, msgspec\n"
        "from typing import Any\n"
        "from sglang.srt.arg_groups.model_override_base import resolving_view\n"
        "from sglang.srt.arg_groups.overrides import declare_resolution\n"
        "from sglang.srt.arg_groups.resolution_hooks import run_hook\n"
    )
    texts = {
        "__init__.py": INIT.format(version=version),
        "launch_server.py": LAUNCH.format(module=settings_module, before=before, between=between),
        "srt/__init__.py": "",
        "srt/environ.py": ENVIRON,
        "srt/runtime_context.py": CONTEXT,
        f"srt/{settings_module}.py": imports + pipeline + settings + prepare,
        "srt/arg_groups/__init__.py": "",
        "srt/arg_groups/resolution_hooks.py": hooks,
        "srt/arg_groups/overrides.py": OVERRIDES,
        "srt/arg_groups/model_override_base.py": OVERRIDES,
        "srt/configs/__init__.py": "",
        "srt/configs/model_config.py": "class AttentionArch:\n    MLA, MHA = 0, 1\n",
        "srt/entrypoints/__init__.py": "",
        "srt/entrypoints/engine.py": ENGINE.format(module=settings_module),
        "srt/managers/__init__.py": "",
        "srt/managers/schedule_policy.py": POLICY,
        "srt/managers/scheduler.py": SCHEDULER.format(
            made=scheduler, before=in_scheduler, made_inside=made_inside
        ),
        "srt/mem_cache/__init__.py": "",
        "srt/mem_cache/allocation.py": ALLOCATION,
        "srt/mem_cache/common.py": "checkpoint_kv_cache = None\n",
    }
    for name, text in texts.items():
        if without:
            text = re.sub(rf"\b{without}\b", f"{without}_renamed", text)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    metadata = folder / f"sglang-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return folder
