# SPDX-License-Identifier: Apache-2.0
"""A scheduler process in which a target of ours is missing or has changed, as after an upgrade."""

from __future__ import annotations

import sys

TARGET = "sglang.srt.managers.schedule_batch.ScheduleBatch.new_tokens_required_next_decode"


def _run(change, args, kwargs):
    from sglang.srt.managers import schedule_batch, scheduler

    change(schedule_batch.ScheduleBatch)
    return scheduler.run_scheduler_process(*args, **kwargs)


def missing(*args, **kwargs):
    _run(lambda batch: delattr(batch, TARGET.rsplit(".", 1)[1]), args, kwargs)


def changed(*args, **kwargs):
    def new_tokens_required_next_decode(self, indices, reserve):
        return 0

    _run(
        lambda batch: setattr(batch, TARGET.rsplit(".", 1)[1], new_tokens_required_next_decode),
        args,
        kwargs,
    )


def bypassed(*args, **kwargs):
    """The scheduler's hook has landed, and nobody calls what it is on."""
    from sglang.srt.managers import scheduler
    from sglang.srt.plugins import load_plugins

    load_plugins()
    hooked = scheduler.Scheduler.__init__
    scheduler.Scheduler = type("Other", (scheduler.Scheduler,), {"__init__": hooked.__wrapped__})
    return scheduler.run_scheduler_process(*args, **kwargs)


if __name__ == "__main__":
    model, how = sys.argv[1:]
    from sglang.srt.entrypoints.engine import Engine

    import broken_sglang  # by its name, so that the child process finds the function
    import harness

    class BrokenEngine(Engine):
        run_scheduler_process_func = staticmethod(getattr(broken_sglang, how))

    device = {"device": "cpu"} if harness.DEVICE == "cpu" else {}
    BrokenEngine(
        model_path=model, skip_tokenizer_init=True, kv_budget=64, max_total_tokens=500, **device
    )
    print("STARTED")
