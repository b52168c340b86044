# SPDX-License-Identifier: Apache-2.0
"""Carry out the Dockerfile in a clean root, without a Docker daemon. The tools' Python, as root.

    clean_root.py base BASE --python PREFIX      a Debian root with that Python in /usr/local
    clean_root.py build WORK --base BASE [...]   the steps of the Dockerfile, from the file itself
    clean_root.py run WORK [...] -- WORDS        what `docker run --read-only IMAGE WORDS` would

BASE stands in for python:3.12-slim-bookworm, which cannot be fetched here: a minimal Debian
bookworm, made by mmdebstrap, with the libraries that the image has. Stages are overlays on it. With
--packages the one expensive step, the pip installation from requirements.txt, is not run: the
packages of an environment that was installed from the same pins stand in for its result, also as
an overlay.

A container has namespaces of its own for mounts, processes and IPC, no capability, and no way to
get one; its root is read-only but for /tmp, /dev/shm and what is mounted. The network is that of
the host.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
# What CPython's modules are linked with, and what the image has beside them.
LIBRARIES = (
    "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,"
    "libuuid1,netbase,tzdata,zlib1g"
)
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES_STEP = "-r /tmp/build/requirements.txt"
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")


def sh(*command: object, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], check=True, **more)


def make_base(base: Path, prefix: Path) -> None:
    """Debian's packages, then the interpreter at the place where the image has it."""
    # Unpacking waits for no disk: the root is thrown away after the test.
    options = ["--quiet", "--variant=apt", f"--include={LIBRARIES}", "--dpkgopt=force-unsafe-io"]
    sh("mmdebstrap", *options, SUITE, base, stdout=sys.stderr)
    python = sorted(prefix.glob("bin/python3.*[0-9]"))[0].name
    local = base / "usr/local"
    skip = shutil.ignore_patterns("site-packages", "test", "__pycache__", "config-3*", "idlelib")
    shutil.copytree(
        prefix / "lib" / python, local / "lib" / python, symlinks=True, ignore=skip,
        dirs_exist_ok=True)  # fmt: skip
    for library in prefix.glob("lib/libpython*.so*"):
        shutil.copy2(library, local / "lib" / library.name, follow_symlinks=False)
    shutil.copy2(prefix / "bin" / python, local / "bin" / python)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(python)
    (local / "lib" / python / "site-packages").mkdir()
    pip = local / "bin/pip"
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    sh("chroot", base, "ldconfig")
    sh("chroot", base, "python", "-m", "ensurepip", stdout=sys.stderr)
    for name in HOST_FILES:
        path = base / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def overlay(at: Path, lower: list[Path], upper: Path | None = None) -> None:
    """Layers at `at`, the first of `lower` on top; read-only without `upper`."""
    options = "lowerdir=" + ":".join(map(str, lower))
    if upper is not None:
        work = upper.with_name(upper.name + ".work")
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        options += f",upperdir={upper},workdir={work}"
    at.mkdir(parents=True, exist_ok=True)
    sh("mount", "-t", "overlay", "overlay", "-o", options, at)


