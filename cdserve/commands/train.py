"""``cdserve heads train``: trains a head on sampled responses, or on responses in a file."""

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdserve import interrupts
from cdserve.errors import ConfigError
from cdserve.hub import check_models

if TYPE_CHECKING:
    from cdserve.training.job import Data, DataFile, TrainingJob

_DESCRIPTION = """Trains a value head or a Q-head.

vLLM samples responses to the prompts, and rewards score them; or a file has the responses. The base
model's hidden states of the responses are cached on disk, and the head is fitted to predict the
rewards from them. Run the same command again to resume an interrupted run. All other flags are
passed to vLLM (https://docs.vllm.ai/en/stable/cli/serve.html)."""


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    train = kinds.add_parser(
        "train",
        help="train a head on sampled responses or on a file of responses",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train, takes_flags=True)
    train.add_argument("--model", required=True, help="base model: a folder, or a name on the Hub")
    train.add_argument("--out", type=Path, required=True, help="folder of the new head")
    train.add_argument("--base-name", help="name of the base model in the model card")
    _add_data(train.add_argument_group("responses"))
    _add_head(train.add_argument_group("head"))
    _add_fit(train.add_argument_group("fit"))


def _add_data(group: "argparse._ArgumentGroup") -> None:
    add_responses(group)
    group.add_argument(
        "--test-prompts",
        type=Path,
        help="JSONL file of prompts for the report (default: a held-out share of --prompts)",
    )
    group.add_argument(
        "--cache", type=Path, help="folder for responses and hidden states (default: OUT-cache)"
    )
    group.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the prompts in the validation set, and in the test set unless "
        "--test-prompts is given (default: 0.1)",
    )


def add_responses(group: "argparse._ArgumentGroup") -> None:
    """Adds the flags of responses and their rewards."""
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts",
        type=Path,
        help='JSONL file, one {"prompt": ...} or {"messages": ...} per line',
    )
    source.add_argument(
        "--data",
        type=Path,
        help="JSONL file of prompts with responses and rewards, labels, candidates or pairs, in "
        "place of --prompts; no response is sampled",
    )
    group.add_argument(
        "--rewards",
        nargs="+",
        default=[],
        metavar="REWARD",
        help="rewards of finished responses: the name of a reward in --config, or "
        "NAME=MODULE:FUNCTION for a function (prompt, response) -> float (default with --data: the "
        "rewards in the file)",
    )
    group.add_argument(
        "--config", type=Path, help="YAML file of the server's settings, for --rewards"
    )
    group.add_argument(
        "--score-cut",
        action="store_true",
        help="also score responses that were cut, at --max-tokens or in the data; they then count "
        "as ended there",
    )
    group.add_argument(
        "--per-prompt", type=int, help="responses per prompt of --prompts (default: 1)"
    )
    group.add_argument(
        "--max-tokens", type=int, help="maximum tokens per sampled response (default: 256)"
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="sampling temperature, also of the next-token distribution of cdq (default: 1)",
    )
    group.add_argument(
        "--sample-seed",
        type=int,
        default=0,
        help="seed of the responses and of the split into sets (default: 0)",
    )


def _add_head(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--head",
        required=True,
        choices=("linear", "mlp", "lowrank", "tied"),
        help="architecture; linear and mlp are value heads, lowrank and tied are Q-heads",
    )
    group.add_argument("--rank", type=int, help="rank of a lowrank head (default: 64)")
    group.add_argument(
        "--mlp-width", type=int, help="width of an mlp head (default: the hidden size of the model)"
    )
    group.add_argument(
        "--bounds",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of the rewards; the head then ends in a sigmoid and is fitted by cross-entropy",
    )
    group.add_argument(
        "--position",
        action="store_true",
        help="the head also reads the number of response tokens, in addition to the hidden state",
    )
    group.add_argument("--start", type=Path, help="folder of a head to start from")


