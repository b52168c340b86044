# SPDX-License-Identifier: Apache-2.0
"""Room in the L2 cache for the scores that wait between the two kernels of a decode step."""

from __future__ import annotations

import ctypes
import functools

import torch

#: Of the L2 cache. With 55 % set aside attention itself took 4 % longer on an H200, with 43 %
#: no more than with none.
MOST_OF_L2 = 0.4
_PERSISTING_L2_CACHE_SIZE = 6  # CUlimit of the driver's API


def set_aside_l2(wanted_bytes: int, device: torch.device) -> int:
    """Set L2 cache aside for what kernels of this process store with eviction priority "last".

    Without it that priority helps a few MB at most: K and V stream through the cache, and scores
    are written to memory and read back. At most `MOST_OF_L2` of the cache is taken. The limit is
    the CUDA context's (CUDA C++ Programming Guide, "L2 Set-Aside for Persisting Accesses"): it ends
    with the process and touches no other.

    Parameters
    ----------
    wanted_bytes : int
        0 gives it back.
    device : torch.device

    Returns
    -------
    int
        Bytes that may be counted on: 0 without a GPU, and where the driver refuses (as under MPS).
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return 0
    most = int(MOST_OF_L2 * torch.cuda.get_device_properties(device).L2_cache_size)
    wanted = min(wanted_bytes, most)
    with torch.cuda.device(device):
        torch.cuda.current_stream().query()  # a thread that has used no GPU yet has no context
        refused = _driver().cuCtxSetLimit(_PERSISTING_L2_CACHE_SIZE, ctypes.c_size_t(wanted))
        _driver().cuCtxResetPersistingL2Cache()
    return 0 if refused else wanted


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
