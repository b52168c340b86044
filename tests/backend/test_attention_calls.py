# SPDX-License-Identifier: Apache-2.0
"""What a model asks of attention beside q, k and v is refused by name, not swallowed."""

from types import SimpleNamespace

import pytest

from sglang_longflow.errors import UnsupportedSetup

pytestmark = pytest.mark.sglang


@pytest.fixture
def backend():
    """Our backend over one that notes its calls; nothing of a pool or of rows."""
    from sglang_longflow.backend.attention import LongFlowAttnBackend

    calls = []

    def note(*args):
        calls.append(args)
        return "out"

    made = LongFlowAttnBackend.__new__(LongFlowAttnBackend)
    made.inner = SimpleNamespace(forward_extend=note)
    made.decode = SimpleNamespace(forward=note)
    made.prompt_cut = SimpleNamespace(rows=())
    made._checked_layers = set()
    made.calls = calls
    return made


def real_layer(**attributes):
    """SGLang's own attention layer, as a model makes it."""
    from sglang.srt.layers.radix_attention import RadixAttention

    layer = RadixAttention(4, 64, 0.125, num_kv_heads=2, layer_id=3)
    for name, value in attributes.items():
        assert hasattr(layer, name), name  # a name of SGLang's, not one that only we know
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("step", ["forward_decode", "forward_extend"])
@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"sinks": object()}, "sinks"),
        ({"slopes": [0.5], "topk_indices": 0}, "slopes, topk_indices"),
        ({"anything_new": False}, "anything_new"),
    ],
)
def test_keywords_are_refused_by_name(backend, step, kwargs, names):
    with pytest.raises(UnsupportedSetup, match=rf"^layer 3 calls attention with {names}: not supp"):
        getattr(backend, step)(0, 0, 0, real_layer(), None, **kwargs)
    assert backend.calls == []


@pytest.mark.parametrize("step", ["forward_decode", "forward_extend"])
def test_plain_attention_passes(backend, step):
    layer = real_layer()
    for kwargs in ({}, {"sinks": None}):
        assert getattr(backend, step)(1, 2, 3, layer, 4, True, **kwargs) == "out"
    assert backend.calls == [(1, 2, 3, layer, 4, True)] * 2


@pytest.mark.parametrize("step", ["forward_decode", "forward_extend"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sliding_window_size", 127),
        ("xai_temperature_len", 1024),
        ("is_cross_attention", True),
        ("use_irope", True),
        ("logit_capping_method", "sigmoid"),
        ("attn_type", "encoder_only"),
    ],
)
def test_layers_of_another_attention_are_refused_by_name(backend, step, name, value):
    if name == "attn_type":
        from sglang.srt.layers.radix_attention import AttentionType

        value = AttentionType(value)
    with pytest.raises(UnsupportedSetup, match=rf"^layer 3 has {name}="):
        getattr(backend, step)(0, 0, 0, real_layer(**{name: value}), None)
    assert backend.calls == []


def test_what_the_base_class_gives_a_value_is_the_inner_backends(backend):
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

    names = ("forward_metadata", "kv_index_translator", "data_type", "kv_cache_dtype")
    for name in (*names, "extend_dummy_seqs_capped_by_req_pool"):
        assert hasattr(AttentionBackend, name)
        mark = object()
        setattr(backend.inner, name, mark)
        assert getattr(backend, name) is mark


def test_a_prefill_reads_the_table_of_slots_to_its_end_whatever_the_inner_backend_does(backend):
    from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    ends = SharedReadEnds.PRE_REPLAY
    backend.inner.shared_read_ends = lambda mode: ends
    backend.inner.resolve_prefill_shared_read_ends = lambda batch, **_: ends
    batch = SimpleNamespace(forward_mode=ForwardMode.EXTEND)
    found = backend.resolve_prefill_shared_read_ends(batch, num_qo_tokens=8)
    assert found is SharedReadEnds.UNKNOWN
    assert backend.get_fused_kv_write_buffers(real_layer(), batch) is None
