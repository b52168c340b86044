# SPDX-License-Identifier: Apache-2.0
"""Scores and rankings of NVIDIA's kvpress (Apache-2.0), by research/compare_kvpress.py.

What is meant to differ:

- kvpress gives each KV head scores of its own; our heads share a victim, by the mean of theirs.
- kvpress prunes a prompt at once; we pick one slot a step (snapkv-decode: an eighth of the budget).
- tova: kvpress never prunes the token written last, by its docstring an addition to TOVA; we may.
- snapkv-decode: kvpress's softmax is over all tokens that a query may see, the window included, and
  so a query that looks at the window has less to say about the rest; ours is over the tokens before
  the window, as LongFlow's cut of the prompt. Given that softmax kvpress's scores are ours.
- rows have their tokens in any order; the scores of snapkv-decode follow the order of writing.
"""

import json
from pathlib import Path

import pytest
import torch

from longflow_kernels import attention_mass
from programs import load_program
from sglang_longflow.policies import FullRows, make_policy

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "kvpress_scores.json").read_text())
EXACT = dict(rtol=2e-5, atol=2e-6)


compare = load_program("research/compare_kvpress.py")


class Memory:
    """A row whose slots were written in any order, as after many overwrites."""

    def __init__(self, order, queries):
        self._order, self._queries = order, queries

    def order(self):
        return self._order[None]

    def queries(self):
        return self._queries[None], torch.ones(1, len(self._queries), dtype=torch.bool)


class Case:
    def __init__(self, recorded):
        self.kvpress = recorded["scores"]
        self.shape = {key: recorded[key] for key in compare.CASES[0]}
        self.queries, self.keys = compare.tensors(**self.shape)
        self.tokens, _, head_dim = self.queries.shape
        shuffled = torch.Generator().manual_seed(recorded["seed"])
        self.slot_of = torch.randperm(self.tokens, generator=shuffled)  # of each token
        order = torch.empty(self.tokens, dtype=torch.int64)
        order[self.slot_of] = torch.arange(self.tokens)
        scaling = head_dim**-0.5
        k = self.keys[order][None]
        self.rows = FullRows(
            budget_tokens=self.tokens,
            overwrites=[0],
            device=torch.device("cpu"),
            compute_scores=lambda: pytest.fail("none of these ranks by removal"),
            compute_attention=lambda: attention_mass(self.queries[-1:], k, scaling),
            load=lambda name: k if name == "k" else pytest.fail("none of these reads values"),
            memory=Memory(order, self.queries[-compare.WINDOW :]),
            scaling=scaling,
        )

    def ours(self, name):
        """Scores [tokens] in sequence order."""
        return make_policy(name).scores(self.rows)[0][self.slot_of]

    def theirs(self, press):
        """Mean over KV heads."""
        return torch.tensor(self.kvpress[press]).reshape(-1, self.tokens).mean(dim=0)


@pytest.fixture(params=RECORDED["cases"], ids=lambda case: f"seed {case['seed']}")
def case(request):
    return Case(request.param)


def ranks(scores):
    return scores.argsort(stable=True).argsort().double()


def agreement(a, b):
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def test_the_record_is_of_these_cases():
    assert [{key: case[key] for key in compare.CASES[0]} for case in RECORDED["cases"]] == list(
        compare.CASES
    )
    window = make_policy("snapkv-decode")
    assert (window.needs.query_window, window.pool_kernel) == (compare.WINDOW, compare.POOL)


def test_keydiff_is_the_mean_of_kvpress_heads(case):
    ours, theirs = case.ours("keydiff"), case.theirs("keydiff")
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert ours.argmin() == theirs.argmin()
    assert agreement(ours, theirs) > 0.9999
    heads = torch.tensor(case.kvpress["keydiff"])
    if len(heads) == 1:  # nothing to share: the same victim
        assert ours.argmin() == heads[0].argmin()


def test_tova_is_kvpress_but_for_the_last_token(case):
    ours, theirs = case.ours("tova"), case.theirs("tova")
    torch.testing.assert_close(ours[:-1], theirs[:-1], **EXACT)
    assert theirs.argmax() == case.tokens - 1  # kvpress puts it first, whatever its share is
    assert ours[:-1].argmin() == theirs.argmin()
    recent = torch.tensor([[int(case.slot_of[-1])]], dtype=torch.int32)
    case.rows.recent = recent  # protected here too, the victims are the same
    policy = make_policy("tova", protect_recent_tokens=1)
    assert policy.victims(case.rows).tolist() == [int(case.slot_of[theirs.argmin()])]


def test_snapkv_is_kvpress_given_the_same_softmax(case):
    ours, theirs = case.ours("snapkv-decode"), case.theirs("snapkv_earlier")
    earlier = case.tokens - compare.WINDOW
    torch.testing.assert_close(ours[:earlier], theirs[:earlier], **EXACT)
    assert ours[earlier:].isinf().all() and theirs[earlier:].min() > theirs[:earlier].max()
    assert agreement(ours[:earlier], theirs[:earlier]) > 0.999


def test_snapkv_ranks_nearly_as_kvpress_by_its_own_softmax(case):
    """The deviation, measured: most of the queue is the same, but not all."""
    ours, theirs = case.ours("snapkv-decode"), case.theirs("snapkv")
    earlier = case.tokens - compare.WINDOW
    assert (theirs[:earlier] < ours[:earlier]).float().mean() > 0.9  # the window takes its share
    interval = make_policy("snapkv-decode").interval_tokens(case.tokens)
    queues = [set(x[:earlier].argsort()[:interval].tolist()) for x in (ours, theirs)]
    shared = len(queues[0] & queues[1]) / interval
    assert agreement(ours[:earlier], theirs[:earlier]) > 0.9
    assert shared >= 0.6


@pytest.mark.parametrize("drop", compare.DROPS)
def test_streaming_drops_what_kvpress_drops(case, drop):
    policy = make_policy("streaming", protect_sink_tokens=compare.SINKS)
    theirs = torch.tensor(case.kvpress["streaming"][str(drop)])
    dropped = {policy.known_victim(case.tokens, done) for done in range(drop)}
    assert dropped == set((theirs == 0).nonzero()[:, 0].tolist())
