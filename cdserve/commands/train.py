"""``cdserve heads train``: a head for rewards of one's own, from responses of the served model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve.config import PythonReward
from cdserve.errors import ConfigError
from cdserve.scoring import Reward, build

if TYPE_CHECKING:
    from cdserve.training.job import Job

_DESCRIPTION = """Trains a value head or a Q-head.

The engine draws responses to the prompts, rewards score them, the base model's states behind their
tokens go to disk, and the head is fitted to them. All other flags are vLLM's
(`vllm serve --help`). Asked for again, a run that was stopped goes on."""


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    train = kinds.add_parser(
        "train",
        help="train a head on responses of a model",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train, takes_flags=True)
    train.add_argument("--model", required=True, help="the base model: a folder, or on the Hub")
    train.add_argument("--out", type=Path, required=True, help="the head's folder")
    train.add_argument("--base-name", help="the base model's name in the model card")
    _add_data(train.add_argument_group("responses"))
    _add_head(train.add_argument_group("head"))
    _add_fit(train.add_argument_group("fit"))


def _add_data(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--prompts", type=Path, required=True, help='JSONL of {"prompt": ...}')
    group.add_argument("--test-prompts", type=Path, help="more, for the report alone")
    group.add_argument(
        "--rewards",
        nargs="+",
        required=True,
        metavar="NAME=MODULE:FUNCTION",
        help="functions (prompt, response) -> float of finished responses",
    )
    group.add_argument("--cache", type=Path, help="of responses and states (default: OUT-cache)")
    group.add_argument("--held-out", type=float, default=0.1, metavar="SHARE")
    group.add_argument("--per-prompt", type=int, default=1, help="responses a prompt")
    group.add_argument("--max-tokens", type=int, default=256, help="cut responses there")
    group.add_argument("--temperature", type=float, default=1.0)
    group.add_argument("--sample-seed", type=int, default=0, help="of the responses and the split")


def _add_head(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--head", required=True, choices=("linear", "mlp", "lowrank", "tied"))
    group.add_argument("--rank", type=int, help="of a lowrank head (default: 64)")
    group.add_argument("--mlp-width", type=int, help="of an mlp (default: the hidden size)")
    group.add_argument(
        "--bounds",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="of the rewards: the head ends in a sigmoid, and is fitted by cross-entropy",
    )
    group.add_argument("--start", type=Path, help="begin with the weights of this head's folder")


def _add_fit(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--method", required=True, choices=("fudge", "td", "cdq", "soft"))
    group.add_argument("--lam", type=float, help="lambda of td (default: 0.95)")
    group.add_argument("--beta", type=float, help="of soft, and of cdq for a soft head")
    group.add_argument(
        "--teacher", type=Path, help="for cdq of a linear or mlp head: the Q-head it learns from"
    )
    group.add_argument("--clip", type=float, help="move no value further in a visit to a shard")
    group.add_argument("--lr", type=float, default=1e-3)
    group.add_argument("--batch", type=int, default=4096, help="tokens a step")
    group.add_argument("--max-epochs", type=int, default=20)
    group.add_argument("--patience", type=int, default=3, help="epochs without a better loss")
    group.add_argument("--seed", type=int, default=0, help="of the fit")


def _train(args: argparse.Namespace) -> None:
    from cdserve.training.run import train

    job = _job(args)
    report = train(job)
    for name, made in report.rewards.items():
        at_end = "none" if made.at_end is None else f"{made.at_end:.3f}"
        print(
            f"{job.out}: {name}: half squared error {made.half_squared_error:.4g} "
            f"({made.baseline:.4g} of a constant), correlation at the end {at_end}"
        )


def _job(args: argparse.Namespace) -> "Job":
    from cdserve.training.job import Data, Job
    from value_heads import FitOptions

    for flag in ("lr", "batch", "max_epochs", "patience"):
        if not (value := getattr(args, flag)) > 0:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be positive")
    return Job(
        data=Data(
            model=args.model,
            prompts=args.prompts,
            test_prompts=args.test_prompts,
            held_out=args.held_out,
            per_prompt=args.per_prompt,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=args.sample_seed,
            cache=args.cache or args.out.with_name(f"{args.out.name}-cache"),
            flags=tuple(args.flags),
        ),
        rewards=_rewards(args.rewards),
        method=args.method,
        lam=args.lam,
        beta=args.beta,
        architecture=args.head,
        rank=args.rank,
        mlp_width=args.mlp_width,
        bounds=args.bounds and tuple(args.bounds),
        start=args.start,
        teacher=args.teacher,
        out=args.out,
        base_name=args.base_name,
        options=FitOptions(
            lr=args.lr,
            batch=args.batch,
            max_epochs=args.max_epochs,
            patience=args.patience,
            clip=args.clip,
            seed=args.seed,
        ),
    )


def _rewards(given: list[str]) -> dict[str, Reward]:
    settings: dict[str, PythonReward] = {}
    for one in given:
        name, found, path = one.partition("=")
        if not (name and found and path.count(":") == 1):
            raise ConfigError(f"--rewards is {one}; it must be NAME=MODULE:FUNCTION")
        if name in settings:
            raise ConfigError(f"--rewards names {name} twice")
        settings[name] = PythonReward(kind="python", callable=path)
    return build(settings)
