# SPDX-License-Identifier: Apache-2.0
"""Decode CUDA graphs for as many rows as fit at the budget."""

import pytest

from sglang_longflow.backend.graph_sizes import MAX_ROWS, graph_batch_sizes

SGLANG_ON_24_GIB = [1, 2, 4, 8, 12, 16, 24]


@pytest.mark.parametrize("rows", [1, 24, 25, 90, 256, 257, 511, 566, 1125])
@pytest.mark.parametrize("sizes", [[1, 2], SGLANG_ON_24_GIB, [*SGLANG_ON_24_GIB, 256], [1, 512]])
def test_every_number_of_rows_has_a_graph_at_most_64_larger(sizes, rows):
    found = graph_batch_sizes(sizes, rows)
    assert found[: len(sizes)] == sizes and found == sorted(set(found))
    assert found[-1] >= rows
    assert len(found) == len(sizes) or found[-2] < rows
    assert all(b - a <= 64 for a, b in zip(found[len(sizes) - 1 :], found[len(sizes) :]))


def test_there_is_an_end():
    assert MAX_ROWS <= graph_batch_sizes([1, 512], 10**6)[-1] < MAX_ROWS + 64
