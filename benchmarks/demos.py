"""Prompts, models and settings of both demos for benchmarks."""

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from cdserve.demo import DEMO_DIR
from cdserve.demo.model import model_dir
from cdserve.demo.tiny import DEMO_DIR as TINY_DIR
from cdserve.demo.tiny import MODEL_DIR, PROMPTS_PATH
from cdserve.demo.tiny.build.corpus import draw_prompt

_SEED = 2310
_QUESTIONS = (
    "Tell me a short fact about {}.",
    "Give one reason to care about {}.",
    "What makes {} interesting? Answer in a few sentences.",
    "Describe {} briefly.",
    "Explain {} to a child in a few words.",
)
"""Questions that SmolLM2 answers in 20 to 250 tokens."""
_TOPICS = """\
bees, lighthouses, chess, winter, copper, bread, bridges, owls, the moon, clocks, rivers,
gardens, glass, paper, salt, trains, whales, maps, violins, libraries, deserts, coffee,
dolphins, volcanoes, bicycles, islands, honey, the wind, cathedrals, frogs, silk, comets,
markets, tea, forests, robots, foxes, mountains, letters, snow, castles, spiders, oranges,
harbours, the ear, photography, horses, windmills, dreams, gold, turtles, kites, museums, rain,
elephants, the alphabet, kitchens, ants, sleep, lakes, newspapers, penguins, wool, fire, the
heart, puppets, ice, roads, eagles, mathematics, beaches, pianos, potatoes, shadows, astronauts,
swimming, onions, thunder, wolves, caves
"""


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo as benchmarks serve it.

    Attributes:
        folder: folder of its settings, ``cdserve.yaml``.
        model: folder of its model.
        temperature: temperature that suits its model.
        prompts: prompts, as texts with the special tokens of a chat; the argument tells whether
            they are held out from the training of heads.
    """

    folder: Path
    model: Path
    temperature: float
    prompts: Callable[[bool], list[str]]

    def settings(self, **changes: Any) -> Path:
        """A file of the demo's settings with changes, without presets, members and playground."""
        settings = yaml.safe_load((self.folder / "cdserve.yaml").read_text())
        settings |= {"model": str(self.model), "members": {}, "presets": {}, "playground": False}
        path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return path


def demo(name: str) -> Demo:
    """The demo ``tiny`` or ``smollm2``; fetches the model of the latter if it is not cached."""
    if name == "tiny":
        return Demo(TINY_DIR, MODEL_DIR, 1.0, _tiny_prompts)
    return Demo(DEMO_DIR, model_dir(), 0.8, _questions)


def _tiny_prompts(held_out: bool) -> list[str]:
    """The demo's held-out prompts, or 2000 training prompts."""
    if held_out:
        lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prompt"] for line in lines]
    generator = random.Random(_SEED)
    return [draw_prompt(generator).text for _ in range(2000)]


def _questions(held_out: bool) -> list[str]:
    """Questions about topics of one side, in the chat format of SmolLM2, in random order."""
    topics = [topic.strip() for topic in _TOPICS.replace("\n", " ").split(",")]
    chosen = topics[:16] if held_out else topics[16:]
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    prompts = []
    for topic, question in product(chosen, _QUESTIONS):
        messages = [{"role": "user", "content": question.format(topic)}]
        prompts.append(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    random.Random(_SEED).shuffle(prompts)
    return prompts
