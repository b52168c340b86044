# SPDX-License-Identifier: Apache-2.0
"""The cards of a machine, with NVML's place taken by a table."""

import sys
from types import SimpleNamespace

import pytest

from sglang_longflow.settings import device

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1, 2", [1, 2]),
        ("0,7,1", [0]),
        ("GPU-cccc", [2]),
        ("GPU-cccc-3,1", [2, 1]),
        ("GPU-aa", []),
        ("0,x,1", [0]),
        ("1,1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices(value, seen):
    assert device.visible(value, UUIDS) == seen


class FakeNvml(SimpleNamespace):
    CARDS = (("NVIDIA H200", 150 << 30, (9, 0)), (b"NVIDIA L4", 23 << 30, (8, 9)))

    def __init__(self, works=True):
        def start():
            if not works:
                raise OSError("no driver")

        super().__init__(
            open=0,
            nvmlInit=start,
            nvmlShutdown=lambda: setattr(self, "open", self.open - 1),
            nvmlDeviceGetCount=lambda: len(self.CARDS),
            nvmlDeviceGetHandleByIndex=lambda i: i,
            nvmlDeviceGetUUID=lambda i: UUIDS[i],
            nvmlDeviceGetName=lambda i: self.CARDS[i][0],
            nvmlDeviceGetMemoryInfo=lambda i: SimpleNamespace(total=self.CARDS[i][1]),
            nvmlDeviceGetCudaComputeCapability=lambda i: self.CARDS[i][2],
        )


def test_cards_in_cudas_order(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert device.cards() == (
        device.Card("NVIDIA L4", 23 << 30, (8, 9)),
        device.Card("NVIDIA H200", 150 << 30, (9, 0)),
    )
    assert nvml.open == -1  # it was given back


def test_no_driver_is_no_card(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(works=False))
    assert device.cards() == ()


def test_no_package_is_no_card(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device.cards() == ()
