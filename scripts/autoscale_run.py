# SPDX-License-Identifier: Apache-2.0
"""The autoscaling proof, longer, with its CSV and plot for docs/deploy/autoscaling.md.

    python scripts/autoscale_run.py --model FOLDER [--tools .tools] [--out docs]

The same code as tests/deploy/test_autoscale.py: real servers, router and Prometheus, and the
chart's ScaledObject. `--model` has the tokenizer for the tiny random model. Needs `make tools`.
With `--plot-only` the CSV is drawn again.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tools")]


def phases(bursts: int):
    """Bursts with quiet after each; every second one is larger."""
    from autoscale_proof import Phase

    both, one = (lambda c: len(c.ready) == 2), (lambda c: len(c.ready) == 1 and not c.draining)
    always = lambda c: True  # noqa: E731
    found = [Phase("calm", 2, always, 15)]
    for number in range(1, bursts + 1):
        clients = 18 if number % 2 == 0 else 14
        found += [
            Phase(f"burst {number}", clients, both),
            Phase(f"burst {number} on two", clients, always, 30),
            Phase(f"quiet {number}", 4, one, 20),
            Phase(f"calm {number}", 4, always, 15),
        ]
    return found


def plot(rows: list[dict[str, str]], rows_per_replica: int, threshold: float, file: Path) -> None:
    """Load and requests above, replicas below, over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def column(name: str) -> list[float]:
        return [float(row[name] or "nan") for row in rows]

    seconds = column("seconds")
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(11, 6.5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    above.plot(seconds, column("open_requests"), color="0.55", lw=1, label="open at the clients")
    running, queued = column("running"), column("queued")
    above.stackplot(
        seconds, running, queued, labels=("running", "queued"), colors=("#4c8bc0", "#e39b52")
    )
    capacity = [float(row["ready"]) * rows_per_replica for row in rows]
    above.step(
        seconds,
        capacity,
        where="post",
        color="k",
        lw=1.2,
        ls="--",
        label="rows of the ready replicas",
    )
    above.set_ylabel("requests")
    above.set_ylim(0, 24)
    above.legend(loc="upper left", fontsize=9, ncols=4)
    below.step(seconds, column("desired"), where="post", color="#b03a48", lw=2.2, label="desired")
    below.step(
        seconds, column("ready"), where="post", color="#2a7f55", lw=2.2, label="behind the router"
    )
    for name, color in (("starting", "#d8c04a"), ("draining", "#9a6fb0")):
        on = [float(row[name]) > 0 for row in rows]
        below.fill_between(
            seconds,
            0,
            2.8,
            where=on,
            step="post",
            color=color,
            alpha=0.35,
            lw=0,
            label=f"one {name}",
        )
    below.set_ylim(0, 2.8)
    below.set_yticks([0, 1, 2])
    below.set_ylabel("replicas")
    below.set_xlabel("seconds")
    below.legend(loc="upper left", fontsize=9, ncols=4)
    above.set_title(
        f"ScaledObject on real servers: {rows_per_replica} rows per replica, "
        f"target {threshold:g} requests each"
    )
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder whose tokenizer is used")
    parser.add_argument("--tools", type=Path, default=ROOT / ".tools")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--bursts", type=int, default=2)
    parser.add_argument("--plot-only", action="store_true")
    options = parser.parse_args()
    from autoscale_manifest import scaled_object
    from autoscale_proof import Settings, run
    from fleet import text_model

    # A quarter of an HPA's pace; the windows are shorter, too (Settings).
    settings = Settings(tokens=(400, 900), scale_down_s=20, scale_down_period_s=15)
    scaled = scaled_object(options.tools, **settings.autoscaling)
    file = options.out / "results" / "autoscaling.csv"
    if not options.plot_only:
        if options.model is None:
            parser.error("--model is needed for a run")
        with tempfile.TemporaryDirectory(prefix="autoscale-") as name:
            folder = Path(name)
            model = text_model(folder / "model", options.model)
            result = asyncio.run(
                run(
                    settings,
                    scaled,
                    phases(options.bursts),
                    folder=folder,
                    model=model,
                    tools=options.tools,
                )
            )
        print("\n".join(result.events))
        sent, lost = result.load.sent, result.load.lost
        took = sorted(one.done - one.at for one in sent)
        print(f"{len(sent)} requests, {sum(one.stream for one in sent)} streamed, {len(lost)} lost")
        print(f"{sum(one.tokens for one in sent)} tokens asked for and received")
        print(f"seconds a request: median {took[len(took) // 2]:.1f}, longest {took[-1]:.1f}")
        print(f"exit statuses of drained replicas: {result.exit_statuses}")
        for one in lost:
            print(f"lost: {one}")
        if lost or result.load.open or any(result.exit_statuses):
            return 1
        result.write_csv(file)
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    plot(rows, settings.rows, scaled.thresholds["load"], options.out / "images" / "autoscaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
