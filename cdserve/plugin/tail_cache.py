"""Reuse of the KV of a prefix's last, unfinished block; a vLLM KV connector.

vLLM's prefix cache holds whole KV blocks, and always computes the last token anew: after a decision
each of the K next candidates would prefill up to a block's worth of tokens whose KV a candidate of
the decision before has already computed (measured in docs/log.md). This connector keeps such a
block findable after its request has finished, and has the worker copy it into the block of each
request that continues the prefix. Then a candidate begins with one token to compute.

In the scheduler a tail is an entry of vLLM's own block cache under the hash of its tokens: it is
evicted, reset and reused like any other. Requests that want no values are not looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    KVCacheBlock,
    generate_block_hash_extra_keys,
    hash_block_tokens,
    make_block_hash_with_group_id,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig
from vllm.v1.request import Request, RequestStatus

from cdserve.plugin.rows import REQUEST_KEY

_GROUP = 0


@dataclass
class TailCopies(KVConnectorMetadata):  # type: ignore[misc]
    """Pairs of KV blocks (source, target) to copy before the step's forward pass."""

    pairs: list[tuple[int, int]] = field(default_factory=list)


class TailCache(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Both sides of the connector: the scheduler's finds tails, the worker's copies them."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        cache = vllm_config.cache_config
        groups = kv_cache_config.kv_cache_groups
        self._block_size: int = cache.block_size
        self._hash = get_hash_fn_by_name(cache.prefix_caching_hash_algo)
        self._active = (
            cache.enable_prefix_caching
            and len(groups) == 1
            and type(groups[0].kv_cache_spec) is FullAttentionSpec
            and vllm_config.parallel_config.decode_context_parallel_size == 1
        )
        self._pool: BlockPool | None = None
        self._found: dict[str, KVCacheBlock] = {}
        self._held: list[KVCacheBlock] = []
        self._copies = TailCopies()
        self._kv_caches: list[torch.Tensor] = []

    # The scheduler's side, in the order of a request's life.

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """Receives the pool whose blocks are found and kept."""
        self._pool = gpu_block_pool

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """How many tokens beyond the whole cached blocks a tail has, up to the last but one."""
        start = (request.num_tokens - 1) // self._block_size * self._block_size
        wanted = request.num_tokens - 1 - start
        if not self._concerns(request) or wanted == 0 or num_computed_tokens != start:
            return 0, False
        source = next(filter(None, map(self._cached, self._hashes(request, start))), None)
        if source is None:
            return 0, False
        # Held until the copy is on its way, so that nothing of this step is given the block.
        self._pool_of().touch([source])
        self._held.append(source)
        self._found[request.request_id] = source
        return wanted, False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Notes the copy, now that the request has a block to copy into."""
        source = self._found.pop(request.request_id, None)
        if source is not None and num_external_tokens > 0:
            index = (request.num_tokens - 1) // self._block_size
            self._copies.pairs.append((source.block_id, blocks.blocks[_GROUP][index].block_id))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> TailCopies:
        """The step's copies. Freed blocks are written again in a later step at the earliest."""
        copies, self._copies = self._copies, TailCopies()
        self._found.clear()
        if self._held:
            self._pool_of().free_blocks(self._held)
            self._held = []
        return copies

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Makes the request's last block findable, if it is partly filled."""
        computed = request.num_tokens - 1
        start = computed // self._block_size * self._block_size
        aborted = request.status == RequestStatus.FINISHED_ABORTED
        if self._concerns(request) and computed > start and not aborted:
            pool = self._pool_of()
            block = pool.blocks[block_ids[_GROUP][start // self._block_size]]
            if block.block_hash is None:
                key = make_block_hash_with_group_id(self._tail(request, start, computed), _GROUP)
                pool._insert_block_hash(key, block, num_tokens=computed)
        return False, None

    def _concerns(self, request: Request) -> bool:
        params = request.sampling_params
        return (
            self._active
            and params is not None
            and REQUEST_KEY in (params.extra_args or {})
            and not request.mm_features
        )

    def _hashes(self, request: Request, start: int) -> Iterator[BlockHash]:
        """Of blocks that hold the tail of a continued prefix, or of one scored once more."""
        for end in (request.num_tokens, request.num_tokens - 1):
            if end - start == self._block_size:
                yield request.block_hashes[start // self._block_size]
            else:
                yield self._tail(request, start, end)

    def _tail(self, request: Request, start: int, end: int) -> BlockHash:
        index = start // self._block_size
        extra_keys, _ = generate_block_hash_extra_keys(request, start, end, 0)
        return hash_block_tokens(
            self._hash,
            request.block_hashes[index - 1] if index else None,
            request.all_token_ids[start:end],
            extra_keys,
        )

    def _cached(self, block_hash: BlockHash) -> KVCacheBlock | None:
        found = self._pool_of().get_cached_block(block_hash, [_GROUP])
        return found[0] if found else None

    def _pool_of(self) -> BlockPool:
        assert self._pool is not None  # vLLM binds it before the first request
        return self._pool

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a tail that is not there is computed."""
        return False

    # The worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Receives the layers' KV caches, blocks in the first dimension."""
        self._kv_caches = list(kv_caches.values())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copies this step's tails, before the forward pass."""
        pairs = self._get_connector_metadata().pairs
        if not pairs:
            return
        device = self._kv_caches[0].device
        sources, targets = torch.tensor(pairs, device=device).unbind(1)
        for cache in self._kv_caches:
            cache[targets] = cache[sources]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: the copies are ordered before the forward pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing to save: tails stay where they are."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""
