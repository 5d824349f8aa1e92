"""A training run of ``cdserve heads train``, checked before anything starts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdserve.errors import ConfigError
from cdserve.training.rewards import JobRewards
from value_heads import FitOptions
from value_heads.config import Architecture

MethodName = Literal["fudge", "td", "cdq", "soft", "bt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The responses to learn from.

    Attributes:
        model: folder of the base model, or its name on the Hub.
        prompts: JSONL file of prompts.
        test_prompts: JSONL file of prompts for the report; None to hold out some of ``prompts``.
        held_out: share of the prompts for the validation set, which decides when to stop; without
            ``test_prompts`` an equal share is held out for the report. Each set has at most
            ``MOST_HELD_OUT`` prompts. None if all prompts are for a report.
        per_prompt: responses per prompt.
        max_tokens: maximum length of a response.
        temperature: sampling temperature.
        seed: seed of the split and of the responses.
        cache: folder of responses and states; other heads can be trained on the same cache.
        flags: vLLM's flags.
    """

    model: str
    prompts: Path
    test_prompts: Path | None = None
    held_out: float | None = 0.1
    per_prompt: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0
    cache: Path
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges of the numbers."""
        _check_share(self.held_out)
        _check("--per-prompt", self.per_prompt, "at least 1", self.per_prompt >= 1)
        _check("--max-tokens", self.max_tokens, "at least 1", self.max_tokens >= 1)
        _check("--temperature", self.temperature, "positive", self.temperature > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """Responses in a file.

    Attributes:
        model: folder of the base model, or its name on the Hub.
        path: JSONL file of responses.
        held_out: share of the prompts for the validation set, and an equal share for the report;
            None if all prompts are for a report.
        temperature: temperature of the base model's next-token distribution, for cdq.
        seed: seed of the split.
        cache: folder of responses and states; other heads can be trained on the same cache.
    """

    model: str
    path: Path
    held_out: float | None = 0.1
    temperature: float = 1.0
    seed: int = 0
    cache: Path

    def __post_init__(self) -> None:
        """Checks the ranges of the numbers."""
        _check_share(self.held_out)
        _check("--temperature", self.temperature, "positive", self.temperature > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """The head to train.

    Attributes:
        architecture: architecture of the head.
        rank: rank of a lowrank head; None for 64.
        mlp_width: width of an mlp head; None for the base model's hidden size.
        bounds: lowest and highest reward, for a value head that ends in a sigmoid; None for an
            unbounded head.
        position: whether the head reads the number of response tokens in addition to the state.
        start: folder of a head whose weights the fit starts from; None for new weights.
    """

    architecture: Architecture
    rank: int | None = None
    mlp_width: int | None = None
    bounds: tuple[float, float] | None = None
    position: bool = False
    start: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A head to train, the data and the method.

    Attributes:
        data: the responses to learn from.
        rewards: rewards of finished responses; without any, those in the data file.
        score_cut: whether responses that were cut count as ended at their last token and are scored
            as they stand.
        method: name of the targets, or bt for pairs.
        lam: λ of td; None for 0.95.
        beta: β of a soft head, in reward units per nat; required by soft, optional for cdq, which
            trains a head of mean values without it.
        head: the head to train.
        teacher: folder of the Q-head whose expectation a value head learns by cdq.
        out: folder of the head.
        base_name: name of the base model in the model card; None for ``data.model``.
        options: options of the fit.
    """

    data: Data | DataFile
    rewards: JobRewards
    score_cut: bool = False
    method: MethodName
    lam: float | None = None
    beta: float | None = None
    head: HeadSpec
    teacher: Path | None = None
    out: Path
    base_name: str | None = None
    options: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        """Checks the ranges and combinations of the options.

        Raises:
            ConfigError: an option is not accepted; names the flag, the value and what is accepted.
        """
        head = self.head
        q_head = head.architecture in ("lowrank", "tied")
        if self.method == "bt":
            self._check_pairs()
        elif isinstance(self.data, Data) and not self.rewards.by_name:
            raise ConfigError("--prompts requires --rewards")
        _only("--teacher", self.teacher, "--method cdq", self.method == "cdq")
        if self.method == "cdq" and not q_head and self.teacher is None:
            raise ConfigError(
                f"--method cdq with --head {head.architecture} requires --teacher, a Q-head"
            )
        _only("--lam", self.lam, "--method td", self.method == "td")
        _only("--beta", self.beta, "--method soft or cdq", self.method in ("soft", "cdq"))
        _only("--rank", head.rank, "--head lowrank", head.architecture == "lowrank")
        _only("--mlp-width", head.mlp_width, "--head mlp", head.architecture == "mlp")
        mean_value = not q_head and self.method in ("fudge", "td")
        _only("--bounds", head.bounds, "--head linear or mlp and --method fudge or td", mean_value)
        unclipped = "a squared error: no --beta, no --bounds and no --method bt"
        _only("--clip", self.options.clip, unclipped, self._squared)
        if self.method == "soft" and self.beta is None:
            raise ConfigError("--method soft requires --beta, in reward units per nat")
        _check("--lam", self.lam, "from 0 to 1", self.lam is None or 0 <= self.lam <= 1)
        for flag, value in (("--beta", self.beta), ("--clip", self.options.clip)):
            _check(flag, value, "positive", value is None or value > 0)
        for flag, size in (("--rank", head.rank), ("--mlp-width", head.mlp_width)):
            _check(flag, size, "at least 1", size is None or size >= 1)
        if head.bounds is not None:
            _check("--bounds", head.bounds, "ascending", head.bounds[0] < head.bounds[1])

    @property
    def _squared(self) -> bool:
        """Whether the loss is the squared error."""
        return self.beta is None and self.head.bounds is None and self.method != "bt"

    def _check_pairs(self) -> None:
        if isinstance(self.data, Data):
            raise ConfigError("--method bt requires --data with pairs")
        names = " ".join(self.rewards.by_name) or None
        _only("--rewards", names, "--method fudge, td, cdq or soft", False)
        _only("--score-cut", self.score_cut or None, "--method fudge, td, cdq or soft", False)
        weight = None if self.options.end_weight == 1 else self.options.end_weight
        _only("--end-weight", weight, "--method fudge, td, cdq or soft", False)

    @property
    def needs_base(self) -> bool:
        """Whether training requires the base model's output layer."""
        return self.method == "cdq" or self.head.architecture == "tied"


def _check_share(held_out: float | None) -> None:
    holds = held_out is None or 0 < held_out < 0.5
    _check("--held-out", held_out, "above 0 and below 0.5", holds)


def _check(flag: str, value: object, accepted: str, holds: bool) -> None:
    if not holds:
        raise ConfigError(f"{flag} is {value}; it must be {accepted}")


def _only(flag: str, value: object, requirement: str, holds: bool) -> None:
    if value is not None and not holds:
        raise ConfigError(f"{flag} is {value}; it requires {requirement}")
