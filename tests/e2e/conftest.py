# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the small real model, tiny random models, and engines shared by a module."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def starts(request):
    """Servers, whoever starts them, import SGLang once; with REAL_START in a module they do not."""
    import harness

    harness.ENDED.clear()
    with harness.environment(
        **harness.fast_start(not getattr(request.module, "REAL_START", False))
    ):
        yield


@pytest.fixture(autouse=True)
def engine_lives(starts):
    """A test that shares its engine with one that saw it end fails; it would wait forever."""
    import harness

    assert not harness.ENDED, harness.ENDED[-1]
    yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from LONGFLOW_TEST_MODEL or prepared once in the cache."""
    if folder := os.environ.get("LONGFLOW_TEST_MODEL"):
        return Path(folder)
    from sglang_longflow.demo.model import prepare_model

    return prepare_model()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """``tiny_models(kind)`` is the folder of a tiny random model, built once a session."""
    import expert_models
    import harness
    import hybrid_models
    import vision_models

    built: dict[str, Path] = {}
    builders = {
        kind: partial(hybrid_models.build_hybrid_model, kind) for kind in hybrid_models.KINDS
    }
    builders |= {
        kind: partial(expert_models.build_expert_model, kind) for kind in expert_models.KINDS
    }
    builders |= {
        f"{kind} with images": partial(vision_models.build_vision_model, kind)
        for kind in vision_models.KINDS
    }

    def get(kind: str) -> Path:
        if kind not in built:
            build = builders.get(kind) or partial(harness.build_tiny_model, kind)
            built[kind] = build(tmp_path_factory.mktemp(kind.replace(" ", "-")))
        return built[kind]

    return get


@pytest.fixture(scope="session")
def endless(tmp_path_factory) -> Path:
    """A tiny random Llama that has no token to end an answer with."""
    import harness

    return harness.build_tiny_model("llama", tmp_path_factory.mktemp("endless"), eos_token_id=None)


@pytest.fixture(scope="session")
def tiny_with_tokenizer(smollm2, tmp_path_factory) -> Path:
    """A tiny random Llama with SmolLM2's tokenizer and chat template."""
    return _with_tokenizer(smollm2, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def endless_with_tokenizer(smollm2, tmp_path_factory) -> Path:
    """The same with a context of 100,000: a request outlasts any test, which has to abort it.

    Its server needs a ``--max-running-requests``: each has a row as long as the context.
    """
    folder = tmp_path_factory.mktemp("endless-text")
    return _with_tokenizer(smollm2, folder, max_position_embeddings=100_000)


def _with_tokenizer(smollm2: Path, folder: Path, **changes) -> Path:
    from transformers import AutoTokenizer

    import harness

    harness.build_tiny_model("llama", folder, vocab_size=49152, num_hidden_layers=2, **changes)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch computes with one thread here: a test's own model beside a live server on two cores.

    Two OpenMP threads wait for each other at every small matmul; beside a busy server that is many
    times slower than one thread.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
