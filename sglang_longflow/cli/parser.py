# SPDX-License-Identifier: Apache-2.0
"""The parser of every subcommand: an error is one line, which names what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from sglang_longflow.errors import LongFlowError
from sglang_longflow.settings.nearest import nearest


class UsageError(LongFlowError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """argparse's, with errors that `main` prints as one line."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`; an unknown flag is named first, with its neighbour: a misspelt flag that
        must be there would else be reported as missing.
        """
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            known = self._option_string_actions
            # argparse takes the beginning of a flag for it.
            if word.startswith("--") and not any(name.startswith(flag) for name in known):
                self.error(f"unknown flag {flag}{nearest(flag, known)}")
        self._refuse_leftovers(words)
        return self.parse_known_args(words)[0]

    def _refuse_leftovers(self, words: Sequence[str]) -> None:
        """Name a word that belongs to no flag, before the flags that are missing without it."""
        all_of: list[Any] = [*self._actions, *self._mutually_exclusive_groups]
        needed = [one for one in all_of if one.required]
        for one in needed:
            one.required = False
        try:
            found, rest = self.parse_known_args(words)
        finally:
            for one in needed:
                one.required = True
        rest += [word for word in getattr(found, "server", [])[:1] if not word.startswith("-")]
        if rest:
            self.error(f"unexpected {rest[0]!r}{self._flag_for(rest[0], found)}")

    def _flag_for(self, word: str, found: argparse.Namespace) -> str:
        """The flag that a bare word was probably meant for, as the end of an error."""
        wanted = "url" if word.startswith(("http://", "https://")) else "model"
        given = getattr(found, wanted, "") not in (None, self.get_default(wanted))
        if given or word.startswith("-") or f"--{wanted}" not in self._option_string_actions:
            return "; drop it, or quote the value before it"
        return f"; did you mean --{wanted} {word}?"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with the neighbour of a value that is not among the choices."""
        choices = list(action.choices or ())
        if choices and value not in choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise argparse.ArgumentError(
                None,
                f"{name} {value!r} is not one of: {', '.join(map(str, choices))}"
                f"{nearest(str(value), map(str, choices))}",
            )

    def error(self, message: str) -> NoReturn:
        raise UsageError(re.sub(r"^argument ", "", message))
