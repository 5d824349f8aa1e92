"""vLLM's scheduler, extended for candidates: they share partly filled blocks, and begin together.

vLLM's prefix cache holds whole KV blocks. After a decision, each of the K next candidates would
prefill up to one block of tokens whose KV a candidate of the previous decision has already
computed (measured in docs/log.md). Here such a block, a tail, stays in vLLM's block cache after its
request has finished, under the hash of its tokens; it is evicted, reset and reused like any other
block. A request that continues the prefix gets a copy by vLLM's copy-on-write of partly filled
blocks, and starts with one token to compute.

The requests of one draw begin in the same step (``cdserve.worker.draws``). Requests without a
``WorkerRequest`` are scheduled as before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    KVCacheBlock,
    generate_block_hash_extra_keys,
    hash_block_tokens,
    make_block_hash_with_group_id,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.request import Request, RequestStatus

from cdserve.worker.draws import PendingDraws
from cdserve.worker.request import DrawPlace, wire_form

_GROUP = 0


class TailScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler with draws, and with tails for models with full attention only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._draws = PendingDraws()
        groups = self.kv_cache_config.kv_cache_groups
        self._hash = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
        self._active = (
            self.cache_config.enable_prefix_caching
            and self.connector is None
            and self.vllm_config.speculative_config is None
            and self.dcp_world_size == self.pcp_world_size == 1
            and len(groups) == 1
            and _is_full_attention(groups[_GROUP].kv_cache_spec)
        )

    def add_request(self, request: Request) -> None:
        """As vLLM's; notes requests that are part of a draw."""
        super().add_request(request)
        if (place := _place(request)) is not None:
            self._draws.add(place)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """As vLLM's; a request also waits for the others of its draw."""
        if self._draws and request.status == RequestStatus.WAITING:
            place = _place(request)
            if place is not None and self._draws.incomplete(place):
                return False
        ready: bool = super()._handle_blocked_waiting_request(request)
        return ready

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """As vLLM's, plus a tail after the whole blocks, up to the last token but one."""
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        start = (request.num_tokens - 1) // self.block_size * self.block_size
        if self._concerns(request) and start == hit < request.num_tokens - 1:
            tail = next(filter(None, map(self._cached, self._hashes(request, start))), None)
            if tail is not None and not self._is_awaited(tail, start):
                blocks = KVCacheBlocks(([*blocks.blocks[_GROUP], tail],))
                hit = request.num_tokens - 1
        return blocks, hit, boundary, diverged

    def _free_request_blocks(self, request: Request) -> None:
        """As vLLM's, after caching the request's last block if it is partly filled."""
        computed = request.num_tokens - 1
        start = computed // self.block_size * self.block_size
        aborted = request.status == RequestStatus.FINISHED_ABORTED
        if self._concerns(request) and computed > start and not aborted:
            manager = self.kv_cache_manager
            block = manager.get_blocks(request.request_id).blocks[_GROUP][start // self.block_size]
            if block.block_hash is None:
                key = make_block_hash_with_group_id(self._tail(request, start, computed), _GROUP)
                manager.block_pool._insert_block_hash(key, block, num_tokens=computed)
        super()._free_request_blocks(request)

    def _concerns(self, request: Request) -> bool:
        return (
            self._active
            and not request.mm_features
            and self.kv_cache_manager.prefix_cache_lookup_enabled(request)
            and _continues(_wire(request))
        )

    def _hashes(self, request: Request, start: int) -> Iterator[BlockHash]:
        """Hashes of blocks that may hold the tail of a prefix that is continued or scored again."""
        for end in (request.num_tokens, request.num_tokens - 1):
            if end - start == self.block_size:
                yield request.block_hashes[start // self.block_size]
            else:
                yield self._tail(request, start, end)

    def _tail(self, request: Request, start: int, end: int) -> BlockHash:
        index = start // self.block_size
        extra_keys, _ = generate_block_hash_extra_keys(request, start, end, 0)
        return hash_block_tokens(
            self._hash,
            request.block_hashes[index - 1] if index else None,
            request.all_token_ids[start:end],
            extra_keys,
        )

    def _is_awaited(self, block: KVCacheBlock, start: int) -> bool:
        """Whether the block's KV is computed in this very step.

        vLLM caches a full block when it schedules the step that fills it. Attention in that step
        reads the block after it is written, but a copy would be made before.
        """
        index, manager = start // self.block_size, self.kv_cache_manager
        for request in self.running:
            blocks = manager.get_blocks(request.request_id).blocks[_GROUP]
            if index < len(blocks) and blocks[index] is block:
                return bool(request.num_computed_tokens < start + self.block_size)
        return False

    def _cached(self, block_hash: BlockHash) -> KVCacheBlock | None:
        blocks = self.kv_cache_manager.block_pool.get_cached_block(block_hash, [_GROUP])
        return blocks[_GROUP] if blocks else None


def _wire(request: Request) -> Mapping[str, Any] | None:
    """The wire form of a request's ``WorkerRequest``, not parsed: this runs between steps."""
    params = request.sampling_params
    return None if params is None else wire_form(params.extra_args)


def _place(request: Request) -> DrawPlace | None:
    place = (_wire(request) or {}).get("place")
    return None if place is None else DrawPlace(*place)


def _continues(wire: Mapping[str, Any] | None) -> bool:
    """Whether a request continues others and needs no logits before its last token."""
    return wire is not None and "token_stats_start" not in wire


def _is_full_attention(spec: KVCacheSpec) -> bool:
    if isinstance(spec, UniformTypeKVCacheSpecs):  # members of other sizes
        return all(map(_is_full_attention, spec.kv_cache_specs.values()))
    return type(spec) is FullAttentionSpec


class AsyncTailScheduler(TailScheduler, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler with tails."""


def scheduler(**arguments: Any) -> SchedulerInterface:
    """Builds the scheduler for the engine's settings; vLLM calls this as its ``scheduler_cls``."""
    asynchronous = arguments["vllm_config"].scheduler_config.async_scheduling
    return (AsyncTailScheduler if asynchronous else TailScheduler)(**arguments)
