# SPDX-License-Identifier: Apache-2.0
"""ServerArgs: the --kv-* flags, defaults for a budget server, and refusals by flag."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable
from typing import Any

from sglang_longflow.errors import HookNotApplied, LongFlowError
from sglang_longflow.hooks import start_check, verify
from sglang_longflow.hooks.sglang_types import Original
from sglang_longflow.settings import compatibility, preflight
from sglang_longflow.settings.config import LongFlowConfig, config_from
from sglang_longflow.settings.flags import FLAG_NAMES, FLAGS
from sglang_longflow.settings.model_source import find_config
from sglang_longflow.settings.models import untried
from sglang_longflow.settings.problem import refuse_first
from sglang_longflow.settings.resolved import resolved

logger = logging.getLogger(__name__)
#: Attribute of settings that were judged and may start a server: the budget. SGLang seals the
#: fields of its record, and leaves names with an underscore to whoever keeps books there.
CHECKED = "_longflow_checked"
#: Likewise: our defaults were declared on them.
DECLARED = "_longflow_declared"
#: Likewise: the operator left the sizes of decode CUDA graphs open.
GRAPHS_COVER_ROWS = "_longflow_graphs_cover_rows"
#: Likewise: they come of a command line, whose operator gets a line and no traceback.
COMMAND_LINE = "_longflow_command_line"
#: Steps of SGLang's resolution: our defaults come before it fills what was left open, our
#: judgement of the whole after its last step.
FIRST_STEP = "handle_missing_default_values"
LAST_STEP = "validate_deepep_v2_dispatch_token_budget"


class _Asked(argparse._StoreAction):
    """A flag of ours on a command line: `start_check` then sees to it that it has an effect."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        start_check.expect_settings(option_string or self.dest)


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("longflow: a fixed KV budget per request")
    for flag in FLAGS:
        if flag.type is bool:
            group.add_argument(
                flag.option, action="store_true", default=flag.default, help=flag.help
            )
        else:
            group.add_argument(
                flag.option,
                action=_Asked,
                type=flag.type,
                default=flag.default,
                choices=flag.choices,
                help=flag.help,
            )


def from_cli_args(original: Original, *cls_and_args: Any) -> Any:
    """Around ``ServerArgs.from_cli_args``, which hands on SGLang's own fields alone.

    In a class that inherits it SGLang hands on no class: such a start is refused by `verify`, with
    a line that says so.
    """
    args = cls_and_args[-1]
    values = {name: getattr(args, name) for name in FLAG_NAMES if hasattr(args, name)}
    try:
        settings = _with_budget(original(*cls_and_args), values)
    except LongFlowError as error:
        start_check.stop(str(error))  # an operator's line: a traceback says nothing more
    setattr(settings, COMMAND_LINE, True)
    return settings


def engine_settings(stock: Callable[..., Any], **kwargs: Any) -> Any:
    """``Engine(model_path=..., kv_budget=N)``: stands in for ``Engine.server_args_class``."""
    values = {name: kwargs.pop(name) for name in FLAG_NAMES if name in kwargs}
    return _with_budget(stock(**kwargs), values)


def give_to_engine() -> None:
    """Have SGLang's offline engine make its settings by `engine_settings`.

    ``Engine.__init__`` loads the plugins itself, so a hook of it would come too late for the first
    engine; the class of its settings it reads afterwards.
    """
    from sglang.srt.entrypoints.engine import Engine

    stock = Engine.server_args_class

    @functools.wraps(stock, updated=())  # `hooks.verify` looks through wrappers
    def settings(**kwargs: Any) -> Any:
        return engine_settings(stock, **kwargs)

    Engine.server_args_class = staticmethod(settings)


def _ours(values: dict[str, Any]) -> dict[str, Any]:
    return {flag.name: flag.default for flag in FLAGS} | values


