# SPDX-License-Identifier: Apache-2.0
"""The parts of `longflow eval --task text:FILE` that need no server."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang_longflow.errors import ConfigError, EvalError
from sglang_longflow.measure.accuracy import ask
from sglang_longflow.measure.accuracy.records import Records
from sglang_longflow.measure.accuracy.summary import save
from sglang_longflow.measure.divergence import run as text_run
from sglang_longflow.measure.divergence.forced import (
    KEY,
    DistributionStore,
    ForcedText,
    kl_of,
    step_of,
)
from sglang_longflow.measure.divergence.run import Setup, check_room
from sglang_longflow.measure.divergence.summary import (
    TextRecord,
    draw_kl,
    interval,
    show_texts,
    summarise_texts,
)
from sglang_longflow.measure.divergence.texts import TextTask, pack, read_solved
from sglang_longflow.measure.variants import Variant

TASK = TextTask(Path("solved.jsonl"), text_tokens=50, prompt_tokens=10, count=99, seed=3)
RECORD = TextRecord("longflow", 64, 0, 0.25, 0.9, 10, 40, 49, 0, 0)
VOCABULARY, STEPS = 97, 5


class Letters:
    """A tokenizer with a token for each letter."""

    def __init__(self, bos: int | None = None):
        self.bos_token_id = bos

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        start = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": start + [ord(letter) for letter in text]}


PROBLEMS = [f"{n:03d} plus one is {n + 1:03d}." for n in range(40)]


def test_texts_have_one_length_and_share_no_problem():
    texts = pack(PROBLEMS, TASK, Letters())
    assert {len(text) for text in texts} == {50}
    assert len(texts) == 40 // 3  # problems of 20 letters, the third one cut off
    written = ["".join(map(chr, text)) for text in texts]
    firsts = [text[at : at + 3] for text in written for at in (0, 20, 40)]
    assert len(set(firsts)) == len(firsts)


def test_packing_follows_the_seed_and_not_the_count():
    texts = pack(PROBLEMS, TASK, Letters())
    assert pack(PROBLEMS, TASK, Letters()) == texts
    assert pack(PROBLEMS, replace(TASK, count=4), Letters()) == texts[:4]
    assert pack(PROBLEMS, replace(TASK, seed=4), Letters()) != texts


def test_every_text_begins_with_the_models_first_token():
    assert [text[0] for text in pack(PROBLEMS, TASK, Letters(bos=1))] == [1] * 13


def test_too_little_text_is_refused_with_its_length():
    with pytest.raises(ConfigError, match=r"text_tokens=50: the 2 problems .* have 40 tokens"):
        pack(PROBLEMS[:2], TASK, Letters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt_tokens=0), "prompt_tokens=0: expected at least 1"),
        (dict(prompt_tokens=50), "text_tokens=50: expected more than prompt_tokens=50"),
    ],
)
def test_wrong_lengths_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TASK, **changes)


def test_a_files_problems_with_their_solutions(tmp_path):
    file = tmp_path / "solved.jsonl"
    gsm8k = {"question": "2 + 2?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"}
    math = {"problem": "$1+1$?", "solution": "It is $\\boxed{2}$.", "answer": "2"}
    file.write_text(json.dumps(gsm8k) + "\n\n" + json.dumps(math) + "\n")
    assert read_solved(file) == [
        "Problem: 2 + 2?\n\nSolution: It is 2+2=4.\n#### 4\n\n\n",
        "Problem: $1+1$?\n\nSolution: It is $\\boxed{2}$.\n\n\n",
    ]
    file.write_text(json.dumps(gsm8k) + "\n" + json.dumps({"question": "?"}) + "\n")
    with pytest.raises(ConfigError, match="line 2 is no JSON object with question or problem"):
        read_solved(file)
    with pytest.raises(ConfigError, match=r"task='text:.*none.jsonl': no such file"):
        read_solved(tmp_path / "none.jsonl")


def row(folder, place, step, line, prompt=7):
    """custom_params of a request that samples its token `step`."""
    prefilled = prompt + min(step, 0)
    request = SimpleNamespace(
        origin_input_ids=[0] * prompt,
        extend_end=prefilled,
        decode_batch_idx=max(step, 0),
    )
    assert step_of(request) == step
    return {
        KEY: {"folder": str(folder), "text_index": place, "result_index": line},
        "__req__": request,
    }


@pytest.fixture
def store(tmp_path):
    store = DistributionStore.create(
        tmp_path, texts=2, steps=STEPS, vocabulary=VOCABULARY, results=2
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (2, STEPS), generator=generator)
    store.tokens[:], store.top[:], store.results[:] = tokens.numpy(), -1, np.nan
    return store


def test_a_retracted_row_goes_on_at_its_token():
    request = SimpleNamespace(origin_input_ids=[0] * 7, extend_end=7 + 3, decode_batch_idx=0)
    assert step_of(request) == 3
    request.decode_batch_idx = 2
    assert step_of(request) == 5


def test_kept_and_compared_as_plain_torch_does(store, tmp_path):
    torch.manual_seed(1)
    full = 4 * torch.randn(2, STEPS, VOCABULARY)
    ours = full + torch.randn(2, STEPS, VOCABULARY)
    ours[1] = full[1]  # the second text loses nothing
    force = ForcedText()
    for logits, compared in ((full, False), (ours, True)):
        for step in range(STEPS):
            rows = [row(tmp_path, place, step, 1 - place if compared else None) for place in (1, 0)]
            given = logits[[1, 0], step].clone()
            forced = force(given, rows)
            assert forced.argmax(-1).tolist() == store.tokens[[1, 0], step].tolist()
            assert torch.isinf(forced).sum(-1).tolist() == [VOCABULARY - 1] * 2
    expected = torch.nn.functional.kl_div(
        ours.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    kl, agreement = torch.from_numpy(np.array(store.results))
    torch.testing.assert_close(kl[1], expected[0], rtol=2e-3, atol=1e-5)
    assert kl[0].abs().max() < 1e-5
    assert torch.equal(agreement.bool(), (full.argmax(-1) == ours.argmax(-1))[[1, 0]])
    assert (store.top == full.argmax(-1).numpy()).all()


def test_a_chunk_and_the_step_beyond_the_end_are_passed_over(store, tmp_path):
    """One batch may hold rows of both runs, and rows that are not measured."""
    torch.manual_seed(2)
    logits = torch.randn(4, VOCABULARY)
    rows = [
        row(tmp_path, 0, -3, None),
        row(tmp_path, 0, 2, None),
        row(tmp_path, 1, STEPS, None),
        row(tmp_path, 1, 0, 1),
    ]
    store.log_probs[1, 0], store.top[1, 0] = logits[3].log_softmax(-1).half(), logits[3].argmax()
    forced = ForcedText()(logits.clone(), rows)
    assert torch.equal(forced[[0, 2]], logits[[0, 2]])
    assert forced[[1, 3]].argmax(-1).tolist() == [store.tokens[0, 2], store.tokens[1, 0]]
    assert (store.top >= 0).nonzero()[0].tolist() == [0, 1]
    assert store.top[0, 2] == logits[1].argmax() and (store.top[0, [0, 1, 3, 4]] == -1).all()
    assert np.isnan(store.results[0]).sum() == 2 * STEPS - 1
    assert store.results[1, 1, 0] == 1


def test_words_that_cannot_come_do_not_spoil_the_sum():
    logits = torch.tensor([[1.0, 2.0, float("-inf")], [1.0, float("-inf"), 0.0]])
    kept = logits.log_softmax(-1).clamp(min=-1e4).half()
    assert kl_of(kept, logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Student's t for 2 degrees of freedom is 4.3027; the standard error is 0.1 / sqrt(3).
        ([0.9, 1.0, 1.1], (1 - 4.3027 * 0.1 / 3**0.5, 1 + 4.3027 * 0.1 / 3**0.5)),
        ([0.0, 0.2], (0.0, 0.1 + 12.7062 * 0.1)),
        ([0.5], None),
    ],
)
def test_students_interval(values, expected):
    assert interval(values) == (expected and pytest.approx(expected, rel=1e-4))


def test_summary_table_and_plot(tmp_path, capsys):
    records = [replace(RECORD, number=n, kl=0.1 * n, overwritten_tokens=9) for n in range(3)]
    records += [replace(RECORD, budget=128, kl=0.0, agreement=1.0)]
    records += [replace(RECORD, variant="full", budget=0, kl=1e-7)]
    lines = summarise_texts(records)
    assert [(line.variant, line.budget, line.texts) for line in lines] == [
        ("longflow", 64, 3),
        ("longflow", 128, 1),
        ("full", 0, 1),
    ]
    assert lines[0].kl == pytest.approx(0.1) and lines[0].kl_low == 0.0
    assert (lines[0].overwrote, lines[1].overwrote, lines[1].kl_low) == (1.0, 0.0, None)
    save(tmp_path, lines, digits=8)
    assert json.loads((tmp_path / "summary.json").read_text())[2]["kl"] == 1e-7
    show_texts(lines)
    assert "90.00%" in capsys.readouterr().out
    draw_kl(lines, tmp_path / "kl.png")
    assert (tmp_path / "kl.png").read_bytes().startswith(b"\x89PNG")


def test_a_broken_off_run_goes_on(tmp_path):
    file = tmp_path / "solved.jsonl"
    file.write_text("{}")
    task = replace(TASK, file=file)
    settings = task.settings
    with Records(tmp_path, settings, TextRecord) as records:
        records.add(RECORD)
    with Records(tmp_path, settings, TextRecord) as records:
        assert records.all == [RECORD] and records.done() == {("longflow", 64, 0)}
    with pytest.raises(ConfigError, match="choose another folder"):
        Records(tmp_path, replace(task, text_tokens=60).settings, TextRecord)
    file.write_text("{ }")
    with pytest.raises(ConfigError, match="choose another folder"):
        Records(tmp_path, task.settings, TextRecord)


def test_more_than_the_disk_holds_is_refused_before_a_server_starts(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 50000}')
    setup = Setup(tmp_path, TASK, [], at_once=8, out=tmp_path)
    assert check_room(setup, tmp_path) == 50000
    usage = SimpleNamespace(free=3 * DistributionStore.size_bytes(1, 40, 50000))
    monkeypatch.setattr(text_run.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"concurrency=8: .* GiB free: enough for 3"):
        check_room(setup, tmp_path)


class FakeServer:
    """Answers /generate by forcing the text as SGLang would; a budget adds noise to the logits."""

    def __init__(self, texts, prompt):
        self.texts, self.prompt, self.seen = texts, prompt, []
        self.logits = torch.randn(len(texts), STEPS, VOCABULARY, generator=seeded(3))
        self.noise = torch.randn(len(texts), STEPS, VOCABULARY, generator=seeded(4))
        self.retractions, self.lost = 0, 0

    def post(self, url, body):
        if "flush_cache" in url:
            return ""
        params, ids = body["sampling_params"]["custom_params"], body["input_ids"]
        number = next(n for n, text in enumerate(self.texts) if text[: self.prompt] == ids)
        budget = params["kv_budget"]
        self.seen.append((number, budget, params.get("kv_policy"), params[KEY]["result_index"]))
        output = []
        for step in range(STEPS):
            logits = self.logits[number, step]
            if budget:
                logits = logits + self.noise[number, step] / budget
            given = row(
                params[KEY]["folder"], params[KEY]["text_index"], step, params[KEY]["result_index"]
            )
            output.append(int(ForcedText()(logits[None].clone(), [given]).argmax()))
        meta = dict(prompt_tokens=self.prompt, completion_tokens=STEPS, kv_resident_tokens=9)
        meta |= dict(kv_overwritten_tokens=2 if budget else 0, kv_cut_tokens=0)
        meta["num_retractions"] = self.retractions
        return {"output_ids": output[: STEPS - self.lost], "meta_info": meta}

    def kl(self, number, budget):
        full, ours = self.logits[number], self.logits[number] + self.noise[number] / budget
        full, ours = full.log_softmax(-1), ours.log_softmax(-1)
        return float((full.exp() * (full - ours)).sum(-1).mean())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three texts, two at once, on a server that is none."""
    texts = torch.randint(0, VOCABULARY, (3, 4 + STEPS), generator=seeded(5)).tolist()
    task = TextTask(Path("solved.jsonl"), 4 + STEPS, 4, count=3, seed=0)
    server = FakeServer(texts, 4)
    monkeypatch.setattr(text_run, "post", server.post)
    monkeypatch.setattr(ask, "post", server.post)
    store = DistributionStore.create(tmp_path, 2, STEPS, VOCABULARY, results=6)
    setup = Setup(tmp_path, task, texts, at_once=2, out=tmp_path)
    return text_run._ForcedRuns(setup, "http://none", store, tmp_path), server


