# SPDX-License-Identifier: Apache-2.0
"""Write the table of cards in docs/reference/plan.md; ``--check`` only compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "plan.md"
PLACE = re.compile(r"(<!-- gpu_table.py: begin -->\n).*?(<!-- gpu_table.py: end -->)", re.S)


def table() -> str:
    """A row per card of the planner."""
    from sglang_longflow.planner.gpus import GIB, GPUS

    head = ("`--gpu`", "Usable GiB", "TB/s", "Dense 16-bit TFLOP/s", "`nvidia-smi` prints")
    rows = [head, ("---",) * len(head)]
    for gpu in GPUS.values():
        speeds = (
            f"{gpu.bandwidth_bytes_per_s / 1e12:.3f}".rstrip("0").rstrip("."),
            f"{gpu.operations_per_s / 1e12:,.4g}",
        )
        names = ", ".join(f"NVIDIA {name}" for name in gpu.driver_names)
        rows.append((f"`{gpu.name}`", f"{gpu.memory_bytes / GIB:.4g}", *speeds, names))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main(arguments: list[str]) -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    old = PAGE.read_text(encoding="utf-8")
    new, places = PLACE.subn(lambda found: found[1] + table() + found[2], old)
    if places != 1:
        sys.exit("docs/reference/plan.md has no place for the table of cards")
    if "--check" not in arguments:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("docs/reference/plan.md is out of date: run python scripts/gpu_table.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
