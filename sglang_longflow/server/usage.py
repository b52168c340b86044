# SPDX-License-Identifier: Apache-2.0
"""``longflow serve --help``: our flags explained, SGLang's by name in its own groups."""

from __future__ import annotations

import textwrap

from sglang_longflow.errors import ConfigError
from sglang_longflow.server.options import Option, server_options
from sglang_longflow.settings.flags import FLAGS, Flag

WIDTH = 100
_INDENT = 27
USAGE = """\
usage: longflow serve [MODEL] [--config FILE.yaml] [--kv-budget TOKENS] [--log-format text|json]
                      [any SGLang server argument] [-- arguments of other plugins]

Starts SGLang's server with a KV budget per request and watches it. Model and arguments are judged
first, before SGLang is imported.

  MODEL          model folder or Hugging Face name; the same as --model-path
  --config FILE  YAML file, one server argument per line (`kv-budget: 2048`); flags on the
                 command line win over it
  --log-format   text, or json: one JSON object for every line of the server's and of this command's
                 output (default: the variable LONGFLOW_LOG_FORMAT, else text)

The variable LONGFLOW_API_KEY is --api-key where neither a flag nor the file sets one.

examples:
  longflow serve Qwen/Qwen3-8B --kv-budget 3200
  longflow serve Qwen/Qwen3-8B --kv-budget 3200 --reasoning-parser qwen3 --host 0.0.0.0
"""


def help_text() -> str:
    """All of it; SGLang's arguments are left out where its source cannot be read."""
    parts = [USAGE, "KV budget:", *map(_explained, FLAGS)]
    try:
        groups = _groups(server_options())
    except ConfigError as error:
        return "\n".join([*parts, "", str(error)])
    parts += [
        "",
        "SGLang's server arguments (python -m sglang.launch_server --help explains them):",
    ]
    for words, names in groups.items():
        text = ", ".join(names)
        parts += ["", f"  {words}", _filled(text, 4)]
    return "\n".join(parts)


def _filled(text: str, indent: int) -> str:
    """Lines of `WIDTH` with that indent; no flag is broken."""
    left = " " * indent
    wrapper = textwrap.TextWrapper(WIDTH, left, left, break_on_hyphens=False)
    return wrapper.fill(text)


def _explained(flag: Flag) -> str:
    value = {"int": " N", "str": " NAME", "flag": ""}[flag.kind]
    if flag.choices:
        value = ""
    default = "" if flag.default in (None, False) else f" Default: {flag.default}."
    head = f"  {flag.option}{value}"
    text = _filled(flag.help + default, _INDENT)
    return f"{head:<{_INDENT}}{text.lstrip()}" if len(head) < _INDENT - 1 else f"{head}\n{text}"


def _groups(options: tuple[Option, ...]) -> dict[str, list[str]]:
    """Main names by group, in the source's order; those that the source only renames are left."""
    found: dict[str, list[str]] = {}
    for option in options:
        if option.group:
            found.setdefault(option.group, []).append(option.flags[0])
    return found
