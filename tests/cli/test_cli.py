# SPDX-License-Identifier: Apache-2.0
"""The console script: parsing, YAML files, checks before the start, banner. No server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang_longflow.cli.main import COMMANDS, main
from sglang_longflow.client.http import first_port
from sglang_longflow.errors import ConfigError
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.server import options, process, serve, settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def yaml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    return path


def error_line(capsys, argv: list[str]) -> str:
    """Run the command line, which must fail with exactly one line on stderr."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["plan", "--help"]])
def test_help_is_fast_and_imports_nothing_heavy(argv):
    code = (
        "import sys, time; start = time.process_time()\n"
        "from sglang_longflow.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'sglang', 'transformers', 'httpx', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time() - start)"
    )
    seconds = []
    for _ in range(3):  # seconds of computing, the best of three: the machine may be busy
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
        )
        seconds.append(float(done.stdout.splitlines()[-1]))
    assert min(seconds) < 0.5


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_no_help_waits_for_a_large_package(name):
    code = (
        "import sys\nfrom sglang_longflow.cli.main import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'sglang', 'transformers', 'numpy', 'httpx', 'aiohttp', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, name], capture_output=True, check=True)


def test_plan_runs_without_torch():
    code = (
        "import sys\nfrom sglang_longflow.cli.main import main\n"
        "argv = 'plan --model qwen3-1.7b --gpu H100-80G --budget 3200'.split()\n"
        "main(argv)\n"
        "assert not {'torch', 'sglang', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["srve"], "COMMAND 'srve' is not one of: serve, demo, "),
        (["srve"], "; did you mean serve?"),
        (["--vrsion"], "unknown flag --vrsion; did you mean --version?"),
        (["top", "--intervall=2"], "unknown flag --intervall; did you mean --interval?"),
        (["plan", "--modle", "x"], "unknown flag --modle; did you mean --model?"),
        (["console", "--quiet"], "unknown flag --quiet"),
        (["plan", "--model", "x", "y"], "unexpected 'y'"),
        (["plan", "org/m", "--budget", "96"], "unexpected 'org/m'; did you mean --model org/m?"),
        (["bench", "org/m", "--out", "x"], "unexpected 'org/m'; did you mean --model org/m?"),
        (["top", "http://a:1"], "unexpected 'http://a:1'; did you mean --url http://a:1?"),
        (["plan", "--budget", "96"], "required: --model"),
        (["demo", "--requests", "9"], "requests=9: expected 1 to 8"),
        (["demo", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["demo", "--budget", "x"], "invalid int value: 'x'"),
        (["demo", "--port", "many"], "port='many'"),
        (["demo", "--budget", "30"], "budget=30: below the minimum 38"),
        (["demo", "--pool", "300"], "budget=400: larger than the whole pool=300; lower --budget"),
        (["demo", "--chain-tokens", "9000"], "chain_tokens=9000: expected 350 to 4600"),
        (["demo", "--model", "m"], "model='m': the reasoner has a model of its own; add --que"),
    ],
)
def test_usage_errors_are_one_line(capsys, argv, text):
    line = error_line(capsys, argv)
    assert line.startswith("longflow") and ": error: " in line and text in line


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    assert all(f"\n    {name} " in text for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        main(["version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("longflow ")
    with pytest.raises(SystemExit) as end:
        main(["help", "top"])
    assert end.value.code == 0 and "usage: longflow top" in capsys.readouterr().out


@pytest.mark.sglang
def test_every_server_argument_is_known_with_its_type():
    """The table read from SGLang's source agrees with SGLang's own parser."""
    code = """
import argparse, json
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser(add_help=False)
ServerArgs.add_cli_args(parser)
rows = [
    (a.option_strings, a.dest, a.nargs, getattr(a.type, "__name__", "")) for a in parser._actions
]
print("TABLE" + json.dumps(rows))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    text = next(line for line in done.stdout.splitlines() if line.startswith("TABLE"))
    ours = {flag: a for a in options.make_parser()._actions for flag in a.option_strings}
    for flags, dest, nargs, type_name in json.loads(text[len("TABLE") :]):
        for flag in flags:
            if flag == "--config":
                continue
            assert ours[flag].dest == dest, flag
            assert ours[flag].nargs == nargs, flag
            if nargs != 0 and flag != "--fuseep-mode":  # an int, parsed by our "any"
                own = ours[flag].type.__name__ if ours[flag].type else ""
                assert own == (type_name if type_name in ("int", "float") else "str") or not own


@pytest.mark.sglang
def test_command_line_beats_yaml_beats_default(tmp_path, model, free_port):
    path = yaml_file(
        tmp_path, "kv_budget: 128\nkv-budget-allow-full: true\ndtype: float32\nport: 1\n"
    )
    argv = [str(model), "--config", str(path), "--kv-budget", "96", f"--port={free_port}"]
    chosen, found = settings.prepare(argv)
    assert chosen.values["kv_budget"] == 96 and chosen.port == free_port
    assert chosen.values["dtype"] == "float32" and chosen.values["enable_metrics"] is True
    assert found["kv"]["kv_budget"] == 96 and found["kv"]["allows_full"]
    # SGLang parses the same words, and there the last one wins too.
    parsed = options.make_parser().parse_args(chosen.arguments)
    assert vars(parsed).items() <= chosen.values.items()
    assert "--config" not in " ".join(chosen.arguments)


@pytest.mark.sglang
def test_yaml_forms(tmp_path):
    path = yaml_file(
        tmp_path,
        "chunked-prefill-size: -1\ntrust_remote_code: true\nenable-metrics: false\n"
        "cuda-graph-bs-decode: [1, 2]\nmodel: some/name\npage-size: null\n"
        "json-model-override-args: '{\"a\": 1}'\n",
    )
    chosen = settings.read_settings(["--config", str(path)])
    assert chosen.values["chunked_prefill_size"] == -1
    assert chosen.values["trust_remote_code"] is True
    assert chosen.values["cuda_graph_bs_decode"] == [1, 2]
    assert chosen.model == "some/name"
    assert "enable_metrics" not in chosen.values and "page_size" not in chosen.values
    assert chosen.values["json_model_override_args"] == '{"a": 1}'


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.yaml")))
@pytest.mark.sglang
def test_shipped_configs_are_valid(name):
    chosen = settings.read_settings(["--config", str(CONFIGS / name)])
    assert chosen.values["kv_budget"] >= 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("kv-bugdet: 96\n", ["unknown key 'kv-bugdet'", "did you mean kv-budget?"]),
        ("zzz: 1\n", ["unknown key 'zzz'"]),
        ("kv-budget: many\n", ["kv-budget='many'", "expected an integer"]),
        ("kv-budget: true\n", ["kv-budget=True", "expected an integer"]),
        ("kv-budget-allow-full: 1\n", ["kv-budget-allow-full=1", "expected true or false"]),
        ("mem-fraction-static: high\n", ["mem-fraction-static='high'", "expected a number"]),
        ("dtype: [a]\n", ["dtype=['a']", "expected a text"]),
        ("a: b: c\n", ["not valid YAML", "line 1"]),
        ("just text\n", ["expected `argument: value` lines"]),
    ],
)
@pytest.mark.sglang
def test_yaml_errors_name_file_key_and_value(capsys, tmp_path, text, parts):
    path = yaml_file(tmp_path, text)
    line = error_line(capsys, ["serve", "some/model", "--config", str(path)])
    assert line.startswith("longflow serve: error: ") and path.name in line
    assert all(part in line for part in parts), line


@pytest.mark.sglang
def test_arguments_of_other_plugins_pass_behind_two_dashes(model):
    argv = [str(model), "--kv-budget", "96", "--", "--foreign", "a", "--attention-backend=theirs"]
    chosen = settings.read_settings(argv)
    assert chosen.arguments[2:5] == ["--foreign", "a", "--attention-backend=theirs"]
    assert chosen.values["attention_backend"] == "theirs", "SGLang's own is read there too"
    assert "foreign" not in chosen.values
    with pytest.raises(ConfigError, match=r"^--foreign: no argument of SGLang's server or of this"):
        settings.read_settings([str(model), "--foreign", "a"])


@pytest.mark.sglang
def test_model_after_flags(model):
    chosen = settings.read_settings(["--kv-budget", "96", str(model)])
    assert chosen.model == str(model)
    assert chosen.arguments == ["--kv-budget", "96", f"--model-path={model}"]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["model_path", "not set"]),
        (["/no/such/folder"], ["model_path='/no/such/folder'", "no such folder"]),
        (["gpt"], ["model_path='gpt'", "org/name"]),
        (["some/m", "--model-path", "other/m"], ["other/m", "some/m"]),
        (["some/m", "--config", "/no/such.yaml"], ["/no/such.yaml", "No such file"]),
        (["some/m", "--kv-budget", "x"], ["--kv-budget", "'x'"]),
        (["some/m", "--port", "70000"], ["port=70000", "65535"]),
        (["some/m", "--host", "no.such.host.invalid"], ["host='no.such.host.invalid'"]),
    ],
)
@pytest.mark.sglang
def test_preflight_errors(capsys, argv, parts):
    line = error_line(capsys, ["serve", *argv])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--kv-budget", "10"], ["kv_budget=10", "38"]),
        (["--kv-policy", "streaming"], ["kv_policy='streaming'", "--kv-budget"]),
        (["--kv-budget", "96", "--kv-policy", "x"], ["kv_policy='x'", "longflow"]),
        (["--kv-budget", "96", "--page-size", "16"], ["page_size=16", "--page-size 1"]),
        (["--kv-budget", "96", "--tp", "1", "--pp-size=2"], ["pp_size=2", "--pp-size 1"]),
    ],
)
@pytest.mark.sglang
def test_preflight_kv_errors(capsys, model, free_port, argv, parts):
    line = error_line(capsys, ["serve", str(model), "--port", str(free_port), *argv])
    assert all(part in line for part in parts), line


@pytest.mark.sglang
def test_folder_without_config(capsys, tmp_path):
    assert "has no config.json" in error_line(capsys, ["serve", str(tmp_path)])


@pytest.mark.sglang
def test_port_in_use(capsys, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = error_line(capsys, ["serve", str(model), "--port", str(port)])
    assert f"port={port}" in line and "in use" in line and "--port " in line


@pytest.mark.sglang
def test_stock_server_gets_a_note(model, free_port):
    chosen, found = settings.prepare([str(model), "--port", str(free_port)])
    assert found["kv"] is None
    text = dict(serve.banner(chosen, None))
    assert text["KV budget"] == "none: stock SGLang" and "stats" not in text
    assert "runs stock SGLang" in text["note"]


@pytest.mark.parametrize(
    ("model", "parser", "row"),
    [
        ("Qwen/Qwen3-8B", None, "stays in content; --reasoning-parser qwen3 takes it out"),
        ("Qwen/Qwen3-8B", "qwen3", "into reasoning_content (parser qwen3)"),
        ("meta-llama/Llama-3.1-8B-Instruct", None, None),
    ],
)
def test_the_banner_says_where_thinking_goes(model, parser, row):
    values = {"model_path": model, "reasoning_parser": parser}
    found = dict(serve.thinking_row(settings.Settings([], values)))
    assert found == ({} if row is None else {"thinking": row})


@pytest.mark.sglang
def test_banner_shows_no_secret(model, free_port, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("api-key: from-yaml\nadmin-api-key: also-from-yaml\n")
    argv = [str(model), "--port", str(free_port), "--config", str(config)]
    argv += ["--ssl-keyfile-password", "from-flag", "--kv-budget", "96"]
    chosen, found = settings.prepare(argv)
    text = str(serve.banner(chosen, found["kv"]))
    assert "from-yaml" not in text and "from-flag" not in text
    assert text.count("***") == 3 and "--kv-budget 96" in text
    assert "--api-key=from-yaml" in chosen.arguments, "the server still gets it"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ([], "38 to 96 tokens; full KV is refused"),
        (["--kv-budget-max=400"], "38 to 400 tokens; full KV is refused"),
        (["--kv-budget-allow-full"], "38 or more tokens; full KV is allowed"),
    ],
)
@pytest.mark.sglang
def test_the_banner_says_which_budgets_requests_may_ask_for(model, free_port, more, text):
    argv = [str(model), "--port", str(free_port), "--kv-budget=96", *more]
    chosen, found = settings.prepare(argv)
    assert dict(serve.banner(chosen, found["kv"]))["by request"] == text


@pytest.mark.sglang
def test_banner(model, free_port):
    argv = [str(model), "--port", str(free_port), "--kv-budget=2048", "--kv-budget-max=4096"]
    chosen, found = settings.prepare([*argv, "--kv-protect-sink-tokens=4"])
    text = dict(serve.banner(chosen, found["kv"]))
    url = f"http://127.0.0.1:{free_port}"
    assert text["model"] == str(model) and text["port"] == str(free_port) and text["url"] == url
    assert text["KV budget"] == "2,048 tokens per request, policy longflow-novel"
    assert text["by request"] == "38 to 4,096 tokens; full KV is refused"
    assert text["protected"] == "first 4, last 16 tokens"
    asked = f"--model {model} --task math500 --budgets 2048,full"
    assert text["quality"] == f"not measured: longflow eval {asked} --out DIR"
    assert text["metrics"] == f"{url}/metrics" and text["stats"] == f"{url}/longflow/stats"
    assert text["console"] == f"{url}/longflow"
    chosen, found = settings.prepare([*argv, "--api-key=k"])
    assert dict(serve.banner(chosen, found["kv"]))["console"] == f"longflow console --url {url}"
    assert "0.5.23" in text["longflow"]


@pytest.mark.sglang
def test_a_key_of_the_environment_is_for_serve_and_not_for_servers_that_measure(
    monkeypatch, model, free_port
):
    """bench, eval and demo ask servers of their own, which would refuse them."""
    started = []
    monkeypatch.setattr(serve, "_watch", lambda settings, *args: started.append(settings) or 0)
    monkeypatch.setenv("LONGFLOW_API_KEY", "of the environment")
    argv = [str(model), "--port", str(free_port), "--kv-budget", "96"]
    assert serve.run(argv) == 0 and serve.run([*argv, "--api-key=given"]) == 0
    keys = [chosen.values["api_key"] for chosen in started]
    assert keys == ["of the environment", "given"]
    chosen, _ = settings.prepare(argv)
    assert "api_key" not in chosen.values and not any(
        "api-key" in word for word in chosen.arguments
    )


@pytest.fixture
def cpu(monkeypatch):
    """``cpu(dtype, GB)``: a machine without a GPU, its fast dtype and its free memory."""
    from sglang_longflow.server.free_memory import Free

    def make(dtype: str = "float32", gigabytes: float = 24.0, device: str = "cpu") -> None:
        monkeypatch.setattr(settings, "fast_dtype", lambda: dtype)
        monkeypatch.setattr(settings, "free_memory", lambda: Free(int(gigabytes * 1e9), "memory"))
        monkeypatch.setattr(settings.device, "gpu_count", lambda: int(device == "cuda"))

    return make


REASONER = str(MODEL_DIR)


def fitted(free_port: int, *arguments: str, model: str = REASONER, most: int | None = None):
    """Settings of a server; what SGLang's own parser makes of them; the banner."""
    argv = [model, f"--port={free_port}", "--kv-budget=96", *arguments]
    chosen, found = settings.prepare(argv, most)
    parsed = vars(options.make_parser().parse_args(chosen.arguments))
    if "max_total_tokens" in parsed:  # SGLang has a parser of its own for it
        parsed["max_total_tokens"] = int(parsed["max_total_tokens"])
        chosen.values["max_total_tokens"] = int(chosen.values["max_total_tokens"])
    assert parsed.items() <= chosen.values.items()
    return chosen, parsed, dict(serve.banner(chosen, found["kv"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", [[], ["--dtype=auto"], ["--dtype", "auto"]])
@pytest.mark.sglang
def test_a_cpu_gets_the_dtype_that_it_computes_fast(cpu, free_port, dtype, given):
    cpu(dtype)
    _, parsed, text = fitted(free_port, *given)
    assert parsed["dtype"] == dtype and text["dtype"].startswith(f"{dtype}: this CPU ")


@pytest.mark.sglang
def test_an_operators_dtype_wins(cpu, free_port):
    cpu("float32")
    _, parsed, text = fitted(free_port, "--dtype=bfloat16")
    assert parsed["dtype"] == "bfloat16" and "dtype" not in text


@pytest.mark.sglang
def test_a_gpu_is_left_alone(cpu, free_port):
    cpu("float32", 1.0, device="cuda")
    _, parsed, text = fitted(free_port, most=5000)
    assert not {"dtype", "max_total_tokens"} & parsed.keys()
    assert not {"dtype", "KV pool"} & text.keys()
    _, parsed, _ = fitted(free_port, "--device=cpu")  # asked for on such a machine
    assert parsed["dtype"] == "float32" and parsed["max_total_tokens"] > 1


@pytest.mark.sglang
def test_a_cpus_pool_is_capped_by_what_is_free(cpu, free_port):
    cpu("float32", 24.0)
    _, parsed, text = fitted(free_port)
    assert 4e9 < parsed["max_total_tokens"] * 8192 < 6e9
    pool = f"{parsed['max_total_tokens']:,} tokens"
    assert text["KV pool"] == f"{pool}, capped by free memory, 24.0 GB"
    assert fitted(free_port, most=700)[1]["max_total_tokens"] == 700
    for own in ("--max-total-tokens=99000000", "--mem-fraction-static=0.5"):
        _, parsed, text = fitted(free_port, own, most=700)
        assert parsed.get("max_total_tokens") in (None, 99_000_000) and "KV pool" not in text


@pytest.mark.sglang
def test_a_model_of_unknown_shape_is_told_of(cpu, free_port, model):
    cpu()
    chosen, parsed, _ = fitted(free_port, model=str(model))
    assert "max_total_tokens" not in parsed
    (note,) = chosen.notes
    assert note.startswith("the KV pool is not capped by free memory") and "num_hidden" in note


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Traceback:", "pkg.errors.ConfigError: kv_budget=9: low", "done"],
         "ConfigError: kv_budget=9: low"),
        (["ValueError: the reason",
          "RuntimeError: Initialization failed. Please see the error messages above."],
         "ValueError: the reason"),
        (["usage: x", "launch_server.py: error: unrecognized arguments: --foo"],
         "error: unrecognized arguments: --foo"),
        (["longflow: error: kv_budget=9: low", "AssertionError: another rank's, later"],
         "error: kv_budget=9: low"),
        (["a.HookNotApplied: one", "noise ignored: SomeError: no"], "HookNotApplied: one"),
        (["only this", ""], "only this"),
        ([], ""),
    ],
)  # fmt: skip
def test_last_error(lines, expected):
    assert process.last_error(lines) == expected


def test_errors_have_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr(serve, "run", lambda argv: (_ for _ in ()).throw(ConfigError("a\n  b")))
    start = time.process_time()
    assert main(["serve"]) == 2 and time.process_time() - start < 1
    assert capsys.readouterr().err == "longflow serve: error: a b\n"


def test_commands_that_start_together_look_for_ports_in_different_places(monkeypatch):
    """A server listens only when its model is loaded: until then its port looks free to others."""
    found = set()
    for pid in range(4_000, 5_250):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        found.add(first_port())
    assert len(found) == 1_250 and min(found) >= 20_000 and max(found) < 30_000


@pytest.mark.sglang
def test_the_ranks_meet_where_no_connection_of_others_can_be(model, free_port):
    chosen, _ = settings.prepare([str(model), "--port", str(free_port)])
    meeting = chosen.values["nccl_port"]
    assert 20_000 <= meeting < 32_768 and meeting != free_port
    assert f"--nccl-port={meeting}" in chosen.arguments
    chosen, _ = settings.prepare([str(model), f"--port={free_port}", "--nccl-port=40123"])
    assert [word for word in chosen.arguments if "nccl" in word] == ["--nccl-port=40123"]
    chosen, _ = settings.prepare([str(model), f"--port={free_port}", "--dist-init-addr=node0:5000"])
    assert "nccl_port" not in chosen.values


@pytest.mark.parametrize("asked", [["--kv-budget", "96"], ["--config", "FILE"]])
def test_serve_refuses_a_budget_on_an_untested_release(tmp_path, monkeypatch, capsys, asked):
    from sglang_longflow.settings import release

    monkeypatch.setattr(release, "installed_sglang", lambda: "0.5.17")
    path = tmp_path / "server.yaml"
    path.write_text("kv-budget: 96\n")
    asked = [str(path) if word == "FILE" else word for word in asked]
    assert main(["serve", "org/model", *asked]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("longflow serve: error: SGLang 0.5.17: not tested with KV budgets")
    assert (
        "; take version 0.2 of this package, pip install sglang==0.5.23, or drop " in line
        and "\n" not in line
    )


@pytest.mark.parametrize("text", ["", "class ServerArgs(Base): pass\n", "ServerArgs = make()\n"])
def test_arguments_of_another_kind_are_refused_by_name(tmp_path, monkeypatch, text):
    """Until SGLang 0.5.19 the class held its fields itself."""
    (tmp_path / "srt").mkdir()
    (tmp_path / "srt" / "server_args.py").write_text(text)
    monkeypatch.setattr(options, "sglang_source", lambda: tmp_path)
    options.server_options.cache_clear()
    try:
        with pytest.raises(ConfigError, match="of another kind than in"):
            options.server_options()
    finally:
        options.server_options.cache_clear()
