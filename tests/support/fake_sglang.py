# SPDX-License-Identifier: Apache-2.0
"""A tiny SGLang with the shapes of settings and start-up that releases have had, in a folder.

Its plugin loader and hook registry are copies of the installed ones; the rest is what a start
passes through: settings from a command line, a scheduler in a process of its own, its first report.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: The class of the settings; releases had it as a dataclass and as a struct.
SERVER_ARGS = """
{head}
    model_path: str
    device: str = None
    page_size: int = None
    enable_metrics: bool = False
    attention_backend: str = None

    def __post_init__(self):
        {post_init}

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path")
        parser.add_argument("--device")

    @classmethod
    def from_cli_args(cls, args):
        names = [name for name in {names} if hasattr(args, name)]
        return cls(**{{name: getattr(args, name) for name in names}})
"""


def server_args(shape: str, post_init: str = "self.device = self.device or 'cpu'") -> str:
    """The source of the class, as a "dataclass" or a "struct"."""
    head, names = {
        "dataclass": ("@dataclasses.dataclass\nclass ServerArgs:", "cls.__dataclass_fields__"),
        "struct": ("class ServerArgs(msgspec.Struct, dict=True):", "cls.__struct_fields__"),
    }[shape]
    return SERVER_ARGS.format(head=head, names=names, post_init=post_init)


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
#: By kind: the class, and how a command line becomes one.
SETTINGS = {
    "as tested": (server_args("dataclass"), PREPARE),
    "struct": (server_args("struct"), PREPARE),
    "struct, past from_cli_args": (
        server_args("struct"),
        PREPARE.replace("ServerArgs.from_cli_args(", "read(")
        + "\ndef read(args):\n    return ServerArgs(args.model_path)\n",
    ),
    "empty __post_init__": (server_args("dataclass", "pass"), PREPARE),
    "past the hooks": (server_args("dataclass"), PREPARE_PAST_THE_HOOKS),
}
SCHEDULER = """
from sglang.srt.plugins import load_plugins

class Scheduler:
    def __init__(self, server_args, port_args, gpu_id, tp_rank, moe_ep_rank, pp_rank, attn_cp_rank,
                 moe_dp_rank, dp_rank):
        self.max_total_num_tokens = 1000
        self.ps = type("Ranks", (), dict(tp_rank=1))

class Other(Scheduler):
    def __init__(self, *args):
        pass

def run_scheduler_process(server_args, writer):
    load_plugins()
    {made}(server_args, *[None] * 8)
    writer.send("ready")
"""
LAUNCH = """
import multiprocessing
import sys

from sglang.srt.{module} import prepare_server_args
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.plugins import load_plugins

if __name__ == "__main__":
    load_plugins()
    server_args = prepare_server_args(sys.argv[1:])
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(False)
    process = spawn.Process(target=run_scheduler_process, args=(server_args, writer))
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

HAS = ("sglang.srt.server_args.", "sglang.srt.managers.scheduler.Scheduler.__init__")
manifest.MANIFEST = tuple(hook for hook in manifest.MANIFEST if hook.target.startswith(HAS))
manifest.PATCHES = tuple(p for p in manifest.PATCHES if p.target.startswith("multiprocessing"))
"""
PLUGIN = """
import sglang_longflow.hooks.scheduler as hooks
hooks._check_pools = lambda scheduler, state: None
"""
ENVIRON = """
class _Unset:
    def get(self):
        return None

class envs:
    SGLANG_PLUGINS = SGLANG_PLATFORM = SGLANG_RUST_SERVER = _Unset()
"""


def build(
    folder: Path,
    kind: str = "as tested",
    *,
    version: str = "0.5.23",
    settings_module: str = "server_args",
    scheduler: str = "Scheduler",
) -> Path:
    """Write the package and its metadata into a folder that goes on PYTHONPATH."""
    settings, prepare = SETTINGS[kind]
    real = Path(importlib.util.find_spec("sglang").origin).parent
    root = folder / "sglang"
    shutil.copytree(real / "srt" / "plugins", root / "srt" / "plugins")
    texts = {
        "__init__.py": INIT.format(version=version),
        "launch_server.py": LAUNCH.format(module=settings_module),
        "srt/__init__.py": "",
        "srt/environ.py": ENVIRON,
        f"srt/{settings_module}.py": "import argparse, dataclasses, msgspec\n" + settings + prepare,
        "srt/managers/__init__.py": "",
        "srt/managers/scheduler.py": SCHEDULER.format(made=scheduler) + PLUGIN,
        "srt/mem_cache/__init__.py": "",
        "srt/mem_cache/allocation.py": "alloc_token_slots = None\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    metadata = folder / f"sglang-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return folder
