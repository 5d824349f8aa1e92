"""Fitting a value head on cached hidden states."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import HeadConfig
from .heads import ValueHead
from .losses import binary_cross_entropy, linex, masked_squared_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Hidden states with their targets, padded to one length.

    Attributes:
        hidden: floating [B, T, d].
        targets: float32 [B, T, G], in reward units.
        mask: bool [B, T]; True where a target counts.
    """

    hidden: Tensor
    targets: Tensor
    mask: Tensor

    def split(self, share: float) -> tuple["Examples", "Examples"]:
        """Return the first share of the sequences, and the rest, held out; neither is empty.

        Raises:
            ValueError: there are fewer than two sequences.
        """
        count = len(self.mask)
        if count < 2:
            raise ValueError(f"a split needs at least 2 sequences, got {count}")
        at = min(max(round(share * count), 1), count - 1)
        first, rest = (
            Examples(hidden=self.hidden[part], targets=self.targets[part], mask=self.mask[part])
            for part in (slice(at), slice(at, None))
        )
        return first, rest

    def flat(self) -> tuple[Tensor, Tensor]:
        """Return the states [N, d] and targets [N, G] of the positions that count."""
        return self.hidden[self.mask], self.targets[self.mask]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How to fit; `patience` counts epochs without a better held-out loss."""

    lr: float = 1e-3
    batch: int = 4096
    max_epochs: int = 20
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What a fit did; losses are half mean squared errors in reward units."""

    epochs: int
    best_epoch: int
    train_loss: tuple[float, ...]
    held_out_loss: tuple[float, ...]


def fit(
    head: ValueHead, train: Examples, held_out: Examples, options: FitOptions | None = None
) -> FitReport:
    """Fit a head in place with Adam, and keep the weights of the best held-out epoch.

    The loss is the cross-entropy for a head whose output is a sigmoid, LINEX for a soft one, else
    the squared error.

    The learning rate falls to zero along half a cosine over `max_epochs`. The same seed gives the
    same weights on the same machine.
    """
    hidden, targets = train.flat()
    return optimise(
        head,
        len(hidden),
        lambda rows: _loss(head, hidden[rows], targets[rows]),
        lambda: float(_loss(head, *held_out.flat())),
        options or FitOptions(),
    )


def optimise(
    head: nn.Module,
    count: int,
    loss: Callable[[Tensor], Tensor],
    held_out_loss: Callable[[], float],
    options: FitOptions,
) -> FitReport:
    """Fit any head; `loss` takes indices of training rows, of which there are `count`."""
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_epochs)
    trained: list[float] = []
    held_out: list[float] = []
    best_epoch = 0
    best = {name: value.clone() for name, value in head.state_dict().items()}
    for epoch in range(options.max_epochs):
        head.train()
        losses: list[float] = []
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, options.batch):
            batch_loss = loss(order[start : start + options.batch])
            optimizer.zero_grad()
            batch_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(batch_loss.item())
        schedule.step()
        trained.append(sum(losses) / len(losses))
        head.eval()
        with torch.no_grad():
            held_out.append(held_out_loss())
        if held_out[epoch] <= min(held_out):
            best_epoch = epoch
            best = {name: value.clone() for name, value in head.state_dict().items()}
        if epoch - best_epoch >= options.patience:
            break
    head.load_state_dict(best)
    head.eval()
    return FitReport(
        epochs=len(trained),
        best_epoch=best_epoch,
        train_loss=tuple(trained),
        held_out_loss=tuple(held_out),
    )


def _loss(head: ValueHead, hidden: Tensor, targets: Tensor) -> Tensor:
    if head.config.output == "sigmoid":
        shares = (targets - head.shift) / head.scale
        return binary_cross_entropy(head.logits(hidden), shares, _all(hidden))
    return value_loss(head.config, head(hidden), targets)


def value_loss(config: HeadConfig, values: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [] whose minimiser is a value of the head's kind; of [N, G] each."""
    if config.beta is not None:
        return linex(values, targets, _all(values), config.beta)
    return masked_squared_error(values, targets, _all(values))


def _all(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
