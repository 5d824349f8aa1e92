"""Members' hidden states behind the base's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm import EngineArgs
from vllm.compilation import backends
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import VllmConfig, get_current_vllm_config, set_current_vllm_config

from cdserve.demo.tiny import MODEL_DIR
from cdserve.worker import members
from cdserve.worker.members import Members


class _Graph(nn.Module):
    """A model whose output lies where those of all others do, as outputs of CUDA graphs may."""

    def __init__(self, pool: Tensor, width: int, value: float) -> None:
        super().__init__()
        self._pool, self._width, self._value = pool, width, value

    def forward(self, tokens: Tensor) -> Tensor:
        out = self._pool[: len(tokens) * self._width].view(len(tokens), self._width)
        return out.fill_(self._value)


class _Members(Members):
    """Without vLLM's construction of the models."""

    def __init__(self, models: dict[str, _Graph], widths: dict[str, int]) -> None:
        nn.Module.__init__(self)
        self._names, self._widths = tuple(models), widths
        for name, model in models.items():
            self.add_module(name, model)


def test_member_outputs_in_shared_memory_are_kept_apart() -> None:
    pool, tokens = torch.zeros(64), torch.arange(3)
    made = _Members(
        {"wide": _Graph(pool, 4, 2.0), "small": _Graph(pool, 2, 3.0)}, {"wide": 4, "small": 2}
    )
    states = made(_Graph(pool, 5, 1.0)(tokens), None, tokens)
    assert states.tolist() == [[1.0] * 5 + [2.0] * 4 + [3.0] * 2] * 3


def test_only_requested_members_run() -> None:
    pool, tokens = torch.zeros(64), torch.arange(3)
    made = _Members(
        {"wide": _Graph(pool, 4, 2.0), "small": _Graph(pool, 2, 3.0)}, {"wide": 4, "small": 2}
    )
    hidden = torch.ones(3, 5)
    assert made(hidden, set(), tokens) is hidden
    assert made(hidden, {"small"}, tokens).tolist() == [[1.0] * 5 + [3.0] * 2] * 3


class _Compiled(nn.Module):
    """In place of an architecture: keeps what vLLM would compile it by."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.given, self.current = vllm_config, get_current_vllm_config()
        self.tag = backends.model_tag


def test_code_compiled_for_one_member_is_not_reused_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two members with the base's own configuration; vLLM finds compiled code by these factors.

    The code names the layers of the model it was made for, and so the KV cache that it uses.
    """
    monkeypatch.setattr(members, "architecture", lambda name: _Compiled)
    base = EngineArgs(str(MODEL_DIR), additional_config={"cdserve": {}}).create_engine_config()
    with set_current_vllm_config(base):
        made: Any = Members(base, {"tuned": str(MODEL_DIR), "ref": str(MODEL_DIR)})
    assert made.tuned.current is made.tuned.given
    assert made.ref.current is made.ref.given
    assert made.tuned.tag == "members.tuned", "the folder of its parts, inside that of the base"
    assert made.ref.tag == "members.ref"
    configs = [base, made.tuned.given, made.ref.given]
    assert len({str(aot_compile_hash_factors(config)) for config in configs}) == 3
    assert base.additional_config == {"cdserve": {}}
