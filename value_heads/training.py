"""Fitting a head on rollouts, in memory or streamed from disk."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .base import Base
from .heads import Head, ValueHead
from .losses import (
    binary_cross_entropy,
    bradley_terry,
    clipped_squared_error,
    linex,
    masked_squared_error,
)
from .methods import Method, MonteCarlo, all_values, check_tied
from .pairs import PrefixPairs
from .rollouts import Rollouts, Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        lr: initial learning rate of Adam; it falls to zero along half a cosine over `max_epochs`.
        batch: tokens per step; pairs of prefixes for `fit_pairs`.
        max_epochs: most epochs of a fit.
        patience: epochs without a lower held-out loss before the fit stops.
        clip: largest change of a value towards its target per visit to a shard, in reward units
            (`clipped_squared_error`); None for no limit.
        end_weight: weight in the loss of the last token of a response that ended; other tokens
            have 1. With a long response the state behind its end is one of many, and best-of-n
            reads only that one.
        seed: seed of the order of shards and tokens.
    """

    lr: float = 1e-3
    batch: int = 4096
    max_epochs: int = 20
    patience: int = 3
    clip: float | None = None
    end_weight: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an `end_weight` that is not a positive integer."""
        if not isinstance(self.end_weight, int) or self.end_weight < 1:
            raise ValueError(f"end_weight must be an integer of at least 1, got {self.end_weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """Result of a fit: losses by epoch, as means over tokens, and the best epoch, from 0."""

    epochs: int
    best_epoch: int
    train_loss: tuple[float, ...]
    held_out_loss: tuple[float, ...]


def fit(
    head: Head,
    train: Shards,
    held_out: Shards,
    method: Method | None = None,
    options: FitOptions | None = None,
    *,
    base: Base | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> FitReport:
    """Fit a head in place with Adam, and keep the weights of the best held-out epoch.

    The loss is the cross-entropy for a head with a sigmoid, LINEX for a soft head, else the squared
    error. The held-out loss is against the rewards, whatever the method, since the exact value
    minimises it. One shard is in memory at a time, and the method computes its targets again at
    each visit. The same seed gives the same weights on the same machine.

    Args:
        method: None for Monte Carlo.
        base: the base model's output layer, for CD-Q and for tied heads.
        checkpoint: file written after every epoch; the fit resumes from it if it exists.
        progress: whether to show a progress bar for each epoch.

    Raises:
        ValueError: the head cannot be fitted, the method or the clip does not suit it, the
            checkpoint belongs to another fit, or no response ended.
    """
    _check_architecture(head)
    method, options = method or MonteCarlo(), options or FitOptions()
    method.check(head, base)
    if options.clip is not None and (head.config.kind, head.config.output) != ("mean", "identity"):
        raise ValueError("clip is of the squared error, got a head that is soft or a sigmoid")
    run = _Run(head, options, f"{method}, {options}, {head.config}")
    return run.finish(
        lambda: _epoch(run, train, method, base, progress),
        lambda: _held_out_loss(head, held_out, base, options.end_weight),
        checkpoint,
    )


def fit_pairs(
    head: Head,
    train: Shards,
    held_out: Shards,
    options: FitOptions | None = None,
    *,
    base: Base | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> FitReport:
    """Fit a head in place to pairs of prefixes (`PrefixPairs`) by the Bradley-Terry loss.

    Its values have no unit: the difference of two values is the log-odds of the preference. All
    else is as in `fit`.

    Args:
        train, held_out: responses 2i and 2i + 1 of a shard are the chosen and the rejected one of a
            pair; rewards are not read.
        base: the base model's output layer, for tied heads.
        checkpoint: file written after every epoch; the fit resumes from it if it exists.
        progress: whether to show a progress bar for each epoch.

    Raises:
        ValueError: the head cannot be fitted to pairs, the checkpoint belongs to another fit, or no
            pair has responses that differ.
    """
    _check_architecture(head)
    check_tied(head, base)
    options = options or FitOptions()
    if (head.config.kind, head.config.output) != ("mean", "identity"):
        raise ValueError(
            "pairs are for a head without a unit, got a head that is soft or a sigmoid"
        )
    if options.clip is not None:
        raise ValueError("clip is of the squared error, got pairs")
    if options.end_weight != 1:
        raise ValueError("end_weight applies to rewards, got pairs")
    run = _Run(head, options, f"Bradley-Terry, {options}, {head.config}")
    return run.finish(
        lambda: _pair_epoch(run, train, base, progress),
        lambda: _held_out_pair_loss(head, held_out, base),
        checkpoint,
    )


def _check_architecture(head: Head) -> None:
    if head.config.architecture == "mahalanobis":
        raise ValueError(
            "architecture of a head to fit must be one of linear, mlp, lowrank, tied, got "
            "'mahalanobis': confidence_head makes such a head"
        )


@dataclass(slots=True)
class _Run:
    """State of a fit, and its checkpoint."""

    head: Head
    options: FitOptions
    identity: str
    train_loss: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR = field(init=False)

    def __post_init__(self) -> None:
        self.best = self._weights()
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.options.lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, self.options.max_epochs
        )

    @property
    def epoch(self) -> int:
        return len(self.held_out_loss)

    @property
    def finished(self) -> bool:
        waited = self.epoch - 1 - self.best_epoch
        return self.epoch >= self.options.max_epochs or waited >= self.options.patience

    def finish(
        self, epoch: Callable[[], float], held_out: Callable[[], float], checkpoint: Path | None
    ) -> FitReport:
        """Run the epochs that are left and load the best weights.

        Args:
            epoch: visits the training set and returns its loss.
            held_out: returns the held-out loss.
            checkpoint: as for `fit`.
        """
        if checkpoint is not None and checkpoint.is_file():
            self.resume(checkpoint)
        while not self.finished:
            self.head.train()
            loss = epoch()
            self.head.eval()
            self.judge(loss, held_out())
            if checkpoint is not None:
                self.save(checkpoint)
        self.head.load_state_dict(self.best)
        self.head.eval()
        return FitReport(
            epochs=self.epoch,
            best_epoch=self.best_epoch,
            train_loss=tuple(self.train_loss),
            held_out_loss=tuple(self.held_out_loss),
        )

    def judge(self, train_loss: float, held_out_loss: float) -> None:
        """Record the losses of an epoch, and keep its weights if they are the best."""
        self.schedule.step()
        self.train_loss.append(train_loss)
        self.held_out_loss.append(held_out_loss)
        if held_out_loss <= min(self.held_out_loss):
            self.best_epoch = self.epoch - 1
            self.best = self._weights()

    def save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "train_loss": self.train_loss,
            "held_out_loss": self.held_out_loss,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.head.shift.device, weights_only=True)
        if state["identity"] != self.identity:
            raise ValueError(f"{path} is of {state['identity']}; this fit is {self.identity}")
        self.train_loss, self.held_out_loss = state["train_loss"], state["held_out_loss"]
        self.best_epoch, self.best = state["best_epoch"], state["best"]
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.head.state_dict().items()}


def _epoch(run: _Run, train: Shards, method: Method, base: Base | None, progress: bool) -> float:
    """Visit every shard once; return the mean loss per token."""
    head, clip = run.head, run.options.clip

    def examples(data: Rollouts) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        targets = method.targets(head, data, base)
        before = None if clip is None else all_values(head, data, base)
        rows = _weighted(data, data.rows(cut=method.cut_responses), run.options.end_weight)
        return rows, lambda batch: _loss(head, data, batch, targets, base, before, clip)

    loss = _visit(run, train, examples, progress)
    if loss is None:
        raise ValueError("no response to train on ended by itself, so none has a reward")
    return loss


def _weighted(data: Rollouts, rows: Tensor, end_weight: int) -> Tensor:
    """Return the places of tokens, with those of ends repeated `end_weight` times."""
    if end_weight == 1:
        return rows
    counts = torch.ones_like(data.tokens)
    counts[data.last[data.ended]] = end_weight
    return rows.repeat_interleave(counts[rows])


def _pair_epoch(run: _Run, train: Shards, base: Base | None, progress: bool) -> float:
    """Visit every shard once; return the mean loss per pair of prefixes."""

    def examples(data: Rollouts) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        pairs = PrefixPairs.from_rollouts(data)
        rows = torch.arange(len(pairs), device=data.tokens.device)
        return rows, lambda batch: _pair_loss(run.head, data, pairs, batch, base)

    loss = _visit(run, train, examples, progress)
    if loss is None:
        raise ValueError("no pair to train on has responses that differ")
    return loss


def _visit(
    run: _Run,
    train: Shards,
    examples: Callable[[Rollouts], tuple[Tensor, Callable[[Tensor], Tensor]]],
    progress: bool,
) -> float | None:
    """Visit every shard once, in this epoch's order; return the mean loss per example.

    Args:
        examples: returns the examples of a shard, int64 [n], and the loss of some of them.

    Returns:
        None if there are no examples.
    """
    generator = torch.Generator().manual_seed(run.options.seed * 1_000_003 + run.epoch)
    order = torch.randperm(len(train), generator=generator).tolist()
    total, count = 0.0, 0
    for index in tqdm(order, f"epoch {run.epoch + 1}", disable=not progress, leave=False):
        rows, loss_of = examples(train[index].to(run.head.shift.device))
        shuffled = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for batch in _batches(shuffled, run.options.batch):
            loss = loss_of(batch)
            run.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()
            total, count = total + float(loss.detach()) * len(batch), count + len(batch)
    return total / count if count else None


@torch.no_grad()
def _held_out_loss(head: Head, held_out: Shards, base: Base | None, end_weight: int) -> float:
    total, count = 0.0, 0
    for shard in held_out:
        data = shard.to(head.shift.device)
        rewards = data.rewards[data.owner]
        for rows in _batches(_weighted(data, data.rows(cut=False), end_weight), 8192):
            total += float(_loss(head, data, rows, rewards, base)) * len(rows)
            count += len(rows)
    if not count:
        raise ValueError("no held-out response ended by itself, so none has a reward")
    return total / count


@torch.no_grad()
def _held_out_pair_loss(head: Head, held_out: Shards, base: Base | None) -> float:
    total, count = 0.0, 0
    for shard in held_out:
        data = shard.to(head.shift.device)
        pairs = PrefixPairs.from_rollouts(data)
        for rows in _batches(torch.arange(len(pairs), device=data.tokens.device), 8192):
            total += float(_pair_loss(head, data, pairs, rows, base)) * len(rows)
            count += len(rows)
    if not count:
        raise ValueError("no held-out pair has responses that differ")
    return total / count


def _pair_loss(
    head: Head, data: Rollouts, pairs: PrefixPairs, rows: Tensor, base: Base | None
) -> Tensor:
    lm_head = None if base is None else base.lm_head
    chosen, rejected = (
        head.rollout_values(data, places[rows], lm_head)
        for places in (pairs.chosen, pairs.rejected)
    )
    return bradley_terry(chosen, rejected, torch.ones_like(rows, dtype=torch.bool))


def _batches(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return batches of about `size`, all equal: a small last one would make a noisy step."""
    return torch.tensor_split(rows, math.ceil(len(rows) / size)) if len(rows) else ()


def _loss(
    head: Head,
    data: Rollouts,
    rows: Tensor,
    targets: Tensor,
    base: Base | None,
    before: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """Return the loss at some tokens whose minimiser is a value of the head's kind."""
    targets, every = targets[rows], torch.ones_like(rows, dtype=torch.bool)
    if isinstance(head, ValueHead) and head.config.output == "sigmoid":
        logits = head.logits(data.states[data.after[rows]], data.number[rows])
        return binary_cross_entropy(logits, (targets - head.shift) / head.scale, every)
    values = head.rollout_values(data, rows, None if base is None else base.lm_head)
    if head.config.beta is not None:
        return linex(values, targets, every, head.config.beta)
    if before is not None and clip is not None:
        return clipped_squared_error(values, before[rows], targets, every, clip)
    return masked_squared_error(values, targets, every)