def _add_fit(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--method",
        required=True,
        choices=("fudge", "td", "cdq", "soft", "bt"),
        help="training targets: the final reward (fudge), TD(lambda) returns (td), the expectation "
        "over the next token (cdq), the soft value (soft); or pairs by the Bradley-Terry loss (bt)",
    )
    group.add_argument("--lam", type=float, help="lambda of td (default: 0.95)")
    group.add_argument(
        "--beta", type=float, help="beta of a soft head (soft or cdq), in reward units per nat"
    )
    group.add_argument(
        "--teacher", type=Path, help="folder of the Q-head from which a value head learns by cdq"
    )
    group.add_argument(
        "--clip",
        type=float,
        help="maximum change of a predicted value per pass over a shard (default: no limit)",
    )
    group.add_argument(
        "--end-weight",
        type=int,
        default=1,
        help="weight in the loss of the last token of each response that ended; other tokens have "
        "1 (default: 1)",
    )
    group.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    group.add_argument(
        "--batch",
        type=int,
        default=4096,
        help="tokens, or pairs of prefixes, per optimizer step (default: 4096)",
    )
    group.add_argument(
        "--max-epochs", type=int, default=20, help="maximum number of epochs (default: 20)"
    )
    group.add_argument(
        "--patience",
        type=int,
        default=3,
        help="stop after this many epochs without a lower validation loss (default: 3)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the fit (default: 0)")


def prepare(args: argparse.Namespace) -> None:
    """Checks that the model exists, and sends vLLM's log to stderr.

    Raises:
        ConfigError: the model does not exist.
    """
    check_models({"--model": args.model}, has_token="--hf-token" in args.flags)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # read when it is imported


def _train(args: argparse.Namespace) -> None:
    prepare(args)
    from cdserve.training.run import train
    from value_heads import PairReport

    job = _job(args)
    interrupts.prepare_to_spawn("run the same command again to resume")
    report = train(job)
    if isinstance(report, PairReport):
        print(
            f"{job.out}: loss {report.loss:.4g} nats (constant predictor: {math.log(2):.4g}); pair "
            f"accuracy of whole responses: {report.at_end:.3f}"
        )
    else:
        for name, figures in report.rewards.items():
            at_end = "undefined" if figures.at_end is None else f"{figures.at_end:.3f}"
            print(
                f"{job.out}: {name}: half squared error {figures.half_squared_error:.4g} (constant "
                f"predictor: {figures.baseline:.4g}); correlation of final value and reward: "
                f"{at_end}"
            )
    size = sum(path.stat().st_size for path in job.data.cache.rglob("*") if path.is_file())
    print(
        f"Head, model card and report: {job.out}\n"
        f"Responses and hidden states, {size / 1e6:.0f} MB, for other heads: {job.data.cache}"
    )


def _job(args: argparse.Namespace) -> "TrainingJob":
    from cdserve.training.job import HeadSpec, TrainingJob
    from cdserve.training.rewards import read_rewards
    from value_heads import FitOptions

    for flag in ("lr", "batch", "max_epochs", "patience", "end_weight"):
        if not (value := getattr(args, flag)) > 0:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be positive")
    return TrainingJob(
        data=data(args, held_out=args.held_out, test_prompts=args.test_prompts),
        rewards=read_rewards(args.rewards, args.config),
        score_cut=args.score_cut,
        method=args.method,
        lam=args.lam,
        beta=args.beta,
        head=HeadSpec(
            architecture=args.head,
            rank=args.rank,
            mlp_width=args.mlp_width,
            bounds=args.bounds and tuple(args.bounds),
            position=args.position,
            start=args.start,
        ),
        teacher=args.teacher,
        out=args.out,
        base_name=args.base_name,
        options=FitOptions(
            lr=args.lr,
            batch=args.batch,
            max_epochs=args.max_epochs,
            patience=args.patience,
            clip=args.clip,
            end_weight=args.end_weight,
            seed=args.seed,
        ),
    )


def data(
    args: argparse.Namespace, held_out: float | None, test_prompts: Path | None = None
) -> "Data | DataFile":
    """The responses that the flags of ``add_responses`` describe.

    Args:
        args: the parsed flags, with the model and the cache.
        held_out, test_prompts: as in ``Data``.

    Raises:
        ConfigError: a flag is out of range or does not fit the others.
    """
    from cdserve.training.job import Data, DataFile

    common = {
        "model": args.model,
        "held_out": held_out,
        "temperature": args.temperature,
        "seed": args.sample_seed,
        "cache": args.cache or args.out.with_name(f"{args.out.name}-cache"),
    }
    sampling: dict[str, Any] = {
        name: value
        for name, value in (
            ("test_prompts", test_prompts),
            ("per_prompt", args.per_prompt),
            ("max_tokens", args.max_tokens),
        )
        if value is not None
    }
    if args.prompts is not None:
        return Data(**common, prompts=args.prompts, **sampling, flags=tuple(args.flags))
    for name, value in sampling.items():
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; it requires --prompts")
    if args.flags:
        raise ConfigError(
            f"{args.flags[0]} is passed to vLLM, which does not run with --data; it requires "
            "--prompts"
        )
    return DataFile(**common, path=args.data)
