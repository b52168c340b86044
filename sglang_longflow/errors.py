# SPDX-License-Identifier: Apache-2.0
"""The package's own exceptions. Every message names the field, its value and the limit."""


class LongFlowError(Exception):
    """Base class: caught at the command line and printed as one line."""


class ConfigError(LongFlowError, ValueError):
    """A server setting is wrong; the server does not start."""


class BudgetError(LongFlowError, ValueError):
    """A request's KV budget or policy is wrong; the request gets HTTP 400.

    Attributes
    ----------
    reason : str
        Short label for the refusals metric, such as ``"above_maximum"``.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class EvalError(LongFlowError, RuntimeError):
    """A server that is evaluated refused a request, or went away."""

    exit_status = 1


class WatchError(LongFlowError, RuntimeError):
    """A server that is watched does not answer, or refuses to."""

    exit_status = 1


class NoAnswer(WatchError):
    """It does not answer now; it may be busy or starting, and answer later."""


class KeyWanted(WatchError):
    """It asks for its API key, or refuses the one that was given."""


class BenchError(LongFlowError, RuntimeError):
    """A server that is measured refused a request, shortened it, or went away."""

    exit_status = 1


class UnsupportedSetup(LongFlowError, ValueError):
    """A server feature does not work with KV budgets; the message names the flag to change."""


class HookNotApplied(LongFlowError, RuntimeError):
    """A hook's target is missing, changed or was not wrapped; the server does not start."""
