# SPDX-License-Identifier: Apache-2.0
"""Which tokens a problem is trained without."""

import random

import pytest
import torch

from programs import load_program
from sglang_longflow.reasoner import KINDS, make_problem
from sglang_longflow.reasoner.lifetimes import lifetimes

LAYERS, WIDTH = 4, 1600


@pytest.fixture(scope="module")
def script():
    return load_program("research/train_reasoner.py")


def drawn():
    rng = random.Random("training")
    return [make_problem(kind, rng, 900) for kind in KINDS * 2]


def test_nothing_is_missing_unless_asked_for(script):
    assert script.seen_until(drawn(), WIDTH, LAYERS, 0.0, 0.4, random.Random(1)) is None


def test_hidden_tokens_are_of_no_more_use_and_missing_in_every_layer(script):
    problems = drawn()
    until = script.seen_until(problems, WIDTH, LAYERS, 1.0, 0.0, random.Random(1))
    assert until.shape == (LAYERS, len(problems), WIDTH)
    assert (until == until[0]).all() and (until < WIDTH).any()
    for row, problem in zip(until[0].tolist(), problems, strict=True):
        ends = lifetimes(problem)
        assert all(seen >= end for seen, end in zip(row, ends))
        assert set(row[len(ends) :]) == {WIDTH}


def test_a_layer_drops_its_own_share_of_tokens_but_none_that_is_new(script):
    problems = drawn()
    hidden = script.seen_until(problems, WIDTH, LAYERS, 1.0, 0.0, random.Random(1))
    until = script.seen_until(problems, WIDTH, LAYERS, 1.0, 0.4, random.Random(1))
    dropped = until != hidden
    age = until - torch.arange(WIDTH)
    assert (until <= hidden).all()
    assert age[dropped].min() >= 64
    shares = dropped.float().mean(dim=2)
    assert shares.max() < 0.45 and shares.std() > 0.02  # other shares, in other layers
    assert not (dropped[0] == dropped[1]).all()


def test_what_sees_what(script):
    seen = script.visible(torch.tensor([[4, 2, 4, 4]]))[0, 0]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert seen.int().tolist() == expected
