"""What ``cdserve heads train`` is asked for, checked before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdserve.errors import ConfigError
from cdserve.scoring import Reward
from value_heads import FitOptions
from value_heads.config import Architecture

MethodName = Literal["fudge", "td", "cdq", "soft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Which responses to learn from.

    Attributes:
        model: the base model's folder, or its name on the Hub.
        prompts: a JSONL file.
        test_prompts: another, for the report alone; None to set prompts of the first aside.
        held_out: the share of prompts that decides when to stop; the same again is for the report
            if it has no file of its own. Each is at most ``MOST_HELD_OUT`` prompts.
        per_prompt: responses a prompt.
        max_tokens: at which a response is cut.
        temperature: at which responses are sampled.
        seed: of the split and the responses.
        cache: folder of responses and states, which other heads can be trained on too.
        flags: vLLM's.
    """

    model: str
    prompts: Path
    test_prompts: Path | None = None
    held_out: float = 0.1
    per_prompt: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0
    cache: Path
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses numbers outside their range."""
        _check("--held-out", self.held_out, "above 0 and below 0.5", 0 < self.held_out < 0.5)
        _check("--per-prompt", self.per_prompt, "at least 1", self.per_prompt >= 1)
        _check("--max-tokens", self.max_tokens, "at least 1", self.max_tokens >= 1)
        _check("--temperature", self.temperature, "positive", self.temperature > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One head to train.

    Attributes:
        data: which responses to learn from.
        rewards: functions of finished responses, by the names of the head's outputs.
        method: which targets.
        lam: lambda of td; None for 0.95.
        beta: makes a head of kind soft, with this inverse strength in reward units a nat; for
            soft, which needs it, and cdq.
        architecture: of the head.
        rank: of a lowrank head; None for 64.
        mlp_width: of an mlp; None for the base model's hidden size.
        bounds: least and greatest reward, for a value head with a sigmoid; None for any reward.
        start: a head's folder, whose weights the fit begins with; None for fresh ones.
        teacher: the folder of a Q-head, for cdq of a value head, which is fitted to its
            expectation.
        out: the head's folder.
        base_name: the base model's name, for people; None for what ``data.model`` says.
        options: of the fit.
    """

    data: Data
    rewards: Mapping[str, Reward]
    method: MethodName
    lam: float | None = None
    beta: float | None = None
    architecture: Architecture
    rank: int | None = None
    mlp_width: int | None = None
    bounds: tuple[float, float] | None = None
    start: Path | None = None
    teacher: Path | None = None
    out: Path
    base_name: str | None = None
    options: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        """Refuses what does not go together.

        Raises:
            ConfigError: naming the flag, its value and what is accepted.
        """
        q_head = self.architecture in ("lowrank", "tied")
        _only("--teacher", self.teacher, "--method cdq", self.method == "cdq")
        if self.method == "cdq" and not q_head and self.teacher is None:
            raise ConfigError(
                f"--method cdq with --head {self.architecture} needs a --teacher, a Q-head"
            )
        _only("--lam", self.lam, "--method td", self.method == "td")
        _only("--beta", self.beta, "--method soft or cdq", self.method in ("soft", "cdq"))
        _only("--rank", self.rank, "--head lowrank", self.architecture == "lowrank")
        _only("--mlp-width", self.mlp_width, "--head mlp", self.architecture == "mlp")
        mean_value = not q_head and self.method in ("fudge", "td")
        _only("--bounds", self.bounds, "--head linear or mlp and --method fudge or td", mean_value)
        _only("--clip", self.options.clip, "a mean value without --bounds", self._squared)
        if self.method == "soft" and self.beta is None:
            raise ConfigError("--method soft needs --beta, in reward units a nat")
        _check("--lam", self.lam, "from 0 to 1", self.lam is None or 0 <= self.lam <= 1)
        for flag, value in (("--beta", self.beta), ("--clip", self.options.clip)):
            _check(flag, value, "positive", value is None or value > 0)
        for flag, size in (("--rank", self.rank), ("--mlp-width", self.mlp_width)):
            _check(flag, size, "at least 1", size is None or size >= 1)
        if self.bounds is not None:
            _check("--bounds", self.bounds, "rising", self.bounds[0] < self.bounds[1])

    @property
    def _squared(self) -> bool:
        return self.beta is None and self.bounds is None

    @property
    def needs_base(self) -> bool:
        """Whether nothing can be done without the base model's output layer."""
        return self.method == "cdq" or self.architecture == "tied"


def _check(flag: str, value: object, accepted: str, holds: bool) -> None:
    if not holds:
        raise ConfigError(f"{flag} is {value}; it must be {accepted}")


def _only(flag: str, value: object, where: str, holds: bool) -> None:
    if value is not None and not holds:
        raise ConfigError(f"{flag} is {value}; it goes with {where}")
