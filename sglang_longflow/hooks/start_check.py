# SPDX-License-Identifier: Apache-2.0
"""A server that was asked for a KV budget has one, or does not start.

SGLang swallows hooks that fail to apply, and an applied hook may sit on a function that another
release no longer calls. So these checks are no hooks. What asks for a budget is known from
the command line, from the parser of our flags, and from what a process was started with. Whether
there is one is asked at two places that every release passes: where the first process is started,
and where a scheduler's process first reports to the one that started it. Both are Python's own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from sglang_longflow.errors import HookNotApplied, UnsupportedSetup
from sglang_longflow.hooks import verify
from sglang_longflow.settings.flags import budget_words

#: This package's entry points: its plugin, and its platform for machines without a GPU.
PLUGIN, PLATFORM = "longflow", "longflow_cpu"


def stop(message: str) -> NoReturn:
    """End the process with one line: SGLang swallows a plugin's exceptions, but not this one."""
    raise SystemExit(f"longflow: error: {' '.join(message.split())}")


def stop_server(message: str) -> NoReturn:
    """End a scheduler's process and its server with one line.

    As SGLang does it: the parent gets SIGQUIT, on which it ends all of its processes. But without
    the traceback that SGLang logs first.
    """
    print(f"longflow: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os.kill(os.getppid(), signal.SIGQUIT)
    raise SystemExit(1)


def runs_sglang(argv: Sequence[str]) -> bool:
    """Whether this is SGLang's own command; flags of other programs may mean something else."""
    program = Path(argv[0]) if argv else Path()
    return program.name == "sglang" or program.parent.name == "sglang"


def _given_budget(process: Any) -> str:
    """The budget in the server arguments that a process was started with; else empty."""
    given = (*getattr(process, "_args", ()), *getattr(process, "_kwargs", {}).values())
    ours = [one for one in given if _is_sglangs(type(one))]
    budgets = [getattr(one, "kv_budget", None) for one in ours]
    return next((f"kv_budget={tokens}" for tokens in budgets if tokens is not None), "")


def _is_sglangs(kind: type) -> bool:
    """Whether a class is SGLang's, or derived from one of SGLang's."""
    return any(base.__module__.split(".")[0] == "sglang" for base in kind.__mro__)


def require_survival(settings: Any, names: Sequence[str], value: Any) -> None:
    """Settings are handed to other processes by pickling: attributes `names` must come through.

    Raises
    ------
    HookNotApplied
        One does not have `value` on the other side.
    """
    there = pickle.loads(pickle.dumps(settings))
    for name in names:
        if getattr(there, name, None) != value:
            raise HookNotApplied(
                f"{name}={value}: is lost when {type(settings).__name__} is handed to another "
                f"process, so the scheduler would keep full KV"
            )


def require_plugin_in_children(word: str) -> None:
    """Refuse variables that keep this plugin out of the processes which this one starts.

    They were other ones when it was loaded here.

    Raises
    ------
    UnsupportedSetup
    """
    from sglang.srt.environ import envs

    plugins, platform = envs.SGLANG_PLUGINS.get(), envs.SGLANG_PLATFORM.get()
    found = ""
    if plugins and PLUGIN not in [name.strip() for name in plugins.split(",")]:
        found = f"SGLANG_PLUGINS={plugins!r}"
    elif platform and platform != PLATFORM:
        found = f"SGLANG_PLATFORM={platform!r}"
    if found:
        raise UnsupportedSetup(
            f"{word}: {found} keeps this plugin out of the scheduler, which would keep full KV; "
            f"unset it"
        )


# who must have one


class _Watch:
    """Calls `check` before each call of one of Python's methods, until it is released.

    The method that stands in for the original carries its watch, so that nothing else has to.
    """

    def __init__(self, owner: type, name: str, check: Callable[[], None]):
        original = getattr(owner, name)
        self._restore = functools.partial(setattr, owner, name, original)

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            check()
            return original(*args, **kwargs)

        setattr(method, _WATCH, self)
        setattr(owner, name, method)

    def release(self) -> None:
        self._restore()


#: Where a process passes on every release of SGLang.
_WATCHED: tuple[tuple[type, str], ...] = ((BaseProcess, "start"), (Connection, "send"))
_WATCH = "longflow_watch"
#: Attribute of the running process: settings with a budget were made and judged in it.
_SETTINGS_MADE = "longflow_settings_made"


def _watches() -> list[_Watch]:
    found = (getattr(getattr(owner, name), _WATCH, None) for owner, name in _WATCHED)
    return [watch for watch in found if watch is not None]


def release() -> None:
    """Watch over this process no longer."""
    for watch in _watches():
        watch.release()


def arm() -> None:
    """Watch over this process if a budget is asked for. Called when the plugin is loaded."""
    word = budget_words(sys.argv[1:]) if runs_sglang(sys.argv) else ""
    if multiprocessing.parent_process() is None:
        if word:
            expect_settings(word)
    elif word := word or _given_budget(multiprocessing.current_process()):
        _expect_scheduler(word)


def expect_settings(word: str) -> None:
    """No process starts before settings with a budget were made and every hook landed."""
    if not _settings_made() and not _watches():
        _Watch(BaseProcess, "start", lambda: _check_settings(word))


def record_settings() -> None:
    """Settings with a budget were made and judged in this process."""
    setattr(multiprocessing.current_process(), _SETTINGS_MADE, True)


def _settings_made() -> bool:
    return getattr(multiprocessing.current_process(), _SETTINGS_MADE, False)


def _check_settings(word: str) -> None:
    try:
        verify.require_all()
    except HookNotApplied as error:
        stop(f"{word}: {error}")
    if not _settings_made():
        stop(
            f"{word}: SGLang made its settings past the plugin, so the server would keep full KV; "
            f"run longflow doctor"
        )
    release()


def _expect_scheduler(word: str) -> None:
    """No report to the process that started this one while no budget is active here.

    A process that starts others is no scheduler: it reports what it wants.
    """
    if not _watches():
        _Watch(Connection, "send", lambda: _check_scheduler(word))
        _Watch(BaseProcess, "start", release)


def _check_scheduler(word: str) -> None:
    from sglang_longflow.core import runtime  # late: torch, which a plugin's loading does not need

    if runtime.current() is None:
        stop_server(
            f"{word}: the plugin is not active in this scheduler's process, so it would keep full "
            f"KV; run longflow doctor"
        )
    release()
