# SPDX-License-Identifier: Apache-2.0
"""Request: what a request asked for becomes a KVBudget, or a refusal that names the limit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_longflow.core.admission import peak_slots, prefill_slots
from sglang_longflow.core.contracts import KVBudget
from sglang_longflow.errors import BudgetError
from sglang_longflow.settings.config import LongFlowConfig, unknown_policy

#: The keys of ``custom_params`` that are ours; those that do not begin with ``kv_`` belong to
#: someone else, such as a custom logit processor.
BUDGET_KEY = "kv_budget"
POLICY_KEY = "kv_policy"
_PREFIX = "kv_"
#: The answer to a budget on a server without --kv-budget.
INACTIVE = "kv_budget: this server was started without --kv-budget, so requests cannot ask for one"
#: What each means, for docs/reference/configuration.md.
REQUEST_KEYS = {
    BUDGET_KEY: (
        "an integer",
        "Tokens kept resident per layer, within --kv-budget-min and --kv-budget-max; 0 is full KV, "
        "if the server allows it. Default: --kv-budget.",
    ),
    POLICY_KEY: (
        "a string",
        "Eviction policy, one that this server's decode can rank by. Default: --kv-policy.",
    ),
}


def asks_for_budget(custom_params: Mapping[str, Any] | None) -> bool:
    """Whether a request's ``custom_params`` has one of our keys."""
    return any(key in (custom_params or {}) for key in REQUEST_KEYS)


def unknown_key(params: Mapping[str, Any]) -> str | None:
    """A key that looks like one of ours and is none, or None: a typo must not cost the budget."""
    ours = (key for key in params if isinstance(key, str) and key.startswith(_PREFIX))
    return next((key for key in ours if key not in REQUEST_KEYS), None)


def resolve_budget(custom_params: Mapping[str, Any] | None, config: LongFlowConfig) -> KVBudget:
    """The budget and policy of one request.

    Parameters
    ----------
    custom_params : mapping or None
        The request's ``custom_params``; ``kv_budget`` and ``kv_policy`` are read.
    config : LongFlowConfig

    Raises
    ------
    BudgetError
        `custom_params` is no object; a key beginning with ``kv_`` that is unknown; a budget that
        is not an integer, negative, out of the operator's bounds, below the policy's minimum,
        full KV where it is not allowed; or an unknown policy.
    """
    if custom_params is not None and not isinstance(custom_params, Mapping):
        raise BudgetError(
            f"custom_params={custom_params!r:.60}: expected an object; for several prompts, "
            f"sampling_params may be a list of one object for each",
            "wrong_type",
        )
    params = custom_params or {}
    if (key := unknown_key(params)) is not None:
        close = difflib.get_close_matches(key, REQUEST_KEYS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(REQUEST_KEYS)}"
        raise BudgetError(
            f"{key}={params[key]!r:.60}: unknown key of custom_params; {hint}", "unknown_key"
        )
    name = params.get(POLICY_KEY, config.kv_policy)
    if wrong := unknown_policy(name):
        raise BudgetError(f"kv_policy={name!r}: {wrong}", "unknown_policy")
    policy = config.policy(name)
    if not config.serves(policy):
        raise BudgetError(
            f"kv_policy={name!r}: this server cannot rank by it; it runs --kv-policy "
            f"{config.kv_policy} with the {config.kv_decode_kernel} decode",
            "unserved_policy",
        )
    tokens = params.get(BUDGET_KEY, config.kv_budget)
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise BudgetError(f"kv_budget={tokens!r}: expected an integer number of tokens", "not_int")
    if tokens < 0:
        raise BudgetError(
            f"kv_budget={tokens}: expected a positive number of tokens, or 0 for full KV",
            "negative",
        )
    if tokens == 0:
        if not config.allows_full:
            raise BudgetError(
                "kv_budget=0: full KV is not allowed on this server "
                "(operator: --kv-budget-allow-full)",
                "full_not_allowed",
            )
        return KVBudget(0, policy)
    if tokens < policy.min_budget_tokens:
        raise BudgetError(
            f"kv_budget={tokens}: below {policy.min_budget_tokens}, the minimum of policy "
            f"{policy.name!r}",
            "below_policy_minimum",
        )
    if config.kv_budget_min is not None and tokens < config.kv_budget_min:
        raise BudgetError(
            f"kv_budget={tokens}: below this server's minimum {config.kv_budget_min}",
            "below_minimum",
        )
    if config.kv_budget_max is not None and tokens > config.kv_budget_max:
        raise BudgetError(
            f"kv_budget={tokens}: above this server's maximum {config.kv_budget_max} "
            f"(operator: --kv-budget-max)",
            "above_maximum",
        )
    return KVBudget(tokens, policy)


