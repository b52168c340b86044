"""A server that was asked for a KV budget has one, or does not start.

SGLang applies hooks and swallows what fails, and a hook that landed may sit on a function that
another release calls no more. So these checks are no hooks. What asks for a budget is known from
the command line, from the parser of our flags, and from what a process was started with. Whether
there is one is asked at two places that every release passes: where the first process is started,
and where a scheduler's process first reports to the one that started it. Both are Python's own.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from sglang_longflow.errors import HookNotApplied
from sglang_longflow.settings.flags import FLAG_NAMES, FLAGS

_OPTIONS = tuple(flag.option for flag in FLAGS)


def stop(message: str) -> NoReturn:
    """End the process with one line: SGLang swallows a plugin's exceptions, but not this one."""
    raise SystemExit(f"longflow: error: {' '.join(message.split())}")


# what asks for a budget


def budget_words(argv: Sequence[str]) -> str:
    """The first of our settings on a command line or in its YAML file, as written; else empty."""
    for i, word in enumerate(argv):
        flag, is_joined, value = word.partition("=")
        if flag in _OPTIONS:
            return flag
        if flag == "--config":
            path = value if is_joined else "".join(argv[i + 1 : i + 2])
            if found := _key_of_file(path):
                return f"{found} in {path}"
    return ""


def _key_of_file(path: str) -> str:
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""  # SGLang, which reads it too, says what is wrong with it
    keys = content if isinstance(content, dict) else {}
    return next((str(key) for key in keys if str(key).replace("-", "_") in FLAG_NAMES), "")


def runs_sglang(argv: Sequence[str]) -> bool:
    """Whether this is SGLang's own command; flags of other programs may mean something else."""
    program = Path(argv[0]) if argv else Path()
    return program.name == "sglang" or program.parent.name == "sglang"


def _given_budget(process: Any) -> str:
    """The budget in the server arguments that a process was started with; else empty."""
    given = (*getattr(process, "_args", ()), *getattr(process, "_kwargs", {}).values())
    ours = [one for one in given if type(one).__module__.split(".")[0] == "sglang"]
    budgets = [getattr(one, "kv_budget", None) for one in ours]
    return next((f"kv_budget={tokens}" for tokens in budgets if tokens is not None), "")


# who must have one


class _Watch:
    """Calls `check` before each call of a method, until it is released."""

    def __init__(self, owner: type, name: str, check: Callable[[], None]):
        original = getattr(owner, name)
        self._restore = functools.partial(setattr, owner, name, original)

        @functools.wraps(original)
        def method(*args, **kwargs):
            check()
            return original(*args, **kwargs)

        setattr(owner, name, method)

    def release(self) -> None:
        self._restore()


_watches: list[_Watch] = []
_settings_made = False


def release() -> None:
    """Watch over this process no longer."""
    while _watches:
        _watches.pop().release()


def arm() -> None:
    """Watch over this process where a budget is asked for. Called when the plugin is loaded."""
    word = budget_words(sys.argv[1:]) if runs_sglang(sys.argv) else ""
    if multiprocessing.parent_process() is None:
        if word:
            expect_settings(word)
    elif word := word or _given_budget(multiprocessing.current_process()):
        _expect_scheduler(word)


def expect_settings(word: str) -> None:
    """No process starts before settings with a budget were made and every hook landed."""
    if not _settings_made and not _watches:
        _watches.append(_Watch(BaseProcess, "start", lambda: _judge_settings(word)))


def note_settings() -> None:
    """Settings with a budget were made and judged in this process."""
    global _settings_made
    _settings_made = True


def _judge_settings(word: str) -> None:
    from sglang_longflow.hooks import verify

    if not _settings_made:
        stop(
            f"{word}: SGLang made its settings past the plugin, so the server would keep full KV; "
            f"run longflow doctor"
        )
    try:
        verify.require_all()
    except HookNotApplied as error:
        stop(f"{word}: {error}")
    release()


def _expect_scheduler(word: str) -> None:
    """No report to the process that started this one while no budget is active here.

    A process that starts others is no scheduler: it reports what it wants.
    """
    if not _watches:
        _watches.append(_Watch(Connection, "send", lambda: _judge_scheduler(word)))
        _watches.append(_Watch(BaseProcess, "start", release))


def _judge_scheduler(word: str) -> None:
    from sglang_longflow.core import runtime

    if runtime.current() is None:
        raise HookNotApplied(
            f"{word}: the plugin is not active in this scheduler's process, so it would keep full "
            f"KV; run longflow doctor"
        )
    release()