def mount_kernel(root: Path, tmp: bool) -> None:
    """/proc, /sys, /dev with its few devices, and /tmp where it is to be a tmpfs."""
    sh("mount", "-t", "proc", "proc", root / "proc")
    sh("mount", "-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    sh("mount", "-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", root / "dev")
    for name, minor in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        device = root / "dev" / name
        os.mknod(device, 0o666 | 0o020000, os.makedev(1, minor))
        device.chmod(0o666)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd/{number}")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "dev/shm").mkdir()
    sh("mount", "-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs", root / "dev/shm")
    if tmp:
        sh("mount", "-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs", root / "tmp")


def bind(source: Path, target: Path, read_only: bool = True) -> None:
    sh("mount", "--bind", source, target)
    if read_only:
        sh("mount", "-o", "remount,bind,ro", target)


class Stage:
    """One stage of the Dockerfile while its steps are carried out."""

    def __init__(self, name: str, builder: Builder):
        self.name, self.builder = name, builder
        self.upper = builder.work / name / "upper"
        self.root = builder.work / name / "root"
        self.arguments: dict[str, str] = {}
        self.config: dict = {"env": {"PATH": PATH}, "user": "0:0", "workdir": "/", "labels": {}}
        overlay(self.root, [builder.base], self.upper)
        mount_kernel(self.root, tmp=False)
        for name in HOST_FILES:
            bind(Path(name), self.root / name[1:])

    def expand(self, text: str) -> str:
        values = {**self.arguments, **self.config["env"]}
        return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], text)

    def pairs(self, text: str) -> dict[str, str]:
        return dict(word.split("=", 1) for word in shlex.split(self.expand(text)))

    def inside(self, path: str) -> Path:
        return self.root / os.path.join(self.config["workdir"], path).lstrip("/")

    def step(self, instruction: str, value: str) -> None:
        handler = getattr(self, f"do_{instruction.lower()}", None)
        if handler is None:
            sys.exit(f"clean_root: no idea how to carry out {instruction}")
        handler(value)

    def do_arg(self, value: str) -> None:
        name, _, default = value.partition("=")
        self.arguments[name] = default

    def do_env(self, value: str) -> None:
        self.config["env"].update(self.pairs(value))

    def do_label(self, value: str) -> None:
        self.config["labels"].update(self.pairs(value))

    def do_workdir(self, value: str) -> None:
        self.config["workdir"] = os.path.join(self.config["workdir"], self.expand(value))
        self.inside("").mkdir(parents=True, exist_ok=True)

    def do_user(self, value: str) -> None:
        self.config["user"] = value

    def do_copy(self, value: str) -> None:
        *sources, target = self.expand(value).split()
        origin = ROOT
        if sources[0].startswith("--from="):
            origin = self.builder.stages[sources.pop(0).removeprefix("--from=")].root
        for source in sources:
            path = origin / source.lstrip("/")
            to = self.inside(target)
            if path.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, to, dirs_exist_ok=True, ignore=skip)
            else:
                if target.endswith("/") or to.is_dir():
                    to = to / path.name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)

    def do_run(self, value: str) -> None:
        mounts = []
        while match := re.match(r"--mount=(\S+)\s+", value):
            mounts.append(dict(part.split("=", 1) for part in match[1].split(",")))
            value = value[match.end() :]
        if PACKAGES_STEP in value and self.builder.packages:
            self.builder.put_packages(self)
            return
        for mount in mounts:
            if (mount["type"], mount.get("id")) != ("secret", "pip"):
                sys.exit(f"clean_root: no idea how to mount {mount}")
            if self.builder.pip_conf:
                target = self.root / mount["target"].lstrip("/")
                target.touch()
                bind(self.builder.pip_conf, target)
        sh(*enter(self.root, self.config, self.arguments), "/bin/sh", "-c", value)
        for mount in mounts if self.builder.pip_conf else []:
            target = self.root / mount["target"].lstrip("/")
            sh("umount", target)
            target.unlink()

    def do_entrypoint(self, value: str) -> None:
        self.config["entrypoint"] = json.loads(value)

    def do_cmd(self, value: str) -> None:
        self.config["cmd"] = json.loads(value)

    def do_healthcheck(self, value: str) -> None:
        self.config["healthcheck"] = json.loads(value.split("CMD", 1)[1])

    def do_stopsignal(self, value: str) -> None:
        self.config["stopsignal"] = value

    def do_expose(self, value: str) -> None:
        self.config["port"] = int(value)

    def do_volume(self, value: str) -> None:
        self.config["volumes"] = json.loads(value)


def enter(root: Path, config: dict, more: dict[str, str] | None = None) -> list[str]:
    """The words before a command that runs it as the image's user, in its environment."""
    user, _, group = config["user"].partition(":")
    environment = [f"{key}={value}" for key, value in {**(more or {}), **config["env"]}.items()]
    drop = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"] if user != "0" else []
    return ["chroot", str(root), "/usr/bin/setpriv", f"--reuid={user}", f"--regid={group or user}",
            "--clear-groups", *drop, "/usr/bin/env", "-C", config["workdir"], "-i",
            *environment]  # fmt: skip


