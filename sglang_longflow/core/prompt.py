# SPDX-License-Identifier: Apache-2.0
"""Prefill: where a prefill chunk may end when the prompt will be cut."""

from __future__ import annotations


def max_prefix_tokens(stock_limit: int, prompt_tokens: int, window_tokens: int) -> int:
    """Longest prefix hit: the window's queries must be computed, for the cut scores with them."""
    return max(0, min(stock_limit, prompt_tokens - window_tokens))


def chunk_end(start: int, end: int, prompt_tokens: int, window_tokens: int) -> int:
    """End of a prefill chunk such that the last chunk holds the whole window.

    A chunk that would leave 1 to window - 1 tokens for the next one stops before the window, or,
    where it starts there, runs to the end of the prompt.
    """
    left = prompt_tokens - end
    if window_tokens == 0 or left == 0 or left >= window_tokens:
        return end
    before_window = prompt_tokens - window_tokens
    return before_window if before_window > start else prompt_tokens
