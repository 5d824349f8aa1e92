"""``cdserve heads compare``: measures heads on the same responses."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from cdserve import interrupts
from cdserve.commands.train import add_responses, data, prepare

_DESCRIPTION = """Compares heads of one model on the same responses, by any reward.

The responses are sampled, or read from a file, as for `cdserve heads train`; all of them are used.
The rewards need not be those that the heads learned: a reward that no head has seen shows whether
the heads are right. All other flags are passed to vLLM."""


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    compare = kinds.add_parser(
        "compare",
        help="measure heads on the same responses",
        allow_abbrev=False,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.set_defaults(run=_compare, takes_flags=True)
    compare.add_argument("heads", type=Path, nargs="+", help="folders of the heads")
    compare.add_argument(
        "--model", required=True, help="base model: a folder, or a name on the Hub"
    )
    compare.add_argument(
        "--cache", type=Path, required=True, help="folder for responses and hidden states"
    )
    compare.add_argument("--out", type=Path, help="also write the reports to this JSON file")
    add_responses(compare.add_argument_group("responses"))


def _compare(args: argparse.Namespace) -> None:
    prepare(args)
    from cdserve.training.compare import compare, table
    from cdserve.training.rewards import read_rewards

    rewards, responses = read_rewards(args.rewards, args.config), data(args, held_out=None)
    interrupts.prepare_to_spawn("run the same command again to resume")
    reports = compare(args.heads, responses, rewards, args.score_cut)
    print(table(reports))
    if args.out is not None:
        content = {folder: asdict(report) for folder, report in reports.items()}
        args.out.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
