# SPDX-License-Identifier: Apache-2.0
"""A tiny random model with words and thinking, for tests of clients."""

from __future__ import annotations

from pathlib import Path

import harness

#: As Qwen3's: thinking unless it is switched off.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def build(tokenizer_from: Path, folder: Path) -> Path:
    """A random Llama with SmolLM2's words, ``<think>`` and ``</think>``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    vocab_size = len(tokenizer) + -len(tokenizer) % 64
    harness.build_tiny_model("llama", folder, vocab_size=vocab_size, num_hidden_layers=2)
    tokenizer.save_pretrained(folder)
    return folder
