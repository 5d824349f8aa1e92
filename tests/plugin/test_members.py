"""Members' hidden states behind the base's."""

import torch
from torch import Tensor, nn

from cdserve.plugin.members import Members


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


def test_outputs_that_share_memory_are_kept_apart() -> None:
    pool, tokens = torch.zeros(64), torch.arange(3)
    members = _Members(
        {"wide": _Graph(pool, 4, 2.0), "small": _Graph(pool, 2, 3.0)}, {"wide": 4, "small": 2}
    )
    states = members(_Graph(pool, 5, 1.0)(tokens), None, tokens)
    assert states.tolist() == [[1.0] * 5 + [2.0] * 4 + [3.0] * 2] * 3


def test_only_the_members_asked_for_run() -> None:
    pool, tokens = torch.zeros(64), torch.arange(3)
    members = _Members(
        {"wide": _Graph(pool, 4, 2.0), "small": _Graph(pool, 2, 3.0)}, {"wide": 4, "small": 2}
    )
    hidden = torch.ones(3, 5)
    assert members(hidden, set(), tokens) is hidden
    assert members(hidden, {"small"}, tokens).tolist() == [[1.0] * 5 + [3.0] * 2] * 3
