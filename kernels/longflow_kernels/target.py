# SPDX-License-Identifier: Apache-2.0
"""What the GPU, and Triton for it, let a launch ask for: limits and options, no names of cards."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

#: Kinds of fp8 that a cache may have, by Triton's name: with a bias of 7 (OCP), and with one of 8
#: and no negative zero (MI300's).
FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e4b8": torch.float8_e4m3fnuz}


@dataclass(frozen=True)
class Target:
    """One GPU, or Triton's interpreter.

    Attributes
    ----------
    shared_bytes : int or None
        Shared memory that one program may take; None: no limit.
    limits_registers : bool
        Whether a launch may limit a thread's registers (``maxnreg``).
    starts_early : bool
        Whether a kernel can be started before the one it depends on has ended (``launch_pdl``).
    fp8 : tuple of torch.dtype
        Of `FP8`, those it computes with.
    """

    shared_bytes: int | None
    limits_registers: bool
    starts_early: bool
    fp8: tuple[torch.dtype, ...]

    def options(
        self, *, max_registers: int | None = None, early: bool = False
    ) -> dict[str, int | bool]:
        """Options of a launch that not every target has.

        Parameters
        ----------
        max_registers : int, optional
            Of a thread, so that more programs share a multiprocessor; left out where it cannot be
            asked for, which changes the speed alone.
        early : bool
            The kernel may begin before the one before it has ended; it waits for it by itself.
        """
        found: dict[str, int | bool] = {}
        if max_registers is not None and self.limits_registers:
            found["maxnreg"] = max_registers
        if early:
            assert self.starts_early
            found["launch_pdl"] = True
        return found


#: On the CPU: it compiles nothing, so there is no limit and no option.
INTERPRETER = Target(None, limits_registers=False, starts_early=False, fp8=tuple(FP8.values()))


def target_for(gpu: Any, shared_bytes: int) -> Target:
    """What Triton has for a GPU, which need not be there.

    Parameters
    ----------
    gpu : triton.backends.compiler.GPUTarget
        Backend and architecture.
    shared_bytes : int
        Its shared memory for one program.
    """
    options = triton.compiler.make_backend(gpu).parse_options({})
    return Target(
        shared_bytes=shared_bytes,
        limits_registers=hasattr(options, "maxnreg"),
        # Hopper's; an older NVIDIA GPU has the option, and its kernels do not compile with it.
        starts_early=hasattr(options, "launch_pdl") and gpu.arch >= 90,
        fp8=tuple(FP8[name] for name in FP8 if name in options.supported_fp8_dtypes),
    )


@functools.cache
def target_of(device: torch.device) -> Target:
    """The target of tensors on `device`: a GPU, or the interpreter for the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    with torch.cuda.device(device):
        driver = triton.runtime.driver.active
        found = driver.utils.get_device_properties(driver.get_current_device())
        return target_for(driver.get_current_target(), found["max_shared_mem"])


def cache_dtypes(q: torch.Tensor) -> tuple[torch.dtype, ...]:
    """What the cache of these queries may be stored in: their own dtype, or fp8."""
    return (q.dtype, *target_of(q.device).fp8)
