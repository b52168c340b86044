"""Accuracy against the KV budget, one line for each policy."""

from __future__ import annotations

from pathlib import Path

from sglang_longflow.errors import ConfigError
from sglang_longflow.evaluation.summary import Line
from sglang_longflow.evaluation.variants import FULL


def require_matplotlib() -> None:
    """Say at once, and not after hours of answers, that the plot cannot be drawn.

    Raises
    ------
    ConfigError
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "plot=True: matplotlib is not installed; pip install 'sglang-longflow[eval]', "
            "or add --no-plot"
        ) from None


def draw(lines: list[Line], path: Path) -> None:
    """Write a PNG; bars are 95 % intervals, the dashed line is full KV."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    variants = sorted({line.variant for line in lines if line.variant != FULL})
    markers = "osD^vP*Xph<>"
    for number, variant in enumerate(variants):
        found = sorted((x for x in lines if x.variant == variant), key=lambda x: x.budget)
        share = [100 * line.accuracy for line in found]
        below = [max(0.0, s - 100 * x.accuracy_low) for s, x in zip(share, found, strict=True)]
        above = [max(0.0, 100 * x.accuracy_high - s) for s, x in zip(share, found, strict=True)]
        axes.errorbar(
            [line.budget for line in found],
            share,
            yerr=[below, above],
            label=variant,
            marker=markers[number % len(markers)],
            capsize=3,
            linewidth=1.4,
        )
    for line in lines:
        if line.variant == FULL:
            axes.axhline(100 * line.accuracy, color="black", linestyle="--", label="full KV")
            axes.axhspan(
                100 * line.accuracy_low, 100 * line.accuracy_high, color="black", alpha=0.08
            )
    budgets = sorted({line.budget for line in lines if line.budget})
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel("KV budget (tokens a request)")
    axes.set_ylabel("right answers (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
