# SPDX-License-Identifier: Apache-2.0
"""Servers import SGLang once instead of three times, in a third of the CPU time.

Python reads this file if its folder is on PYTHONPATH, which `harness.fast_start` sees to. In a
process of `python -m sglang.launch_server`, and in no other, SGLang is imported here; then some
children are forked, which wait. Where SGLang spawns a process, such a child takes the place of the
new interpreter: same parent, same file descriptors, the environment of that moment, and from there
on `multiprocessing`'s own code of a spawned process. What a child has from before the fork are
imports alone: no plugin was loaded, no hook applied, no argument read.

In every Python process that has this folder on its path the garbage collector runs more rarely: by
default it spends a third of an import of SGLang on walking what the import leaves.

It stands in for `multiprocessing.util.spawnv_passfds`; a child that is not there any more, or one
more than were forked, is started by the original.
"""

from __future__ import annotations

import array
import fcntl
import gc
import json
import os
import re
import socket
import sys

CHILDREN = 2  # a scheduler and the detokenizer
GC_THRESHOLDS = 100_000, 50, 50
HIGH_FD = 900  # above whatever number a spawned process is to have a file under
SPAWNED = re.compile(r"spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)")


def _import_sglang() -> None:
    gc.disable()
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler  # noqa: F401

    gc.freeze()
    gc.enable()


def _wait_and_become(connection: socket.socket) -> None:
    """In a child: wait for a process to be, and run it to its end."""
    message, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(64 * 4))
    if not message:  # the parent ended
        os._exit(0)
    received = array.array("i")
    for _, _, data in ancillary:
        received.frombytes(data)
    asked = json.loads(message)
    for place, fd in enumerate(received):
        received[place] = fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD)
        os.close(fd)
    for fd, wanted in zip(received, asked["fds"]):
        try:
            os.fstat(wanted)
        except OSError:
            os.dup2(fd, wanted, inheritable=False)
            os.close(fd)
        else:
            raise RuntimeError(f"file descriptor {wanted} is taken in a forked process")
    connection.close()
    for name in set(os.environ) - set(asked["environment"]):
        del os.environ[name]
    for name, value in asked["environment"].items():
        if os.environ.get(name) != value:  # setproctitle finds its place by those that stay
            os.environ[name] = value
    os.chdir(asked["folder"])
    sys.argv = ["-c", *asked["argv"]]
    from multiprocessing import spawn

    spawn.spawn_main(tracker_fd=asked["tracker_fd"], pipe_handle=asked["pipe_handle"])


def _fork_children() -> None:
    from multiprocessing import util

    waiting: list[tuple[int, socket.socket]] = []
    for _ in range(CHILDREN):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if not child:
            for _, other in waiting:
                other.close()
            here.close()
            high = fcntl.fcntl(there.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
            there.close()
            _wait_and_become(socket.socket(fileno=high))
            raise AssertionError("spawn_main ends the process")
        there.close()
        high = fcntl.fcntl(here.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
        here.close()
        waiting.append((child, socket.socket(fileno=high)))
    original = util.spawnv_passfds

    def spawnv_passfds(path, args, passfds):
        words = [word.decode() if isinstance(word, bytes) else word for word in args]
        spawned = next((found for word in words if (found := SPAWNED.search(word))), None)
        if spawned is None or not waiting or os.getpid() != owner:
            return original(path, args, passfds)
        child, connection = waiting.pop(0)
        fds = sorted(set(map(int, passfds)))
        asked = {
            "fds": fds,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "argv": words[words.index("--multiprocessing-fork") :],
            "tracker_fd": int(spawned[1]),
            "pipe_handle": int(spawned[2]),
        }
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        connection.sendmsg([json.dumps(asked).encode()], rights)
        connection.close()
        return child

    owner = os.getpid()
    util.spawnv_passfds = spawnv_passfds


gc.set_threshold(*GC_THRESHOLDS)
if sys.orig_argv[1:] and "sglang.launch_server" in sys.orig_argv[1:6]:
    place = sys.orig_argv.index("sglang.launch_server")
    if sys.orig_argv[place - 1] == "-m":
        _import_sglang()
        _fork_children()
