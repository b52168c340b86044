# SPDX-License-Identifier: Apache-2.0
"""SGLang's own radix tree, without a server. Imports SGLang (slow), inside the function only."""

from __future__ import annotations

#: Without one, and with either core: Python's, and SGLang's default in Rust.
TREES = ("off", "python", "rust")


def real_tree(req_to_token_pool, allocator, tree: str):
    """A ``UnifiedRadixCache`` of full attention with pages of one token."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    found = UnifiedRadixCache(
        CacheInitParams(
            tree == "off",
            req_to_token_pool,
            allocator,
            1,
            tree_components=(ComponentType.FULL,),
            tree_core_backend="python" if tree == "off" else tree,
        )
    )
    core = type(found.tree_core).__name__
    assert (core == "RustUnifiedTreeCore") == (tree == "rust"), f"{tree}: SGLang took {core}"
    return found
