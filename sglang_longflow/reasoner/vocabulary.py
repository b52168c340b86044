# SPDX-License-Identifier: Apache-2.0
"""The words of the problems, one token each."""

from __future__ import annotations

import json
from pathlib import Path

PAD, BEGIN, END = "<pad>", "<bos>", "<eos>"
NODES = tuple("ABCDEFGHIJKL")
GROUPS = tuple(f"g{i}" for i in range(1, 6))
DIGITS = tuple("0123456789")
MARKS = tuple(": ; = > + * | x y a b d".split())
WORDS = ("machine", "affine", "search", "steps", "go", "yes", "no", "ans")
TOKENS = (PAD, BEGIN, END, *DIGITS, *NODES, *GROUPS, *MARKS, *WORDS)
TOKEN_IDS = {token: i for i, token in enumerate(TOKENS)}


def encode(text: str) -> list[int]:
    """Token ids of a text of words with spaces between, ``<bos>`` first.

    Raises
    ------
    KeyError
        A word that is no token.
    """
    return [TOKEN_IDS[BEGIN], *(TOKEN_IDS[word] for word in text.split())]


def decode(ids: list[int]) -> str:
    """The words of token ids, without ``<bos>``, ``<eos>`` and ``<pad>``."""
    return " ".join(TOKENS[i] for i in ids if i > 2)


def save_tokenizer(folder: Path, context_tokens: int) -> None:
    """Write files from which Hugging Face and SGLang load the same tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(TOKEN_IDS), unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, TOKEN_IDS[BEGIN])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    generation = {"eos_token_id": TOKEN_IDS[END], "bos_token_id": TOKEN_IDS[BEGIN]}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")
