# SPDX-License-Identifier: Apache-2.0
"""What a budget server sets where the operator left it open, and which flags it refuses."""

import json
from types import SimpleNamespace

import pytest

from sglang_longflow.errors import UnsupportedSetup
from sglang_longflow.settings import compatibility, device
from sglang_longflow.settings.config import LongFlowConfig

OPEN = dict(
    page_size=None,
    sleep_on_idle=False,
    attention_backend=None,
    prefill_attention_backend=None,
    decode_attention_backend=None,
    disable_cuda_graph=False,
    disable_prefill_cuda_graph=False,
)
REFERENCE = LongFlowConfig(kv_budget=64)
TRITON = LongFlowConfig(kv_budget=64, kv_decode_kernel="triton")


def refuse(settings):
    """As a scheduler does, with no variable of SGLang's on."""
    compatibility.refuse_resolved(settings, lambda name: False)


@pytest.fixture(params=[False, True], ids=["cpu", "cuda"])
def on_gpu(request, monkeypatch):
    monkeypatch.setattr(device, "gpu_count", lambda: int(request.param))
    monkeypatch.setattr(device, "first_gpu_bytes", lambda: 80 << 30)
    return request.param


@pytest.mark.parametrize("config", [REFERENCE, TRITON], ids=["reference", "triton"])
def test_only_the_fused_kernel_keeps_the_decode_graph(on_gpu, config):
    found = compatibility.defaults(SimpleNamespace(**OPEN), config)
    if not on_gpu:
        assert found == {"page_size": 1, "sleep_on_idle": True}
        return
    graphs = (
        {"disable_prefill_cuda_graph": True, "cuda_graph_max_bs_decode": 512}
        if config is TRITON
        else {"disable_cuda_graph": True}
    )
    assert found == {"page_size": 1, "attention_backend": "flashinfer", **graphs}


def test_defaults_are_said_and_not_written(on_gpu):
    """SGLang seals what the operator typed; what is decided is declared to it."""
    arguments = SimpleNamespace(**OPEN)
    assert compatibility.defaults(arguments, TRITON) and vars(arguments) == OPEN


def test_what_the_operator_set_stays(on_gpu):
    chosen = {**OPEN, "page_size": 16, "decode_attention_backend": "fa3", "sleep_on_idle": True}
    chosen["cuda_graph_max_bs_decode"] = 32
    found = compatibility.defaults(SimpleNamespace(**chosen), TRITON)
    assert found == ({"disable_prefill_cuda_graph": True} if on_gpu else {})


@pytest.mark.parametrize(
    "sizes",
    [
        {"cuda_graph_bs_decode": [1, 2]},
        {"cuda_graph_max_bs_decode": 32},
        {"cuda_graph_config": {"decode": {"backend": "full"}}},
    ],
    ids=lambda sizes: next(iter(sizes)),
)
def test_explicit_graph_sizes_stay(on_gpu, sizes):
    chosen = SimpleNamespace(**OPEN, **sizes)
    assert "cuda_graph_max_bs_decode" not in compatibility.defaults(chosen, TRITON)
    assert not compatibility.graphs_cover_rows(chosen, TRITON)


def test_small_cards_start_from_sglangs_sizes(on_gpu, monkeypatch):
    monkeypatch.setattr(device, "first_gpu_bytes", lambda: 24 << 30)
    found = compatibility.defaults(SimpleNamespace(**OPEN), TRITON)
    assert "cuda_graph_max_bs_decode" not in found


