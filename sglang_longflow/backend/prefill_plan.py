# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's prefill plan, made from lengths that the host knows, without waiting for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch

#: FlashInfer's ``begin_forward`` of a wrapper.
Plan = Callable[..., Any]


def _pinned(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, pin_memory=torch.cuda.is_available())


def _indptr(lengths: list[int]) -> torch.Tensor:
    """[len(lengths) + 1] int32: where each begins, and the end."""
    return _pinned([0, *accumulate(lengths)])


class PrefillPlan:
    """Gives FlashInfer's wrappers ``indptr`` tensors on the host in place of those on the device.

    FlashInfer plans on the host. Given tensors on the device it copies them back first, which waits
    for everything that the device has been given: under overlap scheduling for the whole decode
    step before, so that the launches of a prefill begin only when the GPU has run dry. The host
    knows the lengths, and `plan` takes tensors on either side; kernels and indices are the same.

    Without that wait a plan could overwrite the pinned buffer of the one before while it is still
    being copied to the device. Where that copy has not ended, the plan is made SGLang's way.

    Parameters
    ----------
    inner : FlashInferAttnBackend
        One that `can_plan` takes.
    """

    def __init__(self, inner: Any):
        self._inner = inner
        self._copied = torch.cuda.Event()
        self._extends: list[int] | None = None  # while a plan is made
        self._prefixes: list[int] = []
        self._ragged = False
        ragged, (paged,) = inner.prefill_wrapper_ragged, inner.prefill_wrappers_paged
        ragged.begin_forward = partial(self._plan_ragged, ragged.begin_forward)
        paged.begin_forward = partial(self._plan_paged, paged.begin_forward)

    @staticmethod
    def can_plan(inner: Any) -> bool:
        """Whether `inner` is FlashInfer's backend with one wrapper for all layers."""
        return (
            type(inner).__name__ == "FlashInferAttnBackend"
            and inner.dispatch_reason is None
            and len(inner.prefill_wrappers_paged) == 1
            and not inner.enable_mis
        )

    def prepare(self, forward_batch: Any) -> None:
        """SGLang's ``init_forward_metadata`` of a prefill batch."""
        extends = forward_batch.extend_seq_lens_cpu
        prefixes = forward_batch.extend_prefix_lens_cpu
        known = extends is not None and prefixes is not None
        if known and len(extends) == forward_batch.batch_size and self._copied.query():
            self._extends, self._prefixes, self._ragged = list(extends), list(prefixes), False
        try:
            self._inner.init_forward_metadata(forward_batch)
        finally:
            self._extends = None
        self._copied.record()

    def _plan_ragged(
        self,
        plan: Plan,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The new tokens among themselves."""
        if self._extends is None:
            return plan(qo_indptr, kv_indptr, *args, **kwargs)
        self._ragged = True
        own = _indptr(self._extends)
        return plan(own, own, *args, **kwargs)

    def _plan_paged(
        self,
        plan: Plan,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_indices: torch.Tensor,
        last_page_len: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The prefixes, where the other wrapper has the new tokens, else both."""
        if self._extends is None or self._inner.dq_page_table is not None:
            return plan(qo_indptr, kv_indptr, kv_indices, last_page_len, *args, **kwargs)
        new = [0] * len(self._extends) if self._ragged else self._extends
        lengths = [sum(pair) for pair in zip(self._prefixes, new, strict=True)]
        ones = _pinned([1] * len(lengths))
        return plan(_indptr(self._extends), _indptr(lengths), kv_indices, ones, *args, **kwargs)
