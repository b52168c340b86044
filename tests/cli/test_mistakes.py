# SPDX-License-Identifier: Apache-2.0
"""Mistakes of an operator: `serve` and `doctor` name each in one line with its fix, at once.

All of them are made in one process that nothing heavy may get into, and that starts no server.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sglang  # its source is read, and nothing of it imported

#: Seconds of computing, which others' load does not add to: one mistake, a new process with one.
SECONDS, PROCESS_SECONDS = 3.0, 6.0
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8192,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": LLAMA,
    "gpt-oss": {**LLAMA, "model_type": "gpt_oss", **SLIDING},
    "gemma3": {**LLAMA, "model_type": "gemma3_text", **SLIDING},
    "deepseek": {**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512},
    "qwen3-next": {**LLAMA, "layer_types": ["linear_attention", "full_attention"]},
    "llama4": {**LLAMA, "attention_chunk_size": 8192},
    "mistral": {**LLAMA, "max_position_embeddings": 32768, "sliding_window": 4096},
    "odd-heads": {**LLAMA, "head_dim": 80},
    "long": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}
#: Words of serve's command line, the GPUs of the machine, what the line begins with, and its fix.
#: A capital in front of a colon stands for a folder of `MODELS`.
MISTAKES = [
    # flags
    ("M:llama --kv-bugdet 3200", 0, "--kv-bugdet: no argument", "did you mean --kv-budget?"),
    ("M:llama --kv-bugdet=3200", 0, "--kv-bugdet: no argument", "did you mean --kv-budget?"),
    ("M:llama --kv-bud 3200", 0, "--kv-bud: no argument", "did you mean --kv-budget or"),
    ("M:llama --max-runing-requests 4", 0, "--max-runing-requests: no arg", "did you mean --max"),
    ("M:llama --cuda-graph-max-bs 8", 0, "--cuda-graph-max-bs: SGLang 0.5.23", "bs-decode"),
    ("M:llama --disable-piecewise-cuda-graph", 0, "--disable-piecewise", "set --disable-prefill-"),
    ("M:llama --foreign 1", 0, "--foreign: no argument", "go behind --"),
    ("M:llama --kv-budget 96 --gpu h100", 0, "--gpu: a flag of longflow plan", "drop it, or"),
    ("M:llama --kv-budget", 0, "--kv-budget: expected one argument", ""),
    ("M:llama 96 --kv-budget 96", 0, "unexpected argument '96'", "drop it"),
    ("--kv-budget 96 --port 1x", 0, "--port='1x': expected an integer", "set --port N"),
    # values
    ("M:llama --kv-budget abc", 0, "--kv-budget='abc': expected an integer", "set --kv-budget N"),
    ("M:llama --kv-budget 32", 0, "kv_budget=32: below the minimum 38", "set --kv-budget 38"),
    ("M:llama --kv-budget -4", 0, "kv_budget=-4: below the minimum 38", "or 0 for full KV"),
    ("M:llama --kv-budget 96 --kv-budget-max 64", 0, "kv_budget=96: above kv_budget_max=64", "64"),
    ("M:llama --kv-budget 96 --kv-budget-min 9", 0, "kv_budget_min=9: below 38", "38 or more"),
    ("M:llama --kv-budget 96 --kv-policy longflw", 0, "kv_policy='longflw'", "mean longflow?"),
    ("M:llama --kv-policy longflow", 0, "kv_policy='longflow' has no effect", "set --kv-budget N"),
    ("M:llama --kv-budget 96 --kv-victims heads", 0, "kv_victims='heads'", "layer, kv_head"),
    ("M:llama --kv-budget 96 --kv-victims kv_head", 0, "kv_victims='kv_head'", "set --kv-decode"),
    (
        "M:llama --kv-budget 96 --kv-policy h2o --kv-decode-kernel triton",
        1, "kv_policy='h2o': the triton decode kernel does not", "set --kv-decode-kernel reference",
    ),
    ("M:llama --kv-budget 96 --page-size 16", 0, "page_size=16: a page of", "set --page-size 1"),
    (
        "M:llama --kv-budget 96 --speculative-algorithm NGRAM",
        0, "speculative_algorithm='NGRAM'", "drop --speculative-algorithm",
    ),
    (
        "M:llama --kv-budget 96 --enable-hierarchical-cache",
        0, "enable_hierarchical_cache=True: HiCache", "drop --enable-hierarchical-cache",
    ),
    ("M:llama --attention-backend flashinfr", 0, "attention_backend='flashinfr'", "flashinfer?"),
    ("M:llama --dtype bf16", 0, "dtype='bf16'", "bfloat16"),
    ("M:llama --log-format jsn --kv-budget 96", 0, "log_format='jsn'", "did you mean json?"),
    ("M:llama --kv-budget 96 --kv-cache-dtype fp8", 0, "kv_cache_dtype='fp8'", "or fp8_e4m3?"),
    ("M:llama --kv-budget 96 --kv-cache-dtype fp8_e5m2", 0, "kv_cache_dtype='fp8_e5m2'", "e4m3"),
    ("M:llama --kv-budget 96 --device gpu", 0, "device='gpu': another", "drop --device"),
    ("M:llama --kv-budget 96 --reasoning-parser qwen4", 0, "reasoning_parser='qwen4'", "qwen3?"),
    ("M:llama --mem-fraction-static 90", 0, "mem_fraction_static=90.0: expected a part", "0.85"),
    ("M:llama --kv-budget 96 --max-running-requests 0", 0, "max_running_requests=0", "give more"),
    # the machine
    ("M:llama --kv-budget 96 --tp 2", 0, "tp_size=2: on a CPU", "set --tp-size 1"),
    ("M:llama --tp-size 2", 0, "tp_size=2: on a CPU", "set --tp-size 1"),
    ("M:llama --kv-budget 96 --tp 4", 2, "tp_size=4: needs 4 GPUs", "set --tp-size 2 at most"),
    ("M:llama --kv-budget 96 --tp 2 --dp 2", 2, "tp_size=2, dp_size=2: needs 4 GPUs", "CUDA_VIS"),
    ("M:llama --kv-budget 96 --tp 3", 4, "tp_size=3: does not divide the model's 4", "of 1, 2, 4"),
    ("M:llama --base-gpu-id 2", 2, "base_gpu_id=2: needs 3 GPUs", "lower --base-gpu-id"),
    ("M:llama --device cuda --kv-budget 96", 0, "device='cuda': CUDA sees no GPU", "drop --device"),
    # the budget and the model
    ("M:llama --kv-budget 9000", 0, "kv_budget=9000: over the model's context of 8192", "8192"),
    (
        "M:llama --kv-budget 96 --kv-budget-max 9000",
        0, "kv_budget_max=9000: over the model's context of 8192", "set --kv-budget-max 8192",
    ),
    ("M:llama --kv-budget 9500 --context-length 9.4k", 0, "kv_budget=9500: over", "below 9400"),
    ("M:llama --context-length 9.4Ki", 0, "context_length='9.4Ki': expected", "context-length N"),
    ("M:llama --kv-budget 500 --context-length 400", 0, "kv_budget=500: over", "below 400"),
    ("M:long --kv-budget 17000", 0, "kv_budget=17000: over the model's context of 16384", "16384"),
    (
        "M:llama --kv-budget 900 --max-total-tokens 800",
        0, "kv_budget=900: larger than the whole KV pool of 800 tokens", "lower --kv-budget",
    ),
    ("M:gpt-oss --kv-budget 96", 0, "model_type='gpt_oss': layers of type", "another --model-path"),
    ("M:gemma3 --kv-budget 96", 0, "model_type='gemma3_text': layers", "another --model-path"),
    ("M:deepseek --kv-budget 96", 0, "model_type='deepseek_v3': MLA", "another --model-path"),
    ("M:qwen3-next --kv-budget 96", 0, "model_type='llama': layers of type ['linear", "another"),
    ("M:llama4 --kv-budget 96", 0, "model_type='llama': attention in chunks of 8192", "another"),
    ("M:mistral --kv-budget 96", 0, "model_type='llama': sliding-window layers", "another"),
    ("M:odd-heads --kv-budget 96", 1, "head_dim=80: the triton decode kernel", "kernel reference"),
    # where the model is
    ("Qwen3-1.7B --kv-budget 96", 0, "model_path='Qwen3-1.7B': no such", "mean Qwen/Qwen3-1.7B"),
    ("no/such-model --kv-budget 96", 0, "model_path='no/such-model': not in", "hf download no/"),
    ("Qwen/Qwen3-1.7B --kv-budget 96", 0, "model_path='Qwen/Qwen3-1.7B': not", "hf download Qwen"),
    ("openai/gpt-oss-20b --kv-budget 96", 0, "model_type='gpt_oss': layers of", "another --model"),
    ("openai/gpt-oss-20b", 0, "model_path='openai/gpt-oss-20b': not in", "hf download openai/gpt"),
    ("/no/such/folder --kv-budget 96", 0, "model_path='/no/such/folder': no such folder", "give"),
    ("W:llama --kv-budget 96", 0, "model_path=", "--load-format dummy"),
    ("B:llama --kv-budget 96", 0, "model_path=", "mend that file"),
    ("M:llama --model-path a/b --kv-budget 96", 0, "model_path='a/b': the model is also", "drop"),
]  # fmt: skip
#: Words that look like mistakes and are none; a server would be started.
FINE = [
    ("M:llama --kv-budget 8192", 0),
    ("M:llama --kv-budget 96 --tp 1 --page-size 1 --device cpu", 0),
    ("M:llama --kv-budget 96 --tp 4 --nnodes 2", 2),
    ("M:llama --kv-budget 96 --tp 2 --dp 2 --enable-dp-lm-head", 4),
    ("M:long --kv-budget 9000", 0),
    ("M:odd-heads --kv-budget 96 --kv-decode-kernel reference", 1),
    ("M:gpt-oss", 0),
    ("M:llama --kv-budget 96 --kv-cache-dtype fp8_e4m3 --reasoning-parser qwen3", 1),
    ("M:llama --kv-budget 96 --mem-fraction-static 0.8 --max-running-requests 1", 1),
    ("M:llama --kv-cache-dtype fp8_e5m2", 1),
    ("W:llama --kv-budget 96 --load-format dummy", 0),
    ("M:llama --kv-budget 96 -- --foreign 1", 0),
]
PROGRAM = """
import contextlib, io, json, sys, time
from sglang_longflow.cli.main import main
from sglang_longflow.server import doctor, serve
from sglang_longflow.settings import device