def _with_budget(settings: Any, values: dict[str, Any]) -> Any:
    """SGLang's settings with ours on them, judged as far as the operator's words go."""
    try:
        for name, value in _ours(values).items():
            setattr(settings, name, value)
    except (AttributeError, TypeError) as error:
        stock = _ours({})
        asked = [f"{name}={value}" for name, value in values.items() if value != stock[name]]
        if not asked:
            return settings
        raise HookNotApplied(
            f"{asked[0]}: SGLang's {type(settings).__name__} takes no settings of a plugin: {error}"
        ) from error
    config = config_from(settings)
    if config is None:
        return settings
    # "auto" is decided here, once: the configuration is read again with every request.
    settings.kv_decode_kernel = config.kv_decode_kernel
    compatibility.refuse_release()
    refuse_first(compatibility.variable_conflicts(is_on))
    given = _values(settings)
    preflight.refuse(given, _model_at_hand(given))
    return settings


def register_steps() -> None:
    """Take part in SGLang's resolution of its settings. Called when the plugin is loaded."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook(FIRST_STEP)(before_defaults)
    register_resolution_hook(LAST_STEP)(after_resolution)


def before_defaults(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Before ``handle_missing_default_values``: what a budget server needs, declared as ours.

    Once, however often the step runs: what we set is no word of the operator's.
    """
    config = config_from(server_args)
    if config is not None and not hasattr(server_args, DECLARED):
        from sglang.srt.arg_groups.overrides import declare_resolution

        settings = resolved(server_args)
        setattr(server_args, GRAPHS_COVER_ROWS, compatibility.graphs_cover_rows(settings, config))
        fields = compatibility.defaults(settings, config)
        declare_resolution(server_args, "longflow", **fields)
        setattr(server_args, DECLARED, config.kv_budget)
        if fields:
            shown = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            logger.info("longflow set %s", shown)
    previous(server_args)


def after_resolution(server_args: Any, previous: Callable[[Any], None]) -> None:
    """After the last step: what came of the settings must go with a budget."""
    previous(server_args)
    if (config := config_from(server_args)) is None:
        return
    try:
        _judge(server_args, config)
        setattr(server_args, CHECKED, config.kv_budget)
        start_check.require_survival(server_args, ("kv_budget", CHECKED), config.kv_budget)
        start_check.require_plugin_in_children(f"kv_budget={config.kv_budget}")
        if not getattr(server_args, COMMAND_LINE, False):
            verify.require_all()  # for a command line, as the first process starts
    except LongFlowError as error:
        if getattr(server_args, COMMAND_LINE, False):
            start_check.stop(str(error))
        raise
    start_check.record_settings()


def require_checked(server_args: Any, config: LongFlowConfig) -> None:
    """Refuse settings with a budget that SGLang worked out without us: nobody judged them.

    Raises
    ------
    HookNotApplied
    """
    _require_mark(server_args, config, DECLARED, FIRST_STEP)
    _require_mark(server_args, config, CHECKED, LAST_STEP)


def _require_mark(server_args: Any, config: LongFlowConfig, mark: str, step: str) -> None:
    if getattr(server_args, mark, None) != config.kv_budget:
        raise HookNotApplied(
            f"kv_budget={config.kv_budget}: SGLang worked these settings out without the plugin "
            f"in its step {step}; call load_plugins() first, and let Engine make them"
        )


def is_on(name: str) -> bool:
    """Whether a variable of SGLang is on."""
    from sglang.srt.environ import envs

    return bool(getattr(envs, name).get())


def _judge(server_args: Any, config: LongFlowConfig) -> None:
    _require_mark(server_args, config, DECLARED, FIRST_STEP)
    compatibility.refuse_resolved(resolved(server_args), is_on)
    from sglang.srt.arg_groups.model_override_base import model_config_of

    model = model_config_of(server_args)
    compatibility.refuse_model(model, config)
    if word := untried(model.hf_config.to_dict()):
        logger.warning("longflow: %s", word)


def _values(settings: Any) -> dict[str, Any]:
    """Everything that is set, by name; a class with slots has no dict of it all."""
    slots = getattr(settings, "__struct_fields__", ())
    return {**{name: getattr(settings, name, None) for name in slots}, **vars(settings)}


def _model_at_hand(values: dict[str, Any]) -> dict[str, Any] | None:
    """The model's config where it is on this machine; SGLang itself asks the hub."""
    found = find_config(str(values.get("model_path")), values.get("revision"), hub=False)
    return None if found is None or found.source == "built-in" else found.config
