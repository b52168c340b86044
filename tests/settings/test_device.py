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
        ("²,1", []),
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


def test_a_process_with_torch_asks_it(monkeypatch):
    """It knows what the driver does not say, such as that its own CUDA is too new for it."""
    monkeypatch.setattr(device, "cards", lambda: pytest.fail("the driver was asked"))
    for has_cuda, count in ((True, 2), (False, 0)):
        cuda = SimpleNamespace(
            is_available=lambda has_cuda=has_cuda: has_cuda,
            device_count=lambda: 2,
            get_device_properties=lambda _: SimpleNamespace(total_memory=80 << 30),
        )
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert device.gpu_count() == count
        assert device.first_gpu_bytes() == (80 << 30 if has_cuda else 0)


@pytest.mark.parametrize(("version", "count"), [("2.11.0", 2), ("2.11.0+cpu", 0)])
def test_without_torch_the_driver_is_asked(monkeypatch, version, count):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device.importlib.metadata, "version", lambda name: version)
    assert device.gpu_count() == count
    assert device.first_gpu_bytes() == FakeNvml.CARDS[0][1]


def test_without_nvml_cuda_counts(monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 2
            return 0

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(works=False))
    monkeypatch.setattr(device.importlib.metadata, "version", lambda name: "2.11.0")
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Driver())
    assert device.gpu_count() == 2
    monkeypatch.setattr(Driver, "cuInit", lambda self, flags: 100)  # CUDA_ERROR_NO_DEVICE
    assert device.gpu_count() == 0
    assert device._count_of_cuda("no such library") == 0


def test_a_slice_of_a_card(monkeypatch):
    nvml = FakeNvml()
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    slices = {"MIG-1": 1}

    def handle(uuid):
        if uuid not in slices:
            raise nvml.NVMLError
        return slices[uuid]

    nvml.nvmlDeviceGetHandleByUUID = handle
    nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = lambda handle: 0
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for wanted in ("MIG-1", "MIG-1,MIG-2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
        (card,) = device.cards()
        assert card.name == "NVIDIA L4" and card.capability == FakeNvml.CARDS[0][2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-9")
    assert device.cards() == ()


def test_memory_that_a_card_does_not_tell(monkeypatch):
    nvml = FakeNvml()
    nvml.NVMLError = type("NVMLError", (Exception,), {})

    def refuse(handle):
        raise nvml.NVMLError

    nvml.nvmlDeviceGetMemoryInfo = refuse
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [card.memory_bytes for card in device.cards()] == [0] * len(FakeNvml.CARDS)
