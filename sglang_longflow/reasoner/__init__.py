"""Problems whose answers need long chains, with a reference solution each, and their vocabulary."""

from sglang_longflow.reasoner.problems import (
    KINDS,
    Problem,
    answer_of,
    draw_length,
    make_problem,
    make_problems,
)

__all__ = ["KINDS", "Problem", "answer_of", "draw_length", "make_problem", "make_problems"]
