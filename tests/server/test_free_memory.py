# SPDX-License-Identifier: Apache-2.0
"""What a process may take: of the machine, its cgroups of both versions, its address space."""

from __future__ import annotations

import resource

import pytest

from sglang_longflow.server.free_memory import SCHEDULER_ADDRESS_BYTES, Free, free_memory

GB = 10**9
NONE = resource.RLIM_INFINITY


@pytest.fixture
def machine(tmp_path):
    """``machine(membership)`` makes a /proc with 16 GB available; returns it and the cgroups."""

    def make(membership: str = "0::/\n"):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        kib = 16 * GB // 1024
        (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {kib} kB\nHugePages: 0\n")
        (proc / "self" / "cgroup").write_text(membership)
        cgroups.mkdir()
        return proc, cgroups

    return make


def v2(folder, limit, used, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def v1(folder, limit, used, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {cache}\n")


def test_a_machine_without_limits(machine):
    proc, cgroups = machine()
    assert free_memory(proc, cgroups, NONE) == Free(16 * GB // 1024 * 1024, "memory")


def test_version_2_and_what_is_above_it(machine):
    proc, cgroups = machine("0::/pods/one\n")
    v2(cgroups / "pods" / "one", "max", 3 * GB)
    v2(cgroups / "pods", 8 * GB, 5 * GB, cache=1 * GB)
    assert free_memory(proc, cgroups, NONE) == Free(4 * GB, "cgroup")
    v2(cgroups / "pods" / "one", 6 * GB, 5 * GB)
    assert free_memory(proc, cgroups, NONE) == Free(1 * GB, "cgroup")


def test_version_1(machine):
    proc, cgroups = machine("9:name=systemd:/x\n4:memory:/x/y\n0::/\n")
    v1(cgroups / "memory", 9223372036854771712, GB)  # no limit
    v1(cgroups / "memory" / "x" / "y", 6 * GB, 3 * GB, cache=GB)
    assert free_memory(proc, cgroups, NONE) == Free(4 * GB, "cgroup")


def test_a_container_sees_its_own_group_at_the_root(machine):
    proc, cgroups = machine("4:memory:/docker/0123\n0::/docker/0123\n")
    v1(cgroups / "memory", 5 * GB, 3 * GB)
    assert free_memory(proc, cgroups, NONE) == Free(2 * GB, "cgroup")


def test_more_used_than_allowed_leaves_nothing(machine):
    proc, cgroups = machine("0::/\n")
    v2(cgroups, 2 * GB, 3 * GB)
    assert free_memory(proc, cgroups, NONE) == Free(0, "cgroup")


def test_an_address_space_holds_the_libraries_too(machine):
    proc, cgroups = machine()
    limit = SCHEDULER_ADDRESS_BYTES + 2 * GB
    assert free_memory(proc, cgroups, limit) == Free(2 * GB, "ulimit -v")
    assert free_memory(proc, cgroups, GB) == Free(0, "ulimit -v")


def test_of_this_machine():
    free = free_memory()
    total = int(open("/proc/meminfo").readline().split()[1]) * 1024
    assert 0 <= free.bytes <= total
