# SPDX-License-Identifier: Apache-2.0
"""Models of images: tokens equal an independent decode with Hugging Face's model and processor.

An image's tokens are tokens of the row: they are counted, cut from a long prompt and overwritten as
any others. What differs is where RoPE puts them, and what comes after them.
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

import pytest
import torch

import harness
from harness import greedy
from hybrid_models import FLOAT32_STATES
from reference_rankings import rankings_of
from token_oracle import assert_same_but_for_ties, expected
from vision_models import IMAGE, KINDS, data_url, png, words

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]
#: The others are variants.
IN_ALL_RUNS = ("qwen3_vl",)
TRACE = {"LONGFLOW_PROBE_TRACE": "1"}
WIDE, TALL, SMALL = png(320, 256, 1), png(160, 300, 2), png(100, 70, 3)


class Reference:
    """Hugging Face's model and processor of a folder."""

    def __init__(self, folder):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def read(self, text: str, files: tuple[bytes, ...]) -> Prompt:
        from PIL import Image

        images = [Image.open(io.BytesIO(file)) for file in files]
        found = dict(self.processor(text=[text], images=images or None, return_tensors="pt"))
        ids = found.pop("input_ids")[0].tolist()
        del found["attention_mask"]
        return Prompt(text, files, ids, found if files else None)

    def expected(self, prompt: Prompt, budget: int | None, new_tokens: int, **how) -> list[int]:
        # Hugging Face remembers how far the last image moved the positions.
        self.model.model.rope_deltas = None
        media = prompt.media or {}
        return expected(self.model, prompt.ids, budget, new_tokens, media=media, **how)

    def image_places(self, prompt: Prompt) -> set[int]:
        token = self.model.config.image_token_id
        return {place for place, one in enumerate(prompt.ids) if one == token}


@dataclass(frozen=True)
class Prompt:
    """A text with its images; its tokens, and what the model takes beside them."""

    text: str
    files: tuple[bytes, ...]
    ids: list[int]
    media: dict[str, torch.Tensor] | None

    @property
    def images(self) -> list[str] | None:
        return [data_url(file) for file in self.files] or None


def is_hybrid(reference) -> bool:
    return reference.model.config.model_type.startswith("qwen3_5")


def generate(engine, cases, new_tokens: int, name: str):
    """Answers to all (prompt, budget) at once."""
    return engine.generate(
        prompt=[prompt.text for prompt, _ in cases],
        image_data=[prompt.images for prompt, _ in cases],
        sampling_params=[greedy(new_tokens, kv_budget=budget) for _, budget in cases],
        rid=[f"{name}-{i}" for i in range(len(cases))],
    )


def judge(reference, cases, items, trace, new_tokens: int) -> None:
    for (prompt, budget), item in zip(cases, items, strict=True):
        meta, stored = item["meta_info"], len(prompt.ids) + new_tokens - 1
        assert meta["prompt_tokens"] == len(prompt.ids)  # those of the images are among them
        wanted = reference.expected(prompt, budget or None, new_tokens)
        if not budget:
            assert item["output_ids"] == wanted
            continue
        how = dict(media=prompt.media or {})
        reference.model.model.rope_deltas = None
        assert_same_but_for_ties(reference.model, prompt.ids, budget, item, wanted, trace, **how)
        assert meta["kv_resident_tokens"] == min(budget, stored)
        assert meta["kv_overwritten_tokens"] + meta["kv_cut_tokens"] == max(0, stored - budget)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=() if kind in IN_ALL_RUNS else pytest.mark.variant)
        for kind in KINDS
    ],
)
def served(tiny_models, request):
    folder = tiny_models(f"{request.param} with images")
    hybrid = request.param.startswith("qwen3_5")
    with harness.engine(
        folder,
        probe=True,
        env=TRACE | FLOAT32_STATES,
        **(dict(max_mamba_cache_size=80) if hybrid else {}),  # a pool of states is zeroed
        skip_tokenizer_init=False,
        kv_budget=64,
        kv_budget_max=300,
        kv_budget_allow_full=True,
        chunked_prefill_size=128,
    ) as engine:
        yield engine, Reference(folder)


