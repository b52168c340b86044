# SPDX-License-Identifier: Apache-2.0
"""Who may import what, checked on the source."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sglang_longflow"
KERNELS = ROOT / "kernels" / "longflow_kernels"
SOURCES = sorted(PACKAGE.rglob("*.py"))
KERNEL_SOURCES = sorted(KERNELS.rglob("*.py"))
#: Who may import whom, one direction: a folder, and those of ours that it may name.
MAY_IMPORT = {
    "policies": "",
    "planner": "settings",
    "settings": "policies",
    "core": "policies settings",
    "backend": "policies settings core",
    "monitor": "planner settings core client",
    "hooks": "policies planner settings core backend monitor",
    "platform": "",
    "client": "",
    "deployment": "planner settings",
    "server": "policies planner settings hooks platform client",
    "reasoner": "",
    "measure": "policies planner settings monitor client server reasoner",
    "demo": "policies settings monitor client server reasoner",
    "cli": "*",
    "frontend.py": "client",
    "plugin.py": "settings hooks",
    "errors.py": "",
    "__init__.py": "client monitor planner",  # each name when it is first used
}
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
#: No SGLang here, so that all of it runs and is tested without.
PURE = ("policies", "planner", "settings/config.py", "core", "monitor", "deployment", "errors.py")
#: No handlers in these.
NO_HOOKS = (
    "__init__",
    "cpu_kernels",
    "extensions",
    "guard",
    "hook",
    "manifest",
    "sglang_types",
    "start_check",
    "verify",
)
HOOK_FILES = sorted(path for path in (PACKAGE / "hooks").glob("*.py") if path.stem not in NO_HOOKS)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree):
    """Every imported module, at any depth; relative ones as ``.``."""
    for here in ast.walk(tree):
        if isinstance(here, ast.Import):
            yield from (alias.name for alias in here.names)
        elif isinstance(here, ast.ImportFrom):
            yield "." * here.level + (here.module or "")


def top(module):
    return module.split(".")[0]


def folder_of(path):
    return path.relative_to(PACKAGE).parts[0]


def ours(tree):
    """What a file names of this package, by its first folder or file."""
    for here in ast.walk(tree):
        if isinstance(here, ast.ImportFrom) and here.module == "sglang_longflow":
            yield from (alias.name for alias in here.names if alias.name != "__version__")
        elif isinstance(here, ast.ImportFrom) and top(here.module or "") == "sglang_longflow":
            yield here.module.split(".")[1]
        elif isinstance(here, ast.Import):
            names = [alias.name.split(".") for alias in here.names]
            yield from (name[1] for name in names if name[0] == "sglang_longflow" and name[1:])


def is_pure(path):
    inside = path.relative_to(PACKAGE).as_posix()
    return any(inside == name or inside.startswith(f"{name}/") for name in PURE)


def test_the_lists_are_not_empty():
    assert len([path for path in SOURCES if is_pure(path)]) >= 12
    assert len(KERNEL_SOURCES) >= 3
    assert len(HOOK_FILES) >= 8


def test_every_folder_has_its_row():
    assert {folder_of(path) for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    here = folder_of(path)
    allowed = MAY_IMPORT[here].split()
    found = set(ours(tree_of(path))) - {here, "errors"}
    assert "*" in allowed or found <= set(allowed)


def test_no_circle():
    done = set()
    while left := {name for name in MAY_IMPORT if name not in done and MAY_IMPORT[name] != "*"}:
        free = {name for name in left if set(MAY_IMPORT[name].split()) <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


@pytest.mark.parametrize("path", [path for path in SOURCES if is_pure(path)], ids=name_of)
def test_pure_modules_never_import_sglang(path):
    assert [m for m in imports(tree_of(path)) if top(m) == "sglang"] == []


@pytest.mark.parametrize("path", KERNEL_SOURCES, ids=name_of)
def test_kernels_import_only_torch_triton_stdlib_and_themselves(path):
    allowed = {"torch", "triton", "longflow_kernels"} | set(sys.stdlib_module_names)
    assert [m for m in imports(tree_of(path)) if top(m) not in allowed] == []


#: Settings are judged in a second, before what takes ten is imported.
JUDGES = (
    *(
        path
        for name in ("settings", "policies", "server")
        for path in (PACKAGE / name).rglob("*.py")
    ),
    *(KERNELS / name for name in ("__init__.py", "limits.py", "attend_score_evict/rule.py")),
)


@pytest.mark.parametrize("path", sorted(JUDGES), ids=name_of)
def test_what_judges_settings_imports_nothing_heavy_at_once(path):
    def at_once(body):
        for here in body:
            if isinstance(here, ast.Import | ast.ImportFrom):
                yield from imports(here)
            elif isinstance(here, ast.Try):
                yield from at_once(here.body)

    heavy = {"torch", "triton", "sglang", "transformers"}
    assert [m for m in at_once(tree_of(path).body) if top(m) in heavy] == []


def test_the_folder_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    found = importlib.util.find_spec("kernels")
    assert found is not None, "SGLang needs the distribution named kernels"
    assert found.origin is not None, "a namespace package: our folder hides the distribution"
    assert not Path(found.origin).resolve().is_relative_to(ROOT / "kernels")


def reads_environment(tree):
    for here in ast.walk(tree):
        if isinstance(here, ast.Attribute) and here.attr in ("environ", "getenv", "putenv"):
            yield here.lineno
        if isinstance(here, ast.ImportFrom) and here.module == "os":
            names = {alias.name for alias in here.names}
            if names & {"environ", "getenv", "putenv"}:
                yield here.lineno


READS_ENVIRONMENT = {
    f"sglang_longflow/{name}"
    for name in (
        *("server/doctor.py", "server/serve.py", "server/settings.py", "server/process.py"),
        *("platform/cpu.py", "settings/cache.py", "settings/device.py", "server/api_key.py"),
    )
}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_environment_is_read_in_few_places(path):
    if folder_of(path) == "demo" or name_of(path) in READS_ENVIRONMENT:
        return
    assert list(reads_environment(tree_of(path))) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "backend").rglob("*.py")), ids=name_of)
def test_the_backend_never_waits_for_the_device(path):
    waits = {"item", "cpu", "tolist", "numpy", "synchronize", "nonzero"}
    calls = [
        (here.func.attr, here.lineno)
        for here in ast.walk(tree_of(path))
        if isinstance(here, ast.Call)
        and isinstance(here.func, ast.Attribute)
        and here.func.attr in waits
    ]
    assert calls == []


@pytest.mark.parametrize("path", SOURCES + KERNEL_SOURCES, ids=name_of)
def test_files_stay_small(path):
    lines = path.read_text().splitlines()
    assert len(lines) - lines[:1].count(LICENCE) <= 450


@pytest.mark.parametrize("hook", MANIFEST, ids=lambda hook: hook.handler_path)
def test_every_handler_of_the_manifest_exists(hook):
    module, name = hook.handler_path.split(":")
    found = [
        here
        for here in tree_of(PACKAGE / "hooks" / f"{module}.py").body
        if isinstance(here, ast.FunctionDef | ast.AsyncFunctionDef) and here.name == name
    ]
    assert len(found) == 1
    # The first argument is the original (around) or the result (after); before gets neither.
    names = [arg.arg for arg in found[0].args.args]
    if hook.kind == "around":
        assert names[0] == "original"
    else:
        assert "original" not in names


def replacements(tree):
    """``module:name`` of what puts a function of its own in another object's place."""
    for outer in tree.body:
        functions = {here.name for here in ast.walk(outer) if isinstance(here, ast.FunctionDef)} - {
            getattr(outer, "name", "")
        }

        def is_function(value, functions=functions):
            if isinstance(value, ast.Call):
                return ast.unparse(value.func) in ("partial", "staticmethod", "functools.partial")
            return isinstance(value, ast.Lambda) or ast.unparse(value) in functions

        for here in ast.walk(outer):
            if isinstance(here, ast.Assign):
                targets = [t for t in here.targets if isinstance(t, ast.Attribute)]
                owners = [ast.unparse(target.value) for target in targets]
            elif isinstance(here, ast.Expr) and isinstance(here.value, ast.Call):
                is_setattr = ast.unparse(here.value.func) == "setattr"
                owners = [ast.unparse(here.value.args[0])] if is_setattr else []
            else:
                continue
            value = here.value if isinstance(here, ast.Assign) else here.value.args[-1:]
            value = value[0] if isinstance(value, list) and value else value
            from_a_table = ast.unparse(value) == "stand_in"  # of `platform.cpu_linear`
            if set(owners) - {"self"} and (is_function(value) or from_a_table):
                yield outer.name


