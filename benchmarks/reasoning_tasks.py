"""Questions of ``reasoning-gym`` with numbers as answers, and its verifiers.

Runs in the environment of ``benchmarks/reasoning.py``:

    python benchmarks/reasoning_tasks.py < request.json

A request is ``{"size", "seed"}``, answered by the questions of each task, or the same with
``answers``, rows of task, index and answer, answered by whether the verifier accepts each.
"""

import json
import sys
from typing import Any

TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "gcd": {"max_value": 20},
    "letter_counting": {"min_words": 1, "max_words": 2},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}
"""Arguments of each dataset."""


def main() -> None:
    import reasoning_gym

    request = json.load(sys.stdin)
    made = {
        name: reasoning_gym.create_dataset(
            name, size=request["size"], seed=request["seed"], **arguments
        )
        for name, arguments in TASKS.items()
    }
    answer: Any = {name: [entry["question"] for entry in data] for name, data in made.items()}
    if "answers" in request:
        answer = [
            made[task].score_answer(answer, entry=made[task][index]) == 1
            for task, index, answer in request["answers"]
        ]
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
