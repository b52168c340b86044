# SPDX-License-Identifier: Apache-2.0
"""The register of every hook and patch: what it changes, why, and when it can go.

It is data: `plugin` registers the hooks, `verify` checks every row at start-up, `longflow doctor`
and `scripts/check_release.py` report on them, and docs/reference/hooks.md is generated from them.
"""

from __future__ import annotations

from sglang_longflow.hooks.cpu_kernels import LINEAR_KERNELS, NORM_KERNELS
from sglang_longflow.hooks.hook import Fails, Hook, Patch


def _p(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_ARGS = "sglang.srt.server_args.ServerArgs"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_TOKENIZER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_ALLOC = "sglang.srt.mem_cache.allocation"
_CHAT = "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat"
_TEXT = "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion"
_OPENAI_ANSWERS = (f"{_CHAT}._build_chat_response", f"{_TEXT}._build_completion_response")
_OPENAI_STREAMS = (f"{_CHAT}._generate_chat_stream", f"{_TEXT}._generate_completion_stream")

_NEW_FLAGS = "SGLang lets plugins add server arguments"
_ADMISSION = "SGLang's admission asks a policy how many slots a request may still take"
_ALLOCATION = "SGLang's decode allocation asks a policy which rows take a slot"

MANIFEST: tuple[Hook, ...] = (
    # server arguments
    Hook(
        f"{_ARGS}.add_cli_args",
        "after",
        "server_args:add_cli_args",
        _p("parser"),
        "adds the --kv-* flags to `sglang serve` and launch_server",
        _NEW_FLAGS,
        Fails.START,
    ),
    Hook(
        f"{_ARGS}.from_cli_args",
        "around",
        "server_args:from_cli_args",
        _p("cls args"),
        "carries the --kv-* flags from the command line to ServerArgs",
        _NEW_FLAGS,
        Fails.START,
    ),
    # start-up of a scheduler process
    Hook(
        f"{_SCHEDULER}.__init__",
        "around",
        "scheduler:init",
        _p("self server_args port_args"),
        "activates the plugin in the scheduler's process, verifies every hook, checks the pools",
        "SGLang calls plugins with the server arguments and lets their failures stop the start",
        Fails.START,
    ),
    # what comes into the scheduler's process
    Hook(
        f"{_TOKENIZER}._create_tokenized_object",
        "around",
        "inbox:create_tokenized_object",
        _p("self obj input_text input_ids input_embeds mm_inputs token_type_ids"),
        "a field of a wrong type, or a number that no tensor holds, is an HTTP 400; the scheduler "
        "would end",
        "SGLang checks the types that it declares",
        Fails.ANSWER,
    ),
    Hook(
        f"{_TOKENIZER}._wait_for_model_update_from_disk",
        "around",
        "inbox:one_weight_update",
        _p("self obj"),
        "two updates of the weights at once, in a pause, would end the HTTP process",
        "SGLang carries out one update of the weights after the other",
        Fails.ANSWER,
    ),
    Hook(
        f"{_TOKENIZER}.pause_generation",
        "around",
        "inbox:pause_generation",
        _p("self obj"),
        "a pause with abort after another pause would wait forever, and all requests with it",
        "SGLang's pause with abort lets a paused scheduler go on",
        Fails.ANSWER,
    ),
    Hook(
        f"{_TOKENIZER}.collect_metrics",
        "around",
        "inbox:collect_metrics",
        _p("self state recv_obj i"),
        "a request's custom_labels that nobody declared would end the HTTP process",
        "SGLang's metrics never end what they measure",
        Fails.GUARD,
    ),
    Hook(
        f"{_SCHEDULER}.handle_generate_request",
        "around",
        "inbox:handle_generate_request",
        _p("self recv_req mm_input_error"),
        "a request that the scheduler cannot take ends with an error; the scheduler would end",
        "SGLang's scheduler answers a request that it cannot take",
        Fails.GUARD,
    ),
    Hook(
        "sglang.utils.TypeBasedDispatcher.__call__",
        "around",
        "inbox:dispatch",
        _p("self obj"),
        "an operator's request that fails in the scheduler is answered, and an answer that the "
        "HTTP process cannot take is dropped; either process would end",
        "SGLang's scheduler answers a request that it cannot take",
        Fails.GUARD,
    ),
    # request
    Hook(
        f"{_TOKENIZER}._validate_one_request",
        "before",
        "request:validate_one_request",
        _p("self obj input_ids"),
        "a wrong budget is an HTTP 400 before it is queued",
        "SGLang lets plugins validate custom_params",
        Fails.ANSWER,
    ),
    Hook(
        f"{_SCHEDULER}.init_req_max_new_tokens",
        "around",
        "request:init_req_max_new_tokens",
        _p("self req"),
        "gives the request its row; its length is bounded by the context, not by the pool",
        "SGLang's length limit asks the policy of the request",
        Fails.REQUEST,
        blames="req",
    ),
    Hook(
        f"{_SCHEDULER}._add_request_to_queue",
        "around",
        "request:add_request_to_queue",
        _p("self req is_retracted"),
        "a retracted row that has outgrown the pool ends with an error; it would wait forever",
        "SGLang prefills a retracted request in parts that fit",
        Fails.REQUEST,
        blames="req",
    ),
    # admission
    Hook(
        f"{_SCHEDULER}.get_prefill_adder_class",
        "after",
        "admission:prefill_adder_class",
        _p("self"),
        "admits a request by its bounded footprint instead of prompt + max_new_tokens, and "
        "reserves exactly what running rows may still take",
        _ADMISSION,
        Fails.START,
    ),
    # slots
    Hook(
        f"{_BATCH}.new_tokens_required_next_decode",
        "around",
        "slots:new_tokens_required_next_decode",
        _p("self selected_indices"),
        "the memory check counts what alloc_for_decode will take, so nothing is retracted for it",
        _ALLOCATION,
        Fails.ROWS,
    ),
    Hook(
        f"{_BATCH}._get_decode_retraction_order",
        "after",
        "slots:get_decode_retraction_order",
        _p("reqs"),
        "full-KV neighbours are retracted before budgeted rows",
        "SGLang has a retraction policy that plugins can provide",
        Fails.ROWS,
    ),
    Hook(
        f"{_REQ}.reset_for_retract",
        "after",
        "slots:reset_for_retract",
        _p("self"),
        "a retracted row starts over",
        "with the retraction order",
        Fails.REQUEST,
        blames="self",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.batch_result_processor."
        "SchedulerBatchResultProcessor._mamba_prefix_cache_update",
        "around",
        "slots:mamba_prefix_cache_update",
        _p("self req batch result i known_boundary"),
        "the recurrent state of a row that owns its slots is not kept for the radix tree, which "
        "gets nothing of that row; SGLang takes its resident length for that of its sequence",
        "SGLang keeps the length of a sequence beside that of its row",
        Fails.REQUEST,
        blames="req",
    ),
    # prompt
    Hook(
        f"{_ALLOC}.alloc_for_extend",
        "after",
        "prompt:alloc_for_extend",
        _p("batch"),
        "tells the backend which prompts end in this batch and must be cut",
        "SGLang passes per-request data from the batch to the attention backend",
        Fails.ROWS,
    ),
    Hook(
        f"{_REQ}._compute_max_prefix_len",
        "after",
        "prompt:compute_max_prefix_len",
        _p("self input_len"),
        "the queries that score an over-long prompt are computed, not skipped by a prefix hit",
        "SGLang keeps queries of cached tokens (it will not)",
        Fails.REQUEST,
        blames="self",
    ),
    # decode
    Hook(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        "after",
        "decode:forward_batch_init_new",
        _p(
            "cls batch model_runner capture_hidden_mode return_hidden_states_before_norm "
            "extend_position_info spec_mrope_positions kv_loc_plan write_cols"
        ),
        "carries the step's view from the scheduler's batch to the backend's",
        "SGLang passes per-request data from the batch to the attention backend",
        Fails.ROWS,
    ),
    Hook(
        "sglang.srt.layers.attention.attention_registry.attn_backend_wrapper",
        "around",
        "decode:attn_backend_wrapper",
        _p("runner full_attn_backend"),
        "wraps whichever attention backend the server uses: redirects writes, picks victims",
        "SGLang lets plugins wrap the attention backend",
        Fails.START,
    ),
    Hook(
        "sglang.srt.models.utils.enable_fused_set_kv_buffer",
        "around",
        "decode:enable_fused_set_kv_buffer",
        _p("forward_batch"),
        "K/V is written by the attention backend, which knows the victims, not by the RoPE kernel",
        "SGLang lets the attention backend refuse the fused write",
        Fails.ROWS,
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner._preprocess_logits",
        "after",
        "sampling:preprocess_logits",
        _p("self logits_output sampling_info observer"),
        "a grammar or stop tokens that leave no token to draw end their request, not the server",
        "SGLang draws from a row of logits that is masked whole with top_k, top_p and min_p too",
        Fails.ROWS,
    ),
    # report and metrics: what a request and the server report
    Hook(
        f"{_TOKENIZER}.generate_request",
        "around",
        "report:generate_request",
        _p("self obj request"),
        "a budget from the headers; kv_budget, kv_resident_tokens and kv_overwritten_tokens in "
        "meta_info",
        "SGLang's customized_info may be one value per request instead of one per token",
        Fails.ANSWER,
    ),
    *(
        Hook(
            *(target, kind, f"report:{handler}", _p(f"self {parameters}")),
            "the same numbers in the metadata of OpenAI answers; in a stream, beside the usage",
            "SGLang copies customized_info to OpenAI answers and chunks",
            Fails.ANSWER,
        )
        for kind, handler, parameters, targets in (
            ("after", "openai_response", "request ret created", _OPENAI_ANSWERS),
            ("around", "openai_stream", "adapted_request request raw_request", _OPENAI_STREAMS),
        )
        for target in targets
    ),
    Hook(
        f"{_SCHEDULER}.get_internal_state",
        "around",
        "stats:get_internal_state",
        _p("self recv_req"),
        "the scheduler's rows and pool for GET /longflow/stats, without SGLang's dump of its "
        "settings where nobody asked for it",
        "SGLang lets plugins add to the internal state",
        Fails.WATCH,
    ),
    Hook(
        f"{_SCHEDULER}.on_idle",
        "after",
        "metrics:on_idle",
        _p("self"),
        "gauges fall to zero when nothing runs; a stale mark of a full batch is taken off an empty "
        "one; requests that wait although nothing runs are noticed",
        "SGLang lets plugins add metrics",
        Fails.WATCH,
    ),
    Hook(
        "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
        "before",
        "http:setup_and_run_http_server",
        _p(
            "server_args tokenizer_manager template_manager port_args scheduler_infos "
            "subprocess_watchdog execute_warmup_func launch_callback"
        ),
        "adds the console and its data routes, the count of open responses, names of /metrics that "
        "every Prometheus gets alike, and the reading of budgets in headers to SGLang's own "
        "FastAPI app",
        "SGLang lets plugins add routes",
        Fails.START,
    ),
    Hook(
        f"{_TOKENIZER}.sigterm_watchdog",
        "around",
        "drain:sigterm_watchdog",
        _p("self"),
        "after SIGTERM the server exits when the scheduler is done with every request, also if "
        "a client has not read its response to the end",
        "SGLang's drain waits for open responses",
        Fails.START,
    ),
)

_FLASHINFER = "flashinfer.prefill.BatchPrefillWith"
_PLAN = "a prefill is planned from lengths that the host knows; it would wait for the decode step"

_LINEAR = "platform.cpu_linear:compute_linear_attention_on_a_cpu"
_NORM = "platform.cpu_whole_norm:normalise_whole_tokens_on_a_cpu"

PATCHES: tuple[Patch, ...] = (
    *(
        Patch(
            f"{_FLASHINFER}{name}.begin_forward",
            "backend.prefill_plan:PrefillPlan",
            _p(parameters),
            _PLAN,
            "SGLang plans a prefill from the lengths that it has on the host",
            device="gpu",
        )
        for name, parameters in (
            ("RaggedKVCacheWrapper", "self qo_indptr kv_indptr"),
            ("PagedKVCacheWrapper", "self qo_indptr paged_kv_indptr paged_kv_indices"),
        )
    ),
    Patch(
        "sglang.srt.constrained.xgrammar_backend.XGrammarGrammarBackend.apply_vocab_mask",
        "platform.cpu_grammar:apply_reasoners_masks_on_a_cpu",
        _p("logits vocab_mask"),
        "a grammar beside a reasoning parser works without a GPU",
        "SGLang's xgrammar backend applies every mask on a CPU",
        device="cpu",
    ),
    *(
        Patch(
            target,
            _LINEAR,
            _p(parameters),
            "a hybrid model's recurrent layers run without a GPU, in plain PyTorch",
            "SGLang has them for a CPU without its own build of kernels",
            device="cpu",
        )
        for target, parameters in LINEAR_KERNELS
    ),
    Patch(
        "sglang.srt.layers.moe.fused_moe_native.moe_forward_native",
        "platform.cpu_experts:add_squared_relu_to_experts",
        _p("layer x topk_output moe_runner_config"),
        "Nemotron-H's experts, which have no gate, run without a GPU",
        "SGLang's PyTorch form of experts has their activation",
        device="cpu",
    ),
    *(
        Patch(
            target,
            _NORM,
            _p(parameters),
            "MiniMax-M2 runs without a GPU",
            "SGLang norms its queries and keys on a CPU without its own build of kernels",
            device="cpu",
        )
        for target, parameters in NORM_KERNELS
    ),
    Patch(
        "torch.get_device_module",
        "platform.cpu_linear:_do_without_cuda",
        _p("device"),
        "a hybrid model is built without a GPU; PyTorch's build for CUDA names CUDA there too, "
        "and its Tensor.pin_memory, replaced with it, needs a driver",
        "SGLang asks its platform for the device, and whether memory can be pinned",
        device="cpu",
    ),
    *(
        Patch(
            f"multiprocessing.{method}",
            "hooks.start_check:_Watch",
            _p(parameters),
            "until it has one, a server that was asked for a budget does not start",
            "SGLang lets failures of a plugin stop the start",
        )
        for method, parameters in (
            ("process.BaseProcess.start", "self"),
            ("connection.Connection.send", "self obj"),
        )
    ),
)
