# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/models.md from the code; ``--check`` only compares.

Tested and refused models are those of `sglang_longflow.settings.models`, well-known sizes those
that `longflow plan` has built in. The code that decides in a server also says here what is refused
and which decode serves a shape.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
PLACE = "<!-- models_table.py: {name}: {edge} -->"
SHAPE = ("Attention", "Heads, query / KV", "Head size")


def row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def head(*names: str) -> str:
    return row(names) + row("---" for _ in names)


def link(path: str) -> str:
    """A file of the repository, as docs/models.md links to it."""
    return os.path.relpath(ROOT / path, PAGE.parent)


def decode_of(query_heads: int, kv_heads: int, head_size: int) -> str:
    """``fused``, or ``reference`` with the reason that the server gives."""
    from sglang_longflow.settings.compatibility import kernel_conflict

    conflict = kernel_conflict(query_heads, kv_heads, head_size, head_size)
    return f"reference ({conflict})" if conflict else "fused"


def tried_table() -> str:
    from sglang_longflow.settings.models import TRIED

    text = head("Architecture", "Model", "Weights", *SHAPE, "Decode", "Tested how")
    for model in TRIED:
        shape = (model.query_heads, model.kv_heads, model.head_size)
        tests = "; ".join(f"[{kind.value}]({link(at)})" for kind, at in model.evidence.items())
        heads = (model.attention, f"{model.query_heads} / {model.kv_heads}", model.head_size)
        name = (f"`{model.architecture}`", model.name, model.weights.value)
        text += row((*name, *heads, decode_of(*shape), tests))
    return text


def sizes_table() -> str:
    from sglang_longflow.planner.geometry import geometry_from, kv_bytes_per_token
    from sglang_longflow.settings.builtin_models import builtin_config, builtin_names
    from sglang_longflow.settings.models import attention_kind

    text = head("Model", *SHAPE, "Decode", "KV bytes per token, bf16")
    for name in builtin_names():
        model = geometry_from(builtin_config(name) or {}, name, None)
        kind = attention_kind(model.heads, model.kv_heads)
        heads = (kind, f"{model.heads} / {model.kv_heads}", model.head_dim)
        decode = decode_of(model.heads, model.kv_heads, model.head_dim)
        text += row((name, *heads, decode, f"{kv_bytes_per_token(model):,}"))
    return text


def hybrids_table() -> str:
    from sglang_longflow.planner.geometry import (
        geometry_from,
        kv_bytes_per_token,
        state_bytes_per_request,
    )
    from sglang_longflow.settings.builtin_models import builtin_config, hybrid_names

    layers = ("Layers with KV", "KV bytes per token, bf16", "State of a request, MB")
    text = head("Model", *SHAPE[1:], *layers, "`longflow serve`")
    for name in hybrid_names():
        model = geometry_from(builtin_config(name) or {}, name, None)
        heads = (f"{model.heads} / {model.kv_heads}", model.head_dim)
        of_all = f"{model.kv_layers} of {model.layers}"
        sizes = (f"{kv_bytes_per_token(model):,}", f"{state_bytes_per_request(model) / 1e6:,.1f}")
        served = "refuses it" if model.refused else "takes it"
        text += row((name, *heads, of_all, *sizes, served))
    return text


def refused_table() -> str:
    from sglang_longflow.settings.models import REFUSED
    from sglang_longflow.settings.refused_models import model_conflict

    text = head("Models", "What the message says")
    for names, config in REFUSED:
        conflict = model_conflict(config)
        if conflict is None:
            raise ValueError(f"{names}: {dict(config)} is not refused")
        text += row((names, f"`{conflict}`"))
    return text


def page(text: str) -> str:
    """The page with its tables made again."""
    for name, made in (
        ("tried", tried_table()),
        ("sizes", sizes_table()),
        ("hybrids", hybrids_table()),
        ("refused", refused_table()),
    ):
        begin, end = (PLACE.format(name=name, edge=edge) for edge in ("begin", "end"))
        before, found_begin, rest = text.partition(f"{begin}\n")
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"docs/models.md has no place for the table {name!r}")
        text = before + found_begin + made + found_end + after
    return text


def main(arguments: list[str]) -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if "--check" not in arguments:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("docs/models.md is out of date: run python scripts/models_table.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
