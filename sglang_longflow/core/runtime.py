# SPDX-License-Identifier: Apache-2.0
"""What one process knows: the configuration, the counters, and the scheduler it serves.

SGLang runs the HTTP server and each scheduler in processes of their own. In a scheduler's, every
hook asks `current()` and does nothing if it is None: a server without a budget stays stock.

This is the one module with state of the process. Hooks of SGLang's free functions and of its
requests, batches and adders (``alloc_for_decode``, ``Req``, ``PrefillAdder``) are given no object
that knows its scheduler, and a scheduler's process has one scheduler. It is written once, by the
hook of ``Scheduler.__init__``. What is given an object of SGLang keeps its state there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.core.contracts import DecodeView, PrefillView
from sglang_longflow.core.counters import Counters, Stall
from sglang_longflow.core.layers import KVLayers
from sglang_longflow.settings.config import LongFlowConfig, config_from


@dataclass(frozen=True)
class PendingView:
    """The view of the forward pass that is being launched, and whose it is.

    SGLang copies a ForwardBatch field by field on its way to the backend, so the view cannot ride
    on it; the request ids say that both mean the same batch.
    """

    rids: list[str]
    view: DecodeView | PrefillView | None


@dataclass
class Runtime:
    """State of the plugin in this process.

    Attributes
    ----------
    config : LongFlowConfig
    counters : Counters
    exporter : object or None
        Prometheus exporter (`hooks.metrics.Exporter`), if the server has metrics on.
    device_state_bytes : int
        Device memory of decode beside model and pool: next victims, what policies remember,
        scratch memory, the slots that CUDA graphs copy. For the banner and the stats.
    l2_set_aside_bytes : int
        Of the GPU's L2 cache, for scores (`longflow_kernels.attend_score_evict.l2`).
    kv_layers : KVLayers
        The model's layers that have rows; set when the attention backend is made.
    pending_view : PendingView or None
        Set when SGLang builds a forward batch, taken once by the attention backend.
    started : float
        Monotonic time of the start, in seconds.
    settings : dict or None
        What the stats say of this process's settings; they never change, so they are kept.
    stall : Stall
    """

    config: LongFlowConfig
    counters: Counters = field(default_factory=Counters)
    exporter: Any = None
    device_state_bytes: int = 0
    l2_set_aside_bytes: int = 0
    kv_layers: KVLayers = field(default_factory=lambda: KVLayers(()))
    pending_view: PendingView | None = None
    started: float = field(default_factory=time.monotonic)
    settings: dict[str, Any] | None = None
    stall: Stall = field(default_factory=Stall)

    def take_view(self, rids: list[str] | None) -> DecodeView | PrefillView | None:
        """The view of the batch with these request ids, once; None for SGLang's dummy batches.

        Raises
        ------
        RuntimeError
            A real batch arrives without its view: going on would overwrite the wrong slots.
        """
        if rids is None:
            return None
        pending, self.pending_view = self.pending_view, None
        if pending is None or pending.rids != rids:
            raise RuntimeError(
                f"longflow: batch {rids} reached the attention backend with the view of "
                f"{pending.rids if pending else None}"
            )
        return pending.view

    def take_replay_view(self, rows: int) -> DecodeView | None:
        """The view of the batch that a CUDA graph is about to replay, once.

        SGLang's replay batch carries no request ids, so only the number of rows can be compared.

        Raises
        ------
        RuntimeError
            There is no view of a decode batch of this size.
        """
        pending, self.pending_view = self.pending_view, None
        if pending is None or len(pending.rids) != rows or isinstance(pending.view, PrefillView):
            raise RuntimeError(
                f"longflow: a replay of {rows} rows reached the attention backend with the view "
                f"of {pending.rids if pending else None}"
            )
        return pending.view


_current: Runtime | None = None


def current() -> Runtime | None:
    """This process's runtime, or None if no budget was set."""
    return _current


def activate(server_args: Any) -> Runtime | None:
    """Make (or drop) the runtime from SGLang's server arguments. Called once per process."""
    global _current
    config = config_from(server_args)
    _current = None if config is None else Runtime(config)
    return _current
