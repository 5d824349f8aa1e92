"""``cdserve eval``: policies compared on prompts, by rewards, KL, cost and latency."""

import argparse
import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve.client import arguments
from cdserve.client.policies import NamedPolicy, read_policies
from cdserve.client.server import serving
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from cdserve.evaluation.job import Job

_DESCRIPTION = """Compares policies on a running server, or on one that it starts.

Every prompt is answered under every policy and under the base model; all answers are scored alike.
The folder gets results.json, report.md and plots. Asked for again, a run that was stopped goes on.
Without --url a server is started, and all other flags are vLLM's (`vllm serve --help`)."""

_SHOWN = (
    *("prompts", "policies", "reward", "gold", "url", "config", "model", "max_tokens"),
    *("temperature", "top_p", "limit", "draws", "concurrency", "seed", "out"),
)
"""Flags that the report has; the key is not among them."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    found = commands.add_parser(
        "eval",
        help="compare policies: rewards, win-rates, KL, cost, latency",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.set_defaults(run=_evaluate, takes_flags=True)
    found.add_argument(
        "--prompts", type=Path, required=True, help='JSONL of {"prompt": ...} or {"messages": ...}'
    )
    found.add_argument("--out", type=Path, required=True, help="the folder of records and results")
    found.add_argument("--limit", type=int, help="the first prompts only")
    _add_policies(found.add_argument_group("policies and rewards"))
    arguments.add_server(found)
    answers = found.add_argument_group("answers")
    arguments.add_sampling(answers)
    answers.add_argument("--draws", type=int, default=1, help="answers a prompt and policy")


def _add_policies(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--policies", type=Path, help="a YAML file: names mapped to policies")
    group.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="POLICY",
        help="'METHOD FIELD=VALUE ...' (FIELD=1,2,4 is a sweep), a JSON object, or a preset's name",
    )
    group.add_argument("--reward", help="of the server's, which scores (default: its default)")
    group.add_argument(
        "--gold",
        metavar="NAME|MODULE:FUNCTION",
        help="a held-out reward: of the server's, or a function (prompt, response) -> float",
    )


def _evaluate(args: argparse.Namespace) -> None:
    from cdserve.client.answers import Client
    from cdserve.evaluation.run import evaluate

    job = _job(args)

    async def run(base_url: str) -> None:
        client = Client(
            base_url, model=args.model, concurrency=job.concurrency, api_key=args.api_key
        )
        async with client:
            await evaluate(job, client)

    try:
        with serving(args.url, arguments.config_of(args), args.flags) as base_url:
            asyncio.run(run(base_url))
    except KeyboardInterrupt:
        print(
            f"cdserve: stopped; asked for again with --out {job.out}, it goes on", file=sys.stderr
        )
        sys.exit(130)
    print(f"{job.out / 'report.md'}")


def _job(args: argparse.Namespace) -> "Job":
    """What is asked for; what needs no server is checked before one starts."""
    from cdserve.evaluation.job import Job
    from cdserve.evaluation.rewards import function
    from cdserve.prompts import read_prompts

    arguments.check(args, "draws")
    read_prompts(args.prompts)
    function(args.gold)
    return Job(
        prompts=args.prompts,
        out=args.out,
        policies=_policies(args),
        reward=args.reward,
        gold=args.gold,
        sampling=arguments.sampling(args),
        limit=args.limit,
        draws=args.draws,
        concurrency=args.concurrency,
        seed=args.seed,
        command=_command(args),
    )


def _policies(args: argparse.Namespace) -> list[NamedPolicy]:
    from cdserve.evaluation.job import BASE

    policies = read_policies(args.policies, args.policy)
    if not policies:
        raise ConfigError("there are no policies; name some by --policy or --policies")
    if any(policy.name == BASE for policy in policies):
        raise ConfigError(
            f"a policy is named {BASE!r}, as plain decoding is, which is always run; name it "
            "something else"
        )
    return policies


def _command(args: argparse.Namespace) -> str:
    words = ["cdserve", "eval"]
    for name in _SHOWN:
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for policy in args.policy:
        words += ["--policy", policy]
    return shlex.join([*words, *args.flags])
