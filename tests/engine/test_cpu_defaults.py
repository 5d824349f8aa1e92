"""Arguments that replace vLLM's defaults on a CPU."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cdserve.engine import vllm
from cdserve.engine.vllm import set_cpu_defaults

GIB = 1 << 30


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The node's memory: 7 of 10 GiB are free."""
    node = SimpleNamespace(total_memory=10 * GIB, available_memory=7 * GIB)
    monkeypatch.setattr(vllm, "get_memory_node_info", lambda number: node)
    return node


def arguments(*flags: str, other_engines: bool = False) -> Namespace:
    args: Namespace = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(list(flags))
    set_cpu_defaults(args, other_engines=other_engines)
    return args


def test_kv_cache_takes_a_quarter_of_the_free_memory_beside_other_processes() -> None:
    assert arguments().kv_cache_memory_bytes == 7 * GIB // 4


def test_kv_cache_is_left_to_vllm_on_a_machine_of_its_own(memory: SimpleNamespace) -> None:
    memory.available_memory = 9.5 * GIB
    assert arguments().kv_cache_memory_bytes is None


def test_kv_cache_leaves_room_for_other_engines(memory: SimpleNamespace) -> None:
    memory.available_memory = 10 * GIB
    assert arguments(other_engines=True).kv_cache_memory_bytes == 10 * GIB // 4


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--kv-cache-memory-bytes", "1000"], 1000),
        (["--gpu-memory-utilization", "0.5"], None),
    ],
)
def test_given_memory_flags_are_kept(flags: list[str], size: int | None) -> None:
    assert arguments(*flags).kv_cache_memory_bytes == size


@pytest.mark.parametrize(
    ("flags", "chunked"),
    [
        ([], False),
        (["--enable-chunked-prefill"], True),
        (["--max-num-batched-tokens", "64"], None),
        (["--runner", "pooling"], None),
    ],
)
def test_chunked_prefill_is_off_unless_flags_need_it(flags: list[str], chunked: bool) -> None:
    assert arguments(*flags).enable_chunked_prefill is chunked


def test_sharded_model_keeps_vllms_executor() -> None:
    assert arguments("--tensor-parallel-size", "2").distributed_executor_backend is None
    assert arguments().distributed_executor_backend.endswith("UniProcExecutor")
