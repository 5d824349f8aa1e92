"""What is changed in each of vLLM's processes: as little as model runner V2 needs on a CPU."""

from typing import Any


def turn_on() -> None:
    """Called by vLLM, once a process and before it builds a configuration or a model."""
    _sample_in_pytorch()
    _store_by_any_mask()
    _keep_asynchronous_scheduling()
    _use_kernels()


def _sample_in_pytorch() -> None:
    """Top-k and top-p as vLLM's PyTorch does them.

    vLLM's Triton kernel calls ``.to`` on the loop variables of ``tl.range``, which are plain ints
    in the interpreter.
    """
    import vllm.v1.sample.ops.topk_topp_sampler as sampler

    sampler.apply_top_k_top_p_triton = sampler.apply_top_k_top_p_pytorch


def _store_by_any_mask() -> None:
    """Masks of stores as bools: the interpreter has that of vLLM's grammars as ints, and fails."""
    from triton.runtime.interpreter import InterpreterBuilder

    own = InterpreterBuilder.create_masked_store

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, policy: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return own(self, ptrs, value, mask, policy)

    InterpreterBuilder.create_masked_store = create_masked_store


def _keep_asynchronous_scheduling() -> None:
    """Asynchronous scheduling as the flags have it: vLLM's CPU platform turns it off."""
    from vllm.platforms.cpu import CpuPlatform

    own = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        scheduler = vllm_config.scheduler_config
        asked = scheduler.async_scheduling
        own(cls, vllm_config)
        scheduler.async_scheduling = asked

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def _use_kernels() -> None:
    """This project's Triton kernels on any device."""
    import value_heads.kernels as kernels

    kernels.runs_on = lambda device: True
