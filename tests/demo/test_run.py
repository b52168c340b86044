# SPDX-License-Identifier: Apache-2.0
"""What the command line leaves open, and what `--stay` prints."""

from __future__ import annotations

import argparse
import json
import shlex

from sglang_longflow.cli.demo import add_arguments
from sglang_longflow.demo.run import _ask_yourself, _asked, _scene
from sglang_longflow.reasoner import MODEL_DIR
from sglang_longflow.reasoner.vocabulary import encode


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_pool_and_answers_follow_from_the_problems():
    args = arguments("--chain-tokens", "350", "--requests", "1", "--seed", "7")
    scene = _scene(args)
    (question,) = _asked(args, MODEL_DIR)
    assert question.chain_tokens < args.max_new_tokens < 2 * question.chain_tokens
    assert args.pool > len(question.prompt["input_ids"]) + args.max_new_tokens
    assert (args.budget, scene.policy) == (400, "longflow-novel")


def test_what_is_given_stays():
    args = arguments("--budget", "99", "--pool", "5000", "--max-new-tokens", "9", "--requests", "2")
    _scene(args)
    assert (args.budget, args.pool, args.max_new_tokens, args.requests) == (99, 5000, 9, 2)


def test_the_command_to_copy_is_one_that_a_shell_reads():
    args = arguments("--requests", "1")
    _scene(args)
    (question,) = _asked(args, MODEL_DIR)
    words = shlex.split(_ask_yourself("http://127.0.0.1:1", args, question))
    assert words[:2] == ["curl", "http://127.0.0.1:1/generate"]
    body = json.loads(words[-1])
    assert encode(body["text"]) == question.prompt["input_ids"]
    assert body["sampling_params"]["custom_params"] == {"kv_budget": 200}
