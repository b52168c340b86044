# SPDX-License-Identifier: Apache-2.0
"""The server arguments of the installed SGLang, by name and type, and a parser for them.

They are read from the source text of SGLang's ``ServerArgs`` and of the namespaces that it collects
its fields from. Importing it takes ten seconds and hundreds of megabytes, which a typo in a YAML
file should not cost, and which `longflow serve`, that only supervises the server, should not hold.
Importing it once and caching the table would not help where it matters, as each container starts
with an empty cache, and the cache would have to be kept in step with an SGLang that is edited in
place. Reading the source is safe because the release is pinned: a test compares the table with
SGLang's own parser, and a ``ServerArgs`` of another form is refused by name (`server_options`).
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from sglang_longflow.errors import ConfigError
from sglang_longflow.settings.flags import FLAGS
from sglang_longflow.settings.nearest import nearest
from sglang_longflow.settings.parsers import REASONING_PARSERS
from sglang_longflow.settings.release import FIX, TESTED_SGLANG, remedy

#: What each kind of argument takes, in words.
EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "flag": "true or false",
    "switch": "true or false",
}

#: Arguments of SGLang 0.5.17 that 0.5.23 no longer has, and what to do. The names that come nearest
#: to some of them mean something else.
_GONE = {
    "--collect-tokens-histogram": "drop it: SGLang always counts them",
    "--cuda-graph-bs": "set --cuda-graph-bs-decode",
    "--cuda-graph-max-bs": "set --cuda-graph-max-bs-decode",
    "--disable-piecewise-cuda-graph": "set --disable-prefill-cuda-graph",
    "--dsa-prefill-cp-mode": "set --cp-strategy",
    "--elastic-ep-rejoin": "set --elastic-ep-join-mode recover",
    "--enable-breakable-cuda-graph": "set --cuda-graph-backend-prefill breakable",
    "--enable-dsa-prefill-context-parallel": "set --enable-prefill-cp",
    "--enable-gdn-replayssm-spec": "set --enable-linear-replayssm-spec",
    "--enable-nsa-prefill-context-parallel": "set --enable-prefill-cp",
    "--enable-prefill-context-parallel": "set --enable-prefill-cp",
    "--enforce-piecewise-cuda-graph": "set --cuda-graph-backend-prefill tc_piecewise",
    "--mamba-scheduler-strategy": "set --mamba-radix-cache-strategy",
    "--nsa-decode-backend": "set --dsa-decode-backend",
    "--nsa-prefill-backend": "set --dsa-prefill-backend",
    "--nsa-prefill-cp-mode": "set --cp-strategy",
    "--piecewise-cuda-graph-max-tokens": "set --cuda-graph-max-bs-prefill",
    "--piecewise-cuda-graph-tokens": "set --cuda-graph-bs-prefill",
    "--prefill-cp-mode": "set --cp-strategy",
    "--prefill-round-robin-balance": "drop it",
    "--speculative-dflash-draft-window-size": "set --speculative-draft-window-size",
    "--stream-output": "set --incremental-streaming-output",
    "--torchao-config": "choose another --quantization",
}


@dataclass(frozen=True)
class Option:
    """One server argument.

    Attributes
    ----------
    name : str
        Field of ServerArgs.
    flags : tuple of str
        As written on the command line, the main one first.
    kind : str
        "int", "float", "str", "flag" (``--x``), "switch" (``--x`` or ``--no-x``), or "any" where
        SGLang parses the value itself.
    nargs : str or None
        As in argparse.
    choices : tuple or None
        The values it takes, where the source tells them.
    group : str
        The heading it stands under in the source, or its namespace, such as ``exec.moe``.
    """

    name: str
    flags: tuple[str, ...]
    kind: str
    nargs: str | None = None
    choices: tuple[Any, ...] | None = None
    group: str = ""


def sglang_source() -> Path:
    """Folder of the installed SGLang, found without importing it."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        raise ConfigError(f"SGLang is not installed: {FIX}")
    return Path(spec.origin).parent


@lru_cache(maxsize=1)
def server_options() -> tuple[Option, ...]:
    """Every server argument, the plugin's own included."""
    root = sglang_source()
    arguments = _parsed(root / "srt/server_args.py")
    lists = _lists(_parsed(root / "srt/arg_groups/choices.py"))
    found = [
        option
        for module, names in _namespaces(arguments).items()
        for option in _of_module(root / f"srt/arg_groups/fields/{module}.py", names, lists)
    ]
    classes = [n for n in arguments.body if isinstance(n, ast.ClassDef) and n.name == "ServerArgs"]
    body = classes[0].body if classes else []
    methods = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == "add_cli_args"]
    if not found or not methods:
        raise ConfigError(
            "SGLang's server arguments are of another kind than in "
            f"{', '.join(TESTED_SGLANG)} and cannot be read; {remedy()}, or run "
            "python -m sglang.launch_server"
        )
    (method,) = methods
    found += [option for node in ast.walk(method) if (option := _from_add_argument(node, lists))]
    ours = (Option(flag.name, (flag.option,), flag.kind, choices=flag.choices) for flag in FLAGS)
    return (*found, *ours)


