"""Rollouts on disk: shards of states, written once, read one at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .rollouts import Rollouts

SHARD_TOKENS = 65536
"""Approximate tokens of a shard: half a gigabyte at d = 4096 in bfloat16."""


class ShardWriter:
    """Packs responses into the shards of one set.

    A shard `{name}-states-00000.safetensors` holds states, tokens, lengths, ended and prompts, but
    no rewards: several rewards can be learned from one cache. Responses keep their order. Complete
    shards on disk count as written, so that a writer continues where another stopped.

    Args:
        folder: folder of the shards.
        name: name of the set, such as "train".
        shard_tokens: tokens at which a shard is full.
        group: number of consecutive responses that stay in one shard: 2 for pairs.
    """

    def __init__(
        self, folder: Path, name: str, shard_tokens: int = SHARD_TOKENS, *, group: int = 1
    ) -> None:
        self._group = group
        self._folder, self._name, self._shard_tokens = folder, name, shard_tokens
        self._count = len(shard_paths(folder, name))
        self.written = sum(_responses(path) for path in shard_paths(folder, name))
        """Responses in complete shards: the first of the set."""
        self._waiting: list[tuple[Tensor, Tensor, bool, int]] = []
        self._tokens = 0

    def add(self, states: Tensor, tokens: Tensor, *, ended: bool, prompt: int) -> None:
        """Add one response: states [T + 1, d], tokens [T]."""
        self._waiting.append((states, tokens, ended, prompt))
        self._tokens += len(tokens)
        if self._tokens >= self._shard_tokens and len(self._waiting) % self._group == 0:
            self.flush()

    def flush(self) -> None:
        """Write the waiting responses, if any, as a shard."""
        if not self._waiting:
            return
        states, tokens, ended, prompts = zip(*self._waiting, strict=True)
        path = self._folder / f"{self._name}-states-{self._count:05d}.safetensors"
        partial = path.with_suffix(".partial")
        tensors = {
            "states": torch.cat(states),
            "tokens": torch.cat(tokens).long(),
            "lengths": torch.tensor([len(response) for response in tokens]),
            "ended": torch.tensor(ended),
            "prompts": torch.tensor(prompts),
        }
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # safetensors makes it readable by its owner only
        partial.replace(path)
        self._count += 1
        self._waiting.clear()
        self._tokens = 0


class CachedRollouts(Sequence[Rollouts]):
    """The shards of one set, each read on access.

    Args:
        folder, name: as for `ShardWriter`.
        rewards: float32 [B, G] of all responses of the set, in order; None for no reward, G = 0.
        cut_ends: whether a response cut at a length limit counts as ended at its last token.

    Raises:
        FileNotFoundError: there is no shard.
        ValueError: the numbers of rewards and responses differ.
    """

    def __init__(
        self, folder: Path, name: str, rewards: Tensor | None = None, *, cut_ends: bool = False
    ) -> None:
        self._cut_ends = cut_ends
        self._paths = shard_paths(folder, name)
        if not self._paths:
            raise FileNotFoundError(f"{folder} has no shard of {name}")
        counts = [_responses(path) for path in self._paths]
        if rewards is None:
            rewards = torch.zeros(sum(counts), 0)
        if rewards.ndim != 2 or len(rewards) != sum(counts):
            raise ValueError(
                f"rewards of {name} must be [{sum(counts)}, G], got {list(rewards.shape)}"
            )
        self._rewards = torch.split(rewards.float(), counts)

    @property
    def ended(self) -> Tensor:
        """Which responses of the set ended, bool [B]; read without the states."""
        return torch.cat([_read(path, "ended") for path in self._paths]) | self._cut_ends

    @property
    def longest(self) -> int:
        """Tokens of the longest response of the set; read without the states."""
        return max(int(_read(path, "lengths").max()) for path in self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Rollouts: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rollouts]: ...

    def __getitem__(self, index: int | slice) -> Rollouts | list[Rollouts]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        tensors = load_file(self._paths[index])
        tensors["ended"] |= self._cut_ends
        return Rollouts(**tensors, rewards=self._rewards[index])


def shard_paths(folder: Path, name: str) -> list[Path]:
    """Return the shards of a set, in order."""
    return sorted(folder.glob(f"{name}-states-*.safetensors"))


def _responses(path: Path) -> int:
    with safe_open(path, "pt") as file:
        (count,) = file.get_slice("lengths").get_shape()
        return int(count)


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
