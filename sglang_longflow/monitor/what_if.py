# SPDX-License-Identifier: Apache-2.0
"""What another budget would buy in the pool that this server has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sglang_longflow.planner.geometry import DTYPE_BYTES, ModelGeometry, PlanError
from sglang_longflow.planner.gpus import gpu_called
from sglang_longflow.planner.plan import make_plan
from sglang_longflow.planner.quality import (
    Asked,
    model_names,
    quality_line,
    server_variant,
    small_share_note,
)
from sglang_longflow.planner.weights import weights_bytes
from sglang_longflow.settings.flags import MIN_BUDGET_TOKENS

MAX_OUTPUT_TOKENS = 10_000_000
MAX_USERS = 1_000_000


@dataclass(frozen=True)
class RunningServer:
    """Facts of a server for the planner; `dtype` and `kv_cache_dtype` in SGLang's words.

    `model` is its folder or name, by which measurements of its answers are found.
    """

    geometry: ModelGeometry
    pool_tokens: int
    tp: int
    dtype: str
    kv_cache_dtype: str
    model: str = ""

    @cached_property
    def _model_bytes(self) -> int:
        return weights_bytes(self.geometry, self.dtype)

    @cached_property
    def _model_names(self) -> frozenset[str]:
        return model_names(self.model, self.geometry.folder)

    def plan(
        self,
        settings: dict[str, Any],
        budget: int,
        prompt_tokens: int,
        output_tokens: int,
        users: int | None = None,
    ) -> dict[str, Any]:
        """`planner.plan.make_plan` for this server, as a dict.

        Parameters
        ----------
        settings : dict
            ``settings`` of the stats: the card, the policy, and the weights as they were measured
            there.
        budget, prompt_tokens, output_tokens : int
            In tokens.
        users : int, optional
            Requests that want to run at once.

        Raises
        ------
        PlanError
            A length does not fit the pool, or the model is one that cannot be planned.
        """
        for name, value, low in (
            ("budget", budget, MIN_BUDGET_TOKENS),
            ("prompt_tokens", prompt_tokens, 1),
        ):
            if not low <= value <= self.pool_tokens:
                raise PlanError(
                    f"{name}={value}: expected an integer from {low} to {self.pool_tokens}, the "
                    f"slots of this server's pool"
                )
        if self.dtype not in DTYPE_BYTES:
            raise PlanError(f"dtype={self.dtype}: the planner knows {', '.join(DTYPE_BYTES)}")
        memory = settings["device_memory_bytes"]
        gpu = gpu_called(settings["device_name"], memory) if memory else None
        measured = settings["weights_bytes"] * self.tp
        plan = make_plan(
            self.geometry,
            gpu=gpu,
            budget_tokens=budget,
            users=users,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            tp=self.tp,
            dtype=self.dtype,
            kv_cache_dtype="fp8_e4m3" if self.kv_cache_dtype.startswith("fp8") else "auto",
            model_bytes=measured if memory and measured else self._model_bytes,
            pool_tokens=self.pool_tokens,
        )
        source = "measured by this server" if memory and measured else "files or geometry"
        asked = Asked(self.model, self._model_names, server_variant(settings), budget)
        quality = quality_line(asked)
        note = small_share_note(budget, prompt_tokens + output_tokens, quality)
        notes = (*plan.notes, *filter(None, [note]))
        return {**asdict(plan), "weights_source": source, "quality": quality, "notes": notes}
