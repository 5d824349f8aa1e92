"""Fitting a head on rollouts, in memory or streamed from disk."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .base import Base
from .heads import Head, ValueHead
from .losses import binary_cross_entropy, clipped_squared_error, linex, masked_squared_error
from .methods import Method, MonteCarlo, all_values
from .rollouts import Rollouts, Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        lr: initial learning rate of Adam; it falls to zero along half a cosine over `max_epochs`.
        batch: tokens per step.
        max_epochs: most epochs of a fit.
        patience: epochs without a lower held-out loss before the fit stops.
        clip: largest change of a value towards its target per visit to a shard, in reward units
            (`clipped_squared_error`); None for no limit.
        seed: seed of the order of shards and tokens.
    """

    lr: float = 1e-3
    batch: int = 4096
    max_epochs: int = 20
    patience: int = 3
    clip: float | None = None
    seed: int = 0


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
    if head.config.architecture == "mahalanobis":
        raise ValueError(
            "architecture of a head to fit must be one of linear, mlp, lowrank, tied, got "
            "'mahalanobis': confidence_head makes such a head"
        )
    method, options = method or MonteCarlo(), options or FitOptions()
    method.check(head, base)
    if options.clip is not None and (head.config.kind, head.config.output) != ("mean", "identity"):
        raise ValueError("clip is of the squared error, got a head that is soft or a sigmoid")
    run = _Run(head, options, f"{method}, {options}, {head.config}")
    if checkpoint is not None and checkpoint.is_file():
        run.resume(checkpoint)
    while not run.finished:
        head.train()
        loss = _epoch(run, train, method, base, progress)
        head.eval()
        run.judge(loss, _held_out_loss(head, held_out, base))
        if checkpoint is not None:
            run.save(checkpoint)
    head.load_state_dict(run.best)
    head.eval()
    return FitReport(
        epochs=run.epoch,
        best_epoch=run.best_epoch,
        train_loss=tuple(run.train_loss),
        held_out_loss=tuple(run.held_out_loss),
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
    """Visit every shard once, in this epoch's order; return the mean loss per token."""
    head, options = run.head, run.options
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + run.epoch)
    order = torch.randperm(len(train), generator=generator).tolist()
    total, count = 0.0, 0
    for index in tqdm(order, f"epoch {run.epoch + 1}", disable=not progress, leave=False):
        data = train[index].to(head.shift.device)
        targets = method.targets(head, data, base)
        before = None if options.clip is None else all_values(head, data, base)
        rows = data.rows(cut=method.cut_responses)
        shuffled = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for batch in _batches(shuffled, options.batch):
            loss = _loss(head, data, batch, targets, base, before, options.clip)
            run.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()
            total, count = total + float(loss.detach()) * len(batch), count + len(batch)
    if not count:
        raise ValueError("no response to train on ended by itself, so none has a reward")
    return total / count


@torch.no_grad()
def _held_out_loss(head: Head, held_out: Shards, base: Base | None) -> float:
    total, count = 0.0, 0
    for shard in held_out:
        data = shard.to(head.shift.device)
        rewards = data.rewards[data.owner]
        for rows in _batches(data.rows(cut=False), 8192):
            total += float(_loss(head, data, rows, rewards, base)) * len(rows)
            count += len(rows)
    if not count:
        raise ValueError("no held-out response ended by itself, so none has a reward")
    return total / count


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
        logits = head.logits(data.states[data.after[rows]])
        return binary_cross_entropy(logits, (targets - head.shift) / head.scale, every)
    values = head.rollout_values(data, rows, None if base is None else base.lm_head)
    if head.config.beta is not None:
        return linex(values, targets, every, head.config.beta)
    if before is not None and clip is not None:
        return clipped_squared_error(values, before[rows], targets, every, clip)
    return masked_squared_error(values, targets, every)
