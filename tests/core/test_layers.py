# SPDX-License-Identifier: Apache-2.0
"""The map from SGLang's layers to those that have rows."""

import pytest

from sglang_longflow.core.layers import KVLayers


def test_a_layer_stands_where_the_model_has_it_among_those_with_rows():
    layers = KVLayers((3, 7, 11))
    assert len(layers) == 3
    assert [layers.place(layer_id) for layer_id in layers.ids] == [0, 1, 2]
    with pytest.raises(KeyError):
        layers.place(4)
