# SPDX-License-Identifier: Apache-2.0
"""Where a model's ``config.json`` is: a folder, Hugging Face's cache, its hub, the built-in table.

The one way to find a model, in that order. No torch; ``huggingface_hub`` is imported when a name
is no path. The hub is asked for one small file, for at most `HUB_SECONDS`; nothing is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

from sglang_longflow.settings.builtin_models import (
    builtin_config,
    builtin_name,
    builtin_names,
    near_names,
)
from sglang_longflow.settings.files import MOST_JSON_BYTES, parse_json, read_json, user_path

#: How long the hub may take in all, name look-up and connection included.
HUB_SECONDS = 2.5
_T = TypeVar("_T")

Source = Literal["folder", "cache", "hub", "built-in"]


class Why(Enum):
    """Why a model was not found."""

    PATH = "path"  # the path exists, and its config.json cannot be used
    NAME = "name"  # neither a path nor a name that the hub could have
    NOT_ASKED = "not asked"  # the caller wanted no hub
    OFFLINE = "offline"  # HF_HUB_OFFLINE
    NO_ANSWER = "no answer"
    ERROR = "error"  # any other status than those below
    TIMED_OUT = "timed out"
    LOGIN = "login"  # gated, private, or a token that the hub refuses
    NOT_FOUND = "not found"
    NO_CONFIG = "no config"  # the hub has the model, without this file or revision
    UNUSABLE = "unusable"  # an answer that is no JSON object


@dataclass(frozen=True)
class FoundConfig:
    """A model's config.

    ``name`` is the folder's name, or the model's in full; ``folder`` is where its files are, as
    far as they are on this machine. ``passed_over`` says why a built-in shape had to do.
    """

    config: dict[str, Any]
    source: Source
    folder: str | None
    name: str
    passed_over: Missing | None = None


@dataclass(frozen=True)
class Missing:
    """A model that was not found; as text, one line that begins with its name and ends in a fix."""

    name: str
    why: Why
    detail: str = ""
    near: tuple[str, ...] = ()

    @property
    def briefly(self) -> str:
        """Why, without the name and a fix."""
        return {
            Why.PATH: self.detail,
            Why.NAME: "neither a folder with a config.json nor a name such as Qwen/Qwen3-1.7B",
            Why.NOT_ASKED: "the hub was not asked",
            Why.OFFLINE: "HF_HUB_OFFLINE is set",
            Why.NO_ANSWER: f"{self.detail} does not answer",
            Why.TIMED_OUT: f"{self.detail} does not answer within {HUB_SECONDS:g} s",
            Why.ERROR: self.detail,
            Why.LOGIN: f"{self.detail} wants a login that may read it",
            Why.NOT_FOUND: f"{self.detail} has no such model, or it is private",
            Why.NO_CONFIG: f"{self.detail} has no config.json of it at that revision",
            Why.UNUSABLE: f"{self.detail} answers with something that is no config.json",
        }[self.why]

    def __str__(self) -> str:
        fetch = f"hf download {self.name} config.json"
        fix = {
            Why.NOT_ASKED: f"{fetch}, or give a folder",
            Why.OFFLINE: f"{fetch} where there is a network, or give a folder",
            Why.NO_ANSWER: f"{fetch}, or give a folder, or set HF_ENDPOINT",
            Why.TIMED_OUT: f"{fetch}, or give a folder, or set HF_ENDPOINT",
            Why.ERROR: f"try again, or {fetch}, or give a folder",
            Why.LOGIN: "accept its terms there, then hf auth login, or set HF_TOKEN",
            Why.NOT_FOUND: "check the name, or hf auth login",
            Why.UNUSABLE: "check HF_ENDPOINT and the proxy",
        }.get(self.why)
        here = "" if self.why in (Why.PATH, Why.NAME) else "not in Hugging Face's cache, and "
        meant = f"did you mean {' or '.join(self.near)}?" if self.near else None
        parts = [f"{self.name[:200]}: {here}{self.briefly}", fix, meant]
        return "; ".join(part for part in parts if part)


def find_config(name: str, revision: str | None = None, *, hub: bool = True) -> FoundConfig | None:
    """The config of a model, or None; `look_up` says why there is none."""
    found = look_up(name, revision, hub=hub)
    return found if isinstance(found, FoundConfig) else None


def look_up(name: str, revision: str | None = None, *, hub: bool = True) -> FoundConfig | Missing:
    """The config of a model, from the first place that has it.

    Parameters
    ----------
    name : str
        Folder with a ``config.json``, path of such a file, or a name of the hub. A path that
        exists wins. A name of the built-in table may be in any case and without its organisation.
    revision : str, optional
        Branch, tag or commit, as SGLang's ``--revision``. With one, the built-in table, which
        knows of none, is left out.
    hub : bool
        Whether the hub may be asked, if need be.
    """
    path = user_path(name)
    try:
        there = path.exists()
    except OSError as error:  # such as a name that is too long
        return Missing(name, Why.PATH, f"config.json: {error.strerror}")
    if there:
        return _from_path(name, path)
    if not _is_hub_name(name):
        return Missing(name, Why.NAME, near=near_names(name, builtin_names()))
    listed = builtin_name(name)
    full = listed or name
    if (file := cached_file(full, "config.json", revision)) is not None:
        config = _cached_object(file)
        if config is not None:
            return FoundConfig(config, "cache", str(file.parent), full)
    asked = hub_json(full, "config.json", revision) if hub else Missing(full, Why.NOT_ASKED)
    if not isinstance(asked, Missing):
        return FoundConfig(asked, "hub", None, full)
    shape = builtin_config(listed) if listed and revision is None else None
    if shape is not None:
        return FoundConfig(shape, "built-in", None, full, asked)
    return _with_near(asked)


def cached_file(name: str, filename: str, revision: str | None = None) -> Path | None:
    """A file of a model in Hugging Face's local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hub_json(name: str, filename: str, revision: str | None = None) -> dict[str, Any] | Missing:
    """A JSON file of a model from the hub, within `HUB_SECONDS`; nothing is kept of it."""

    def fetch() -> dict[str, Any] | Missing:
        found = _json_object(hub_bytes(name, filename, revision))
        return Missing(name, Why.UNUSABLE, endpoint()) if found is None else found

    return ask_hub(name, fetch)


