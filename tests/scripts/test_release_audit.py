# SPDX-License-Identifier: Apache-2.0
"""scripts/release_audit.py on small wheels and packages: what is gone is named, and only that."""

# ruff: noqa: E501
from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from programs import load_program

REGISTRY = """
def default_radix_cache_factory(ctx):
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    return UnifiedRadixCache(ctx)
"""
BATCH = """
class Base:
    def finished(self): ...
class Req(Base):
    rid: str
    def __init__(self):
        self.kv = None
"""
WHEEL = {
    "sglang/srt/mem_cache/registry.py": REGISTRY,
    "sglang/srt/mem_cache/unified_radix_cache.py": "class UnifiedRadixCache:\n    def lock(self): ...",
    "sglang/srt/managers/schedule_batch.py": BATCH,
    "sglang/srt/server_args.py": "class ServerArgs:\n    page_size: int\n    def __post_init__(self):\n        self.x = 1",
    "sglang/srt/arg_groups/resolution_hooks.py": "_NAMES = {'first_step'}\ndef register_resolution_hook(name): ...",
    "sglang/srt/mem_cache/base_prefix_cache.py": "class TreeLock:\n    receipt: int",
    "sglang/srt/platforms/cpu.py": "class Cpu:\n    def get_pool(self): ...",
}
PACKAGE = {
    "hooks/sglang_types.py": "class Req:\n    rid: str\n    kv: int\n    longflow_row: int\n    def finished(self): ...",
    "hooks/slots.py": "from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache\ndef f(tree):\n    tree.lock()",
    "core/tree.py": "def f(lock):\n    lock.receipt = 1",
    "hooks/server_args.py": "FIRST = 'first_step'\nregister_resolution_hook(FIRST)(print)",
    "hooks/manifest.py": "_A = 'sglang.srt.server_args.ServerArgs'\nT = f'{_A}.__post_init__'",
    "settings/compatibility.py": "_ONE = (('page_size', 'a', 'b'),)",
    "platform/cpu.py": "from sglang.srt.platforms.cpu import Cpu\nclass Ours(Cpu):\n    def get_pool(self): ...",
}


def run(folder: Path, edit: tuple[str, str, str] | None) -> list[str]:
    wheel = dict(WHEEL)
    if edit:
        name, old, new = edit
        (member,) = [m for m in wheel if m.endswith(name)]
        assert old in wheel[member]
        wheel[member] = wheel[member].replace(old, new)
    path = folder / "wheel.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in wheel.items():
            archive.writestr(member, text)
    package = folder / "sglang_longflow"
    for name, text in PACKAGE.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    with zipfile.ZipFile(path) as archive:
        return load_program("scripts/release_audit.py").audit(archive, package)


def test_nothing_is_missing(tmp_path):
    assert run(tmp_path, None) == []


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (("schedule_batch.py", "self.kv", "self.gone"), "Req has no kv"),
        (("schedule_batch.py", "def finished", "def done"), "Req has no finished"),
        (("unified_radix_cache.py", "def lock", "def hold"), "UnifiedRadixCache has no lock"),
        (("registry.py", "UnifiedRadixCache", "RadixCache"), "default prefix tree: RadixCache"),
        (("unified_radix_cache.py", "class Unified", "class Other"), "has no UnifiedRadixCache"),
        (("server_args.py", "page_size", "page"), "ServerArgs has no field page_size"),
        (("server_args.py", "self.x = 1", "pass"), "__post_init__: does nothing there"),
        (("server_args.py", "self.x = 1", "self.x = m.defstruct()"), "ServerArgs is a Struct"),
        (("resolution_hooks.py", "'first_step'", "'other_step'"), "have no step first_step"),
        (("base_prefix_cache.py", "receipt", "params"), "core/tree.py: TreeLock has no receipt"),
        (("cpu.py", "get_pool", "get_kv_pool"), "Ours.get_pool overrides nothing"),
    ],
)
def test_what_is_gone_is_named(tmp_path, edit, says):
    problems = run(tmp_path, edit)
    assert any(says in problem for problem in problems), problems