def test_every_text_is_compared_with_its_own_full_kv(runs):
    run, server = runs
    records = []
    everything = [(number,) for number in range(3)]
    parts = [
        (Variant("full"), 0, everything),
        (Variant("tova"), 1, everything),
        (Variant("longflow"), 4, [(2,)]),
    ]
    run.run(parts, records.append)
    assert [record.key for record in records] == [
        *[("full", 0, 0), ("full", 0, 1), ("tova", 1, 0), ("tova", 1, 1)],
        *[("full", 0, 2), ("tova", 1, 2), ("longflow", 4, 2)],
    ]
    for record in records:
        if record.budget:
            assert record.kl == pytest.approx(server.kl(record.number, record.budget), rel=2e-3)
        else:
            assert abs(record.kl) < 1e-5 and record.agreement == 1.0
    kept = [seen for seen in server.seen if seen[3] is None]
    assert sorted(kept) == [(number, 0, None, None) for number in range(3)]
    # Side by side, so in lines of their own: two texts twice, then one three times.
    lines = [seen[3] for seen in server.seen if seen[3] is not None]
    assert sorted(lines[:4]) == [0, 1, 2, 3] and sorted(lines[4:]) == [0, 1, 2]


def test_a_text_that_was_not_followed_or_began_again_is_an_error(runs):
    run, server = runs
    parts = [(Variant("tova"), 1, [(0,)])]
    server.retractions = 1
    with pytest.raises(EvalError, match="text 0 at budget 1: was retracted"):
        run.run(parts, lambda record: None)
    server.lost = 2
    with pytest.raises(EvalError, match="did not follow it to the end; it answered 3 of 5 tokens"):
        run.run(parts, lambda record: None)
