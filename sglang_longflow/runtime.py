"""What one process knows: the configuration, the counters, and the scheduler it serves.

SGLang runs the HTTP server and each scheduler in processes of their own; every hook asks `current()`
and does nothing where it is None, which is how a server without a budget stays stock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.config import LongFlowConfig, config_from
from sglang_longflow.flow.metrics import Counters


@dataclass
class Runtime:
    """State of the plugin in this process.

    Attributes
    ----------
    config : LongFlowConfig
    counters : Counters
    exporter : object or None
        Prometheus exporter (`hooks.metrics.Exporter`), where the server has metrics on.
    device_state_bytes : int
        Bytes of `flow.decode.DecodeState`, for the banner and the stats.
    """

    config: LongFlowConfig
    counters: Counters = field(default_factory=Counters)
    exporter: Any = None
    device_state_bytes: int = 0


_current: Runtime | None = None


def current() -> Runtime | None:
    """This process's runtime, or None where no budget was set."""
    return _current


def activate(server_args: Any) -> Runtime | None:
    """Make (or drop) the runtime from SGLang's server arguments. Called once a process."""
    global _current
    config = config_from(server_args)
    _current = None if config is None else Runtime(config)
    return _current
