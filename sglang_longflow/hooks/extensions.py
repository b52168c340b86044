# SPDX-License-Identifier: Apache-2.0
"""Where SGLang itself lets others take part, and what we do there; data, as `hooks.manifest` is."""

from __future__ import annotations

from sglang_longflow.hooks.hook import Patch

_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"
_ADMISSION = "SGLang's admission asks a policy how many slots a request may still take"

#: A row names the function of SGLang that must be as we know it, and who takes part there.
EXTENSIONS: tuple[Patch, ...] = (
    Patch(
        "sglang.srt.arg_groups.resolution_hooks.register_resolution_hook",
        "hooks.server_args:register_steps",
        ("name",),
        "defaults of a budget server are declared before SGLang fills what was left open; what "
        "came of the settings is judged after its last step",
        "SGLang lets plugins add server arguments and check them",
    ),
    Patch(
        "sglang.srt.entrypoints.engine.Engine.server_args_class",
        "hooks.server_args:give_to_engine",
        ("model_path",),
        "the offline engine takes kv_* keywords, so sglang.Engine(kv_budget=N) works",
        "SGLang lets plugins add server arguments",
    ),
    *(
        Patch(f"{_ADDER}.{name}", "hooks.admission:BudgetAdder", parameters, why, _ADMISSION)
        for name, parameters, why in (
            (
                "_get_running_request_total_token_offset",
                ("self", "req"),
                "budgeted rows are reserved exactly, not estimated",
            ),
            (
                "add_one_req",
                ("self", "req", "has_chunked_req", "truncation_align_size"),
                "a request is admitted by its bounded footprint; its last chunk holds the window",
            ),
            (
                "add_chunked_req",
                ("self", "req"),
                "the rest of a chunked prompt and its row stay reserved",
            ),
        )
    ),
    Patch(
        "sglang.srt.mem_cache.allocation.alloc_for_decode_default",
        "hooks.slots:register_alloc_for_decode",
        ("batch", "token_per_req"),
        "an entry of ALLOC_FOR_DECODE_FUNCS: full rows take no slot; a row owns its slots before "
        "it overwrites one",
        "SGLang's decode allocation asks a policy which rows take a slot",
    ),
)
