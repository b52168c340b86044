# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a decode step agree on: fields of its rows, codes of scores, splits.

Names that all kernels use:

- ``x_ptr``: where tensor x begins; its shape and dtype stand in the kernel's docstring.
- ``x_at``: pointers to the entries of x that the program is about to read or write.
- ``offs_x``: 0, 1, ... of a block: n slots, h query heads of a group, d and dv channels of K and V,
  t tiles, v heads that vote, s splits, c chunks, r places of a ring (or rows). ``in_x``: which of
  them exist. ``valid``: which entries of a block do, in any other block.
- ``row``: of the batch. ``req``: of the server's state, the row's ``req_pool_idx``.
- ``position``: a slot's index in its row, 0 to kv_len - 1. ``slot``: its index in the pool.
- ``newest``: the position that this step writes. ``written``: tokens overwritten since the row
  filled.
- UPPER_CASE arguments are compiled in; an optional tensor that is absent is None, compiled in too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longflow_kernels.attend_score_evict import rule

#: Rows of the step's int32 description [NUM_FIELDS, batch], see `rows.pack_rows`.
KV_LEN = tl.constexpr(0)
OVERWRITES = tl.constexpr(1)
SCORE_OFFSET = tl.constexpr(2)
GIVEN_VICTIM = tl.constexpr(3)
WRITTEN = tl.constexpr(4)
KV_START = tl.constexpr(5)
BY_ATTENTION = tl.constexpr(6)
REMEMBERS = tl.constexpr(7)
NUM_FIELDS = 8
#: REMEMBERS of a row that ranks by its past scores and by novelty; 1: by its past scores, 0: by
#: this step's alone.
USES_NOVELTY = tl.constexpr(rule.USES_NOVELTY)

#: Probabilities are kept up to 2**8, not 1: in float16 fewer of them fall below its normal numbers.
HEADROOM = tl.constexpr(8.0)
#: Scores are kept between the kernels in 16 bits, 7 of exponent and 9 of mantissa: from 2**-96 to
#: 2**32 in steps of 0.2 %. Smaller ones count as equally useless. Larger ones do not occur: a score
#: is at most 2**8 times the sum of a value's magnitudes.
CODE_SHIFT = tl.constexpr(14)
CODE_ROUND = tl.constexpr(1 << 13)
CODE_BIAS = tl.constexpr((127 - 96) << 23)
SCORE_FLOOR = tl.constexpr(2.0**-96)
#: Every scored row begins at a multiple of this in `scores`, so no tile holds two rows.
SCORE_ALIGN = tl.constexpr(128)


@triton.jit
def encode(p, norm):
    """The score p * norm as 16 bits, rounded to the nearest."""
    bits = (p * norm + SCORE_FLOOR).to(tl.int32, bitcast=True)
    return ((bits + (CODE_ROUND - CODE_BIAS)) >> CODE_SHIFT).to(tl.int16)


@triton.jit
def decode(codes):
    """float32 scores of their 16 bits."""
    bits = ((codes.to(tl.int32) & 65535) << CODE_SHIFT) + CODE_BIAS
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def tokens_of_split(kv_len, min_split_tokens, max_splits, BLOCK_N: tl.constexpr):
    """Tokens of each split of a row; both kernels must agree on it."""
    splits = tl.minimum(max_splits, tl.cdiv(kv_len, min_split_tokens))
    return tl.cdiv(tl.cdiv(kv_len, splits), BLOCK_N) * BLOCK_N
