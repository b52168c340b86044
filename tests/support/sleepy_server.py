# SPDX-License-Identifier: Apache-2.0
"""SGLang's server with a scheduler that does not listen when it is told not to.

``python sleepy_server.py ARGUMENTS``, told by files of the folder LONGFLOW_SLEEPY_FOLDER:

- ``deaf``: at its start, the scheduler reads no message.
- ``long_step``: a prefill renames it to ``in_long_step`` and lasts as long as that is there.
- ``slow``: every other step sleeps for half a second before.
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
    folder = Path(os.environ["LONGFLOW_SLEEPY_FOLDER"])
    asked, held = folder / "long_step", folder / "in_long_step"
    stock = module.Scheduler.run_batch

    @functools.wraps(stock)  # hooks.verify looks through wrappers
    def run_batch(self, batch, *more, **named):
        if batch.forward_mode.is_extend() and asked.exists():
            asked.rename(held)
            while held.exists():
                time.sleep(0.05)
        elif (folder / "slow").exists():
            time.sleep(0.5)
        return stock(self, batch, *more, **named)

    stock_loop = module.Scheduler.run_event_loop

    @functools.wraps(stock_loop)
    def run_event_loop(self):
        while (folder / "deaf").exists():
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
