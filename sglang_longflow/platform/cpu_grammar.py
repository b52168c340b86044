# SPDX-License-Identifier: Apache-2.0
"""Structured output on the CPU platform.

SGLang's xgrammar backend knows how to apply a grammar's mask on a CPU. Where a reasoning parser
takes part, it applies masks by a function of the backend, which refuses any device but a GPU: the
first request with a JSON schema would end the scheduler. The replacement is a row of
`hooks.manifest.PATCHES`.
"""

from __future__ import annotations

import functools
from typing import Any


def apply_reasoners_masks_on_a_cpu() -> None:
    """Let SGLang's backend apply its masks as xgrammar does on a CPU."""
    import xgrammar
    from sglang.srt.constrained import xgrammar_backend as backend

    @functools.wraps(backend.XGrammarGrammarBackend.apply_vocab_mask)
    def apply(logits: Any, vocab_mask: Any) -> None:
        xgrammar.apply_token_bitmask_inplace(logits, vocab_mask)

    backend.XGrammarGrammarBackend.apply_vocab_mask = staticmethod(apply)