def test_the_backend_adds_sizes_where_there_are_graphs_of_decode(on_gpu):
    """They are a GPU's, of the fused kernel; what `defaults` sets is no word of the operator's."""
    assert compatibility.graphs_cover_rows(SimpleNamespace(**OPEN), TRITON) is on_gpu
    assert not compatibility.graphs_cover_rows(SimpleNamespace(**OPEN), REFERENCE)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((32, 8, 128, 128), ""),
        ((32, 8, 80, 80), r"head_dim=80: the triton decode kernel takes"),
        ((32, 8, 128, 512), r"head_dim=512: the triton decode kernel takes"),
        ((34, 2, 64, 64), r"17 query heads a KV head: the triton decode kernel takes 16"),
    ],
)
def test_heads_that_the_kernel_does_not_take_are_named(heads, message):
    found = compatibility.kernel_conflict(*heads)
    assert found.startswith(message) and bool(found) == bool(message)


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("cuda_graph_backend_prefill", "full", "drop --cuda-graph-backend-prefill"),
        ("cuda_graph_backend_prefill", "tc_piecewise", "drop --cuda-graph-backend-prefill"),
        ("cuda_graph_backend_decode", "breakable", "set --cuda-graph-backend-decode full"),
        ("page_size", 16, "set --page-size 1"),
        ("speculative_algorithm", "EAGLE", "drop --speculative-algorithm"),
        ("enable_deterministic_inference", True, "drop --enable-deterministic-inference"),
        ("rl_on_policy_target", "fsdp", "drop --rl-on-policy-target"),
        ("use_ray", True, "drop --use-ray"),
        ("encoder_only", True, "drop --encoder-only"),
        ("kv_cache_dtype", "fp8_e5m2", "set --kv-cache-dtype fp8_e4m3"),
        ("kv_cache_dtype", "nvfp4", "set --kv-cache-dtype fp8_e4m3"),
        ("device", "xpu", "drop --device"),
        ("attn_dp_size", 2, "set --attn-dp-size 1"),
        ("attn_cp_size", 2, "set --attn-cp-size 1"),
        ("enable_prefill_cp", True, "drop --enable-prefill-cp"),
        ("enable_kv_cache_sharding", True, "drop --enable-kv-cache-sharding"),
        (
            "enable_unified_cache_external_linker",
            True,
            "drop --enable-unified-cache-external-linker",
        ),
        ("enable_page_major_kv_layout", True, "drop --enable-page-major-kv-layout"),
        ("prefill_only_disable_kv_cache", True, "drop --prefill-only-disable-kv-cache"),
        ("enable_nvidia_megakernel", True, "drop --enable-nvidia-megakernel"),
        ("enable_amd_monokernel", True, "drop --enable-amd-monokernel"),
        ("enable_return_routed_experts", True, "drop --enable-return-routed-experts"),
        ("enable_return_indexer_topk", True, "drop --enable-return-indexer-topk"),
        ("enable_paged_experts", True, "drop --enable-paged-experts"),
        ("enable_pd_role_switch", True, "drop --enable-pd-role-switch"),
        ("elastic_ep_backend", "nixl", "drop --elastic-ep-backend"),
        ("kv_canary", "raise", "drop --kv-canary"),
        ("decoupled_spec_role", "verifier", "drop --decoupled-spec-role"),
        ("disaggregation_mode", "decode", "drop --disaggregation-mode"),
    ],
)
def test_a_flag_that_does_not_go_with_a_budget_is_named_with_its_fix(field, value, fix):
    assert compatibility.flag_conflicts(SimpleNamespace()) == []
    with pytest.raises(UnsupportedSetup, match=rf"^{field}={value!r}: .*{fix}"):
        refuse(SimpleNamespace(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cuda_graph_backend_prefill", "disabled"),
        ("cuda_graph_backend_decode", "full"),
        ("cuda_graph_backend_decode", "disabled"),
        ("page_size", 1),
        ("kv_cache_dtype", "fp8_e4m3"),
        ("device", "cuda"),
        ("attn_dp_size", 1),
        ("elastic_ep_backend", "none"),
        ("kv_canary", "none"),
        ("decoupled_spec_role", "null"),
        ("disaggregation_mode", "null"),
        ("cuda_graph_config", '{"decode": {"backend": "full", "max_bs": 8}}'),
        ("cuda_graph_config", {"prefill": {"backend": "disabled"}}),
        ("cuda_graph_config", {"prefill": {"max_bs": 8}, "decode": 3}),
        ("cuda_graph_config", "{"),  # SGLang says what is wrong with it
    ],
)
def test_flags_that_go_with_a_budget_pass(field, value):
    refuse(SimpleNamespace(**{field: value}))