def check_context(budget: KVBudget, context_tokens: int) -> None:
    """Raise BudgetError for a budget over the model's context: no row of it ever overwrites."""
    if budget.tokens > context_tokens:
        raise BudgetError(
            f"kv_budget={budget.tokens}: over the model's context of {context_tokens} tokens, so "
            f"nothing would ever be overwritten; send less, or 0 for full KV where it is allowed",
            "above_context",
        )


def check_media(fields: Sequence[str], model_takes_media: bool) -> None:
    """Refuse images, video and audio where the server takes text alone: SGLang would drop them.

    Parameters
    ----------
    fields : sequence of str
        Names of the request's fields that have any.
    model_takes_media : bool
        Of SGLang's ``ModelConfig``: false for a model of text, and for one of images whose encoder
        was turned off.

    Raises
    ------
    BudgetError
    """
    if fields and not model_takes_media:
        raise BudgetError(
            f"{fields[0]}: this server takes text alone, and would answer without looking at it; "
            f"leave it out",
            "media",
        )


def check_input_ids(input_ids: Sequence[int] | None, vocab_size: int) -> None:
    """Refuse a prompt with token ids that the model does not have: at one, SGLang's server ends.

    Parameters
    ----------
    input_ids : sequence of int or None
        The prompt; None if it comes as embeddings.
    vocab_size : int

    Raises
    ------
    BudgetError
        It is no list, or empty; a token id is no integer, negative, or not in the vocabulary.
    """
    if input_ids is None:
        return
    if isinstance(input_ids, str | bytes) or not isinstance(input_ids, Sequence):
        raise BudgetError(
            f"input_ids={input_ids!r:.60}: expected a list of token ids", "not_in_vocabulary"
        )
    if not input_ids:
        raise BudgetError("input_ids: the prompt has no tokens; expected at least one", "empty")
    # Three passes in C: a prompt may have a hundred thousand tokens.
    if set(map(type, input_ids)) == {int} and min(input_ids) >= 0 and max(input_ids) < vocab_size:
        return
    for place, token in enumerate(input_ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise BudgetError(
                f"input_ids[{place}]={token!r:.40}: expected a token id from 0 to "
                f"{vocab_size - 1}, this model's vocabulary",
                "not_in_vocabulary",
            )


def stop_ids_in_vocabulary(stop_token_ids: object, vocab_size: int) -> list[int] | None:
    """`stop_token_ids` without those outside the vocabulary; None if there are none to remove.

    Where any request of a batch has ``min_new_tokens``, SGLang writes to the logits of every
    request's stop tokens, and its server ends at one that is not there. It would never stop at it.
    """
    if not isinstance(stop_token_ids, list | tuple | set):
        return None
    try:
        numbers = [int(token) for token in stop_token_ids if token is not None]
    except (TypeError, ValueError, OverflowError):
        return None  # SGLang's own conversion says what is wrong
    kept = [token for token in numbers if 0 <= token < vocab_size]
    return kept if len(kept) < len(numbers) else None


def check_fits(budget: KVBudget, prompt_tokens: int, max_new_tokens: int, pool_tokens: int) -> None:
    """Refuse a request that could never run, instead of queueing it for ever.

    Raises
    ------
    BudgetError
        The row's peak footprint, or what its prefill needs (`core.admission`), exceeds the pool.
    """
    peak = max(peak_slots(budget, prompt_tokens, max_new_tokens), prefill_slots(prompt_tokens))
    if peak > pool_tokens:
        raise BudgetError(
            f"kv_budget={budget.tokens} with prompt_tokens={prompt_tokens} and "
            f"max_new_tokens={max_new_tokens} needs {peak} KV slots at once, but this server's "
            f"pool holds {pool_tokens}: it can never run",
            "never_fits",
        )
