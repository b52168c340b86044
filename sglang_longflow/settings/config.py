# SPDX-License-Identifier: Apache-2.0
"""The one typed configuration, read from SGLang's server arguments (flags, Engine(...), YAML)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sglang_longflow.errors import ConfigError
from sglang_longflow.policies import Policy, make_policy
from sglang_longflow.settings import device
from sglang_longflow.settings.flags import (
    DEFAULT_POLICY,
    FLAG_NAMES,
    FLAGS,
    LEAST_BUDGET_TOKENS,
)
from sglang_longflow.settings.nearest import nearest


@dataclass(frozen=True)
class LongFlowConfig:
    """What the operator decided; immutable, checked when made.

    Attributes
    ----------
    kv_budget : int
        Default budget in tokens; 0 is full KV by default.
    kv_policy : str
        Name of the default policy.
    kv_budget_min, kv_budget_max : int or None
        Bounds for budgets that requests ask for. None leaves the minimum to the policy. Where full
        KV is refused the maximum is never None: without a value it becomes `kv_budget`, because a
        large budget is full KV by another name.
    kv_budget_allow_full : bool
        Whether a request may ask for full KV (``kv_budget: 0``).
    kv_protect_sink_tokens, kv_protect_recent_tokens : int
        Tokens at either end of a row that are never overwritten.
    kv_victims : str
        "layer" or "kv_head": what shares one victim.
    kv_decode_kernel : str
        "triton" or "reference"; `config_from` resolves "auto" by the server's device.
    kv_planned_rows : int or None
        Requests at `kv_budget` that the operator counts on; the scheduler compares its pool.
    """

    kv_budget: int
    kv_policy: str = DEFAULT_POLICY
    kv_budget_min: int | None = None
    kv_budget_max: int | None = None
    kv_budget_allow_full: bool = False
    kv_protect_sink_tokens: int = 0
    kv_protect_recent_tokens: int = 0
    kv_victims: str = "layer"
    kv_decode_kernel: str = "reference"
    kv_planned_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("kv_budget", "kv_budget_min", "kv_budget_max"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(
                    f"{name}={value!r}: expected an integer number of tokens; set {_option(name)} N"
                )
        if not isinstance(self.kv_budget_allow_full, bool):
            raise ConfigError(
                f"kv_budget_allow_full={self.kv_budget_allow_full!r}: expected true or false; "
                f"set --kv-budget-allow-full, or drop it"
            )
        for name in ("kv_protect_sink_tokens", "kv_protect_recent_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(
                    f"{name}={value!r}: expected an integer >= 0; set {_option(name)} 0 or more"
                )
        self._check_planned_rows()
        for flag in FLAGS:
            value = getattr(self, flag.name)
            if flag.choices and value not in flag.choices:
                raise ConfigError(
                    f"{flag.name}={value!r}: expected one of {', '.join(flag.choices)}"
                    f"{nearest(str(value), flag.choices) or f'; set {flag.option} {flag.default}'}"
                )
        if self.kv_victims == "kv_head" and not self.uses_fused_decode:
            raise ConfigError(
                f"kv_victims='kv_head': the decode of kv_decode_kernel={self.kv_decode_kernel!r} "
                f"has one victim per layer; set --kv-decode-kernel triton, or --kv-victims layer"
            )
        if wrong := unknown_policy(self.kv_policy):
            raise ConfigError(f"kv_policy={self.kv_policy!r}: {wrong}")
        if self.kv_victims == "kv_head" and self.policy().needs.slot_similarity:
            raise ConfigError(
                f"kv_victims='kv_head': {self.kv_policy!r} compares tokens over all KV heads, so "
                f"it has one victim per layer; set --kv-victims layer, or another --kv-policy"
            )
        if not self.serves(self.policy()):
            raise ConfigError(
                f"kv_policy={self.kv_policy!r}: the triton decode kernel does not rank by it; set "
                f"--kv-decode-kernel reference (or auto)"
            )
        floor = self.policy().min_budget_tokens
        low = floor if self.kv_budget_min is None else self.kv_budget_min
        if low < floor:
            raise ConfigError(
                f"kv_budget_min={low}: below {floor}, the minimum of policy "
                f"{self.kv_policy!r} with its protected tokens; set --kv-budget-min {floor} or more"
            )
        if self.kv_budget_max is not None and self.kv_budget_max < low:
            raise ConfigError(
                f"kv_budget_max={self.kv_budget_max}: below the minimum {low}; "
                f"set --kv-budget-max {low} or more"
            )
        if self.kv_budget != 0 and self.kv_budget < low:
            raise ConfigError(
                f"kv_budget={self.kv_budget}: below the minimum {low}; "
                f"set --kv-budget {low} or more, or 0 for full KV"
            )
        if self.kv_budget_max is not None and self.kv_budget > self.kv_budget_max:
            raise ConfigError(
                f"kv_budget={self.kv_budget}: above kv_budget_max={self.kv_budget_max}; "
                f"set --kv-budget {self.kv_budget_max} or less, or raise --kv-budget-max"
            )
        if self.kv_budget_max is None and not self.allows_full:
            object.__setattr__(self, "kv_budget_max", self.kv_budget)

    def _check_planned_rows(self) -> None:
        planned = self.kv_planned_rows
        if planned is None:
            return
        if type(planned) is not int or planned < 1:
            raise ConfigError(
                f"kv_planned_rows={planned!r}: expected an integer >= 1; set --kv-planned-rows N"
            )
        if self.kv_budget == 0:
            raise ConfigError(
                f"kv_planned_rows={planned}: rows of full KV have no fixed size; set --kv-budget, "
                f"or drop it"
            )

    def policy(self, name: str | None = None) -> Policy:
        """The policy called `name` (default: the server's) with this server's protections.

        What the server's own policy keeps, all rows keep: the ring of recent tokens is the
        server's, and so are the first tokens in the fused kernel.
        """
        own = make_policy(
            self.kv_policy,
            protect_sink_tokens=self.kv_protect_sink_tokens,
            protect_recent_tokens=self.kv_protect_recent_tokens,
        )
        if name in (None, self.kv_policy):
            return own
        return make_policy(
            name,
            protect_sink_tokens=(
                own.first_tokens_kept if own.is_fused else self.kv_protect_sink_tokens
            ),
            protect_recent_tokens=own.recent_tokens_kept,
        )

    def serves(self, policy: Policy) -> bool:
        """Whether requests may ask for it here: its memory is there, and the kernel ranks by it."""
        own = self.policy()
        if self.uses_fused_decode:
            # The kernel has one decay, the server's.
            same_decay = policy.rank_rule.decay in (0, own.rank_rule.decay)
            if not policy.is_fused or not same_decay:
                return False
        return policy.needs.within(own.needs)

    @property
    def policies_allowed(self) -> tuple[str, ...]:
        """Names of the policies that requests may ask for, the server's own first."""
        others = (name for name in LEAST_BUDGET_TOKENS if name != self.kv_policy)
        return (self.kv_policy, *(name for name in others if self.serves(self.policy(name))))

    @property
    def uses_fused_decode(self) -> bool:
        """Whether decode runs in the Triton kernel."""
        return self.kv_decode_kernel == "triton"

    def row_tokens(self, context_tokens: int) -> int:
        """Most tokens that a row can hold resident."""
        if self.allows_full or self.kv_budget_max is None:
            return context_tokens
        return min(context_tokens, self.kv_budget_max)

    @property
    def allows_full(self) -> bool:
        """Full KV may be asked for; a server whose default is full KV always allows it."""
        return self.kv_budget_allow_full or self.kv_budget == 0

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def unknown_policy(name: object) -> str | None:
    """What is wrong with a policy's name, for a message; None if it is known."""
    known = tuple(LEAST_BUDGET_TOKENS)
    if isinstance(name, str) and name in known:
        return None
    meant = nearest(str(name)[:60], known).removeprefix("; ")
    return f"unknown policy; {f'{meant} ' if meant else ''}known: {', '.join(known)}"


def _option(name: str) -> str:
    """A field as written on a command line."""
    return "--" + name.replace("_", "-")


def runs_on_gpu(source: Any) -> bool:
    """Whether a server with these arguments runs on a GPU (``device`` unset: SGLang's choice)."""
    return getattr(source, "device", None) in (None, "cuda") and device.gpu_count() > 0


def config_from(source: Any) -> LongFlowConfig | None:
    """Read the configuration off SGLang's ServerArgs; None if no budget was set (inert).

    Raises
    ------
    ConfigError
        A value is wrong, or another kv_* setting was given without kv_budget.
    """
    values = {name: getattr(source, name, None) for name in FLAG_NAMES}
    if values["kv_budget"] is None:
        for flag in FLAGS[1:]:
            if values[flag.name] not in (None, flag.default):
                raise ConfigError(
                    f"{flag.name}={values[flag.name]!r} has no effect without kv_budget; "
                    f"set --kv-budget N (or 0 for full KV by default), or drop it"
                )
        return None
    if values["kv_decode_kernel"] in (None, "auto"):
        name = values["kv_policy"]
        fused = name not in LEAST_BUDGET_TOKENS or make_policy(name).is_fused
        values["kv_decode_kernel"] = "triton" if fused and runs_on_gpu(source) else "reference"
    return LongFlowConfig(**{k: v for k, v in values.items() if v is not None})
