# SPDX-License-Identifier: Apache-2.0
"""What the pages say about the code, compared with the code: files, routes, kernels, fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sglang_longflow"
KERNELS = ROOT / "kernels" / "longflow_kernels"
PLACES = ("sglang_longflow", "kernels", "tests", "scripts", "tools", "research", "deploy")
STRUCTURE = (ROOT / "docs/understand/structure.md").read_text(encoding="utf-8")
KERNEL = (ROOT / "docs/understand/kernel.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CONSOLE = (ROOT / "docs/operate/console.md").read_text(encoding="utf-8")


def named_files(text: str) -> set[str]:
    """Paths in backticks that look like files or folders of this repository."""
    return set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*(?:\.py|/))`", text))


def exists(name: str) -> bool:
    """A path from the root, the package, the kernels or tests/; a bare name, anywhere there."""
    if "/" not in name.rstrip("/"):
        found = (list((ROOT / top).rglob(name.rstrip("/"))) for top in PLACES)
        return (ROOT / name).exists() or any(found)
    return any((base / name).exists() for base in (ROOT, PACKAGE, KERNELS, ROOT / "tests"))


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md"]
    + [
        f"docs/understand/{name}.md"
        for name in ("structure", "processes", "kernel", "semantics", "testing", "fuzzing")
    ],
)
def test_files_that_a_page_names_exist(page):
    names = named_files((ROOT / page).read_text(encoding="utf-8"))
    assert names and {name for name in names if not exists(name)} == set()


def test_every_package_has_a_line():
    packages = {f.name for f in PACKAGE.iterdir() if f.is_dir() and list(f.glob("*.py"))}
    assert len(packages) >= 10
    missing = {name for name in packages if f"`sglang_longflow/{name}/`" not in STRUCTURE}
    assert missing == set()


@pytest.mark.parametrize("package", ["core", "hooks", "backend"])
def test_every_file_of_a_requests_way_is_named(package):
    files = {file.name for file in (PACKAGE / package).glob("*.py")}
    # Types of SGLang's objects and of a row of the manifest, and its rows.
    files -= {"__init__.py", "sglang_types.py", "hook.py", "extensions.py", "cpu_kernels.py"}
    assert len(files) >= 8
    named = {f for f in files if f"`{package}/{f}`" in STRUCTURE or f"`{f}`" in STRUCTURE}
    assert files - named == set()


def test_every_stage_has_a_row_with_its_hook_and_every_hook_of_a_stage_is_in_one():
    rows = dict(re.findall(r"^\| \*\*([A-Z][\w ]+)\*\* \|(.*)$", STRUCTURE, re.MULTILINE))
    assert len(rows) == 8 and all("`hooks/" in row for row in rows.values())
    named = set(re.findall(r"`hooks/(\w+)\.py`", " ".join(rows.values())))
    docstrings = {
        file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for file in (PACKAGE / "hooks").glob("*.py")
    }
    stages = {name for name, text in docstrings.items() if text.partition(",")[0] in rows}
    assert len(stages) >= 8
    assert stages - named == set()


def test_stages_go_by_their_names_in_the_code():
    """No docstring counts stages: the numbers differed from file to file."""
    numbered = [
        file.relative_to(ROOT).as_posix()
        for file in (*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py"))
        if re.search(r"\b[Ss]tages? \d", file.read_text(encoding="utf-8"))
    ]
    assert numbered == []


def launched_kernels() -> set[str]:
    """Names that are called as ``name[grid](...)`` in the kernels' package."""
    found = set()
    for file in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                name = node.func.value
                if isinstance(name, ast.Name) and name.id.endswith("_kernel"):
                    found.add(name.id)
    return found


def test_the_kernels_that_are_launched_are_those_of_the_table():
    table = set(re.findall(r"^\| `(\w+_kernel)` \| once", KERNEL, re.MULTILINE))
    assert len(table) >= 4
    assert table == launched_kernels()


def test_the_objects_of_a_decode_step_have_the_documented_fields_and_shape():
    from longflow_kernels import RankRule
    from longflow_kernels.attend_score_evict import arguments
    from longflow_kernels.attend_score_evict.layout import NUM_FIELDS

    (line,) = [line for line in KERNEL.splitlines() if "`fields`" in line and "|" in line]
    assert f"[{NUM_FIELDS}, batch]" in line
    for given in (arguments.KVCache, arguments.DecodeStep, arguments.RowState, RankRule):
        annotations = set(given.__annotations__) - {"recall_pace"}
        part = KERNEL.partition(f"| `{given.__name__}` |")[2].partition("\n| `")[0]
        assert annotations - set(re.findall(r"`(\w+)`", part)) == set(), given


def our_routes() -> set[str]:
    from sglang_longflow.hooks.http import router

    return {re.sub(r"\{\w+\}", "...", route.path) for route in router.routes}


def test_security_lists_every_route_and_its_number():
    words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
    said = re.search(r"adds (\w+) routes.*?: (.*?);", SECURITY, re.DOTALL)
    listed = set(re.findall(r"`(/longflow[^`]*)`", said[2]))
    assert listed == our_routes()
    assert said[1] == words[len(listed)]


def test_all_our_routes_are_get():
    from sglang_longflow.hooks.http import router

    assert {method for route in router.routes for method in route.methods} == {"GET"}


def test_the_data_routes_are_described():
    data = our_routes() - {"/longflow", "/longflow/static/..."}
    assert len(data) >= 2
    assert {route for route in data if f"`{route}?" not in CONSOLE} == set()


def test_headers_are_those_that_are_read():
    from sglang_longflow.core.http_budget import _SHOWN

    for page in (SECURITY, (ROOT / "docs/reference/clients.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"`(X-KV-\w+)`", page)) == set(_SHOWN.values())