@pytest.mark.parametrize(
    ("phase", "kind", "fix"),
    [
        ("prefill", "breakable", "disabled"),
        ("prefill", "full", "disabled"),
        ("decode", "x", "full"),
    ],
)
def test_a_graph_of_the_json_is_named_too(monkeypatch, phase, kind, fix):
    """It wins over the flags; and so does what SGLang made of it, where there are graphs."""
    words = (
        rf"^cuda_graph_config: a CUDA graph of {phase} of kind '{kind}' .*\"backend\": \"{fix}\""
    )
    given = {phase: {"backend": kind}}
    for typed in (given, json.dumps(given)):
        with pytest.raises(UnsupportedSetup, match=words):
            refuse(SimpleNamespace(cuda_graph_config=typed))
    made = SimpleNamespace(
        prefill=SimpleNamespace(backend="disabled"), decode=SimpleNamespace(backend="full")
    )
    for cards in (0, 1):
        monkeypatch.setattr(device, "gpu_count", lambda cards=cards: cards)
        refuse(SimpleNamespace(cuda_graph_config=made))
        other = SimpleNamespace(**{**vars(made), phase: SimpleNamespace(backend=kind)})
        if not cards:
            refuse(SimpleNamespace(cuda_graph_config=other))
            continue
        with pytest.raises(UnsupportedSetup, match=words):
            refuse(SimpleNamespace(cuda_graph_config=other))


def test_variables_are_asked_by_name():
    on = {"SGLANG_ENABLE_METADATA_GLUE_GRAPH"}
    with pytest.raises(UnsupportedSetup) as caught:
        compatibility.refuse_resolved(SimpleNamespace(), on.__contains__)
    assert str(caught.value) == (
        "SGLANG_ENABLE_METADATA_GLUE_GRAPH=1: a CUDA graph of what the attention backend prepares "
        "is not supported with a KV budget; unset SGLANG_ENABLE_METADATA_GLUE_GRAPH"
    )


@pytest.mark.sglang
def test_what_is_refused_is_sglangs():
    """A misspelt field would be refused for nobody."""
    import msgspec
    from sglang.srt.environ import Envs
    from sglang.srt.server_args import ServerArgs

    fields = {field.name for field in msgspec.structs.fields(ServerArgs)}
    assert {rule.field for rule in compatibility.FLAG_RULES} <= fields
    assert {rule.name for rule in compatibility.VARIABLE_RULES} <= set(vars(Envs))


@pytest.mark.parametrize("backend", compatibility.PAGED_BACKENDS)
@pytest.mark.parametrize(
    ("field", "fix"),
    [
        ("attention_backend", "drop --attention-backend (a KV budget then takes flashinfer)"),
        ("prefill_attention_backend", "set --prefill-attention-backend flashinfer"),
        ("decode_attention_backend", "set --decode-attention-backend flashinfer"),
    ],
)
@pytest.mark.parametrize("pages", [{}, {"page_size": 1}, {"page_size": 64}])
def test_a_backend_that_forces_pages_is_named_instead_of_the_page_size(backend, field, fix, pages):
    """SGLang sets its pages over --page-size 1, so that advice cannot help."""
    with pytest.raises(UnsupportedSetup) as caught:
        refuse(SimpleNamespace(**{field: backend, **pages}))
    message = str(caught.value)
    assert message.startswith(f"{field}={backend!r}: an attention backend with pages")
    assert message.endswith(fix) and "set --page-size 1" not in message


def test_fa4_is_named_where_the_card_gave_it_pages():
    refuse(SimpleNamespace(attention_backend="fa4", page_size=1))
    with pytest.raises(UnsupportedSetup, match=r"^attention_backend='fa4': an attention backend"):
        refuse(SimpleNamespace(attention_backend="fa4", page_size=128))
    with pytest.raises(UnsupportedSetup, match=r"^page_size=128: .*set --page-size 1"):
        refuse(SimpleNamespace(attention_backend="fa3", page_size=128))


@pytest.mark.sglang
def test_the_backends_that_sglang_gives_pages_are_the_ones_we_know():
    """Read from the source that snaps page_size: a new one there must be named here."""
    import re
    from pathlib import Path

    from sglang_longflow.server.options import sglang_source

    text = Path(sglang_source() / "srt/arg_groups/overrides.py").read_text()
    body = text[text.index("def _mla_backend_page_constraints") :]
    body = body[: body.index("@register_post_process")]
    found = set(re.findall(r'_backend == "(\w+)"', body)) | {"intel_xpu"}
    aliases = Path(sglang_source() / "srt/arg_groups/serving_hook.py").read_text()
    assert '"tokenspeed_mla": "cutedsl_mla"' in aliases
    found.add("tokenspeed_mla")
    assert found == set(compatibility.PAGED_BACKENDS)
    assert "def _fa4_page_constraint" in text and "def _intel_xpu_page_constraint" in text
