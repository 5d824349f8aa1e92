"""``cdserve collect``: answers prompts under a policy and writes training data in TRL's formats."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve import interrupts
from cdserve.client import arguments
from cdserve.collection.formats import FORMATS, Filters
from cdserve.errors import ConfigError
from cdserve.prompts import read_prompts

if TYPE_CHECKING:
    from cdserve.collection.job import CollectionJob
    from cdserve.collection.run import CollectionResult

_DESCRIPTION = """Answers prompts under a policy and writes training data in TRL's formats.

Answers are saved to OUT/answers.jsonl as they arrive. Run the same command again to resume an
interrupted run; other formats reuse the saved answers. Without --url a server is started for the
run; all other flags are then passed to vLLM (https://docs.vllm.ai/en/stable/cli/serve.html)."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    collect = commands.add_parser(
        "collect",
        help="collect training data for TRL",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    collect.set_defaults(run=_collect, takes_flags=True)
    collect.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help='JSONL file, one {"prompt": ...} or {"messages": ...} per line',
    )
    collect.add_argument("--out", type=Path, required=True, help="folder for answers and data")
    collect.add_argument("--limit", type=int, metavar="N", help="use only the first N prompts")
    arguments.add_server(collect)
    answers = collect.add_argument_group("answers")
    answers.add_argument(
        "--policy",
        required=True,
        help="a preset's name, 'METHOD FIELD=VALUE ...' or a JSON object",
    )
    arguments.add_sampling(answers)
    _add_formats(collect.add_argument_group("formats"))


def _add_formats(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--format",
        nargs="+",
        required=True,
        choices=FORMATS,
        help="preference: best and worst response of each prompt; sft: best response; unpaired: "
        "every response with a label; candidates: all responses with their rewards (not a TRL "
        "format)",
    )
    group.add_argument(
        "--margin",
        type=float,
        help="preference: keep pairs whose scores differ by more than this (default: 0)",
    )
    group.add_argument(
        "--min-score", type=float, help="sft: keep responses with at least this score"
    )
    group.add_argument(
        "--label-threshold",
        type=float,
        help="unpaired: label responses above this score as desirable (default: the mean score of "
        "the prompt's responses)",
    )
    group.add_argument(
        "--ended-only",
        action="store_true",
        help="omit responses truncated by --max-tokens from TRL's formats",
    )
    group.add_argument(
        "--shard-size", type=int, default=10_000, help="maximum rows per file (default: 10000)"
    )


def _collect(args: argparse.Namespace) -> None:
    job = _job(args)
    from cdserve.collection.run import ANSWERS, collect

    try:
        with interrupts.as_keyboard_interrupt():
            result = collect(job)
    except KeyboardInterrupt:
        interrupts.report(f"run the same command again to resume from {job.out / ANSWERS}")
        sys.exit(130)
    _print_summary(job, result)


def _print_summary(job: "CollectionJob", result: "CollectionResult") -> None:
    print(
        f"{job.out}: answered {result.answered} of {len(job.prompts)} prompts with "
        f"{result.responses} responses; mean score of the returned responses "
        f"{result.mean_score:.4g}"
    )
    for data_set in result.data_sets:
        print(f"  {data_set}")
    if result.refused:
        index, message = min(result.refused.items())
        print(
            f"  refused by the server: {len(result.refused)} prompts, first prompt {index + 1}: "
            f"{message}"
        )


def _job(args: argparse.Namespace) -> "CollectionJob":
    _check(args)
    from cdserve.client.policies import read_policies
    from cdserve.collection.job import CollectionJob

    policies = read_policies(None, [args.policy])
    if len(policies) != 1:
        raise ConfigError(
            f"--policy {args.policy} is a sweep of {len(policies)} policies; a folder holds "
            "answers under one policy"
        )
    prompts = read_prompts(args.prompts)
    return CollectionJob(
        prompts=prompts[: args.limit],
        mixed=len({isinstance(prompt, str) for prompt in prompts}) == 2,
        out=args.out,
        policy=policies[0],
        sampling=arguments.sampling(args),
        seed=args.seed,
        formats=tuple(dict.fromkeys(args.format)),
        filters=Filters(
            margin=args.margin or 0.0,
            min_score=args.min_score,
            threshold=args.label_threshold,
            ended_only=args.ended_only,
        ),
        shard_size=args.shard_size,
        server=arguments.server(args),
    )


def _check(args: argparse.Namespace) -> None:
    arguments.check(args, "shard_size")
    if args.margin is not None and not args.margin >= 0:
        raise ConfigError(f"--margin is {args.margin}; it must be 0 or more")
    for flag, kind in (
        ("margin", "preference"),
        ("min_score", "sft"),
        ("label_threshold", "unpaired"),
    ):
        value = getattr(args, flag)
        if value is not None and kind not in args.format:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it requires --format {kind}")
    if args.ended_only and set(args.format) == {"candidates"}:
        raise ConfigError(
            "--ended-only requires a TRL format; --format candidates includes all responses"
        )
