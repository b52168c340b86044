# SPDX-License-Identifier: Apache-2.0
"""Run with a patched SGLang: arguments of plugins."""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

import msgspec
import sglang
from sglang.srt import server_args as settings
from sglang.srt.arg_groups.arg_utils import A, Arg
from sglang.srt.arg_groups.overrides import declare_resolution, resolution_result
from sglang.srt.arg_groups.validation_hook import check_server_args
from sglang.srt.plugins.server_args import plugin_args, register_plugin_args
from sglang.srt.runtime_context import get_serving, publish

SET = {"model_path": "dummy", "served_model_name": "dummy", "chunked_prefill_size": 1024}
DUMMY = [word for k, v in SET.items() for word in ("--" + k.replace("_", "-"), str(v))]


class KV(msgspec.Struct):
    kv_budget: A[int | None, Arg(help="KV slots of a request")] = None
    kv_policy: A[str, Arg(help="which slot is overwritten", choices=["a", "b"])] = "a"


def resolve(server_args: Any, args: KV) -> None:
    if args.kv_budget == 12:
        raise ValueError("twelve")
    if args.kv_budget is not None:
        declare_resolution(server_args, "kv", page_size=1)


def validate(server_args: Any, args: KV) -> None:
    if args.kv_budget == 13:
        raise ValueError("thirteen")


@contextlib.contextmanager
def refused(error: type[BaseException], text: str) -> Iterator[None]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except error as raised:
        assert text in f"{raised}{said.getvalue()}", raised
    else:
        raise AssertionError(f"not refused: {text}")


def in_python(values: dict[str, dict[str, Any]]) -> Any:
    return settings.ServerArgs(**SET, plugin_args=values)


stock = settings.prepare_server_args(DUMMY)
stock.resolve_once()
assert stock.plugin_args is None
assert type(stock).__struct_fields__[-1] == "plugin_args"

register_plugin_args("kv", KV, resolve=resolve, validate=validate)
with refused(ValueError, "already registered"):
    register_plugin_args("kv", KV)

typed = settings.prepare_server_args([*DUMMY, "--kv-budget", "96"])
typed.resolve_once()
check_server_args(typed)
assert plugin_args(typed, "kv") == KV(96, "a")
assert resolution_result(typed, "page_size") == 1
sent = pickle.loads(pickle.dumps(typed))
publish(sent, role="scheduler")
assert get_serving().plugin_args == {"kv": {"kv_budget": 96, "kv_policy": "a"}}

with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    file.write("model-path: dummy\nkv-budget: 7\nkv-policy: b\n")
    file.flush()
    assert plugin_args(settings.prepare_server_args(["--config", file.name]), "kv") == KV(7, "b")

given = in_python({"kv": {"kv_budget": 5}})
given.resolve_once()
assert plugin_args(given, "kv") == KV(5, "a")

with refused(ValueError, "no loaded plugin has registered it"):
    in_python({"nobody": {}}).resolve_once()
with refused(msgspec.ValidationError, "got `str`"):
    in_python({"kv": {"kv_budget": "many"}}).resolve_once()
with refused(ValueError, "twelve"):
    in_python({"kv": {"kv_budget": 12}}).resolve_once()
with refused(SystemExit, "invalid choice"):
    settings.prepare_server_args([*DUMMY, "--kv-policy", "c"])
late = in_python({"kv": {"kv_budget": 13}})
late.resolve_once()
with refused(ValueError, "thirteen"):
    check_server_args(late)

print("checked", sglang.__file__)
