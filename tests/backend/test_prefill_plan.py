# SPDX-License-Identifier: Apache-2.0
"""PrefillPlan: what FlashInfer's wrappers get, against what SGLang works out on the device."""

from types import SimpleNamespace

import pytest
import torch

from sglang_longflow.backend.prefill_plan import PrefillPlan


class Event:
    """A stand-in for CUDA's; `done` says whether what was recorded has been reached."""

    done = True
    recorded = 0

    def query(self):
        return Event.done

    def record(self):
        Event.recorded += 1


class Wrapper:
    def __init__(self):
        self.given = []

    def begin_forward(self, *args, **kwargs):
        self.given.append((args, kwargs))


class FlashInferAttnBackend:
    """As SGLang's: it plans from tensors that, on a GPU, would be the device's."""

    dispatch_reason = None
    enable_mis = False
    dq_page_table = None

    def __init__(self, ragged=True):
        self.prefill_wrapper_ragged = Wrapper()
        self.prefill_wrappers_paged = [Wrapper()]
        self.ragged = ragged

    def init_forward_metadata(self, batch):
        extends, prefixes = torch.tensor(batch.extend_seq_lens), torch.tensor(batch.prefixes)
        self.qo = torch.tensor([0, *extends.cumsum(0)], dtype=torch.int32)
        lengths = prefixes if self.ragged else prefixes + extends
        self.kv = torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32)
        self.indices, self.ones = torch.arange(9), torch.ones(len(extends), dtype=torch.int32)
        if self.ragged:
            self.prefill_wrapper_ragged.begin_forward(self.qo, self.qo, 8, causal=True)
        self.prefill_wrappers_paged[0].begin_forward(
            self.qo, self.kv, self.indices, self.ones, 8, 4, non_blocking=True
        )


def batch_of(extends, prefixes, **changes):
    known = dict(extend_seq_lens_cpu=extends, extend_prefix_lens_cpu=prefixes)
    return SimpleNamespace(
        extend_seq_lens=extends,
        prefixes=prefixes,
        **{**known, "batch_size": len(extends), **changes},
    )


@pytest.fixture
def event(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "done", True)
    monkeypatch.setattr(Event, "recorded", 0)
    return Event


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize(("extends", "prefixes"), [([7], [0]), ([3, 1, 90], [0, 64, 5])])
def test_wrappers_get_the_same_lengths_from_the_host(event, ragged, extends, prefixes):
    inner = FlashInferAttnBackend(ragged)
    wrappers = [inner.prefill_wrapper_ragged, *inner.prefill_wrappers_paged]
    plan = PrefillPlan(inner)
    plan.prepare(batch_of(extends, prefixes))
    assert event.recorded == 1
    for wrapper in wrappers if ragged else wrappers[1:]:
        (args, kwargs), *more = wrapper.given
        assert not more
        given, rest = args[:2], args[2:]
        own = wrapper is inner.prefill_wrapper_ragged
        for got, device in zip(given, (inner.qo, inner.qo if own else inner.kv), strict=True):
            assert got is not device and torch.equal(got, device) and got.dtype == device.dtype
        if own:
            assert (rest, kwargs) == ((8,), dict(causal=True))
        else:
            assert rest[0] is inner.indices and torch.equal(rest[1], inner.ones)
            assert (rest[2:], kwargs) == ((8, 4), dict(non_blocking=True))


@pytest.mark.parametrize("why", ["copying", "lengths unknown", "padded", "other indices"])
def test_otherwise_the_plan_is_sglangs(event, why):
    inner = FlashInferAttnBackend()
    batch = batch_of([3, 4], [0, 2])
    if why == "copying":  # the pinned buffer is still being read
        event.done = False
    elif why == "lengths unknown":
        batch = batch_of([3, 4], [0, 2], extend_prefix_lens_cpu=None)
    elif why == "padded":
        batch = batch_of([3, 4], [0, 2], batch_size=4)
    else:
        inner.dq_page_table = torch.arange(3)
    PrefillPlan(inner).prepare(batch)
    ((given, _),) = inner.prefill_wrappers_paged[0].given
    assert given[0] is inner.qo and given[1] is inner.kv and given[3] is inner.ones
    ((given, _),) = inner.prefill_wrapper_ragged.given
    assert (given[0] is inner.qo) == (why != "other indices")


def test_a_plan_that_no_prefill_asked_for_is_left_alone(event):
    inner = FlashInferAttnBackend()
    PrefillPlan(inner).prepare(batch_of([3], [0]))
    inner.init_forward_metadata(batch_of([5, 6], [0, 0]))
    given, _ = inner.prefill_wrappers_paged[0].given[-1]
    assert given[0] is inner.qo and given[1] is inner.kv


@pytest.mark.parametrize(
    "changes",
    [
        dict(dispatch_reason="sliding window"),
        dict(enable_mis=True),
        dict(prefill_wrappers_paged=[]),
    ],
)
def test_backends_that_plan_otherwise_are_not_touched(changes):
    inner = FlashInferAttnBackend()
    assert PrefillPlan.can_plan(inner)
    for name, value in changes.items():
        setattr(inner, name, value)
    assert not PrefillPlan.can_plan(inner)
    assert not PrefillPlan.can_plan(SimpleNamespace(dispatch_reason=None))
