"""Requests known to end a server: left out, but for ``--with-known``.

A name here is a debt, not an excuse: docs/fuzzing.md has each with its cause.
"""

from __future__ import annotations

from collections.abc import Callable

from fuzz_bodies import Call, Limits


def _embed_overrides(call: Call, limits: Limits) -> bool:
    body = call.body if isinstance(call.body, dict) else {}
    return body.get("positional_embed_overrides") is not None


def _logit_processor(call: Call, limits: Limits) -> bool:
    body = call.body if isinstance(call.body, dict) else {}
    return bool(body.get("custom_logit_processor"))


def _grammar_characters(call: Call, limits: Limits) -> bool:
    body = call.body if isinstance(call.body, dict) else {}
    params = body.get("sampling_params")
    every = [body, *(params if isinstance(params, list) else [params])]
    return any(
        isinstance(text := one.get(name), str)
        and any(c < " " or "\ud800" <= c < "\ue000" for c in text)
        for one in every
        if isinstance(one, dict)
        for name in ("regex", "ebnf", "json_schema", "structural_tag")
    )


KNOWN: dict[str, Callable[[Call, Limits], bool]] = {
    "positional_embed_overrides as JSON": _embed_overrides,
    "a broken custom_logit_processor": _logit_processor,
    "control characters in a grammar": _grammar_characters,
}


def is_known(call: Call, limits: Limits) -> str | None:
    """The name of a known fault that this call asks for, or None."""
    return next((name for name, asks in KNOWN.items() if asks(call, limits)), None)
