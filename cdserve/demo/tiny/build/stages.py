"""The stages of a build of the demo.

One seeded run on two CPU threads writes the base model, its members, the heads, the held-out
prompts and the report. A stage reads the output of earlier stages, so ``--only`` can repeat one.
"""

import itertools
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .corpus import documents, draw_prompt, held_out_prompts
from .folders import load_tokenizer, save_model
from .head import recipes, train_head
from .tokenizer import train_tokenizer
from .train import BASE, MEMBER, new_model, train

SEED = 2310
PROMPTS = 320
POSITIVE = 0.25  # minimum sentiment of the reviews that the tuned member is trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Size of a build: numbers of documents, responses and epochs."""

    tokenizer_documents: int
    base_documents: int
    member_documents: int
    tuned_documents: int
    rollouts: int
    test_rollouts: int
    head_epochs: int
    q_epochs: int


FULL = Scale(
    tokenizer_documents=6000,
    base_documents=16000,
    member_documents=12000,
    tuned_documents=2000,
    rollouts=4500,
    test_rollouts=1000,
    head_epochs=20,
    q_epochs=12,
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
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build in an output folder at a scale; the methods are its stages, in order."""

    out: Path
    scale: Scale

    @property
    def artifacts(self) -> Path:
        """The folder of models and heads."""
        return self.out / "artifacts"

    @property
    def cache(self) -> Path:
        """The folder of the base model's responses, which later builds reuse."""
        return self.out / "cache"

    def texts(self, count: int, seed: int, at_least: float = -1.0) -> list[str]:
        """Write documents of the corpus."""
        stream = documents(random.Random(SEED + seed), at_least=at_least)
        return list(itertools.islice(stream, count))

    def prompts(self) -> None:
        """Write the held-out prompts."""
        self.out.mkdir(parents=True, exist_ok=True)
        _write_prompts(self.out / "prompts.jsonl", held_out_prompts(PROMPTS, SEED))

    def model(self) -> None:
        """Train the tokenizer and the base model."""
        texts = self.texts(self.scale.base_documents, seed=0)
        tokenizer = train_tokenizer(self.texts(self.scale.tokenizer_documents, seed=1))
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        model = new_model(BASE, tokenizer, SEED)
        loss = train(model, ids, peak_lr=2e-3, seed=SEED)
        save_model(model, tokenizer, self.artifacts / "model")
        shutil.rmtree(self.cache, ignore_errors=True)
        self.record("model", {"parameters": model.num_parameters(), "loss": loss})

    def members(self) -> None:
        """Train the reference member, then the tuned member from it on positive reviews."""
        tokenizer = load_tokenizer(self.artifacts / "model")
        model = new_model(MEMBER, tokenizer, SEED + 1)
        losses: dict[str, float] = {}
        for name, count, at_least, peak_lr in (
            ("ref", self.scale.member_documents, -1.0, 3e-3),
            ("tuned", self.scale.tuned_documents, POSITIVE, 1e-3),
        ):
            texts = self.texts(count, seed=2, at_least=at_least)
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            losses[name] = train(model, ids, peak_lr=peak_lr, seed=SEED)
            save_model(model, tokenizer, self.artifacts / "members" / name)
        self.record("members", {"parameters": model.num_parameters(), "loss": losses})

    def _write_training_prompts(self) -> None:
        """Write the training prompts of the heads, and held-out prompts for their reports."""
        self.cache.mkdir(parents=True, exist_ok=True)
        for name, count, held_out in (
            ("prompts", self.scale.rollouts, False),
            ("test-prompts", self.scale.test_rollouts, True),
        ):
            rng = random.Random(SEED + held_out)
            drawn = [draw_prompt(rng, held_out=held_out).text for _ in range(count)]
            _write_prompts(self.cache / f"{name}.jsonl", drawn)

    def heads(self) -> None:
        """Train the value head and the Q-heads on responses of the base model."""
        self._write_training_prompts()
        heads = recipes(self.scale.head_epochs, self.scale.q_epochs, SEED)
        figures: dict[str, object] = {}
        for name, recipe in heads.items():
            report = train_head(
                self.artifacts / "model", self.cache, self.artifacts / "heads", name, recipe
            )
            figures[name] = asdict(report.rewards["sentiment"])
        self.record("heads", figures)

    def record(self, stage: str, figures: object) -> None:
        """Put a stage's figures into the report."""
        path = self.artifacts / "report.json"
        report = json.loads(path.read_text()) if path.is_file() else {}
        report[stage] = figures
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(figures, indent=2), flush=True)


STAGES = ("prompts", "model", "members", "heads")


def _write_prompts(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def run(out: Path, scale: Scale, only: tuple[str, ...] = STAGES) -> None:
    """Run stages of a build in order."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    build = Build(out=out, scale=scale)
    stages = {
        "prompts": build.prompts,
        "model": build.model,
        "members": build.members,
        "heads": build.heads,
    }
    for name in STAGES:
        if name in only:
            started = time.monotonic()
            print(f"{name} ...", flush=True)
            stages[name]()
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
