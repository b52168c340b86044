# SPDX-License-Identifier: Apache-2.0
"""What the plugin touches of SGLang inside its handlers, looked up in a wheel; imports neither.

Both sides are read as syntax trees. A class has an attribute if it, a base of it, or code of its
own writes ``self.name`` or defines ``name``; so this finds what is gone, not what means another
thing now. A file of the wheel is parsed once.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

SRT = "sglang.srt"
#: The class that each protocol of the two sglang_types.py files stands for.
PROTOCOLS = {
    "SamplingParams": f"{SRT}.sampling.sampling_params.SamplingParams",
    "ReqKvInfo": f"{SRT}.managers.schedule_batch.ReqKvInfo",
    "Req": f"{SRT}.managers.schedule_batch.Req",
    "ScheduleBatch": f"{SRT}.managers.schedule_batch.ScheduleBatch",
    "PrefillAdder": f"{SRT}.managers.schedule_policy.PrefillAdder",
    "Scheduler": f"{SRT}.managers.scheduler.Scheduler",
    "TokenizerManager": f"{SRT}.managers.tokenizer_manager.TokenizerManager",
    "AttentionLayer": f"{SRT}.layers.radix_attention.RadixAttention",
    "KVPool": f"{SRT}.mem_cache.memory_pool.MHATokenToKVPool",
    "ReqToTokenPool": f"{SRT}.mem_cache.memory_pool.ReqToTokenPool",
    "ForwardBatch": f"{SRT}.model_executor.forward_batch_info.ForwardBatch",
    "ModelRunner": f"{SRT}.model_executor.model_runner.ModelRunner",
}
TREE = f"{SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache"
#: What a handler calls an object that its protocol has as Any.
RECEIVERS = {
    "tree": TREE,
    "tree_cache": TREE,
    "lock": f"{SRT}.mem_cache.base_prefix_cache.TreeLock",
    "memory_budget": f"{SRT}.mem_cache.prefill_budget.PrefillBudget",
    "req_to_token_pool": f"{SRT}.mem_cache.memory_pool.ReqToTokenPool",
}
#: A graph's replay hands the backend this namespace in place of a ForwardBatch.
REPLAY_VIEW = ("ForwardBatch", f"{SRT}.model_executor.runner.decode_cuda_graph_runner")
REGISTRY = f"{SRT}.mem_cache.registry"
SETTINGS = f"{SRT}.server_args"
#: Where SGLang lists the steps of its settings that others may take part in.
STEPS = f"{SRT}.arg_groups.resolution_hooks"
Body = list[ast.stmt]


class Wheel:
    """Modules of a wheel by dotted name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.members = frozenset(archive.namelist())
        self._trees: dict[str, ast.Module] = {}

    def module(self, name: str) -> ast.Module | None:
        """The module's tree; None if the wheel has none."""
        stem = name.replace(".", "/")
        member = next((m for m in (f"{stem}.py", f"{stem}/__init__.py") if m in self.members), None)
        if member is None:  # a folder without __init__.py is a module too
            is_folder = any(m.startswith(f"{stem}/") for m in self.members)
            return ast.Module([], []) if is_folder else None
        if member not in self._trees:
            self._trees[member] = ast.parse(self.archive.read(member))
        return self._trees[member]

    def has_name(self, module: str, name: str) -> bool:
        tree = self.module(module)
        if tree is None:
            return False
        if name in set(bound(tree)) or self.module(f"{module}.{name}") is not None:
            return True
        stars = [
            node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.names[0].name == "*"
        ]
        return any(self.has_name(star, name) for star in stars if star != module)

    def find_class(self, module: str, name: str) -> tuple[str, ast.ClassDef] | None:
        """A class and the module that defines it; imports are followed."""
        tree = self.module(module)
        if tree is None:
            return None
        found = None
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                found = (module, node)
            elif isinstance(node, ast.ImportFrom) and node.module and found is None:
                for alias in node.names:
                    if (alias.asname or alias.name) == name and node.module != module:
                        found = self.find_class(node.module, alias.name)
        return found

    def attributes(self, module: str, name: str) -> frozenset[str] | None:
        """Names that a class or its bases define or assign; None if there is no such class."""
        found = self.find_class(module, name)
        if found is None:
            return None
        home, holder = found
        names = set(bound(holder))
        for node in ast.walk(holder):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    names.add(node.attr)
        for base in holder.bases:
            if isinstance(base, ast.Name) and base.id != name:
                names |= self.attributes(home, base.id) or set()
        return frozenset(names)

    @cached_property
    def settings(self) -> frozenset[str]:
        """Fields of the settings: of ServerArgs, and of the groups that it is built from."""
        modules = [m for m in self.members if m.startswith("sglang/srt/arg_groups/")]
        names = {m[:-3].replace("/", ".") for m in modules if m.endswith(".py")} | {SETTINGS}
        trees = [tree for name in names if (tree := self.module(name))]
        nodes = (node for tree in trees for node in ast.walk(tree))
        holders = [node for node in nodes if isinstance(node, ast.ClassDef)]
        return frozenset(name for holder in holders for name in bound(holder))

    @property
    def settings_kind(self) -> str:
        tree = self.module(SETTINGS)
        if tree is None:
            return "missing"
        struct = any(isinstance(n, ast.Attribute) and n.attr == "defstruct" for n in ast.walk(tree))
        return "Struct" if struct else "class"

    @property
    def default_tree(self) -> str:
        """The class that the last line of the default factory makes."""
        tree = self.module(REGISTRY)
        functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)} if tree else {}
        made = "default_radix_cache_factory"
        while made in functions:
            last = functions[made].body[-1]
            names = _made(last) or [
                n for s in ast.walk(functions[made]) if isinstance(s, ast.Return) for n in _made(s)
            ]
            imported = [
                a.name
                for s in ast.walk(functions[made])
                if isinstance(s, ast.ImportFrom)
                for a in s.names
                if a.name.endswith("RadixCache")
            ]
            known = [n for n in names if n in functions or n in imported] or imported
            made = known[-1] if known else "unknown"
        return made