def test_images_are_cut_and_overwritten_as_text_is(served):
    """Images first, in the middle, two of them, none; budgets under and over the prompt; full."""
    engine, reference = served
    first = reference.read(f"{IMAGE} {words(40, 1)}", (WIDE,))
    middle = reference.read(f"{words(5, 2)} {IMAGE} {words(20, 3)}", (TALL,))
    two = reference.read(f"{IMAGE} {words(30, 4)} {IMAGE} {words(34, 5)}", (SMALL, WIDE))
    text = reference.read(words(60, 6), ())
    cases = [(prompt, budget) for prompt in (first, middle, two, text) for budget in (48, 97, 260)]
    cases += [(first, len(first.ids) + 129), (two, 0), (text, 0)]  # just full at the last token
    items = generate(engine, cases, 130, "batch")
    report = engine.probe_report()
    trace = report["trace"]
    judge(reference, cases, items, trace, 130)
    assert report["overlap"] and report["radix"] and report["retractions"] == 0
    # Of the cut prompts every layer kept some of the images' tokens, and gave up others.
    for i, (prompt, budget) in enumerate(cases):
        pictured = reference.image_places(prompt)
        if not pictured or not 0 < budget <= len(prompt.ids):
            continue
        for kept in trace[f"batch-{i}"]["keep"]:
            assert pictured - set(kept)
        assert any(pictured & set(kept) for kept in trace[f"batch-{i}"]["keep"]) or budget == 48
    # A slot of a row that was not cut is that of its token's place, until it is overwritten.
    grown = [i for i, (prompt, budget) in enumerate(cases) if prompt is not text and budget == 260]
    overwritten = [
        slot in reference.image_places(cases[i][0])
        for i in grown
        for victims in trace[f"batch-{i}"]["victims"].values()
        for slot in victims
    ]
    assert overwritten.count(True) > 10


def test_the_same_image_is_hit_and_another_one_is_not(served):
    """A prefix with an image is taken from the tree, not written, and followed by the same tokens.

    An image of the same size is another one.
    """
    engine, reference = served
    harness.cold(engine)
    engine.probe_report()
    start = f"{words(5, 10)} {IMAGE}"
    other = png(320, 256, 99)
    first = reference.read(f"{start} {words(40, 11)}", (WIDE,))
    second = reference.read(f"{start} {words(45, 12)}", (WIDE,))
    unlike = reference.read(f"{start} {words(40, 11)}", (other,))
    assert unlike.ids == first.ids
    shared = max(reference.image_places(first)) + 1
    trace, seen = {}, []
    for budget in (64, 260):
        harness.cold(engine)
        cold = generate(engine, [(first, budget)], 120, f"cold-{budget}")
        assert cold[0]["meta_info"]["cached_tokens"] == 0
        cases = [(second, budget), (unlike, budget), (first, budget)]
        warm = generate(engine, cases, 120, f"warm-{budget}")
        cached = [item["meta_info"]["cached_tokens"] for item in warm]
        assert cached[2] >= (1 if is_hybrid(reference) else shared)
        assert cached[0] >= shared or is_hybrid(reference)  # states are kept at few places
        assert cached[1] <= min(reference.image_places(unlike))
        seen += [((first, budget), cold[0]), *zip(cases, warm, strict=True)]
    report = engine.probe_report()  # every step compared the bytes of the tree's slots
    trace |= report["trace"]
    judge(reference, [case for case, _ in seen], [item for _, item in seen], trace, 120)
    assert report["tree_slots_checked"] > 10_000
    assert report["idle_available"] + report["idle_evictable"] == report["total"]


