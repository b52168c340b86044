# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/: where they are, and a folder that gets them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang_longflow.errors import ConfigError
from sglang_longflow.settings.installed import reinstall_command

#: Texts that YAML 1.2 and Go's readers take for a number, though PyYAML writes them bare: a tag
#: such as 7e12345, the beginning of a commit's hash.
_NUMBER = re.compile(r"[-+]?(0[oxbOXB][0-9a-fA-F]+|(\.\d+|\d+\.?\d*)([eE][-+]?\d+)?)", re.A)
_LANDMARK = "helm/sglang-longflow/Chart.yaml"


def deploy_folder() -> Path:
    """deploy/ of the checkout, or the wheel's copy of it (setup.py)."""
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1] / "deploy", here / "data" / "deploy"):
        if (folder / _LANDMARK).is_file():
            return folder
    raise ConfigError(f"the deployment files are not installed: {reinstall_command()}")


def load(relative: str) -> Any:
    """A YAML file of deploy/ with one document."""
    return yaml.safe_load((deploy_folder() / relative).read_text(encoding="utf-8"))


def load_all(relative: str) -> list[Any]:
    """A YAML file of deploy/ with several documents."""
    text = (deploy_folder() / relative).read_text(encoding="utf-8")
    return [content for content in yaml.safe_load_all(text) if content is not None]


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented, long texts folded."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = ">" if len(value) > 80 and " " in value else None
    if _NUMBER.fullmatch(value.replace("_", "")):  # they pass over it
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(content: Any, comment: str) -> str:
    """YAML text under a comment; keys keep their order."""
    # A folded text is broken after the first word that passes the width.
    note = "".join(f"# {line}\n" for line in comment.splitlines())
    return note + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=70)


@dataclass
class Output:
    """What goes into a folder, by path in it: texts, and files or folders of deploy/ to copy."""

    texts: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    #: Files and folders that are not copied, wherever they are.
    without: tuple[str, ...] = ()

    def write(self, folder: Path, force: bool) -> list[Path]:
        """Write it all; returns the files, in order.

        Raises
        ------
        ConfigError
            The folder has files and `force` is not given, or cannot be written to.
        """
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder}: not a folder")
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise ConfigError(f"--out {folder}: not empty; --force writes into it all the same")
        source = deploy_folder()
        missing = [name for name in self.copies.values() if not (source / name).exists()]
        if missing:
            raise ConfigError(f"{source / missing[0]} is missing: the installation is incomplete")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target, name in self.copies.items():
                self._copy(source / name, folder / target)
            for target, text in self.texts.items():
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                (folder / target).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {folder}: {error.strerror or error}") from error
        return self._files(folder)

    def _files(self, folder: Path) -> list[Path]:
        """What was written, not what lay there before."""
        copied: list[Path] = []
        for target in self.copies:
            path = folder / target
            copied += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return sorted({*copied, *(folder / target for target in self.texts)})

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignore = shutil.ignore_patterns(*self.without) if self.without else None
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)
        else:
            shutil.copyfile(source, target)
