# SPDX-License-Identifier: Apache-2.0
"""``longflow doctor``: what it reports, in which form, and with which fix. No server."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from sglang_longflow.cli.main import main
from sglang_longflow.server import doctor, preflight, settings
from sglang_longflow.settings.model_source import Missing, Why, look_up


def by_name(rows: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {row.name: row for row in rows}


@pytest.mark.sglang
def test_doctor_json(capsys):
    status = main(["doctor", "--json", "--", "--kv-budget", "96", "--page-size", "16"])
    report = json.loads(capsys.readouterr().out)
    assert status == 1 and report["ok"] is False
    assert all(set(row) == {"name", "status", "detail", "fix"} for row in report["checks"])
    failed = [row for row in report["checks"] if row["status"] == "fail"]
    assert [row["fix"] for row in failed] == ["set --page-size 1"]
    names = {row["name"] for row in report["checks"]}
    assert {"hook targets", "hooks applied", "extension points", "patch targets"} <= names
    assert "device" in names


@pytest.mark.sglang
def test_doctor_names_a_missing_hook_target(monkeypatch, capsys):
    from sglang_longflow.hooks import verify

    gone = dataclasses.replace(
        verify.MANIFEST[0], target="sglang.srt.server_args.ServerArgs.no_such_method"
    )
    monkeypatch.setattr(verify, "MANIFEST", (gone, *verify.MANIFEST[1:]))
    rows = by_name(doctor.check_hooks())
    row = rows[f"hook {gone.target}"]
    assert row.status == "fail" and "missing" in row.detail and "sglang" in row.fix
    assert "hooks applied" not in rows
    assert doctor.run([], device=True, as_json=False) == 1
    assert "would not work here" in capsys.readouterr().out


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("table", "kind", "others"),
    [("EXTENSIONS", "extension", "patch targets"), ("PATCHES", "patch", "extension points")],
)
def test_doctor_names_what_else_the_plugin_needs_of_sglang(monkeypatch, table, kind, others):
    from sglang_longflow.hooks import verify

    rows = getattr(verify, table)
    target = "sglang.srt.mem_cache.allocation.no_such_function"
    gone = dataclasses.replace(rows[0], target=target, device="")
    monkeypatch.setattr(verify, table, (gone, *rows[1:]))
    found = by_name(doctor.check_hooks())
    row = found[f"{kind} {target}"]
    assert row.status == "fail" and "missing" in row.detail
    assert found[others].status == "ok"


@pytest.mark.parametrize(
    ("environ", "has_cuda", "name", "fix"),
    [
        ({"SGLANG_PLUGINS": "other"}, True, "SGLANG_PLUGINS", "SGLANG_PLUGINS=other,longflow"),
        ({"SGLANG_PLUGINS": "longflow"}, False, "SGLANG_PLUGINS", "longflow,longflow_cpu"),
        ({"SGLANG_PLATFORM": "other"}, True, "SGLANG_PLATFORM", "unset SGLANG_PLATFORM"),
        ({"SGLANG_PLATFORM": "longflow_cpu"}, True, "SGLANG_PLATFORM", "unset SGLANG_PLATFORM"),
    ],
)
def test_doctor_sees_filtered_plugins(environ, has_cuda, name, fix):
    row = by_name(doctor.check_entry_points(environ, has_cuda))[name]
    assert row.status == "fail" and row.fix.endswith(fix)


@pytest.mark.parametrize(
    ("environ", "has_cuda"),
    [
        ({}, True),
        ({"SGLANG_PLUGINS": "longflow"}, True),
        ({"SGLANG_PLATFORM": "longflow_cpu"}, False),
    ],
)
def test_doctor_accepts_what_lets_the_plugin_in(environ, has_cuda):
    assert {row.status for row in doctor.check_entry_points(environ, has_cuda)} == {"ok"}


def test_doctor_sees_a_folder_that_hides_kernels(monkeypatch):
    spec = argparse.Namespace(origin=None, submodule_search_locations=["/x/kernels"])
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: spec)
    row = doctor.check_kernels_package()
    assert row.status == "fail" and "/x/kernels" in row.detail


def test_doctor_leaves_the_device_out_when_told(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_device", lambda: pytest.fail("the device was looked at"))
    monkeypatch.setattr(doctor, "check_hooks", lambda: [])
    status = main(["doctor", "--no-device"])
    out = capsys.readouterr().out
    assert status == 0 and "installed for a KV budget" in out and "ready" not in out
    assert any(line.split()[:2] == ["skip", "device"] for line in out.splitlines())


def test_doctor_versions(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", {"sglang": "0.5.99", "torch": "2.10.0"}.get)
    rows = by_name(doctor.check_versions(("0.5.23",)))
    assert rows["sglang"].fix == "pip install sglang==0.5.23"
    assert rows["torch"].fix == "comes with SGLang 0.5.23"
    assert {rows[n].status for n in ("sglang", "torch", "transformers")} == {"fail"}


def test_doctor_says_which_line_it_is_on(monkeypatch):
    from sglang_longflow.settings import release

    monkeypatch.setattr(release, "TESTED_SGLANG", ("0.5.98",))
    monkeypatch.setattr(release, "NEWEST_AUDITED", "0.5.99")
    row = next(iter(doctor.checks([], with_device=False)))
    assert row.name == "line" and "for SGLang 0.5.98 " in row.detail
    assert "newest looked at 0.5.99" in row.detail
    assert "for 0.5.17 take 0.2" in row.detail


@pytest.mark.sglang
def test_doctor_reports_wrong_server_arguments():
    (row,) = doctor.check_server_arguments(["--kv-budget", "5"])
    assert row.status == "fail" and "kv_budget=5" in row.detail
    (row,) = doctor.check_server_arguments(["--page-size", "16"])
    assert row.status == "warn" and "stock" in row.detail


def test_doctor_refuses_a_budget_on_an_untested_release(monkeypatch):
    """The plugin stays off there, so there is no hook to look for; the line is the server's."""
    from sglang_longflow.settings import release

    monkeypatch.setattr(release.importlib.metadata, "version", lambda name: "0.5.17")
    monkeypatch.delitem(release.sys.modules, "sglang", raising=False)
    rows = [*doctor.check_hooks(), *doctor.check_server_arguments(["--kv-budget", "96"])]
    assert [row.status for row in rows] == ["fail", "fail"]
    assert {row.detail for row in rows} == {
        "SGLang 0.5.17: not tested with KV budgets (0.5.23 is), so none may be set on it"
    }
    ours = "take version 0.2 of this package"
    assert rows[0].fix == f"{ours}, or pip install sglang==0.5.23"
    assert rows[1].fix == f"{ours}, pip install sglang==0.5.23, or drop --kv-budget"