def test_aborts_leave_nothing_behind(served):
    """Requests with and without images, half of them aborted; strict checks after every step."""
    engine, _ = served
    harness.cold(engine)
    ended = []

    async def one(i: int) -> None:
        file = (WIDE, TALL, SMALL)[i % 3]
        pictured = i % 4 != 3
        stream = await engine.async_generate(
            prompt=f"{words(i + 1, 30 + i)} {IMAGE if pictured else ''} {words(30, 60 + i)}",
            image_data=[data_url(file)] if pictured else None,
            # Those that are aborted would go on for long. SGLang aborts by how a name begins.
            sampling_params=greedy(1500 if i % 2 else 90, kv_budget=(48, 97, 200)[i % 3]),
            rid=f"abort-{i:02}",
            stream=True,
        )
        reasons = []
        async for part in stream:
            reasons.append(part["meta_info"]["finish_reason"])
            if i % 2:
                engine.tokenizer_manager.abort_request(f"abort-{i:02}")
        ended.append(reasons[-1]["type"])

    async def all_of_them() -> None:
        await asyncio.gather(*(one(i) for i in range(24)))

    engine.loop.run_until_complete(all_of_them())
    assert ended.count("abort") == ended.count("length") == 12
    report = engine.probe_report()
    assert report["idle_available"] + report["idle_evictable"] == report["total"]
    assert report["idle_protected"] == 0
    harness.cold(engine)
    assert engine.probe_report()["idle_available"] == report["total"]


@pytest.mark.variant
def test_the_fused_kernels_and_the_default_policy(tiny_models):
    """In Triton's interpreter: an image in a prompt that is cut, in one that fills, and none."""
    folder = tiny_models("qwen3_vl with images")
    reference = Reference(folder)
    cut = reference.read(f"{IMAGE} {words(20, 1)}", (WIDE,))
    fills = reference.read(f"{words(20, 2)} {IMAGE} {words(16, 3)}", (SMALL,))
    text = reference.read(words(70, 4), ())
    cases = [(cut, 80), (fills, 72), (text, 72)]
    protect = dict(protect_sink_tokens=4, protect_recent_tokens=16)
    layers = reference.model.config.get_text_config().num_hidden_layers
    wanted = [
        reference.expected(
            prompt, budget, 40, **protect, ranking=rankings_of("longflow-novel", budget, layers)
        )
        for prompt, budget in cases
    ]
    with harness.engine(
        folder,
        probe=True,
        interpret=True,
        skip_tokenizer_init=False,
        kv_decode_kernel="triton",
        kv_policy="longflow-novel",
        kv_budget=96,
    ) as engine:
        items = generate(engine, cases, 40, "interpreted")
        assert harness.outputs(items) == wanted
        assert engine.probe_report()["peak_full_rows"] == len(cases)


def test_a_chat_with_an_image_over_http(tiny_models):
    """As a client sends it: /v1/chat/completions, an image as a data URL, a budget of its own."""
    folder = tiny_models(f"{KINDS[0]} with images")
    reference = Reference(folder)
    prompt = reference.read(f"{IMAGE} {words(40, 21)}", (WIDE,))
    arguments = ["--model-path", str(folder), "--dtype", "float32", "--max-total-tokens", "3000"]
    arguments += ["--kv-budget", "96", "--kv-policy", "longflow"]
    with harness.Server(arguments) as server:
        server.wait_ready()
        image = {"type": "image_url", "image_url": {"url": data_url(WIDE)}}
        text = {"type": "text", "text": f" {words(40, 21)}"}
        status, answer = server.request(
            "/v1/chat/completions",
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": [image, text]}],
                "temperature": 0,
                "max_tokens": 100,
                "ignore_eos": True,
                "custom_params": {"kv_budget": 64},
            },
        )
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
    said = answer["choices"][0]["message"]["content"]
    wanted = reference.processor.tokenizer.decode(reference.expected(prompt, 64, 100))
    assert said.split() == wanted.split()
    assert answer["metadata"]["kv_cut_tokens"] == len(prompt.ids) - 63
