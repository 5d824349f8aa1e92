"""Make the demo's artefacts: `python -m cdserve.demo.build`.

One deterministic run on two CPU threads writes the base model, its members, the value head, the
held-out prompts and the report. A stage reads what earlier stages wrote, so `--only` can repeat
one of them.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from value_heads import FitOptions, QHead, ValueHead
from value_heads.q_training import Method

from . import DEMO_DIR
from .corpus import documents, held_out_prompts
from .evaluate import compare_decoders, mean_reward
from .folders import load_model, load_tokenizer, save_model
from .head import correlations, draw_rollouts, train_head
from .q_head import measure, train_q_head, transitions
from .tokenizer import train_tokenizer
from .train import BASE, MEMBER, new_model, train

SEED = 2310
PROMPTS = 320
POSITIVE = 0.25  # the least sentiment of a review that the tuned member is trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything a build uses."""

    tokenizer_documents: int
    base_documents: int
    member_documents: int
    tuned_documents: int
    rollouts: int
    test_rollouts: int
    head_epochs: int
    q_epochs: int
    test_prompts: int


FULL = Scale(
    tokenizer_documents=6000,
    base_documents=16000,
    member_documents=12000,
    tuned_documents=2000,
    rollouts=4500,
    test_rollouts=1000,
    head_epochs=20,
    q_epochs=12,
    test_prompts=200,
)
QUICK = Scale(
    tokenizer_documents=1000,
    base_documents=100,
    member_documents=100,
    tuned_documents=30,
    rollouts=40,
    test_rollouts=20,
    head_epochs=2,
    q_epochs=2,
    test_prompts=4,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build: where it writes and at which scale. Its methods are the stages, in order."""

    out: Path
    scale: Scale

    @property
    def artifacts(self) -> Path:
        """The folder of models and heads."""
        return self.out / "artifacts"

    def texts(self, count: int, seed: int, at_least: float = -1.0) -> list[str]:
        """Write documents of the corpus."""
        stream = documents(random.Random(SEED + seed), at_least=at_least)
        return list(itertools.islice(stream, count))

    def prompts(self) -> None:
        """Write the held-out prompts."""
        lines = [json.dumps({"prompt": prompt}) for prompt in held_out_prompts(PROMPTS, SEED)]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "prompts.jsonl").write_text("\n".join(lines) + "\n")

    def model(self) -> None:
        """Train the tokenizer and the base model."""
        texts = self.texts(self.scale.base_documents, seed=0)
        tokenizer = train_tokenizer(self.texts(self.scale.tokenizer_documents, seed=1))
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        model = new_model(BASE, tokenizer, SEED)
        loss = train(model, ids, peak_lr=2e-3, seed=SEED)
        save_model(model, tokenizer, self.artifacts / "model")
        self.record("model", {"parameters": model.num_parameters(), "loss": loss})

    def members(self) -> None:
        """Train the reference member, and the tuned one from it on positive reviews."""
        tokenizer = load_tokenizer(self.artifacts / "model")
        model = new_model(MEMBER, tokenizer, SEED + 1)
        found: dict[str, float] = {}
        for name, count, at_least, peak_lr in (
            ("ref", self.scale.member_documents, -1.0, 3e-3),
            ("tuned", self.scale.tuned_documents, POSITIVE, 1e-3),
        ):
            texts = self.texts(count, seed=2, at_least=at_least)
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            found[name] = train(model, ids, peak_lr=peak_lr, seed=SEED)
            save_model(model, tokenizer, self.artifacts / "members" / name)
        self.record("members", {"parameters": model.num_parameters(), "loss": found})

    def head(self) -> None:
        """Fit the value head on rollouts of the base model and measure it on others."""
        base_dir = self.artifacts / "model"
        model, tokenizer = load_model(base_dir), load_tokenizer(base_dir)
        scale = self.scale
        rollouts = draw_rollouts(model, tokenizer, scale.rollouts, held_out=False, seed=SEED)
        options = FitOptions(max_epochs=scale.head_epochs, seed=SEED)
        head, fitted = train_head(base_dir, rollouts, tokenizer, options)
        test = draw_rollouts(model, tokenizer, scale.test_rollouts, held_out=True, seed=SEED + 1)
        found = correlations(head, test, tokenizer)
        found["epochs"] = fitted.epochs
        found["train_loss"] = fitted.train_loss[fitted.best_epoch]
        found["held_out_loss"] = fitted.held_out_loss[fitted.best_epoch]
        head.report = f"## Held-out correlation\n\n```json\n{json.dumps(found, indent=2)}\n```\n"
        folder = self.artifacts / "heads" / "sentiment"
        (folder / "README.md").unlink(missing_ok=True)
        head.save_pretrained(folder)
        self.record("head", found)

    def q_head(self) -> None:
        """Fit the Q-head that is served, by Monte Carlo, and from it another by CD-Q."""
        base_dir = self.artifacts / "model"
        model, tokenizer = load_model(base_dir), load_tokenizer(base_dir)
        scale = self.scale
        rollouts = draw_rollouts(model, tokenizer, scale.rollouts, held_out=False, seed=SEED)
        stop = max(1, len(rollouts) // 10)
        train, held_out = (transitions(r, tokenizer) for r in (rollouts[stop:], rollouts[:stop]))
        epochs = scale.q_epochs
        options = FitOptions(max_epochs=epochs, patience=epochs, seed=SEED)
        # Bootstrapped targets drift away from a good start at a higher rate, or for longer.
        careful = replace(options, lr=2e-4, max_epochs=max(1, epochs // 2))
        test_rollouts = draw_rollouts(
            model, tokenizer, scale.test_rollouts, held_out=True, seed=SEED + 1
        )
        test = transitions(test_rollouts, tokenizer)
        found: dict[str, dict[str, float]] = {}
        fits: tuple[tuple[Method, str, FitOptions], ...] = (
            ("mc", "sentiment-q", options),
            ("cdq", "sentiment-cdq", careful),
        )
        head: QHead | None = None
        for method, name, how in fits:
            head, fitted = train_q_head(base_dir, model, train, held_out, method, how, head)
            best = {"held_out_loss": fitted.held_out_loss[fitted.best_epoch]}
            found[method] = {**measure(head, test), **best, "epochs": fitted.epochs}
            card = json.dumps(found[method], indent=2)
            head.report = f"## Held-out rollouts\n\n```json\n{card}\n```\n"
            folder = self.artifacts / "heads" / name
            (folder / "README.md").unlink(missing_ok=True)
            head.save_pretrained(folder)
        self.record("q_head", found)

    def decoding(self) -> None:
        """Measure what each way to decode gains, on held-out prompts."""
        base_dir = self.artifacts / "model"
        model, tokenizer = load_model(base_dir), load_tokenizer(base_dir)
        head = ValueHead.from_pretrained(self.artifacts / "heads" / "sentiment")
        lines = (self.out / "prompts.jsonl").read_text().splitlines()
        prompts = [tokenizer.encode(json.loads(line)["prompt"]) for line in lines]
        prompts = prompts[: self.scale.test_prompts]
        found = compare_decoders(model, head, tokenizer, prompts, seed=SEED)
        for name in ("ref", "tuned"):
            member = load_model(self.artifacts / "members" / name)
            found[f"member_{name}"] = mean_reward(member, tokenizer, prompts, seed=SEED)
        self.record("decoding", found)

    def record(self, stage: str, found: object) -> None:
        """Put a stage's numbers into the report."""
        path = self.artifacts / "report.json"
        report = json.loads(path.read_text()) if path.is_file() else {}
        report[stage] = found
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(found, indent=2), flush=True)


STAGES = ("prompts", "model", "members", "head", "q_head", "decoding")


def run(out: Path, scale: Scale, only: tuple[str, ...] = STAGES) -> None:
    """Run stages of a build in order."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    build = Build(out=out, scale=scale)
    stages = {
        "prompts": build.prompts,
        "model": build.model,
        "members": build.members,
        "head": build.head,
        "q_head": build.q_head,
        "decoding": build.decoding,
    }
    for name in STAGES:
        if name in only:
            started = time.monotonic()
            print(f"{name} ...", flush=True)
            stages[name]()
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m cdserve.demo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="default: the package itself")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--quick", action="store_true", help="a tiny build, to test this script")
    args = parser.parse_args()
    run(args.out, QUICK if args.quick else FULL, tuple(args.only))


if __name__ == "__main__":
    main()
