# SPDX-License-Identifier: Apache-2.0
"""KV budgets in SGLang frontend programs (``sgl.function``), on an unmodified SGLang client.

    import sglang as sgl
    from sglang_longflow import BudgetedEndpoint, gen, kv_budget

    @sgl.function
    def answer(s, question):
        s += sgl.user(question)
        s += sgl.assistant(gen("draft", max_tokens=4096, kv_budget=256))
        with kv_budget(512):
            s += sgl.user("Check it.") + sgl.assistant(gen("check", max_tokens=4096))

    backend = BudgetedEndpoint("http://127.0.0.1:30000")
    answer.run(question="...", backend=backend)
    answer.run_batch([...], backend=backend.with_budget(1024))  # for every gen without its own

``SglSamplingParams`` has no room for ``custom_params``, and the interpreter runs expressions later,
in a thread for each state. So a budget is attached to the expression when the program makes it, in
the one field that SGLang's interpreter copies as it is and never sends: ``dtype``. The endpoint
takes it out again. Nothing depends on a thread, so fork, join, run_batch and streaming need no
care; SGLang's own ``RuntimeEndpoint`` refuses such an expression ("Invalid dtype") instead of
ignoring the budget.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.ir import SglExpr, SglExprList, SglGen, SglSamplingParams

from sglang_longflow.client.budget import Budget

__all__ = ["BudgetedEndpoint", "budgeted", "gen", "kv_budget"]

Expr = TypeVar("Expr", bound=SglExpr)


def _over(budget: Budget, other: Budget) -> Budget:
    """`budget`, with what it leaves open taken from `other`."""
    return Budget(
        other.tokens if budget.tokens is None else budget.tokens,
        budget.policy or other.policy,
    )


@dataclass(frozen=True)
class _DtypeAndBudget:
    """Travels in ``SglSamplingParams.dtype``."""

    dtype: Any
    budget: Budget


_NONE = Budget()
# Read where expressions are made, in the program's own thread, never where they run.
_current: contextvars.ContextVar[Budget] = contextvars.ContextVar("kv_budget", default=_NONE)


@contextlib.contextmanager
def kv_budget(tokens: int | None, policy: str | None = None) -> Iterator[None]:
    """Give every `gen` of this module made inside the block a budget.

    Parameters
    ----------
    tokens : int or None
        KV budget in tokens; 0 is full KV; None leaves it to the server.
    policy : str, optional
        Eviction policy.

    Notes
    -----
    It acts where the expression is made, inside the program. A plain ``sgl.gen`` is not seen: use
    `gen` of this module or wrap it in `budgeted`. Around ``program.run_batch(...)`` it has no
    effect, because SGLang starts the programs in other threads: use
    `BudgetedEndpoint.with_budget` there.
    """
    token = _current.set(_over(Budget(tokens, policy), _current.get()))
    try:
        yield
    finally:
        _current.reset(token)


def budgeted(expr: Expr, tokens: int | None = None, policy: str | None = None) -> Expr:
    """Attach a budget to every generation in `expr`, such as ``sgl.assistant(sgl.gen("a"))``.

    What is left out comes from the innermost `kv_budget` block. A budget that an inner call has
    attached already stays. Mutates `expr` and returns it.
    """
    return _attach(expr, _over(Budget(tokens, policy), _current.get()))


def _attach(expr: Expr, budget: Budget) -> Expr:
    if isinstance(expr, SglExprList):
        for part in expr.expr_list:
            _attach(part, budget)
    elif isinstance(expr, SglGen) and budget != _NONE:
        params = expr.sampling_params
        dtype, own = params.dtype, _NONE
        if isinstance(dtype, _DtypeAndBudget):
            dtype, own = dtype.dtype, dtype.budget
        params.dtype = _DtypeAndBudget(dtype, _over(own, budget))
    return expr


def gen(
    name: str | None = None,
    *args: Any,
    kv_budget: int | None = None,
    kv_policy: str | None = None,
    **kwargs: Any,
) -> SglExpr:
    """``sgl.gen`` with a KV budget; all other arguments are its own.

    Parameters
    ----------
    kv_budget : int, optional
        Tokens kept resident, 0 for full KV; default: the `kv_budget` block, the endpoint, the
        server, in this order.
    kv_policy : str, optional
        Eviction policy, with the same order of defaults.

    Notes
    -----
    ``choices=`` only scores its choices and generates nothing, so a budget has no meaning there
    and is not sent.
    """
    return budgeted(sgl.gen(name, *args, **kwargs), kv_budget, kv_policy)


@dataclass
class _BudgetedParams(SglSamplingParams):
    """Sampling parameters that send ``custom_params``."""

    custom_params: dict[str, Any] | None = None

    def to_srt_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = super().to_srt_kwargs()
        if self.custom_params:
            kwargs["custom_params"] = dict(self.custom_params)
        return kwargs


class BudgetedEndpoint(RuntimeEndpoint):
    """SGLang's ``RuntimeEndpoint`` that sends the budgets of expressions.

    Parameters
    ----------
    base_url : str
    kv_budget, kv_policy : optional
        For every generation that names none itself.
    **kwargs
        As for ``RuntimeEndpoint``.
    """

    def __init__(
        self,
        base_url: str,
        *,
        kv_budget: int | None = None,
        kv_policy: str | None = None,
        **kwargs: Any,
    ):
        self._budget = Budget(kv_budget, kv_policy)
        super().__init__(base_url, **kwargs)

    def with_budget(self, tokens: int | None, policy: str | None = None) -> BudgetedEndpoint:
        """The same endpoint with another default budget; no request is sent."""
        other = copy.copy(self)
        other._budget = _over(Budget(tokens, policy), self._budget)
        return other

    def _unpack(self, params: SglSamplingParams) -> _BudgetedParams:
        values = {item.name: getattr(params, item.name) for item in fields(SglSamplingParams)}
        budget = self._budget
        if isinstance(params.dtype, _DtypeAndBudget):
            values["dtype"] = params.dtype.dtype
            budget = _over(params.dtype.budget, budget)
        return _BudgetedParams(**values, custom_params=budget.custom_params())

    def generate(self, s: Any, sampling_params: SglSamplingParams) -> Any:
        return super().generate(s, self._unpack(sampling_params))

    def generate_stream(self, s: Any, sampling_params: SglSamplingParams) -> Any:
        return super().generate_stream(s, self._unpack(sampling_params))
