# SPDX-License-Identifier: Apache-2.0
"""SGLang's own settings with a budget, of a command line and of an Engine: resolved and refused.

One process with the plugin as SGLang loads it works through all cases; the tests read its answers.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.sglang

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
BUDGET = ("--kv-budget", "96")
EAGLE = ("--speculative-algorithm", "EAGLE")
#: A model that is changed on the command line: SGLang alone can tell what it is then.
SHORT = '{"max_position_embeddings": 80}'
#: By name: words of a command line, or keywords of an Engine.
CASES: dict[str, list[str] | dict[str, object]] = {
    "command line": [*BUDGET, "--kv-policy", "tova"],
    "engine": {"kv_budget": 96, "kv_policy": "tova"},
    "stock command line": [],
    "stock engine": {},
    "command line, speculative": [*BUDGET, *EAGLE],
    "engine, speculative": {"kv_budget": 96, "speculative_algorithm": "EAGLE"},
    "command line, short context": [*BUDGET, "--json-model-override-args", SHORT],
    "engine, short context": {"kv_budget": 96, "json_model_override_args": SHORT},
}
PROGRAM = """
import json
import sys

from sglang.srt.plugins.hook_registry import HookRegistry
from sglang_longflow.plugin import load_plugin

load_plugin()
HookRegistry.apply_hooks()

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.server_args import prepare_server_args
from sglang_longflow.settings.resolved import resolved

READ = ("page_size", "sleep_on_idle", "kv_budget", "kv_policy", "device")


def answer(asked, model):
    try:
        if isinstance(asked, list):
            record = prepare_server_args(["--model-path", model, "--device", "cpu", *asked])
        else:
            record = Engine.server_args_class(model_path=model, device="cpu", **asked)
        record.resolve_once()
    except (Exception, SystemExit) as error:
        return {"kind": type(error).__name__, "said": str(error)}
    return {
        "class": type(record).__qualname__,
        "typed": record.page_size,
        "checked": getattr(record, "_longflow_checked", None),
        "declared": [source for source, _ in record._resolved_overrides].count("longflow"),
        **{name: getattr(resolved(record), name) for name in READ},
    }


model, cases = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps({name: answer(asked, model) for name, asked in cases.items()}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").touch()
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["command line", "engine"])
def test_a_budget_is_resolved_with_pages_of_one_token(answers, case):
    """The record keeps what was typed, which is nothing; the view has what was decided."""
    assert answers[case] == {
        "class": "ServerArgs",
        "typed": None,
        "checked": 96,
        "declared": 1,
        "page_size": 1,
        "sleep_on_idle": True,
        "kv_budget": 96,
        "kv_policy": "tova",
        "device": "cpu",
    }


@pytest.mark.parametrize("case", ["stock command line", "stock engine"])
def test_without_a_budget_the_settings_are_sglangs(answers, case):
    found = answers[case]
    assert found["class"] == "ServerArgs" and found["kv_budget"] is None
    assert found["declared"] == 0 and found["checked"] is None and found["sleep_on_idle"] is False


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "speculative",
            "speculative_algorithm='EAGLE': speculative decoding is not supported with a KV "
            "budget; drop --speculative-algorithm",
        ),
        ("short context", "kv_budget=96: over the model's context of 80 tokens"),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused_by_name(answers, case, words):
    """A command line ends with the line; a program gets an exception that it can catch."""
    line, raised = answers[f"command line, {case}"], answers[f"engine, {case}"]
    assert line["kind"] == "SystemExit" and raised["kind"] == "UnsupportedSetup"
    assert str(raised["said"]).startswith(words)
    assert line["said"] == f"longflow: error: {raised['said']}"
