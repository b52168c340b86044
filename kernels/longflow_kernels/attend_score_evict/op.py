"""Decode attention over rows of scattered slots that also picks each full row's next victim."""

from __future__ import annotations

import functools

import torch
import triton

from longflow_kernels.attend_score_evict.attend import attend_kernel
from longflow_kernels.attend_score_evict.combine import combine_kernel
from longflow_kernels.attend_score_evict.gather import gather_indices_kernel
from longflow_kernels.attend_score_evict.l2 import set_aside_l2
from longflow_kernels.attend_score_evict.launch import LaunchConfig
from longflow_kernels.attend_score_evict.layout import NUM_FIELDS
from longflow_kernels.attend_score_evict.rows import SCORE_ALIGN, score_places
from longflow_kernels.novelty.level import LEVEL_PACE, LOWEST_LEVEL
from longflow_kernels.novelty.op import update_likeness
from longflow_kernels.novelty.recall import first_recall

HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 16
MAX_CHUNKS, MAX_CHUNK_SLOTS = 64, 1024
OUT_VALUES = 1024  # partial outputs that one warp puts together
MIN_BLOCK_N, MAX_BLOCK_N = 16, SCORE_ALIGN


class Workspace:
    """Scratch memory of `attend_score_evict`, shared by all layers of a model.

    Attributes
    ----------
    places : int
        Scores that fit: of scored rows of ``capacity_tokens`` together (the pool's size suffices: a
        scored row owns its slots), each row aligned.
    max_partials : int
        Rows times splits of a step that is split at all; `launch_config` stays below 4 a
        multiprocessor.
    kept_places : int
        Scores below it are marked to stay in the L2 cache: those there is room for, all where none
        was set aside (then the mark has no cost, and helps small batches).
    """

    def __init__(
        self,
        *,
        max_batch: int,
        capacity_tokens: int,
        num_q_heads: int,
        v_head_dim: int,
        victim_heads: int,
        device: torch.device | str,
        max_partials: int = 2048,
    ):
        def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self.max_batch = max_batch
        self.places = score_places(capacity_tokens, max_batch)
        self.max_partials = max_partials
        self.partial_out = new(max_partials, num_q_heads, v_head_dim)
        self.partial_lse = new(max(max_batch, max_partials), num_q_heads)
        # Scores are read in whole chunks: past the end of the last row too.
        width = self.places + MAX_CHUNK_SLOTS
        self.scores = new(width * num_q_heads, dtype=torch.int16)
        self.tile_peak = new(width // MIN_BLOCK_N * num_q_heads)
        self.best_score = new(max_batch, victim_heads, MAX_CHUNKS)
        self.best_index = new(max_batch, victim_heads, MAX_CHUNKS, dtype=torch.int32)
        self.chunk_sums = new(max_batch, 3, MAX_CHUNKS)
        self.arrived = torch.zeros(max_batch, victim_heads, dtype=torch.int32, device=device)
        self.place_bytes = num_q_heads * self.scores.element_size()
        self.kept_places = self.places

    def keep_in_l2(self, tokens: int) -> int:
        """Set L2 cache aside for the scores of so many tokens; returns the bytes there are.

        They are this process's until another call, of any workspace.
        """
        room = set_aside_l2(tokens * self.place_bytes, self.scores.device)
        self.kept_places = room // self.place_bytes if room else self.places
        return room

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        tensors = [value for value in vars(self).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gather_kv_indices(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    fields: torch.Tensor,
    kv_indices: torch.Tensor,
) -> None:
    """Copy the slots of a step's rows out of SGLang's ``req_to_token``.

    Parameters
    ----------
    req_to_token : torch.Tensor
        [num_rows, max_tokens] int32.
    req_pool_indices : torch.Tensor
        [batch] int32 or int64.
    fields : torch.Tensor
        [NUM_FIELDS, batch] int32 on the device, from `pack_rows`.
    kv_indices : torch.Tensor
        int32, at least as long as the rows together; row i goes to ``fields[KV_START, i]``.
    """
    batch = fields.shape[1]
    if batch:
        gather_indices_kernel[(4, batch)](
            req_to_token,
            req_pool_indices,
            fields,
            kv_indices,
            fields.stride(0),
            req_to_token.stride(0),
            BLOCK=512,
        )


def attend_score_evict(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    req_pool_indices: torch.Tensor,
    fields: torch.Tensor,
    next_slot: torch.Tensor,
    workspace: Workspace,
    *,
    scaling: float,
    config: LaunchConfig,
    logit_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    protect_sink_tokens: int = 0,
    recent: torch.Tensor | None = None,
    slot_score: torch.Tensor | None = None,
    decay: float = 0.0,
    likeness: bool = False,
    row_level: torch.Tensor | None = None,
    novelty_weight: float = 0.0,
    novelty_span: float = 1.0,
    level_share: float = 0.0,
    row_recall: torch.Tensor | None = None,
    recall_enough: float = 1.0,
    recall_pace: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One decode step of one layer: write, attend, score and choose, K/V read once.

    Writes each row's new K/V to its slot (``next_slot`` of a row that overwrites, else the row's
    last place), attends over the row, and stores in ``next_slot`` the row index with the lowest
    LongFlow score (arXiv 2603.11504, eq. 6) of every scored row, the new token included. With
    ``victim_heads`` = num_kv_heads each KV head votes and overwrites by itself. Reads no host
    value of the device and allocates nothing but `out`: it can be captured in a CUDA graph.

    Parameters
    ----------
    q : torch.Tensor
        [batch, num_q_heads, head_dim] bfloat16, float16 or float32, after RoPE.
    k_new, v_new : torch.Tensor
        [batch, num_kv_heads, head_dim] and [..., v_head_dim], before division by the scales.
    k_cache, v_cache : torch.Tensor
        [num_slots, num_kv_heads, head_dim] and [..., v_head_dim]; q's dtype or float8_e4m3fn.
        Updated in place.
    kv_indices : torch.Tensor
        int32, the pool slots of one row after the other, as FlashInfer takes them at page size 1;
        row i begins at the sum of the earlier ``kv_len``. A copy and not ``req_to_token`` itself,
        since SGLang's scheduler writes there while a CUDA graph runs.
    req_pool_indices : torch.Tensor
        [batch] int32 or int64, where the state of each row lies in `next_slot` and `recent`.
    fields : torch.Tensor
        [NUM_FIELDS, batch] int32 on the device, from `pack_rows`.
    next_slot : torch.Tensor
        [num_rows, victim_heads] int32; victim_heads is 1 or num_kv_heads. Updated in place.
    workspace : Workspace
    scaling : float
        Factor on the logits.
    config : LaunchConfig
    logit_cap : float
        Soft cap ``cap * tanh(logit / cap)``; 0 is none.
    k_scale, v_scale : float
        Factors of the cache's values (fp8); the cache holds ``k / k_scale``.
    protect_sink_tokens : int
        Row indices below it are never chosen.
    recent : torch.Tensor, optional
        [num_rows, victim_heads, protect_recent_tokens] int32 ring of the row indices written last,
        never chosen. Updated in place.
    slot_score : torch.Tensor, optional
        [num_slots * victim_heads] float32: what the slots of rows with ``remembers`` scored at
        best, ``decay`` times less for every step since. Updated in place; such rows need it. With
        `likeness` [num_slots * 2]: each slot's score, then how like a newer token it is.
    decay : float
    likeness : bool
        Rows of the batch may have ``likens``; needs `slot_score`, `row_level`, `row_recall`,
        a ring `recent` of at least `novelty.COMPARED_TOKENS`, and one victim in a layer.
    row_level : torch.Tensor, optional
        [num_rows] float32: what about ``level_share`` of the slots of a row that likens have less
        than in `slot_score`. See `novelty.level`. Updated in place.
    novelty_weight, novelty_span, level_share : float
        Such rows rank by what their slots have in `slot_score`, plus ``novelty_weight`` times the
        row's level times ``min(1, (1 - likeness) / novelty_span)``, times what the row's recall
        makes of it.
    row_recall : torch.Tensor, optional
        [num_rows] float32, the same for all layers: what part of a row's scores goes to slots that
        were below its level. See `novelty.recall`. Updated in place.
    recall_enough, recall_pace : float
        The recall at which novelty counts in full; and what this layer's part counts in it.
    out : torch.Tensor, optional
        [batch, num_q_heads, v_head_dim], contiguous.

    Returns
    -------
    torch.Tensor
        `out`; padded rows are zero.

    Raises
    ------
    ValueError
        A shape, dtype or size that the kernels do not take.
    """
    batch, num_q_heads, head_dim = q.shape
    num_kv_heads, v_head_dim = v_new.shape[1:]
    victim_heads = next_slot.shape[1]
    _check(q, k_new, v_new, k_cache, v_cache, kv_indices, fields, next_slot, workspace, config)
    words = k_cache.shape[0] * (2 if likeness else victim_heads)
    if slot_score is not None and (
        slot_score.dtype != torch.float32 or slot_score.shape != (words,)
    ):
        raise ValueError(
            f"slot_score is {slot_score.dtype} {tuple(slot_score.shape)}: expected float32 "
            f"[{words}]"
        )
    if likeness and any(given is None for given in (slot_score, recent, row_level, row_recall)):
        raise ValueError(
            "likeness=True: slot_score, row_level, row_recall and recent are needed, too"
        )
    if out is None:
        out = torch.empty(batch, num_q_heads, v_head_dim, dtype=q.dtype, device=q.device)
    if batch == 0:
        return out
    group = num_q_heads // num_kv_heads
    dependent = _dependent_launch(q.device)
    early: dict[str, bool] = {"launch_pdl": True} if dependent else {}
    if likeness:  # before the attention, which is long enough to hide it
        assert slot_score is not None and recent is not None
        update_likeness(
            k_new,
            k_cache,
            kv_indices,
            req_pool_indices,
            fields,
            next_slot,
            recent,
            slot_score,
            k_scale=k_scale,
            dependent=dependent,
        )
    attend_kernel[(num_kv_heads, config.max_splits, batch)](
        q,
        k_new,
        v_new,
        k_cache,
        v_cache,
        kv_indices,
        req_pool_indices,
        fields,
        next_slot,
        out,
        workspace.partial_out,
        workspace.partial_lse,
        workspace.scores,
        workspace.tile_peak,
        scaling,
        logit_cap,
        k_scale,
        v_scale,
        workspace.kept_places,
        config.max_splits,
        config.min_split_tokens,
        fields.stride(0),
        q.stride(0),
        k_new.stride(0),
        v_new.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        K_SLOT_STRIDE=k_cache.stride(0),
        V_SLOT_STRIDE=v_cache.stride(0),
        BLOCK_H=max(16, triton.next_power_of_2(group)),
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_DV=triton.next_power_of_2(v_head_dim),
        BLOCK_N=config.block_n,
        VICTIM_HEADS=victim_heads,
        HAS_CAP=logit_cap > 0,
        DOT_PRECISION="ieee",
        DEPENDENT=dependent,
        BESIDE=dependent and likeness,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.max_registers,
        **(early if likeness else {}),
    )
    protect_recent = 0 if recent is None else recent.shape[2]
    voters = num_q_heads // victim_heads
    block_dv = triton.next_power_of_2(v_head_dim)
    block_s = triton.next_power_of_2(config.max_splits)
    out_heads = max(1, OUT_VALUES * config.choose_warps // (block_s * block_dv))
    parts = triton.cdiv(num_q_heads, out_heads * victim_heads) if config.max_splits > 1 else 0
    combine_kernel[(config.chunks + parts, victim_heads, batch)](
        out,
        workspace.partial_out,
        workspace.partial_lse,
        workspace.scores,
        workspace.tile_peak,
        req_pool_indices,
        kv_indices,
        fields,
        workspace.best_score if slot_score is None else slot_score,
        workspace.best_score if row_level is None else row_level,
        workspace.best_score if row_recall is None else row_recall,
        next_slot,
        next_slot if recent is None else recent,
        workspace.best_score,
        workspace.best_index,
        workspace.chunk_sums,
        workspace.arrived,
        config.min_split_tokens,
        fields.stride(0),
        protect_sink_tokens,
        decay,
        novelty_weight,
        novelty_span,
        level_share,
        LEVEL_PACE,
        LOWEST_LEVEL,
        recall_enough,
        first_recall(recall_enough),
        recall_pace,
        NUM_Q_HEADS=num_q_heads,
        V_HEAD_DIM=v_head_dim,
        BLOCK_DV=block_dv,
        BLOCK_N=config.block_n,
        MAX_SPLITS=config.max_splits,
        BLOCK_S=block_s,
        VICTIM_HEADS=victim_heads,
        BLOCK_V=min(config.voters, triton.next_power_of_2(voters)),
        CHUNKS=config.chunks,
        TILES=config.chunk_slots // config.block_n,
        OUT_HEADS=out_heads,
        RECENT=protect_recent,
        MEMORY=slot_score is not None,
        LIKENESS=likeness,
        BLOCK_R=triton.next_power_of_2(max(1, protect_recent)),
        DEPENDENT=dependent,
        num_warps=config.choose_warps,
        **early,
    )
    return out


@functools.cache
def _dependent_launch(device: torch.device) -> bool:
    """Whether a kernel can be started before the one it depends on has ended (from Hopper on)."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _check(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    fields: torch.Tensor,
    next_slot: torch.Tensor,
    workspace: Workspace,
    config: LaunchConfig,
) -> None:
    batch, num_q_heads, head_dim = q.shape
    num_kv_heads, v_head_dim = v_new.shape[1:]
    victim_heads = next_slot.shape[1]
    group, rest = divmod(num_q_heads, num_kv_heads)
    if rest or not 1 <= group <= MAX_GROUP:
        raise ValueError(
            f"num_q_heads={num_q_heads}: expected 1 to {MAX_GROUP} times "
            f"num_kv_heads={num_kv_heads}"
        )
    for name, size in (("head_dim", head_dim), ("v_head_dim", v_head_dim)):
        if size not in HEAD_DIMS:
            raise ValueError(f"{name}={size}: expected one of {HEAD_DIMS}")
    if victim_heads not in (1, num_kv_heads):
        raise ValueError(f"next_slot has {victim_heads} heads: expected 1 or {num_kv_heads}")
    for name, tensor, size in (("k", k_cache, head_dim), ("v", v_cache, v_head_dim)):
        if tuple(tensor.shape[1:]) != (num_kv_heads, size) or tensor.stride()[1:] != (size, 1):
            raise ValueError(
                f"{name}_cache is {tuple(tensor.shape)}: expected [slots, {num_kv_heads}, {size}], "
                f"each slot contiguous"
            )
        if tensor.dtype not in (q.dtype, torch.float8_e4m3fn):
            raise ValueError(f"{name}_cache is {tensor.dtype}: expected {q.dtype} or float8_e4m3fn")
    for name, tensor in (("q", q), ("k_new", k_new), ("v_new", v_new)):
        size = tensor.shape[2]
        if tensor.shape[0] != batch or tensor.stride()[1:] != (size, 1):
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {batch} contiguous rows")
    if kv_indices.dtype != torch.int32 or kv_indices.dim() != 1 or kv_indices.stride(0) != 1:
        raise ValueError(
            f"kv_indices is {kv_indices.dtype} {tuple(kv_indices.shape)}: expected int32 [tokens]"
        )
    strided = batch > 1 and fields.stride(1) != 1
    if fields.dtype != torch.int32 or fields.shape != (NUM_FIELDS, batch) or strided:
        raise ValueError(
            f"fields is {fields.dtype} {tuple(fields.shape)}: "
            f"expected int32 [{NUM_FIELDS}, {batch}]"
        )
    partials = batch * config.max_splits if config.max_splits > 1 else 0
    if batch > workspace.max_batch or partials > workspace.max_partials:
        raise ValueError(
            f"batch={batch} with max_splits={config.max_splits}: the workspace is for "
            f"{workspace.max_batch} rows and {workspace.max_partials} partial results"
        )
    block_n = config.block_n
    if not MIN_BLOCK_N <= block_n <= MAX_BLOCK_N or block_n & (block_n - 1):
        raise ValueError(
            f"block_n={block_n}: expected a power of 2 from {MIN_BLOCK_N} to {MAX_BLOCK_N}"
        )
    slots = config.chunk_slots
    if not block_n <= slots <= MAX_CHUNK_SLOTS or slots & (slots - 1):
        raise ValueError(
            f"chunk_slots={slots}: expected a power of 2 from block_n={block_n} to "
            f"{MAX_CHUNK_SLOTS}"
        )
    if config.chunks > workspace.best_score.shape[2]:
        raise ValueError(
            f"chunks={config.chunks}: the workspace takes {workspace.best_score.shape[2]}"
        )