class Started(Exception): pass
def start(*_): raise Started
serve.Server = start

for argv, gpus in json.load(sys.stdin):
    device.cards = lambda gpus=gpus: (device.Card("NVIDIA H200", 140 << 30, (9, 0)),) * gpus
    device._count_of_cuda = int
    out, err = io.StringIO(), io.StringIO()
    begun = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["serve", *argv])
        except Started:
            status = "started"
    seconds = time.process_time() - begun
    checks = doctor.checks(argv)  # what is heavy comes behind the arguments
    row = next(row for row in checks if row.name == "server arguments")
    heavy = sorted({"torch", "triton", "sglang", "transformers"} & set(sys.modules))
    found = [status, out.getvalue(), err.getvalue(), seconds, heavy]
    print(json.dumps([*found, row.status, row.detail, row.fix]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """The models; W has no weights, B a config that is cut off."""
    found = {}
    for kind in "MWB":
        for name, config in MODELS.items():
            folder = tmp_path_factory.mktemp(kind) / name
            folder.mkdir()
            text = json.dumps(config)
            (folder / "config.json").write_text(text[:20] if kind == "B" else text)
            if kind != "W":
                (folder / "model.safetensors").touch()
            found[f"{kind}:{name}"] = str(folder)
    return found


def run(rows, folders) -> list[list]:
    words = [[[folders.get(word, word) for word in row[0].split()], row[1]] for row in rows]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(words), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(folders) -> dict[str, list]:
    return dict(zip([row[0] for row in MISTAKES], run(MISTAKES, folders)))


@pytest.mark.parametrize(("words", "gpus", "what", "fix"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line_at_once(answers, words, gpus, what, fix):
    status, out, err, seconds, heavy, *_ = answers[words]
    assert (status, out, heavy) == (2, "", [])
    (line,) = err.splitlines()
    message = line.removeprefix("longflow serve: error: ")
    assert message != line and message.startswith(what) and fix in message.removeprefix(what)
    # field, value and limit; then the fix
    assert re.search(r": .*; |unexpected|has no effect|expected one argument", message), message
    assert seconds < SECONDS


@pytest.mark.parametrize("words", [row[0] for row in MISTAKES if "--log-format" not in row[0]])
def test_doctor_fails_for_the_same_reason(answers, words):
    """`--log-format` is this command's, not the server's."""
    err, (status, detail, fix) = answers[words][2], answers[words][5:]
    assert status == "fail" and fix
    assert err.strip().removeprefix("longflow serve: error: ").startswith(detail)


def test_what_is_no_mistake_passes_in_both(folders):
    for (words, _), found in zip(FINE, run(FINE, folders)):
        assert found[0] == "started", (words, found)
        assert found[5] in ("ok", "warn"), (words, found)


@pytest.mark.parametrize("words", ["M:llama --kv-bugdet 3", "M:gpt-oss --kv-budget 96", "--help"])
def test_a_new_process_takes_no_longer_than_python_and_the_source(folders, words):
    argv = [folders.get(word, word) for word in words.split()]
    code = "from sglang_longflow.cli.main import main; raise SystemExit(main())"

    def computed() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(2):
        begun = computed()
        done = subprocess.run(
            [sys.executable, "-c", code, "serve", *argv], capture_output=True, check=False
        )
        seconds.append(computed() - begun)
        assert done.returncode == (0 if words == "--help" else 2)
    assert min(seconds) < PROCESS_SECONDS


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_commands_that_start_servers_refuse_before_they_begin(folders, tmp_path, command):
    """They print what they will do first, download data and load tokenizers: not before this."""
    task = ["--task", "gsm8k"] if command == "eval" else []
    argv = [command, *task, "--out", str(tmp_path / "out"), "--no-plot", "--model"]
    code = (
        "import sys\nfrom sglang_longflow.cli.main import main\nstatus = main()\n"
        "assert not {'torch', 'sglang', 'transformers'} & set(sys.modules)\n"
        "raise SystemExit(status)"
    )
    mistakes = [
        ("M:gpt-oss --budgets 96", "model_type='gpt_oss': layers of type"),
        ("M:gpt-oss --budgets 96 -- --tp 0", "tp_size=0: expected 1 or more"),
        ("M:gpt-oss --budgets 96 -- --page-sise 1", "did you mean --page-size?"),
        ("M:llama --budgets 10,full", "budgets=10: below the minimum 38; give"),
        ("M:llama --budgets 96,9000", "budgets=9000: over the model's context of 8192"),
        ("M:llama --budgets half", "budgets='half': expected tokens"),
    ]
    if command == "bench":
        text = "input_tokens + output_tokens=13096: over the model's context of 8192"
        mistakes.append(("M:llama --input-tokens 9000", text))
        mistakes.append(("M:llama --input-tokens 9 --output-tokens 9 --budgets 50%", "50%': 9 of"))
    for words, expected in mistakes:
        more = [folders.get(word, word) for word in words.split()]
        done = subprocess.run(
            [sys.executable, "-c", code, *argv, *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and not done.stdout, done
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"longflow {command}: error: ") and expected in line
        assert not Path(tmp_path / "out").exists()
