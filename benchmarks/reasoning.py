"""Reasoning tasks with a checker on the demo: votes against one answer, at equal tokens.

Questions of ``reasoning-gym`` whose answers are numbers, small enough for SmolLM2-135M
(``benchmarks/reasoning_tasks.py``). A response's answer is its last number, checked by the
package's verifier. All policies that draw n responses have the seed of the question, so they select
from the same responses: their tokens are equal, and differences are those of the selection. One
answer is the first of these responses. Prints the pass rate of each policy and its difference to
one answer and to majority vote, with 95 % bootstrap intervals over questions, the tokens drawn per
question, and what a perfect selection would pass (any of the n is right).

    python benchmarks/reasoning.py --output benchmarks/results/reasoning.json

The default draws about 700 000 tokens. With ``--policies judged`` the model itself compares the
responses, for which it reads about 2 500 tokens more per question.
"""

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from environments import Environment
from models import machine
from openai import AsyncOpenAI
from reasoning_tasks import TASKS
from server import Server

from cdserve import demo
from cdserve.scoring.extraction import last_number

ENVIRONMENT = Environment("reasoning_gym", ("reasoning-gym==0.1.25",), shown=("reasoning-gym",))
N, MAX_TOKENS, TEMPERATURE = 8, 64, 0.7
REWARDS: dict[str, Any] = {
    "likely": {"kind": "loglik"},
    "self_certainty": {"kind": "confidence"},
    "deepconf": {"kind": "confidence", "of": "top_k_logprob", "window": 16, "aggregate": "min"},
}
"""Settings of the rewards that the policies name."""
VOTE = {"extract": "last_number"}
POLICIES: dict[str, dict[str, Any] | None] = {
    "one": None,
    "majority": {"selection": {"vote": VOTE}},
    "majority-certain": {"selection": {"vote": VOTE}, "stop": {"certain": 0.95}, "at_once": 2},
    "weighted": {
        "selection": {"vote": {**VOTE, "weights": {"softmax": 5.0}}},
        "rewards": {"likely": 1.0},
    },
    "certainty-weighted": {
        "selection": {"vote": {**VOTE, "weights": "reward"}},
        "rewards": {"self_certainty": 1.0},
    },
    "likeliest": {"rewards": {"likely": 1.0}},
    "self-certainty": {"rewards": {"self_certainty": 1.0}},
    "deepconf": {"rewards": {"deepconf": 1.0}},
    "judged": {"selection": {"pairwise": {"judge": "itself"}}},
}
"""Fields of each policy of ``best_of_n`` with n = N; None for plain decoding."""
DEFAULT = [name for name in POLICIES if name != "judged"]
BASELINES = ("one", "majority")
SEED, RESAMPLES = 2511, 10_000


class Question(NamedTuple):
    """A question: its task, its index there, and its text."""

    task: str
    index: int
    text: str


class Answer(NamedTuple):
    """Last number of a response, and the tokens of all candidates."""

    number: str | None
    drawn: int
    numbers: Sequence[str | None]
    """Last numbers of all candidates."""
    disagreements: float = 0.0
    """Share of a judge's pairs in which the order decides."""


def in_environment(request: dict[str, Any]) -> Any:
    """Answer of ``reasoning_tasks.py``."""
    script = Path(__file__).with_name("reasoning_tasks.py")
    command = [str(ENVIRONMENT.python), str(script)]
    sent = json.dumps(request)
    done = subprocess.run(command, input=sent, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def server(draws: int) -> Server:
    """A server of the demo's model with the benchmark's rewards, and with itself as a judge."""
    base = demo.settings("smollm2")
    path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
    made = Server(path, *(part for change in base.changes for part in ("--set", change)))
    judge = {
        **{"url": f"{made.base_url}/v1", "model": "demo", "concurrency": draws, "timeout": 3600},
        "extra_body": {"structured_outputs": {"choice": [f"[[{verdict}]]" for verdict in "ABC"]}},
    }
    config = yaml.safe_load(base.config.read_text())
    config |= {"rewards": REWARDS, "presets": {}, "playground": False}
    config["pairwise_judges"] = {"itself": judge}
    del config["default_reward"]
    config["engine"]["max_num_seqs"] = 2 * draws  # half of them for the judge
    path.write_text(yaml.safe_dump(config))
    return made


async def ask(
    client: AsyncOpenAI, question: Question, fields: dict[str, Any] | None, slots: asyncio.Semaphore
) -> Answer:
    """One answer under a policy, or by plain decoding."""
    policy = {"method": "best_of_n", "n": N, "report": "trace", **(fields or {})}
    async with slots:
        completion = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": question.text}],
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
            seed=zlib.crc32(question.text.encode()),
            extra_body={} if fields is None else {"alignment": policy},
        )
    number = last_number(completion.choices[0].message.content or "")
    if fields is None:
        return Answer(number, completion.usage.completion_tokens, [number])
    report = completion.model_extra["alignment"]
    candidates = report["trace"][0]["candidates"]
    numbers = [last_number(candidate["text"]) for candidate in candidates]
    compared = report.get("comparisons", {"made": 0, "disagreements": 0})
    disagreements = compared["disagreements"] / max(1, compared["made"])
    return Answer(number, report["candidate_tokens"], numbers, disagreements)


