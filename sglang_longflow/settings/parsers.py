# SPDX-License-Identifier: Apache-2.0
"""Which of SGLang's reasoning parsers a model needs: a table by name, without torch.

Without its parser a model's thinking arrives in ``content``, not in ``reasoning_content``. From
SGLang's page on reasoning parsers, and for QwQ from its chat template, which opens the thinking
itself as that of DeepSeek-R1 does. Models that a budget refuses are left out.
"""

from __future__ import annotations

import re

#: What `--reasoning-parser` of SGLang 0.5.23 takes; a test compares it with SGLang's source.
REASONING_PARSERS = (
    "auto", "apertus2509", "beam", "deepseek-r1", "deepseek-v3", "deepseek-v4", "deepseek-v41",
    "dots", "glm45", "ling3", "hunyuan", "gpt-oss", "k2_horizon", "kimi", "kimi_k2", "kimi_k3",
    "mimo", "muse", "poolside_v1", "qwen3", "qwen3-thinking", "minimax", "minimax-append-think",
    "minimax-m3", "nanbeige", "step3", "step3p5", "mistral", "nemotron_3",
    "granite_thinking_parser", "interns1", "gemma4", "inkling", "iquest_q1", "cohere_command4",
    "gigachat35", "response_template",
)  # fmt: skip

#: Patterns of a model's name without its organisation, the first that is found; "" does not think.
_BY_NAME = (
    (r"qwen3.*(instruct|coder|base|embedding|reranker)", ""),
    (r"deepseek-r1", "deepseek-r1"),  # the distilled Qwen and Llama models too
    (r"qwen3.*thinking", "qwen3-thinking"),
    (r"qwen3(-[0-9]|$)", "qwen3"),
    (r"qwq", "deepseek-r1"),
    (r"magistral", "mistral"),
)


def reasoning_parser(model: str) -> str:
    """The parser of a model by its name or path; empty if it needs none that is known here."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((parser for pattern, parser in _BY_NAME if re.search(pattern, name)), "")
