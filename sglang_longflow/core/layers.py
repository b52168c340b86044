# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model have a row: those that keep K and V.

In a hybrid model the others keep a recurrent state of one size for a request, whatever its length.
It stays SGLang's, and nothing here knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class KVLayers:
    """The layers that keep K and V, in the model's order.

    What is kept for each layer (victims, scores, what stays of a prompt) is kept for these alone,
    in tensors that are indexed by `place`. SGLang's pool and its attention layers go by ids.

    Attributes
    ----------
    ids : tuple of int
        As SGLang numbers all layers of the model.
    """

    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {layer_id: place for place, layer_id in enumerate(self.ids)}

    def place(self, layer_id: int) -> int:
        """Where a layer stands among them; KeyError if it keeps no K and V."""
        return self._places[layer_id]
