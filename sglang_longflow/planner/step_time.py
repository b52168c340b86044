# SPDX-License-Identifier: Apache-2.0
"""How long a decode step takes on a GPU: bytes to move, products to compute, and a fixed part.

The constants were fitted to runs on one H100 80GB; other cards use them with their own bandwidth
and arithmetic rate. docs/experiments/2026-11-29-plan.md compares estimates with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_longflow.planner.gpus import Gpu

ACHIEVABLE_BANDWIDTH = 0.87  # part of the peak that attention reaches
ACHIEVABLE_COMPUTE = 0.5  # part of the dense 16-bit peak that matrix products reach
SECONDS_PER_LAYER = 39e-6  # small kernels and gaps between kernels, in a CUDA graph


@dataclass(frozen=True)
class StepTime:
    """The model's figures, per GPU of a tensor-parallel group.

    Attributes
    ----------
    gpu : Gpu or None
        None counts memory traffic only, at one byte per second: good for ratios.
    weights_bytes, kv_bytes_per_token : float
    operations_per_token : float
        2 x parameters; 0 if it is not known.
    layers : int
    state_bytes : float
        Recurrent states of a row, which a step reads and writes.
    """

    gpu: Gpu | None
    weights_bytes: float
    kv_bytes_per_token: float
    operations_per_token: float
    layers: int
    state_bytes: float = 0.0

    def seconds(self, rows: int, mean_tokens: float) -> float:
        """Seconds of a decode step of `rows` rows that hold `mean_tokens` each."""
        moved = self.weights_bytes + rows * mean_tokens * self.kv_bytes_per_token
        moved += rows * 2 * self.state_bytes
        if self.gpu is None:
            return moved
        return (
            moved / (ACHIEVABLE_BANDWIDTH * self.gpu.bandwidth_bytes_per_s)
            + self._products(rows)
            + self.layers * SECONDS_PER_LAYER
        )

    def tokens_per_s(
        self, rows: int, mean_tokens: float, prompt_tokens: int, output_tokens: int
    ) -> float:
        """Output rate of a steady state: finished requests are replaced, at the cost of a prefill.

        Waiting, retractions and sampling's cost are not in it.
        """
        prefill = self._products(prompt_tokens) / output_tokens if self.gpu else 0.0
        return 1 / (self.seconds(rows, mean_tokens) / rows + prefill) if rows else 0.0

    def _products(self, tokens: int) -> float:
        assert self.gpu is not None
        rate = ACHIEVABLE_COMPUTE * self.gpu.operations_per_s
        return tokens * self.operations_per_token / rate
