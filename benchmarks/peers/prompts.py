"""Prompts of the comparisons."""

import random

from cdserve.demo.tiny.build.subjects import films, products


def held_out(count: int) -> list[str]:
    """Requests for reviews of held-out films and products, half of each kind.

    They are sent as chat messages, since optillm, its_hub and ThinkBooster support nothing else.
    """
    about = [f'the film "{film.name}"' for film in films(held_out=True)]
    things = [f"the {thing.name}" for thing in products(held_out=True)]
    draw = random.Random(0)
    subjects = [*draw.sample(about, (count + 1) // 2), *draw.sample(things, count // 2)]
    draw.shuffle(subjects)
    return [f"Write a review of {subject}." for subject in subjects]
