# SPDX-License-Identifier: Apache-2.0
"""Problems whose answers need long chains, with a reference solution each, and a model for them."""

from pathlib import Path

from sglang_longflow.reasoner.problems import (
    KINDS,
    Problem,
    answer_of,
    draw_length,
    make_problem,
    make_problems,
)

#: Folder of the model that solves them; research/train_reasoner.py makes it.
MODEL_DIR = Path(__file__).parent / "model"

__all__ = [
    "KINDS",
    "MODEL_DIR",
    "Problem",
    "answer_of",
    "draw_length",
    "make_problem",
    "make_problems",
]
