# SPDX-License-Identifier: Apache-2.0
"""SGLang's server with a scheduler that does not listen when it is told not to.

``python sleepy_server.py ARGUMENTS``: the scheduler reads no message as long as the file
LONGFLOW_HOLD_FILE exists at its start. The next prefill sleeps as many seconds as the file
LONGFLOW_SLEEP_FILE says, once.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path


def run_scheduler_process(*args, **kwargs):
    """SGLang's entry point of a scheduler process."""
    from sglang.srt.managers import scheduler as module
    from sglang.srt.plugins import load_plugins

    load_plugins()
    file = Path(os.environ["LONGFLOW_SLEEP_FILE"])
    stock = module.Scheduler.run_batch

    @functools.wraps(stock)  # hooks.verify looks through wrappers
    def run_batch(self, batch, *more, **named):
        if batch.forward_mode.is_extend() and file.exists():
            seconds = float(file.read_text())
            file.unlink()
            time.sleep(seconds)
        return stock(self, batch, *more, **named)

    stock_loop = module.Scheduler.run_event_loop

    @functools.wraps(stock_loop)
    def run_event_loop(self):
        while Path(os.environ["LONGFLOW_HOLD_FILE"]).exists():
            time.sleep(0.05)
        stock_loop(self)

    module.Scheduler.run_batch = run_batch
    module.Scheduler.run_event_loop = run_event_loop
    return module.run_scheduler_process(*args, **kwargs)


def main() -> None:
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    import sleepy_server  # not this module's other name: the child imports it by this one

    launch_server(
        prepare_server_args(sys.argv[1:]),
        run_scheduler_process_func=sleepy_server.run_scheduler_process,
    )


if __name__ == "__main__":
    main()