class Builder:
    """Carries out the stages that a target needs, in their order."""

    def __init__(self, options: argparse.Namespace):
        self.work, self.base = options.work.resolve(), options.base.resolve()
        self.packages, self.pip_conf = options.packages, options.pip_conf
        self.stages: dict[str, Stage] = {}
        self.layers: dict[str, list[str]] = {}

    def put_packages(self, stage: Stage) -> None:
        """Lay an environment's packages where pip would have put them, less this project's own."""
        place = next((stage.root / "usr/local/lib").glob("python3.*")) / "site-packages"
        upper = self.work / stage.name / "packages"
        overlay(place, [self.packages.resolve()], upper)
        for pattern in ("__editable__*longflow*", "sglang_longflow*"):
            for path in place.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        inside = str(place.relative_to(stage.root))
        self.layers[inside] = [str(upper), str(self.packages.resolve())]

    def build(self, target: str) -> dict:
        from dockerfile_parse import DockerfileParser

        steps = DockerfileParser(str(ROOT / "Dockerfile"), env_replace=False).structure
        stage = None
        for step in steps:
            if step["instruction"] == "FROM":
                name = step["value"].split()[-1]
                if stage is not None and stage.name == target:
                    break
                wanted = name in (target, "wheel")
                stage = self.stages[name] = Stage(name, self) if wanted else None
            elif step["instruction"] != "COMMENT" and stage is not None:
                started = time.monotonic()
                print(f"[{stage.name}] {step['instruction']} {step['value'][:100]}", flush=True)
                stage.step(step["instruction"], step["value"])
                if step["instruction"] == "RUN":
                    print(f"[{stage.name}] {time.monotonic() - started:.1f} s", flush=True)
        built = self.stages[target]
        return {
            **built.config,
            "root": str(built.root),
            "layers": {"": [str(built.upper), str(self.base)], **self.layers},
        }


def run_image(options: argparse.Namespace, words: list[str]) -> None:
    """In namespaces of its own, as their first process: mounts, then the image's entry point."""
    image = json.loads((options.work / "image.json").read_text())
    root = Path(image["root"])
    volumes = [volume.split(":") for volume in options.volume]
    # Mount points that the image lacks are a layer of their own, as the root is read-only.
    points = Path(tempfile.mkdtemp(prefix="points-", dir=options.work))
    points.chmod(0o755)
    for _, target, *_ in volumes:
        if not any((Path(layer) / target[1:]).exists() for layer in image["layers"][""]):
            (points / target[1:]).mkdir(parents=True)
    image["layers"][""].insert(0, str(points))
    for place, layers in image["layers"].items():
        overlay(root / place, [Path(layer) for layer in layers])
    mount_kernel(root, tmp=True)
    for name in ("/etc/hosts", "/etc/resolv.conf"):  # Docker writes its own
        bind(Path(name), root / name[1:])
    for source, target, *mode in volumes:
        bind(Path(source), root / target.lstrip("/"), read_only=mode == ["ro"])
    command = [*enter(root, image), *image["entrypoint"], *(words or image["cmd"])]
    os.execvp(command[0], command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    base = verbs.add_parser("base")
    base.add_argument("base", type=Path)
    base.add_argument("--python", type=Path, required=True)
    build = verbs.add_parser("build")
    build.add_argument("work", type=Path)
    build.add_argument("--base", type=Path, required=True)
    build.add_argument("--target", default="cpu")
    build.add_argument("--packages", type=Path)
    build.add_argument("--pip-conf", type=Path)
    run = verbs.add_parser("run")
    run.add_argument("work", type=Path)
    run.add_argument("--volume", action="append", default=[])
    for verb in (build, run):
        verb.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given, words = sys.argv[1:], []
    if "--" in given:  # argparse would take them for arguments of its own
        cut = given.index("--")
        given, words = given[:cut], given[cut + 1 :]
    options = parser.parse_args(given)
    if options.verb == "base":
        make_base(options.base, options.python)
    elif not options.inside:
        # The overlays live in a mount namespace, and go with its last process.
        own = ["--ipc", "--kill-child"] if options.verb == "run" else []
        separate = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", *own]
        arguments = [sys.argv[1], "--inside", *sys.argv[2:]]
        os.execvp("unshare", [*separate, sys.executable, __file__, *arguments])
    elif options.verb == "build":
        image = Builder(options).build(options.target)
        (options.work / "image.json").write_text(json.dumps(image, indent=1))
    else:
        run_image(options, words)


if __name__ == "__main__":
    main()
