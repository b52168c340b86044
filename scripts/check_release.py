# SPDX-License-Identifier: Apache-2.0
"""Do the hooks fit another release of SGLang? Read from its wheel; nothing of it is imported.

    pip download --no-deps -d wheels sglang==0.5.18
    python scripts/check_release.py wheels/*.whl

Prints, for each wheel, which functions that a hook wraps, a patch replaces or an extension stands
on are missing or have another signature, what handlers touch that the release does not have
(scripts/release_audit.py), and which packages it needs at other versions than
requirements/constraints.txt. So it says whether a server would start; only the tests say whether
it would be right. Ends with 1 if something does not fit. `--package` audits another checkout's
handlers.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import zipfile
from pathlib import Path

from release_audit import audit, bound

from sglang_longflow.hooks.extensions import EXTENSIONS
from sglang_longflow.hooks.hook import Hook, Patch
from sglang_longflow.hooks.manifest import MANIFEST, PATCHES

ROOT = Path(__file__).resolve().parents[1]
PINS = ("torch", "transformers", "sglang-kernel", "flashinfer-python")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    """Names in the order of `inspect.signature`."""
    spec = function.args
    stars = [[spec.vararg] if spec.vararg else [], [spec.kwarg] if spec.kwarg else []]
    every = [*spec.posonlyargs, *spec.args, *stars[0], *spec.kwonlyargs, *stars[1]]
    return tuple(argument.arg for argument in every)


def named(body: list[ast.stmt], name: str, kinds: tuple[type, ...]) -> ast.stmt | None:
    """The last definition of a name in a body, also below `if` and `try`."""
    found = None
    for statement in body:
        if isinstance(statement, kinds) and statement.name == name:
            found = statement
        elif isinstance(statement, ast.If | ast.Try):
            found = named(statement.body, name, kinds) or found
    return found


def defined_in(wheel: zipfile.ZipFile, words: list[str]) -> list[str]:
    """The target by the module that defines it, where a package imports it from one of its own."""
    file = "/".join(words[:-1]) + "/__init__.py"
    if file not in wheel.namelist():
        return words
    for statement in ast.parse(wheel.read(file)).body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module:
            if words[-1] in [alias.asname or alias.name for alias in statement.names]:
                return [*words[:-1], *statement.module.split("."), words[-1]]
    return words


def problem(wheel: zipfile.ZipFile, hook: Hook | Patch) -> str:
    """What is wrong with the target of a hook or patch in this release; empty if it fits."""
    words, members = defined_in(wheel, hook.target.split(".")), set(wheel.namelist())
    cut = next(
        (n for n in range(len(words), 0, -1) if "/".join(words[:n]) + ".py" in members), None
    )
    if cut is None:
        return "the module is missing"
    body = ast.parse(wheel.read("/".join(words[:cut]) + ".py")).body
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for name in words[cut:-1]:
        holder = named(body, name, (ast.ClassDef,))
        if holder is None:
            return f"class {name} is missing"
        body = holder.body
    function = named(body, words[-1], functions)
    if function is not None:
        found = parameters(function)
    elif words[-1] == "__init__":  # of a dataclass: its fields
        fields = [s.target.id for s in body if isinstance(s, ast.AnnAssign)]
        found = ("self", *fields)
    elif words[-1] in bound(ast.Module(body, [])):
        return ""  # a class's attribute: it has no parameters of its own
    else:
        return "is missing"
    if hook.first_parameters_only:
        found = found[: len(hook.parameters)]
    if found == hook.parameters:
        return ""
    gone = [name for name in hook.parameters if name not in found]
    new = [name for name in found if name not in hook.parameters]
    changes = [f"without {', '.join(gone)}"] * bool(gone) + [f"new {', '.join(new)}"] * bool(new)
    return "other parameters: " + ("; ".join(changes) or "another order")


def needs(wheel: zipfile.ZipFile) -> list[str]:
    """Requirements of the release that contradict our pins."""
    metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().split("\n\n")[0].splitlines()
    wanted = {}
    for line in lines:
        if match := re.match(r"Requires-Dist: ([\w.-]+)(?:\[\w+\])?==([\w.]+)\s*$", line):
            wanted[match[1].replace("_", "-").lower()] = match[2]
    pins = dict(
        re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/constraints.txt").read_text(), re.M)
    )
    return [
        f"{name} {wanted[name]} (here {pins[name]})"
        for name in PINS
        if name in wanted and wanted[name] != pins[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--package", type=Path, default=ROOT / "sglang_longflow")
    arguments = parser.parse_args()
    kinds = {"hook targets": MANIFEST, "patch targets": PATCHES, "extension points": EXTENSIONS}
    broken = 0
    for path in arguments.wheels:
        with zipfile.ZipFile(path) as wheel:
            texts = {
                kind: {r.target: problem(wheel, r) for r in rows if r.target.startswith("sglang.")}
                for kind, rows in kinds.items()
            }
            other = needs(wheel)
            touched = audit(wheel, arguments.package)
        bad = {target: text for found in texts.values() for target, text in found.items() if text}
        broken += bool(bad or touched)
        print(f"{path.name.split('-')[1]}:")
        for kind, found in texts.items():
            fit = sum(not text for text in found.values())
            print(f"  {fit} of {len(found)} {kind} fit")
        for target, text in bad.items():
            print(f"    {target}: {text}")
        print(f"  {len(touched)} things that handlers touch are not there")
        for text in touched:
            print(f"    {text}")
        print(f"  needs {', '.join(other)}" if other else "  same packages as the pins")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