def test_every_replacement_is_a_row_of_the_manifest():
    found = {
        f"{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}:{name}"
        for path in SOURCES
        for name in replacements(tree_of(path))
    }
    assert {patch.made_by for patch in PATCHES} <= found
    assert found <= {patch.made_by for patch in (*PATCHES, *EXTENSIONS)}


#: Names of modules that functions assign anew, each with the reason that it cannot lie elsewhere.
GLOBALS = {
    "sglang_longflow/core/runtime.py": {"_current"},  # SGLang gives many hooks no scheduler
}


@pytest.mark.parametrize("path", SOURCES + KERNEL_SOURCES, ids=name_of)
def test_modules_have_no_state(path):
    """No name is assigned anew by a function, and no module makes an object that it fills later."""
    tree = tree_of(path)
    names = {name for here in ast.walk(tree) if isinstance(here, ast.Global) for name in here.names}
    assert names == GLOBALS.get(name_of(path), set())
    empty = [
        ast.unparse(here)
        for here in tree.body
        if isinstance(here, ast.Assign | ast.AnnAssign)
        and here.value is not None
        and ast.unparse(here.value) in ("[]", "{}", "set()", "dict()", "list()")
    ]
    assert empty == []


#: Public functions of hooks/*.py that other modules call; everything else is a handler.
HELPERS = {
    "prompt:window_tokens",
    "server_args:after_resolution",  # registered by register_steps
    "server_args:before_defaults",
    "server_args:engine_settings",
    "server_args:give_to_engine",
    "server_args:is_on",
    "server_args:register_steps",
    "server_args:require_checked",
    "slots:alloc_for_decode",  # registered by register_alloc_for_decode
    "slots:register_alloc_for_decode",
    "slots:require_alloc_for_decode",
    "admission:live_row",
    "metrics:count_refusal",
    "metrics:local_counts",
    "metrics:observe_batch",
    "metrics:row_stats",
    "http:history",
    "http:page",
    "drain:drain_of",
    "inbox:guard_answers",
    "http:plan",
    "http:static",
    "http:stats",
    "request:bounded_row",
    "request:longest",
    "request:resident_row",
    "request:row_of",
    "stats:rows_that_fit",
    "stats:snapshot",
}


@pytest.mark.parametrize("path", HOOK_FILES, ids=name_of)
def test_every_public_function_of_a_hook_file_is_in_the_manifest(path):
    handlers = {hook.handler_path for hook in MANIFEST}
    public = {
        f"{path.stem}:{here.name}"
        for here in tree_of(path).body
        if isinstance(here, ast.FunctionDef | ast.AsyncFunctionDef)
        and not here.name.startswith("_")
    }
    assert public - handlers - HELPERS == set()


@pytest.mark.parametrize("path", HOOK_FILES, ids=name_of)
def test_every_hook_file_has_a_handler_in_the_manifest(path):
    assert path.stem in {hook.handler_path.split(":")[0] for hook in MANIFEST}


def test_helpers_are_no_handlers_and_exist():
    assert {hook.handler_path for hook in MANIFEST} & HELPERS == set()
    for helper in HELPERS:
        module, name = helper.split(":")
        assert f"def {name}(" in (PACKAGE / "hooks" / f"{module}.py").read_text()


def test_no_tests_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))