@pytest.mark.sglang
def test_doctor_prints_each_row_once_it_is_known(monkeypatch, capsys):
    """What the arguments come to is on the screen before anything slow begins."""
    seen = []
    monkeypatch.setattr(doctor, "check_kernels_package", lambda: doctor.Check("k", "ok", ""))
    monkeypatch.setattr(doctor, "check_cuda", lambda has_gpu: [])
    monkeypatch.setattr(doctor, "check_hooks", lambda: seen.append(capsys.readouterr().out) or [])
    assert main(["doctor", "no/such-model", "--kv-budget", "96", "--", "--page-size", "16"]) == 1
    (before,) = seen
    assert "fail  server arguments" in before and "fix: set --page-size 1" in before
    assert capsys.readouterr().out == "a server with a KV budget would not work here\n"


@pytest.mark.sglang
def test_doctor_reads_the_model_of_a_config_file(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3", "kv_lora_rank": 512}')
    (tmp_path / "model.safetensors").touch()
    file = tmp_path / "server.yaml"
    file.write_text(f"model-path: {tmp_path}\nkv-budget: 96\n")
    (row,) = doctor.check_server_arguments(["--config", str(file)])
    assert row.status == "fail" and "MLA attention" in row.detail
    rows = doctor.check_server_arguments(["--kv-budget", "96"])
    assert [(row.name, row.status) for row in rows] == [
        ("server arguments", "ok"),
        ("model", "skip"),
    ]


@pytest.mark.sglang
def test_a_model_that_was_not_judged_is_no_green_row(monkeypatch, tmp_path):
    """A slow hub, or a config that the command line changes: the start finds out; this says so."""
    silent = Missing("some-lab/model", Why.TIMED_OUT, "https://hub")
    monkeypatch.setattr(preflight, "look_up", lambda *asked, **how: silent)
    monkeypatch.setattr(settings, "check_port", lambda *where: None)
    words = ["some-lab/model", "--kv-budget", "96"]
    rows = doctor.check_server_arguments(words)
    assert [(row.name, row.status) for row in rows] == [
        ("server arguments", "ok"),
        ("model", "warn"),
    ]
    assert "not judged: https://hub does not answer within" in rows[1].detail
    (note,) = [note for note in settings.prepare(words)[0].notes if "for the start" in note]
    assert "does not answer" in note

    monkeypatch.setattr(preflight, "look_up", look_up)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").touch()
    words = [str(tmp_path), "--kv-budget", "96", "--json-model-override-args", '{"a": 1}']
    assert doctor.check_server_arguments(words)[1].status == "warn"


@pytest.mark.sglang
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_doctor_says_what_it_waits_for(monkeypatch, capsys, as_json):
    """On stderr, before the import begins: stdout holds rows alone, or JSON."""
    seen = []
    monkeypatch.setattr(doctor, "check_kernels_package", lambda: doctor.Check("k", "ok", ""))
    monkeypatch.setattr(doctor, "check_hooks", lambda: seen.append(capsys.readouterr().err) or [])
    assert main(["doctor", "--no-device", *as_json]) == 0
    assert seen == [
        "longflow doctor: importing SGLang for the hooks: 15 seconds, minutes if the machine is "
        "busy\n"
    ]
