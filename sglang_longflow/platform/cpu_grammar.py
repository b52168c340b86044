# SPDX-License-Identifier: Apache-2.0
"""Structured output on the CPU platform.

SGLang 0.5.17's xgrammar backend pins its masks and applies them in Triton, whatever the device is:
without a GPU the first request with a JSON schema ends the scheduler. xgrammar itself can do both
on a CPU. The three replacements are rows of `hooks.manifest.PATCHES`.
"""

from __future__ import annotations

import functools
from typing import Any


def use_xgrammars_own_masks() -> None:
    """Let SGLang's backend allocate and apply its masks as xgrammar does on a CPU."""
    import torch
    import xgrammar
    from sglang.srt.constrained import xgrammar_backend as backend

    @functools.wraps(backend._allocate_token_bitmask)
    def allocate(vocab_size: int, batch_size: int) -> torch.Tensor:
        shape = xgrammar.get_bitmask_shape(batch_size, vocab_size)
        return torch.full(shape, -1, dtype=xgrammar.bitmask_dtype)

    @functools.wraps(backend.XGrammarGrammarBackend.apply_vocab_mask)
    def apply(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        xgrammar.apply_token_bitmask_inplace(logits, vocab_mask)

    # Here a grammar's method gets the grammar first.
    @functools.wraps(backend.XGrammarGrammar.apply_vocab_mask)
    def apply_as_method(self: Any, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        apply(logits, vocab_mask)

    backend._allocate_token_bitmask = allocate
    backend.XGrammarGrammarBackend.apply_vocab_mask = staticmethod(apply)
    backend.XGrammarGrammar.apply_vocab_mask = apply_as_method
