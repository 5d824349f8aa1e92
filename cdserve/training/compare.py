"""Measures heads on the same responses, by rewards that the heads need not have learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cdserve.errors import ConfigError
from cdserve.training.backbone import Backbone
from cdserve.training.job import Data, DataFile
from cdserve.training.rewards import JobRewards
from cdserve.training.run import cached, model_folder
from cdserve.training.score import score
from value_heads import CachedRollouts, HeadReport, RewardReport, check_base, load_head, measure


def compare(
    folders: Sequence[Path], data: Data | DataFile, rewards: JobRewards, score_cut: bool = False
) -> dict[str, HeadReport]:
    """Reports of the heads, by their folders.

    Args:
        folders: folders of heads of the base model.
        data: the responses, without a held-out share.
        rewards: one reward per output of each head; without any, those in the data file.
        score_cut: whether responses that were cut are scored as they stand.

    Raises:
        ConfigError: a head does not belong to the model or to the rewards, or the data cannot be
            used.
    """
    model = model_folder(data.model)
    heads = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not the folder of a head")
        try:
            heads[str(folder)] = load_head(folder)
            check_base(heads[str(folder)].config, model)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: {error}") from error
    cache = cached(data, rewards, model, pairs=False)
    scores = score(rewards, cache, score_cut)
    test = CachedRollouts(cache.folder, "test", scores.by_set["test"], cut_ends=score_cut)
    tied = any(head.config.architecture == "tied" for head in heads.values())
    base = Backbone(model).base(data.temperature) if tied else None
    reports = {}
    for name, head in heads.items():
        try:
            needs_base = head.config.architecture == "tied"
            reports[name] = measure(head, test, base if needs_base else None)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    return reports


def table(reports: Mapping[str, HeadReport]) -> str:
    """Pair accuracy by tokens read, correlation at the end, and reward of best-of-n, by head."""
    first = next(iter(reports.values()))
    pairs = next(iter(first.rewards.values())).pairs_by_number
    numbers = [str(at.number) for at in pairs]
    lines = [
        f"{first.responses} responses of {first.tokens} tokens; share of pairs of responses "
        f"({first.pairs}) in the order of their rewards, by tokens read:",
        "",
        f"| head | reward | {' | '.join([*numbers, 'all'])} | correlation, all | best-of-n |",
        "|---|---" + "|---" * (len(numbers) + 3) + "|",
    ]
    lines += [
        f"| {folder} | {name} | {' | '.join(_figures(figures))} |"
        for folder, report in reports.items()
        for name, figures in report.rewards.items()
    ]
    return "\n".join(lines)


def _figures(figures: RewardReport) -> list[str]:
    accuracies = [*(at.accuracy for at in figures.pairs_by_number), figures.pairs_at_end]
    numbers = [*accuracies, figures.at_end]
    return [*("–" if number is None else f"{number:.3f}" for number in numbers), _best(figures)]


def _best(figures: RewardReport) -> str:
    if (one := figures.selected) is None:
        return "–"
    return f"n = {one.responses:.3g}: {one.chosen:.3g} ({one.chance:.3g} to {one.best:.3g})"
