# SPDX-License-Identifier: Apache-2.0
"""Python processes that have torch already: forks of one process that did nothing but import it.

A fork stands for ``python WORDS``: its own environment, path and files, then the program as Python
runs it, up to the end of an uncaught exception. Processes that it spawns are such forks too
(`fast_start`), made before the program began. Until then nothing of SGLang or of this project is
loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FAST_START = Path(__file__).parent / "fast_start" / "sitecustomize.py"
IMPORTED = ("msgspec", "numpy", "torch", "triton")
OURS = ("sglang", "sglang_longflow", "longflow_kernels")


class WarmPython:
    """The process that forks; one program at a time."""

    def __init__(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited,
        )

    def run(
        self, words: list[str], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """``python WORDS``: either ``-m MODULE ARGUMENTS`` or ``FILE ARGUMENTS``."""
        assert self._process.stdin and self._process.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            asked = {
                "words": words,
                "environment": dict(environment),
                "files": list(map(str, files)),
            }
            print(json.dumps(asked), file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                self.stop()
                raise subprocess.TimeoutExpired(words, timeout_s)
            code = int(self._process.stdout.readline())
            out, err = (file.read_text(encoding="utf-8") for file in files)
        return subprocess.CompletedProcess(words, code, out, err)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _serve() -> list[str]:
    """Fork once a line of stdin; returns in the forks alone, with the program to run."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            return _become(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _become(asked: Mapping) -> list[str]:
    """In a fork: the files, the environment and the path of a new Python."""
    sources = [os.open(os.devnull, os.O_RDONLY)]
    sources += [
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for file in asked["files"]
    ]
    for number, source in enumerate(sources):
        os.dup2(source, number)
        os.close(source)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location("fast_start", FAST_START)
    assert spec and spec.loader
    fast_start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fast_start)
    fast_start._fork_children()
    return asked["words"]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    for name in IMPORTED:
        importlib.import_module(name)
    assert not {name.partition(".")[0] for name in sys.modules} & set(OURS)
    words = _serve()
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