def _made(statement: ast.stmt) -> list[str]:
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return [value.func.id]
    return []


def bound(holder: ast.AST) -> Iterator[str]:
    """Names that a module or class binds, also below `if`, `try` and `with`."""
    for node in getattr(holder, "body", []):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name).split(".")[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from bound(node)
            for part in (*getattr(node, "handlers", []), *_blocks(node)):
                yield from bound(part)


def _blocks(node: ast.stmt) -> Iterator[ast.Module]:
    for field in ("orelse", "finalbody"):
        yield ast.Module(getattr(node, field, []), [])


def _sources(package: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package.parent).as_posix(), ast.parse(path.read_text())


def audit(archive: zipfile.ZipFile, package: Path) -> list[str]:
    """What the plugin in `package` touches and the wheel does not have, one line each."""
    wheel, problems = Wheel(archive), set()
    for path, tree in _sources(package):
        for node in ast.walk(tree):
            problems |= set(_imports(wheel, path, node))
        if path.endswith("sglang_types.py"):
            problems |= set(_protocols(wheel, path, tree))
        if any(folder in path for folder in ("/core/", "/hooks/", "/backend/")):
            problems |= set(_received(wheel, path, tree))
        problems |= set(_steps(wheel, path, tree))
        if path.endswith("settings/compatibility.py"):
            problems |= set(_fields(wheel, path, tree))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "/platform/" in path:
                problems |= set(_overrides(wheel, path, tree, node))
        if path.endswith("hooks/manifest.py"):
            problems |= set(_dead_targets(wheel, tree))
    expected = {
        alias.name
        for _, tree in _sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.")
        for alias in node.names
        if alias.name.endswith("RadixCache")
    }
    if wheel.default_tree not in expected:
        known = ", ".join(sorted(expected))
        problems.add(f"default prefix tree: {wheel.default_tree}, handlers know {known or 'none'}")
    return sorted(problems)


def _imports(wheel: Wheel, path: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
        if wheel.module(node.module or "") is None:
            yield f"{path}: module {node.module} is missing"
            return
        for alias in node.names:
            if not wheel.has_name(node.module or "", alias.name):
                yield f"{path}: {node.module} has no {alias.name}"


def _protocols(wheel: Wheel, path: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        if node.name not in PROTOCOLS:
            yield f"{path}: protocol {node.name} has no class in PROTOCOLS"
            continue
        module, name = PROTOCOLS[node.name].rsplit(".", 1)
        has = wheel.attributes(module, name)
        if has is None:
            yield f"{path}: {PROTOCOLS[node.name]} is missing"
            continue
        if name == REPLAY_VIEW[0]:
            has |= _namespace_fields(wheel.module(REPLAY_VIEW[1]))
        for touched in bound(node):
            if touched not in has and not touched.startswith("longflow_"):
                yield f"{path}: {name} has no {touched}"


def _namespace_fields(tree: ast.Module | None) -> frozenset[str]:
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)] if tree else []
    made = [call for call in calls if getattr(call.func, "id", "") == "SimpleNamespace"]
    return frozenset(word.arg for call in made for word in call.keywords if word.arg)


def _received(wheel: Wheel, path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        of = node.value
        called = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
        if called in RECEIVERS:
            module, name = RECEIVERS[called].rsplit(".", 1)
            has = wheel.attributes(module, name)
            if has is None:
                yield f"{path}: {RECEIVERS[called]} is missing"
            elif node.attr not in has:
                yield f"{path}: {name} has no {node.attr}"


def _fields(wheel: Wheel, path: str, tree: ast.Module) -> Iterator[str]:
    """First words of the tables `_NOT_SET` and `_ONE`, and of each ``FlagRule("field", …)``."""
    for node in ast.walk(tree):
        rows: list[ast.expr] = []
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if getattr(node.targets[0], "id", "") in ("_NOT_SET", "_ONE"):
                rows = [row.elts[0] for row in node.value.elts if isinstance(row, ast.Tuple)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "FlagRule":
            rows = node.args[:1]
        for row in rows:
            if isinstance(row, ast.Constant) and row.value not in wheel.settings:
                yield f"{path}: ServerArgs has no field {row.value}"


def _overrides(wheel: Wheel, path: str, tree: ast.Module, ours: ast.ClassDef) -> Iterator[str]:
    """Methods of a subclass of SGLang's that override nothing there."""
    homes = {a.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    bases = [b.id for b in ours.bases if isinstance(b, ast.Name)]
    of_sglang = [b for b in bases if (homes.get(b) or "").startswith("sglang.")]
    has = set().union(*(wheel.attributes(homes[b] or "", b) or () for b in of_sglang))
    for node in ours.body:
        if of_sglang and isinstance(node, ast.FunctionDef) and node.name not in has:
            yield f"{path}: {ours.name}.{node.name} overrides nothing"


def _constants(tree: ast.Module) -> dict[str, object]:
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def _steps(wheel: Wheel, path: str, tree: ast.Module) -> Iterator[str]:
    """Steps given to ``register_resolution_hook`` that SGLang does not have."""
    names, known = _constants(tree), wheel.module(STEPS)
    words = {n.value for n in ast.walk(known) if isinstance(n, ast.Constant)} if known else set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "register_resolution_hook"
        ):
            step = names.get(getattr(node.args[0], "id", ""), getattr(node.args[0], "value", None))
            if step not in words:
                yield f"{path}: the settings have no step {step}"


def _dead_targets(wheel: Wheel, tree: ast.Module) -> Iterator[str]:
    """Hooks on what keeps its signature and is never called, or does nothing."""
    names = _constants(tree)
    words = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [
                p.value for p in node.values if isinstance(p, ast.Constant | ast.FormattedValue)
            ]
            words.append("".join(str(names.get(getattr(p, "id", ""), p)) for p in parts))
    for target in {w for w in words if isinstance(w, str) and w.startswith("sglang.")}:
        holder, _, method = target.rpartition(".")
        module, _, name = holder.rpartition(".")
        found = wheel.find_class(module, name) if wheel.module(module) else None
        if found is None:
            continue
        settings = f"{module}.{name}" == f"{SETTINGS}.ServerArgs"
        if settings and method in ("__init__", "__post_init__"):
            if wheel.settings_kind == "Struct":
                yield f"{target}: ServerArgs is a Struct, {method} is not called"
        for node in found[1].body:
            if isinstance(node, ast.FunctionDef) and node.name == method:
                if all(isinstance(s, ast.Pass) or _is_text(s) for s in node.body):
                    yield f"{target}: does nothing there"


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