def interval(values: Sequence[float]) -> list[float]:
    """Mean with the bounds of its 95 % bootstrap interval."""
    array = np.array(values, float)
    chosen = np.random.default_rng(SEED).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[chosen].mean(1), [0.025, 0.975])
    return [float(array.mean()), float(low), float(high)]


def figures(
    passed: dict[str, list[float]], drawn: dict[str, list[int]], tasks: Sequence[str]
) -> dict[str, Any]:
    """Figures of each policy, by name.

    Args:
        passed: for each policy, 1 or 0 per question.
        drawn: for each policy, tokens of all candidates per question.
        tasks: task of each question.
    """
    table: dict[str, Any] = {}
    for name, values in passed.items():
        row = table[name] = {"pass_rate": interval(values), "tokens": float(np.mean(drawn[name]))}
        for other in BASELINES:
            if other in passed and other != name:
                pairs = zip(values, passed[other], strict=True)
                row[f"minus_{other}"] = interval([a - b for a, b in pairs])
        row["by_task"] = {
            task: float(np.mean([v for v, t in zip(values, tasks, strict=True) if t == task]))
            for task in dict.fromkeys(tasks)
        }
    return table


async def measure(
    base_url: str, questions: Sequence[Question], names: Sequence[str], draws: int
) -> dict[str, list[Answer]]:
    """Answers of each policy, by name."""
    client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0, timeout=3600)
    answers: dict[str, list[Answer]] = {}
    for name in names:
        begun, fields = time.monotonic(), POLICIES[name]
        width = 1 if fields is None else fields.get("at_once", N)
        slots = asyncio.Semaphore(max(1, draws // width))
        made = await asyncio.gather(*(ask(client, each, fields, slots) for each in questions))
        answers[name] = list(made)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        if order := np.mean([answer.disagreements for answer in made]):
            print(f"{name}: the order decides {order:.0%} of the pairs", flush=True)
    return answers


def check(
    answers: dict[str, list[Answer]], questions: Sequence[Question], size: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Whether each policy's answers are right, and whether any candidate's is."""
    rows = {
        (question, number)
        for given in answers.values()
        for question, answer in zip(questions, given, strict=True)
        for number in (answer.number, *answer.numbers)
        if number is not None
    }
    order = sorted(rows)
    sent = [[question.task, question.index, number] for question, number in order]
    right = dict(
        zip(order, in_environment({"size": size, "seed": SEED, "answers": sent}), strict=True)
    )
    passed = {
        name: [
            float(right.get((question, answer.number), False))
            for question, answer in zip(questions, given, strict=True)
        ]
        for name, given in answers.items()
    }
    widest = max(answers.values(), key=lambda given: sum(len(one.numbers) for one in given))
    best = [
        float(any(right.get((question, number), False) for number in answer.numbers))
        for question, answer in zip(questions, widest, strict=True)
    ]
    return passed, best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=100, help="questions per task")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=DEFAULT)
    parser.add_argument("--draws", type=int, default=64, help="responses drawn at once")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    ENVIRONMENT.make()
    texts = in_environment({"size": args.questions, "seed": SEED})
    questions = [
        Question(task, index, text) for task in TASKS for index, text in enumerate(texts[task])
    ]
    with server(args.draws) as running:
        answers = asyncio.run(measure(running.base_url, questions, args.policies, args.draws))
    passed, best = check(answers, questions, args.questions)
    drawn = {name: [answer.drawn for answer in given] for name, given in answers.items()}
    table = figures(passed, drawn, [question.task for question in questions])
    for name, row in table.items():
        gains = [
            f"minus {other} {_shown(row[f'minus_{other}'], '+')}"
            for other in BASELINES
            if f"minus_{other}" in row
        ]
        parts = [f"pass rate {_shown(row['pass_rate'])}", *gains, f"{row['tokens']:.0f} tokens"]
        by_task = ", ".join(f"{task} {rate:.2f}" for task, rate in row["by_task"].items())
        print(f"{name:17s} {'; '.join(parts)} ({by_task})")
    print(f"a perfect selection passes {_shown(interval(best))}")
    if args.output:
        setting = {
            **{"questions": len(questions), "tasks": TASKS, "n": N, "max_tokens": MAX_TOKENS},
            **{"temperature": TEMPERATURE, "policies": {name: POLICIES[name] for name in table}},
            **{"command": shlex.join(["python", *sys.argv]), "machine": machine()},
            "versions": ENVIRONMENT.versions(),
        }
        result = {**setting, "perfect": interval(best), "served": table}
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def _shown(figure: Sequence[float], sign: str = "") -> str:
    mean, low, high = figure
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
