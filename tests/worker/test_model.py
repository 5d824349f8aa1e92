"""The wrapped model hands model runner V2 a state that tracks rows."""

from types import SimpleNamespace

from torch import nn
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

from cdserve.worker.model import _Aligned
from cdserve.worker.runner_v2 import _Tracking


class _Bare:
    """In place of the architecture's constructor, which builds a whole model."""

    def __init__(self, hybrid: bool = False) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self._vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(is_hybrid=hybrid, is_attention_free=False),
            compilation_config=SimpleNamespace(static_forward_context={}),
        )


class Plain(_Bare, _Aligned, nn.Module):
    """Of an architecture that leaves the choice of its state to vLLM."""


class _Own(nn.Module):
    @staticmethod
    def get_model_state_cls() -> type:
        return MambaHybridModelState


class Choosing(_Bare, _Aligned, _Own):
    """Of an architecture with a state of its own."""


def test_model_state_is_the_one_that_vllm_resolves() -> None:
    assert Plain().get_model_state_cls().__mro__[1:3] == (_Tracking, DefaultModelState)
    assert issubclass(Plain(hybrid=True).get_model_state_cls(), MambaHybridModelState)


def test_model_state_of_the_architecture_is_kept() -> None:
    state = Choosing().get_model_state_cls()
    assert issubclass(state, MambaHybridModelState)
    assert issubclass(state, _Tracking)
