# SPDX-License-Identifier: Apache-2.0
"""`longflow eval --task text:FILE` as a user runs it, beside distributions computed without it."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch

import longflow_oracle
from harness import longflow_eval as evaluate
from sglang_longflow.measure.divergence.texts import TextTask, load_texts

pytestmark = pytest.mark.e2e

PROMPT, FORCED = 100, 40
CUT, OVERWRITES, AMPLE = 64, 120, 500


def solved(file: Path) -> Path:
    generator = random.Random(0)
    rows = []
    for _ in range(24):
        a, b = generator.randrange(100), generator.randrange(100)
        question = f"Ada has {a} pears and buys {b} more at the market. How many does she have?"
        rows.append({"question": question, "answer": f"She has {a} + {b} = {a + b}.\n#### {a + b}"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@torch.no_grad()
def full_log_probs(model, text: list[int]) -> torch.Tensor:
    """Hugging Face's own forward pass; [forced, vocabulary]."""
    logits = model(torch.tensor([text])).logits[0, PROMPT - 1 : -1]
    return logits.double().log_softmax(-1)


def bounded_log_probs(model, text: list[int], budget: int, monkeypatch) -> torch.Tensor:
    """The oracle's, with the text forced on it."""
    seen: list[torch.Tensor] = []
    original = longflow_oracle._Decoder.logits

    def logits(self, hidden):
        seen.append(original(self, hidden))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(longflow_oracle._Decoder, "logits", logits)
        longflow_oracle.generate(model, text[:PROMPT], budget, FORCED, forced_ids=text[PROMPT:])
    return torch.stack(seen).double().log_softmax(-1)


def test_kl_is_the_oracles_and_nothing_where_the_budget_is_ample(
    tiny_with_tokenizer, tmp_path, monkeypatch
):
    """Three texts, two at once; the prompts are prefilled in chunks and, at 64, cut."""
    file, out = solved(tmp_path / "solved.jsonl"), tmp_path / "out"
    common = [f"--model={tiny_with_tokenizer}", f"--task=text:{file}", f"--out={out}", "--seed=5"]
    common += ["--count=3", "--concurrency=2", f"--prompt-tokens={PROMPT}"]
    common += [f"--text-tokens={PROMPT + FORCED}", "--policies=longflow"]
    common += [f"--budgets={CUT},{OVERWRITES},{AMPLE},full"]
    server = ["--", "--max-total-tokens=1000", "--chunked-prefill-size=80", "--dtype=float32"]
    done = evaluate(*common, *server)
    assert done.returncode == 0, done.stderr
    assert "12 measurements to make, 0 are there" in done.stdout
    assert not list(out.glob("full-kv-*"))
    assert (out / "kl.png").read_bytes().startswith(b"\x89PNG")

    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    kept = {(r["variant"], r["budget"], r["number"]): r for r in records}
    assert len(kept) == 12
    for record in records:
        assert (record["prompt_tokens"], record["forced_tokens"]) == (PROMPT, FORCED)
        assert record["resident_tokens"] == min(record["budget"] or 999, PROMPT + FORCED - 1)
        if record["budget"] in (0, AMPLE):
            assert record["kl"] < 1e-5 and record["agreement"] == 1.0
        else:
            assert record["kl"] > 1e-3 and record["agreement"] < 1.0

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_with_tokenizer, dtype=torch.float32)
    task = TextTask(file, PROMPT + FORCED, PROMPT, count=3, seed=5)
    for number, text in enumerate(load_texts(task, tiny_with_tokenizer)):
        full = full_log_probs(model, text)
        for budget in (CUT, OVERWRITES):
            ours = bounded_log_probs(model, text, budget, monkeypatch)
            kl = (full.exp() * (full - ours)).sum(-1).mean()
            agreement = (full.argmax(-1) == ours.argmax(-1)).double().mean()
            record = kept["longflow", budget, number]
            assert record["kl"] == pytest.approx(float(kl), rel=1e-3)
            assert record["agreement"] == pytest.approx(float(agreement))

    with (out / "summary.csv").open() as table:
        rows = {row["budget"]: row for row in csv.DictReader(table)}
    assert float(rows[str(CUT)]["kl"]) > float(rows[str(OVERWRITES)]["kl"]) > 0
    assert [rows[str(b)]["overwrote"] for b in (CUT, OVERWRITES, AMPLE)] == ["1", "1", "0"]

    # What is there is not measured again: no server starts.
    again = evaluate(*common)
    assert again.returncode == 0, again.stderr
    assert "0 measurements to make, 12 are there" in again.stdout
    assert "server" not in again.stdout
