# SPDX-License-Identifier: Apache-2.0
"""Every name of a card that people use, the cards of a machine, and what is refused."""

from __future__ import annotations

import pytest

from sglang_longflow.planner.api import plan
from sglang_longflow.planner.geometry import PlanError
from sglang_longflow.planner.gpus import GIB, GPUS, choose_gpu, gpu_called
from sglang_longflow.settings.device import Card

H100 = Card("NVIDIA H100 80GB HBM3", 85_520_809_984, (9, 0))


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("H100", "H100-80G"),
        ("h100-sxm", "H100-80G"),
        ("H100_80GB", "H100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100-80G"),
        ("NVIDIA-H100-80GB-HBM3", "H100-80G"),
        ("h100-pcie", "H100-PCIE-80G"),
        ("NVIDIA H100 NVL", "H100-NVL-94G"),
        ("H20", "H20-96G"),
        ("h200", "H200-141G"),
        ("NVIDIA GH200 480GB", "GH200-96G"),
        ("B200-192G", "B200-180G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIE-80G"),
        ("NVIDIA A100-PCIE-40GB", "A100-40G"),
        ("l40s", "L40S-48G"),
        ("NVIDIA L40", "L40-48G"),
        ("a10g", "A10G-24G"),
        ("NVIDIA A10", "A10-24G"),
        ("rtx 4090", "RTX4090-24G"),
        ("NVIDIA GeForce RTX 5090", "RTX5090-32G"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000ADA-48G"),
        ("NVIDIA RTX A6000", "A6000-48G"),
        ("rtx-pro-6000", "RTXPRO6000-96G"),
        ("GB300", "GB300-278G"),
    ],
)
def test_a_card_by_any_of_its_names(name, card):
    assert choose_gpu(name).gpu is GPUS[card]


def test_no_spelling_means_two_cards():
    """Each card is found under its own name and the driver's, whatever came after it."""
    for gpu in GPUS.values():
        for name in (gpu.name, f"{gpu.name}B", *gpu.driver_names, *gpu.nicknames):
            assert choose_gpu(name).gpu is gpu, name
        assert gpu.driver_names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A100", "did you mean A100-40G or A100-80G or A100-PCIE-80G? --memory-gb N"),
        ("GH200", "did you mean GH200-96G or GH200-144G?"),
        ("H1000", "did you mean H100-80G"),
        ("X1", "known: H100-80G, H100-PCIE-80G, "),
        ("", "known: H100-80G"),
        ("MI300X", "needs an NVIDIA card today; for the arithmetic alone, --memory-gb 192"),
        ("AMD Instinct MI355X", "--memory-gb 288"),
    ],
)
def test_what_is_no_card_of_the_table_is_refused_with_what_helps(name, words):
    with pytest.raises(PlanError) as error:
        choose_gpu(name)
    assert str(error.value).startswith(f"--gpu {name}: ") and words in str(error.value)


def test_auto_is_the_card_of_this_machine():
    assert choose_gpu("auto", lambda: (H100, H100)).gpu is GPUS["H100-80G"]
    with pytest.raises(PlanError, match=r"reports no card here; give --gpu NAME or --memory-gb"):
        choose_gpu("AUTO", lambda: ())
    other = Card("NVIDIA L4", 24 * 10**9, (8, 9))
    with pytest.raises(PlanError, match=r"2 kinds, NVIDIA H100 80GB HBM3 and NVIDIA L4;"):
        choose_gpu("auto", lambda: (other, H100))


def test_auto_with_a_card_that_is_not_in_the_table(monkeypatch):
    """Its memory counts, no speed is made up, and the plan says so."""
    strange = Card("NVIDIA Z9000", 50 * GIB, (12, 0))
    monkeypatch.setattr("sglang_longflow.planner.gpus.cards", lambda: (strange,))
    monkeypatch.setattr(
        "sglang_longflow.planner.api.choose_gpu", lambda name: choose_gpu(name, lambda: (strange,))
    )
    found = plan("qwen3-1.7b", gpu="auto", budget=1600)
    assert (found.gpu, found.memory_bytes) == ("NVIDIA Z9000", 50 * GIB)
    assert found.budget_tokens_per_s is None
    assert any("not in the planner's table" in note for note in found.notes)
    assert plan("qwen3-1.7b", gpu="auto", memory_gb=20, budget=1600).memory_bytes == 20 * GIB


def test_part_of_a_card_is_another_card():
    assert gpu_called("NVIDIA H100 80GB HBM3", 79 * GIB) is GPUS["H100-80G"]
    assert gpu_called("NVIDIA H100 80GB HBM3", 40 * GIB) is None
    assert gpu_called("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 79 * GIB) is None


@pytest.mark.parametrize("name", ["T4", "Tesla V100-SXM2-32GB", "gtx1080", "RTX 2080 Ti", "2070"])
def test_a_card_that_is_too_old_is_told_so(name):
    with pytest.raises(PlanError, match=f"--gpu {name}: of compute capability below 8.0.*Ampere"):
        choose_gpu(name)
