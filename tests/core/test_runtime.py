# SPDX-License-Identifier: Apache-2.0
"""The pending view reaches the batch it was made for, once, or the scheduler stops."""

import pytest

from sglang_longflow.core.contracts import DecodeView, PrefillView
from sglang_longflow.core.runtime import PendingView, Runtime
from sglang_longflow.settings.config import LongFlowConfig

VIEW = DecodeView(kv_lens=[4, 5], overwrite=[False] * 2, fresh=[False] * 2, full_rows=[])


def runtime_with(rids, view):
    made = Runtime(LongFlowConfig(kv_budget=64))
    made.pending_view = PendingView(rids, view)
    return made


def test_an_eager_batch_takes_its_view_once():
    made = runtime_with(["a", "b"], VIEW)
    assert made.take_view(["a", "b"]) is VIEW
    with pytest.raises(RuntimeError, match="with the view of None"):
        made.take_view(["a", "b"])


def test_another_batch_is_refused():
    with pytest.raises(RuntimeError, match=r"batch \['a', 'c'\]"):
        runtime_with(["a", "b"], VIEW).take_view(["a", "c"])


def test_a_batch_that_sglang_makes_up_takes_none_and_leaves_it():
    made = runtime_with(["a", "b"], VIEW)
    assert made.take_view(None) is None
    assert made.take_view(["a", "b"]) is VIEW


@pytest.mark.parametrize("view", [VIEW, None])
def test_a_replay_takes_the_view_of_as_many_rows_once(view):
    made = runtime_with(["a", "b"], view)
    assert made.take_replay_view(2) is view
    with pytest.raises(RuntimeError, match="a replay of 2 rows"):
        made.take_replay_view(2)


@pytest.mark.parametrize(
    ("rids", "view"), [(["a"], VIEW), (["a", "b", "c"], None), (["a", "b"], PrefillView(rows=()))]
)
def test_a_replay_with_another_view_is_refused(rids, view):
    with pytest.raises(RuntimeError, match="a replay of 2 rows"):
        runtime_with(rids, view).take_replay_view(2)