def hub_bytes(
    name: str, filename: str, revision: str | None = None, most: int = MOST_JSON_BYTES
) -> bytes:
    """The first `most` bytes of a model's file, with the token of this user; for `ask_hub`.

    Raises what `huggingface_hub` and its HTTP client raise.
    """
    from huggingface_hub import constants, get_session, get_token, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    # Not the library's own headers: they would first fetch a list of coding agents.
    headers = {"User-Agent": "sglang-longflow", "Range": f"bytes=0-{most - 1}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    url = hf_hub_url(name, filename, revision=revision)
    found = b""
    with get_session().stream(
        "GET", url, headers=headers, timeout=HUB_SECONDS, follow_redirects=True
    ) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for part in response.iter_bytes():
            found += part
            if len(found) >= most:
                break
    return found[:most]


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, or Hugging Face's own."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def ask_hub(name: str, question: Callable[[], _T | Missing]) -> _T | Missing:
    """What `question` returns, within `HUB_SECONDS`; never asked with ``HF_HUB_OFFLINE``.

    In a thread of its own: looking up an address has no time limit in Python.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return Missing(name, Why.OFFLINE)
    answers: list[_T | Missing] = []

    def run() -> None:
        try:
            answers.append(question())
        except Exception as error:  # the library and its HTTP client have dozens of classes
            answers.append(_missing(name, error))

    thread = threading.Thread(target=run, name="longflow-hub", daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answers[0] if answers else Missing(name, Why.TIMED_OUT, endpoint())


def _missing(name: str, error: Exception) -> Missing:
    import httpx
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
        why = Why.NO_CONFIG
    elif isinstance(error, errors.GatedRepoError):  # a RepositoryNotFoundError too
        why = Why.LOGIN
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        why = Why.NOT_FOUND
    elif status in (401, 403):
        why = Why.LOGIN
    elif status is not None:
        return Missing(name, Why.ERROR, f"{endpoint()} answers {status}")
    else:
        why = Why.TIMED_OUT if isinstance(error, httpx.TimeoutException) else Why.NO_ANSWER
    return Missing(name, why, endpoint())


def _with_near(missing: Missing) -> Missing:
    if missing.why in (Why.LOGIN, Why.NO_CONFIG):
        return missing
    near = near_names(missing.name, (*builtin_names(), *_cached_names()))
    return Missing(missing.name, missing.why, missing.detail, near)


def _cached_names() -> tuple[str, ...]:
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return tuple(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _from_path(name: str, path: Path) -> FoundConfig | Missing:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = read_json(file)
        if not isinstance(config, dict):
            raise TypeError("the file holds no JSON object")
    except OSError as error:
        return Missing(name, Why.PATH, f"config.json: {error.strerror}")
    except (TypeError, ValueError) as error:
        return Missing(name, Why.PATH, f"{file} is not a model config: {error}")
    folder = file.resolve().parent
    return FoundConfig(config, "folder", str(folder), folder.name)


def _cached_object(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):  # such as a download that was broken off
        return None
    return found if isinstance(found, dict) else None


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
