# SPDX-License-Identifier: Apache-2.0
"""What a launch asks for follows from what the target has, on targets that are not there."""

from dataclasses import replace

import pytest
import torch
from triton.backends.compiler import GPUTarget

from longflow_kernels.attend_score_evict.launch import launch_config
from longflow_kernels.target import INTERPRETER, Target, cache_dtypes, target_for

FAKE = Target(64 << 10, limits_registers=False, starts_early=False, fp8=())


def test_registers_are_limited_where_the_target_can():
    assert FAKE.options(max_registers=128) == {}
    assert replace(FAKE, limits_registers=True).options(max_registers=128) == {"maxnreg": 128}
    assert replace(FAKE, limits_registers=True).options() == {}


def test_a_kernel_starts_early_where_the_target_can():
    early = replace(FAKE, starts_early=True)
    assert early.options(early=True) == {"launch_pdl": True}
    assert early.options(max_registers=128) == {}
    with pytest.raises(AssertionError):
        FAKE.options(early=True)


@pytest.mark.parametrize(
    ("gpu", "limits_registers", "starts_early", "fp8"),
    [
        (GPUTarget("cuda", 80, 32), True, False, ()),
        (GPUTarget("cuda", 90, 32), True, True, (torch.float8_e4m3fn,)),
        (GPUTarget("cuda", 120, 32), True, True, (torch.float8_e4m3fn,)),
        (GPUTarget("hip", "gfx942", 64), False, False, None),
    ],
    ids=str,
)
def test_what_triton_has_for_a_target(gpu, limits_registers, starts_early, fp8):
    found = target_for(gpu, 1 << 16)
    assert (found.limits_registers, found.starts_early) == (limits_registers, starts_early)
    assert found.fp8 == (fp8 if fp8 is not None else INTERPRETER.fp8)
    assert found.shared_bytes == 1 << 16


def test_a_cache_has_the_dtype_of_the_queries_or_fp8():
    q = torch.zeros(1, dtype=torch.bfloat16)
    assert cache_dtypes(q) == (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@pytest.mark.parametrize("batch", [1, 8, 32, 128, 512])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("itemsize", [1, 2])
def test_a_hopper_has_room_for_every_tile(head_dim, batch, itemsize):
    """What was fitted on an H100 does not change there."""
    cut = dict(itemsize=itemsize)
    whole = launch_config(batch, 8, head_dim, 132, **cut)
    assert launch_config(batch, 8, head_dim, 132, shared_bytes=227 << 10, **cut) == whole


def test_tiles_are_halved_until_they_fit():
    """Of 64 KiB, a tile of 128 slots of 96 channels, padded to 128, takes all by K and V alone."""
    assert launch_config(256, 8, 96, 304).block_n == 128
    assert launch_config(256, 8, 96, 304, shared_bytes=64 << 10).block_n == 64
    assert launch_config(256, 8, 96, 304, shared_bytes=32 << 10).block_n == 32


def test_a_target_without_room_is_refused():
    with pytest.raises(ValueError, match=r"head_dim=256 .* 16 slots does not fit into the 8192"):
        launch_config(256, 8, 256, 304, shared_bytes=8 << 10)
