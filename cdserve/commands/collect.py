"""``cdserve collect``: answers to prompts under a policy, as training data in TRL's formats."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve.client import arguments
from cdserve.collection.formats import FORMATS, Filters
from cdserve.errors import ConfigError
from cdserve.prompts import read_prompts

if TYPE_CHECKING:
    from cdserve.collection.job import Job
    from cdserve.collection.run import Collected

_DESCRIPTION = """Runs prompts under a policy and writes training data in TRL's formats.

Answers are kept in OUT/answers.jsonl as they come. Asked for again, a run that was stopped goes on,
and other formats are made of the answers that are there. Without --url a server is started for the
run; all other flags are vLLM's for it (`vllm serve --help`)."""


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
    collect.add_argument("--prompts", type=Path, required=True, help='JSONL of {"prompt": ...}')
    collect.add_argument("--out", type=Path, required=True, help="the folder of the data")
    collect.add_argument("--limit", type=int, metavar="N", help="the first N prompts only")
    arguments.add_server(collect)
    answers = collect.add_argument_group("answers")
    answers.add_argument(
        "--policy",
        required=True,
        help='"method field=value ...", a JSON object, or the name of a preset',
    )
    arguments.add_sampling(answers)
    _add_formats(collect.add_argument_group("formats"))


def _add_formats(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--format",
        nargs="+",
        required=True,
        choices=FORMATS,
        help="of TRL: pairs of best and worst, best responses, every response with a label; and "
        "all candidates with all that is known of them",
    )
    group.add_argument(
        "--margin", type=float, help="preference: pairs whose scores are further apart (default: 0)"
    )
    group.add_argument("--min-score", type=float, help="sft: best responses from this score on")
    group.add_argument(
        "--label-threshold",
        type=float,
        help="unpaired: responses above it are desirable (default: the prompt's mean score)",
    )
    group.add_argument(
        "--ended-only",
        action="store_true",
        help="leave responses that --max-tokens cut out of TRL's formats",
    )
    group.add_argument("--shard-size", type=int, default=10_000, help="rows a file")


def _collect(args: argparse.Namespace) -> None:
    job = _job(args)
    from cdserve.collection.run import ANSWERS, collect

    try:
        found = collect(job)
    except KeyboardInterrupt:
        print(
            f"cdserve: stopped; the answers that have come are in {job.out / ANSWERS}, and the "
            "same command goes on",
            file=sys.stderr,
        )
        sys.exit(130)
    _tell(job, found)


def _tell(job: "Job", found: "Collected") -> None:
    print(
        f"{job.out}: {found.answered} of {len(job.prompts)} prompts answered with "
        f"{found.responses} responses; mean score of those returned {found.mean_score:.4g}"
    )
    for one in found.made:
        print(f"  {one}")
    if found.refused:
        index, words = min(found.refused.items())
        print(f"  refused: {len(found.refused)} prompts; the first is prompt {index + 1}: {words}")


def _job(args: argparse.Namespace) -> "Job":
    _check(args)
    from cdserve.client.policies import read_policies
    from cdserve.collection.job import Job

    policies = read_policies(None, [args.policy])
    if len(policies) != 1:
        raise ConfigError(
            f"--policy {args.policy} is {len(policies)} policies; all data in a folder are of one"
        )
    prompts = read_prompts(args.prompts)
    return Job(
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
        url=args.url,
        config=arguments.config_of(args),
        flags=tuple(args.flags),
        model=args.model,
        api_key=args.api_key,
        concurrency=args.concurrency,
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
            raise ConfigError(
                f"--{flag.replace('_', '-')} is {value}; it goes with --format {kind}"
            )
    if args.ended_only and set(args.format) == {"candidates"}:
        raise ConfigError("--ended-only goes with formats of TRL; candidates has all responses")
