# SPDX-License-Identifier: Apache-2.0
"""Chunks of a prompt that will be cut: the last one holds the whole window of queries."""

import random
from itertools import pairwise

import pytest

from sglang_longflow.core.prompt import chunk_end, max_prefix_tokens
from sglang_longflow.settings.compatibility import MIN_CHUNKED_PREFILL_SIZE

WINDOW = 32


def chunks(prompt, start, size_of, window=WINDOW):
    """(start, end) of every chunk as the scheduler makes them."""
    out = []
    while start < prompt:
        end = chunk_end(start, min(prompt, start + size_of(start)), prompt, window)
        assert end > start, "an empty chunk"
        out.append((start, end))
        start = end
        assert len(out) <= prompt
    return out


def check(prompt, start, made, window=WINDOW):
    assert made[0][0] == start
    assert made[-1][1] == prompt
    assert all(a[1] == b[0] for a, b in pairwise(made))
    first, end = made[-1]
    assert end - first >= min(window, prompt - start)
    assert first <= max(start, prompt - window)


@pytest.mark.parametrize("size", [64, 65, 95, 96, 97, 128, 512, 8192])
def test_every_prompt_length_ends_with_its_window_in_the_last_chunk(size):
    for prompt in range(WINDOW, 4 * 64 + 2 * WINDOW + 3):
        for start in {0, 1, prompt // 2, prompt - WINDOW}:
            if start <= prompt - WINDOW:
                check(prompt, start, chunks(prompt, start, lambda _: size))


@pytest.mark.parametrize("case", range(200))
def test_random_prompts_prefixes_and_varying_chunks(case):
    rng = random.Random(case)
    prompt = rng.randint(WINDOW, 3000)
    start = max_prefix_tokens(rng.randint(0, prompt - 1), prompt, WINDOW)
    assert start <= prompt - WINDOW
    # A chunk may shrink to what is left of the pool; never below the window once it starts there.
    made = chunks(prompt, start, lambda _: rng.randint(MIN_CHUNKED_PREFILL_SIZE, 700))
    check(prompt, start, made)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33])
def test_chunks_under_the_window_still_progress_and_still_end_with_it(size):
    for prompt in range(WINDOW, 200):
        check(prompt, 0, chunks(prompt, 0, lambda _: size))


def test_chunks_never_grow_except_from_the_start_of_the_window():
    for prompt in range(64, 300):
        for start in range(0, prompt - WINDOW + 1, 7):
            for end in range(start + 1, prompt + 1, 5):
                got = chunk_end(start, end, prompt, WINDOW)
                assert got <= end or (start == prompt - WINDOW and got == prompt)


def test_a_chunk_shortened_for_the_window_leaves_exactly_the_window():
    assert chunk_end(0, 90, 100, WINDOW) == 68
    assert chunk_end(0, 69, 100, WINDOW) == 68
    assert chunk_end(0, 68, 100, WINDOW) == 68
    assert chunk_end(0, 67, 100, WINDOW) == 67
    assert chunk_end(0, 100, 100, WINDOW) == 100
    assert chunk_end(68, 70, 100, WINDOW) == 100


@pytest.mark.parametrize("window", [1, 2, 7, 32, 64])
def test_any_window_holds(window):
    for prompt in range(window, 400, 3):
        check(prompt, 0, chunks(prompt, 0, lambda _: 64, window), window)


def test_without_a_window_chunks_are_sglangs():
    for end in range(1, 101):
        assert chunk_end(0, end, 100, 0) == end


@pytest.mark.parametrize(
    ("limit", "prompt", "window", "expected"),
    [
        (99, 100, 32, 68),
        (50, 100, 32, 50),
        (68, 100, 32, 68),
        (99, 100, 0, 99),
        (31, 32, 32, 0),
        (9, 10, 32, 0),  # never negative
        (0, 100, 32, 0),
    ],
)
def test_prefix_hit_stops_before_the_window(limit, prompt, window, expected):
    assert max_prefix_tokens(limit, prompt, window) == expected
