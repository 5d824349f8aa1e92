"""``cdserve eval``: compares policies on prompts by rewards, KL, cost and latency."""

import argparse
import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve import interrupts
from cdserve.client import arguments
from cdserve.client.policies import NamedPolicy, read_policies
from cdserve.client.server import serving
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from cdserve.evaluation.job import EvaluationJob
    from cdserve.evaluation.results import Results

_DESCRIPTION = """Compares policies on a running server, or on a server started for the run.

Every prompt is answered under every policy and by the base model; the same rewards score all
answers. OUT receives results.json, report.md and plots. Run the same command again to resume an
interrupted run. Without --url a server is started for the run; all other flags are then passed to
vLLM (https://docs.vllm.ai/en/stable/cli/serve.html)."""

_REPORTED = (
    *("prompts", "policies", "reward", "gold", "url", "config", "demo", "model", "max_tokens"),
    *("temperature", "top_p", "limit", "draws", "concurrency", "seed", "out"),
)
"""Flags that the report shows; the API key is not among them."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "eval",
        help="compare policies by rewards, win-rates, KL, cost and latency",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_evaluate, takes_flags=True)
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help='JSONL file, one {"prompt": ...} or {"messages": ...} per line',
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for answers, results and the report"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N prompts")
    _add_policies(parser.add_argument_group("policies and rewards"))
    arguments.add_server(parser)
    answers = parser.add_argument_group("answers")
    arguments.add_sampling(answers)
    answers.add_argument(
        "--draws", type=int, default=1, help="answers per prompt and policy (default: 1)"
    )


def _add_policies(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--policies", type=Path, help="YAML file that maps names to policies")
    group.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="POLICY",
        help="a preset's name, 'METHOD FIELD=VALUE ...' or a JSON object; FIELD=1,2,4 is a sweep; "
        "may be repeated",
    )
    group.add_argument(
        "--reward", help="server reward used for scoring (default: the server's default)"
    )
    group.add_argument(
        "--gold",
        metavar="NAME|MODULE:FUNCTION",
        help="held-out reward: a server reward, or a function (prompt, response) -> float",
    )


def _evaluate(args: argparse.Namespace) -> None:
    from cdserve.evaluation.markdown import tables
    from cdserve.evaluation.run import evaluate

    job, server = _job(args), arguments.server(args)

    async def run(base_url: str) -> "Results":
        async with server.client(base_url) as client:
            return await evaluate(job, client)

    try:
        with interrupts.as_keyboard_interrupt(), serving(server) as base_url:
            results = asyncio.run(run(base_url))
    except KeyboardInterrupt:
        interrupts.report(f"run the same command again to resume from {job.out}")
        sys.exit(130)
    print(f"{tables(results)}\n\nReport: {job.out / 'report.md'}")


def _job(args: argparse.Namespace) -> "EvaluationJob":
    """The evaluation; checks all that needs no server before one starts."""
    from cdserve.evaluation.job import EvaluationJob
    from cdserve.evaluation.rewards import function
    from cdserve.prompts import read_prompts

    arguments.check(args, "draws")
    read_prompts(args.prompts)
    function(args.gold)
    return EvaluationJob(
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
        raise ConfigError("no policies to compare; add --policy or --policies")
    if any(policy.name == BASE for policy in policies):
        raise ConfigError(
            f"the name {BASE!r} is reserved for plain decoding, which is always included; rename "
            "the policy"
        )
    return policies


def _command(args: argparse.Namespace) -> str:
    words = ["cdserve", "eval"]
    for name in _REPORTED:
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for policy in args.policy:
        words += ["--policy", policy]
    return shlex.join([*words, *args.flags])
