# SPDX-License-Identifier: Apache-2.0
"""How a decode step ranks the slots of its rows. No torch, no Triton: settings are judged by it."""

from __future__ import annotations

from dataclasses import dataclass

#: `rows.REMEMBERS` of a row that ranks by its past scores and by novelty.
USES_NOVELTY = 2


@dataclass(frozen=True)
class Novelty:
    """What a slot's score gains by being unlike all newer tokens.

    ``weight * level * novelty_worth(recall) * min(1, (1 - similarity) / span)``, with the row's
    level and recall.

    Attributes
    ----------
    weight : float
        In levels of the row.
    level_share : float
        The share of a row's slots that remember less than its level.
    recall_threshold : float
        The recall from which on novelty counts in full (`novelty.recall.novelty_worth`).
    similarity_threshold : float
        Below this cosine similarity a slot's token counts as new altogether.
    """

    weight: float
    level_share: float
    recall_threshold: float
    similarity_threshold: float

    @property
    def span(self) -> float:
        """The similarities over which novelty falls from 1 to 0."""
        return 1 - self.similarity_threshold


@dataclass(frozen=True)
class RankRule:
    """How the scored rows of a server are ranked: the slot with the lowest score goes.

    Attributes
    ----------
    first_tokens_kept : int
        Row indices below it are never chosen.
    decay : float
        A row that remembers ranks by the highest of its slots' past scores, each multiplied by
        this once per step since; 0: by this step's scores alone.
    novelty : Novelty, optional
        What is added to the scores of rows that use it.
    """

    first_tokens_kept: int = 0
    decay: float = 0.0
    novelty: Novelty | None = None

    @property
    def remembers(self) -> int:
        """`rows.REMEMBERS` of a row that is ranked by this rule."""
        return USES_NOVELTY if self.novelty else int(self.decay > 0)

    def values_per_slot(self, victim_heads: int) -> int:
        """How many values a slot has in `RowState.slot_values`."""
        return 2 if self.novelty else victim_heads
