# SPDX-License-Identifier: Apache-2.0
"""What the demo asks: the reasoner's problems, or questions in a chat model's format."""

from __future__ import annotations

import json
import random
from importlib import resources
from pathlib import Path

from sglang_longflow.demo.phase import DemoError, Question
from sglang_longflow.demo.scenes import CHAIN_TOKENS, SEED
from sglang_longflow.reasoner import KINDS, make_problem
from sglang_longflow.reasoner.vocabulary import encode


def load_problems(
    count: int, seed: int = SEED, chain_tokens: int = CHAIN_TOKENS
) -> tuple[list[Question], int]:
    """The first `count` of the reasoner's problems of a seed, the kinds in turn.

    Their chains have about `chain_tokens`; that of a search may have many more.

    Returns
    -------
    list of Question
    int
        Tokens of the longest prompt.
    """
    rng = random.Random(f"demo/{seed}")
    problems = [make_problem(KINDS[i % len(KINDS)], rng, chain_tokens) for i in range(count)]
    found = [
        Question({"input_ids": encode(p.prompt)}, p.kind, p.answer, p.chain_tokens)
        for p in problems
    ]
    return found, max(len(question.prompt["input_ids"]) for question in found)


def load_questions(count: int) -> list[str]:
    """The first `count` questions of the package's GSM8K sample."""
    text = (resources.files("sglang_longflow") / "demo/data/gsm8k_demo.jsonl").read_text("utf-8")
    questions = [json.loads(line)["question"] for line in text.splitlines()]
    return questions[:count]


def render_prompts(model: Path, questions: list[str]) -> tuple[list[Question], int]:
    """Questions in the model's chat format, and the tokens of the longest.

    Raises
    ------
    DemoError
        The model's tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise DemoError(f"model={str(model)!r}: its tokenizer cannot be loaded: {error}") from error
    prompts = questions
    if tokenizer.chat_template:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    return [Question({"text": prompt}) for prompt in prompts], longest
