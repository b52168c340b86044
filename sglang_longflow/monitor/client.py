# SPDX-License-Identifier: Apache-2.0
"""GET /longflow/stats of a running server, with errors that say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, cast
from urllib.parse import urlsplit

from sglang_longflow.client.http import NoResponse, ask
from sglang_longflow.errors import ConfigError, KeyWanted, NoAnswer, WatchError

if TYPE_CHECKING:
    from httpx import Response

DEFAULT_URL = "http://127.0.0.1:30000"
_KEY_STATUSES = (401, 403)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def base_url(url: str) -> str:
    """`url` without what follows its path's last slash; only http and https.

    Raises
    ------
    ConfigError
        It is no address of a server.
    """
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port over 65535
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ConfigError(f"url={url!r}: expected http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def is_local(url: str) -> bool:
    """Whether `url` is on this machine, where proxies of the environment have no business."""
    return urlsplit(url).hostname in _LOOPBACK


def ask_route(url: str, route: str, authorization: str | None, timeout_s: float) -> Response:
    """What the server answers to GET `url`/longflow/`route`, whatever the status.

    Raises
    ------
    NoResponse
        It does not answer.
    """
    headers = {"Authorization": authorization} if authorization else {}
    where = f"{url}/longflow/{route}"
    return ask(where, headers=headers, is_local=is_local(url), timeout_s=timeout_s)


def fetch_stats(
    url: str, api_key: str | None = None, timeout_s: float = 10, max_age_s: float | None = None
) -> dict[str, Any]:
    """The stats of the server at `url` (`base_url`); `max_age_s` as the route takes it.

    If the scheduler is busy with a long step they are old, see `state_text`; before its first
    answer, ``pool``, ``sums``, ``counters`` and ``uptime_s`` are None.

    Raises
    ------
    NoAnswer
        One line: the server does not answer now, or with an error (5xx).
    WatchError
        One line: it wants a key, has no budget, or is none of ours.
    """
    authorization = f"Bearer {api_key}" if api_key else None
    route = "stats" if max_age_s is None else f"stats?max_age_s={max_age_s:g}"
    try:
        response = ask_route(url, route, authorization, timeout_s)
    except NoResponse as error:
        raise NoAnswer(f"url={url}: the server does not answer: {error}") from None
    if not response.is_success:
        kind: type[WatchError] = NoAnswer if response.status_code >= 500 else WatchError
        if response.status_code in _KEY_STATUSES:
            kind = KeyWanted
        raise kind(_refusal(url, response, api_key))
    try:
        stats = response.json()
    except ValueError:
        raise WatchError(f"url={url}: the answer is no JSON; is this an SGLang server?") from None
    if not isinstance(stats, dict) or not {"pool", "sums", "counters", "uptime_s"} <= set(stats):
        raise WatchError(f"url={url}: the answer has no pool; is its sglang-longflow older?")
    return stats


class Stats(TypedDict):
    """What ``GET /longflow/stats`` answers; docs/operate/console.md lists the fields.

    Before the first answer of the schedulers, `age_s` and what only they know are None, and the
    lists are empty.
    """

    state: str
    age_s: float | None
    server: dict[str, Any]
    settings: dict[str, Any] | None
    pool: dict[str, int] | None
    counters: dict[str, int] | None
    sums: dict[str, int] | None
    tree_held_tokens: int | None
    requests: list[dict[str, Any]]
    prefilling: list[dict[str, Any]]
    queue: list[dict[str, Any]]
    queued_requests: int | None
    paused: bool | None
    stalled_s: float | None
    uptime_s: float | None


def stats(url: str, api_key: str | None = None, *, timeout_s: float = 10) -> Stats:
    """What a running server does now: pool, requests, queue, counters.

    Parameters
    ----------
    url : str
        The server's address, such as ``"http://127.0.0.1:30000"``.
    api_key : str, optional
        Its ``--api-key``.
    timeout_s : float
        Longest wait for the connection, and for each part of the answer.

    Raises
    ------
    ConfigError
        `url` is no address of a server.
    NoAnswer
        The server does not answer now, or with an error (5xx).
    WatchError
        It wants a key, has no budget, or is none of ours.
    """
    return cast(Stats, fetch_stats(base_url(url), api_key, timeout_s))


def state_text(stats: dict[str, Any]) -> str:
    """What to say beside stats that are not new, such as "busy: last answer 7 s ago"; else "".

    Servers of an older release do not tell their state.
    """
    state, age_s = str(stats.get("state", "ok")), stats.get("age_s", 0.0)
    if state == "ok":
        return ""
    if state != "busy":
        return state
    return "busy: no answer yet" if age_s is None else f"busy: last answer {age_s:.0f} s ago"


def activity(url: str, api_key: str | None = None, timeout_s: float = 2.5) -> str:
    """What a server does now in a few words; never raises: a watcher decides nothing."""
    try:
        stats = fetch_stats(url, api_key, timeout_s)
    except NoAnswer:
        return "the server is too busy to say what it does"
    except WatchError:
        return "at work"  # stock SGLang has no stats
    state = state_text(stats)
    if stats["pool"] is None:
        return state
    text = (
        f"{stats['sums']['running_requests']:,} running, {stats['queued_requests']:,} waiting, "
        f"{stats['counters']['decoded_tokens']:,} tokens decoded so far"
    )
    return f"{text}; {state}" if state else text


def _refusal(url: str, response: Response, api_key: str | None) -> str:
    status = response.status_code
    if status in _KEY_STATUSES:
        advice = "it refuses this --api-key" if api_key else "it asks for a key; give --api-key"
        return f"url={url}: {advice} ({status})"
    if status == 404:
        return (
            f"url={url}: it has no /longflow/stats (404); is it an SGLang server that was started "
            f"with --kv-budget?"
        )
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    return f"url={url}: {status}: {message[:300]}"
