# SPDX-License-Identifier: Apache-2.0
"""How much memory a process started now may take: of the machine, of its cgroups, of its limits."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Address space of a scheduler's process without model and pool: libraries and arenas of threads,
#: most of it never touched.
SCHEDULER_ADDRESS_BYTES = 8 << 30
_V1_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Free:
    """Bytes that are free, and what limits them ("memory", "cgroup", "ulimit -v")."""

    bytes: int
    limit: str


def free_memory(
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    address_limit: int | None = None,
) -> Free:
    """The smallest of what machine, control groups and address-space limit leave.

    Parameters
    ----------
    proc, cgroups : Path
        Where the kernel tells.
    address_limit : int, optional
        Bytes of RLIMIT_AS; this process's own if left out.
    """
    found = [Free(_available(proc / "meminfo"), "memory")]
    found += [Free(left, "cgroup") for left in _cgroups(proc / "self" / "cgroup", cgroups)]
    if address_limit is None:
        address_limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_limit != resource.RLIM_INFINITY:
        found.append(Free(max(0, address_limit - SCHEDULER_ADDRESS_BYTES), "ulimit -v"))
    return min(found, key=lambda free: free.bytes)


def _available(meminfo: Path) -> int:
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024


def _cgroups(memberships: Path, mounts: Path) -> Iterator[int]:
    """What each memory cgroup of this process leaves, those above it included."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mounts, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's, and its own group the root of what it sees.
        here = root / path.strip("/")
        for folder in (here, *here.parents):
            left = _left(folder, *names)
            if left is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    """Bytes that one cgroup leaves; None if it has no limit, or does not exist."""
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max" or int(limit) >= _V1_NO_LIMIT:
        return None
    # The kernel gives pages of files back before it kills.
    return max(0, int(limit) - used + int(counts.get(cache_name, 0)))