def _parsed(path: Path) -> ast.Module:
    """A source file's tree; an empty one where there is no such file."""
    return ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")


def _namespaces(tree: ast.Module) -> dict[str, list[str]]:
    """The classes that ServerArgs collects its fields from, by their module's name.

    ``_INPUT_NAMESPACES = [Model, ...]``, each imported from ``sglang.srt.arg_groups.fields``.
    """
    prefix = "sglang.srt.arg_groups.fields."
    imported = {
        alias.name: node.module.removeprefix(prefix)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(prefix)
        for alias in node.names
    }
    found: dict[str, list[str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.List):
            continue
        if ast.unparse(node.targets[0]) == "_INPUT_NAMESPACES":
            for name in map(ast.unparse, node.value.elts):
                if name in imported:
                    found.setdefault(imported[name], []).append(name)
    return found


def _of_module(
    path: Path, names: Sequence[str], lists: Mapping[str, tuple[Any, ...]]
) -> list[Option]:
    """The options that those classes of a file declare."""
    tree = _parsed(path)
    headings = _headings(path.read_text(encoding="utf-8")) if tree.body else []
    lists = {**lists, **_lists(tree)}
    found = []
    for part in tree.body:
        if not isinstance(part, ast.ClassDef) or part.name not in names:
            continue
        start = (part.lineno, _path_of(part))
        inside = [start, *(h for h in headings if part.lineno < h[0] <= (part.end_lineno or 0))]
        found += [option for node in part.body if (option := _from_field(node, lists, inside))]
    return found


def _path_of(part: ast.ClassDef) -> str:
    """``_NS_PATH`` of a class, such as ``exec.moe``: the group of what is above any heading."""
    for node in part.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NS_PATH":
            return str(_constant(node.value))
    return part.name


def _lists(tree: ast.Module) -> dict[str, tuple[Any, ...]]:
    """The lists of values that the module names, by name."""
    found: dict[str, tuple[Any, ...]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if (values := _choices(node.value, found)) is not None:
                found[node.targets[0].id] = values
    return found


def _choices(node: ast.expr | None, lists: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """The values of a list in the source; None where it takes more than the source to know them."""
    if isinstance(node, ast.Name):
        return lists.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _choices(node.left, lists), _choices(node.right, lists)
        return None if left is None or right is None else left + right
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    try:
        values = ast.literal_eval(node)
    except ValueError:
        return None
    return tuple(sorted(values, key=str) if isinstance(values, set) else values)


def _literals(annotation: ast.expr) -> tuple[Any, ...] | None:
    """The values of ``Literal[...]``, also within Optional; None for other types."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return tuple(v for v in map(_constant, values) if v is not None)
    return None


def _headings(text: str) -> list[tuple[int, str]]:
    """Line number and words of each heading among the fields: a comment between two rules."""
    lines = [line.strip() for line in text.splitlines()]

    def is_rule(line: str) -> bool:
        return line.startswith("# ---")

    return [
        (number + 1, line.lstrip("# "))
        for number, line in enumerate(lines[1:-1], 1)
        if line.startswith("# ") and is_rule(lines[number - 1]) and is_rule(lines[number + 1])
    ]


def _from_field(
    node: ast.stmt, lists: Mapping[str, tuple[Any, ...]], headings: list[tuple[int, str]]
) -> Option | None:
    """``name: A[type, Arg(...)] = default`` of a namespace; None for other statements."""
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.annotation, ast.Subscript):
        return None
    if ast.unparse(node.annotation.value) != "A" or not isinstance(node.target, ast.Name):
        return None
    type_node, *metadata = node.annotation.slice.elts  # type: ignore[attr-defined]
    calls = [m for m in metadata if isinstance(m, ast.Call) and ast.unparse(m.func) == "Arg"]
    arg = {k.arg: k.value for k in calls[0].keywords} if calls else {}
    only_namespace = all(isinstance(m, ast.Call) for m in metadata) and not calls
    if "no_cli" in arg or only_namespace:  # the second kind is added by add_argument
        return None
    name = node.target.id
    main = _constant(arg.get("cli_name")) or "--" + name.replace("_", "-")
    aliases = ast.literal_eval(arg["aliases"]) if "aliases" in arg else []
    literals = _literals(type_node)
    kind, nargs = _kind_of(type(literals[-1]).__name__ if literals else ast.unparse(type_node))
    nargs = _constant(arg.get("nargs")) or nargs
    if "type_parser" in arg:
        kind, nargs = "any", None
    if "action" in arg:
        boolean = "BooleanOptionalAction" in ast.unparse(arg["action"])
        more = arg.get("action_kwargs", ast.Dict([], []))
        named = {_constant(key): value for key, value in zip(more.keys, more.values)}  # type: ignore[attr-defined]
        kind, nargs = ("switch", None) if boolean else ("any", _constant(named.get("nargs")))
    group = next((words for line, words in reversed(headings) if line < node.lineno), "")
    choices = _choices(arg["choices"], lists) if "choices" in arg else literals
    return Option(name, (main, *aliases), kind, nargs, choices, group)


def _from_add_argument(node: ast.AST, lists: Mapping[str, tuple[Any, ...]]) -> Option | None:
    """``parser.add_argument("--x", ...)``: dynamic choices and deprecated names."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(".add_argument"):
        return None
    flags = tuple(ast.literal_eval(arg) for arg in node.args)
    arg = {k.arg: k.value for k in node.keywords}
    name = _constant(arg.get("dest")) or flags[0][2:].replace("-", "_")
    action = ast.unparse(arg["action"]) if "action" in arg else ""
    if action and "AliasStore" not in action and "choices" not in arg:
        return Option(name, flags, "flag")
    kind, _ = _kind_of(ast.unparse(arg["type"]) if "type" in arg else "str")
    choices = _choices(arg.get("choices"), lists)
    return Option(name, flags, kind, _constant(arg.get("nargs")), choices)


def _constant(node: ast.expr | None) -> Any:
    return None if node is None else ast.literal_eval(node)


def _kind_of(annotation: str) -> tuple[str, str | None]:
    """Kind and nargs of an annotation such as ``Optional[List[int]]``."""
    text = annotation.replace(" ", "").removesuffix("|None")
    if text.startswith("Optional["):
        text = text[len("Optional[") : -1]
    if text.lower().startswith("list["):
        return _kind_of(text[5:-1])[0], "+"
    kinds = {"bool": "flag", "int": "int", "float": "float", "str": "str"}
    return kinds.get(text, "any"), None


class _Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line that name flag, value and what is expected."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            kind = "int" if action.type is int else "float"
            raise argparse.ArgumentError(
                None,
                f"{action.option_strings[0]}={arg_string!r}: expected {EXPECTED[kind]}; "
                f"set {action.option_strings[0]} N",
            ) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        if choices and str(value) not in choices:
            raise argparse.ArgumentError(
                None,
                f"{action.dest}={value!r}: not a value that it takes"
                f"{nearest(str(value), choices) or '; known: ' + ', '.join(choices)}",
            )


def make_parser(judge_choices: bool = True) -> argparse.ArgumentParser:
    """A parser for server arguments; its namespace holds only what was given.

    As SGLang's, it takes the beginning of a flag for the flag: ``--tp`` is one of those.
    `refuse_shortened` is for ours.
    """
    parser = _Parser(
        prog="longflow serve",
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    types: dict[str, Any] = {"int": int, "float": float}
    for option in server_options():
        if "--config" in option.flags:
            continue
        if option.kind == "flag":
            parser.add_argument(*option.flags, dest=option.name, action="store_true")
        elif option.kind == "switch":
            action = argparse.BooleanOptionalAction
            parser.add_argument(*option.flags, dest=option.name, action=action)
        else:
            convert = types.get(option.kind, str)
            # Made when SGLang is imported, so its source does not tell them.
            parsers = REASONING_PARSERS if option.name == "reasoning_parser" else None
            parser.add_argument(
                *option.flags,
                dest=option.name,
                type=convert,
                nargs=option.nargs,
                choices=(option.choices or parsers) if judge_choices else None,
            )
    return parser


def gone(name: str) -> str:
    """What to do in place of an argument that this SGLang no longer has; empty for all others."""
    fix = _GONE.get("--" + name.lstrip("-").replace("_", "-"), "")
    return f"SGLang {TESTED_SGLANG[-1]} no longer has it; {fix}" if fix else ""


def refuse_shortened(words: Sequence[str]) -> None:
    """Raise ConfigError for the beginning of a flag of ours, which is looked for in full, for what
    SGLang no longer has, and for the flag of `longflow plan` that begins one of SGLang's."""
    ours = [flag.option for flag in FLAGS]
    known = {name for option in server_options() for name in option.flags}
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and (fix := gone(flag)):
            raise ConfigError(f"{flag}: {fix}")
        if flag == "--gpu":  # would be taken for --gpu-id-step
            raise ConfigError(
                "--gpu: a flag of longflow plan and render; drop it, or choose the cards of a "
                "server with CUDA_VISIBLE_DEVICES"
            )
        if flag.startswith("--kv") and flag not in known:
            if any(name.startswith(flag) for name in ours):
                raise unknown_flag(word)


def unknown_flag(word: str) -> ConfigError:
    """The refusal of a word that begins like a flag and is none of SGLang's or ours."""
    flag = word.partition("=")[0]
    known = [name for option in server_options() for name in (*option.flags, "--config")]
    longer = sorted({name for name in known if name.startswith(flag)})
    if len(flag) > len("--") and longer:
        meant = f"; did you mean {' or '.join(longer[:3])}?"
    else:
        meant = nearest(flag, known)
    return ConfigError(
        f"{flag}: no argument of SGLang's server or of this plugin{meant or '; drop it'} "
        f"(arguments of other plugins go behind --)"
    )
