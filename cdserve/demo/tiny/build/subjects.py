"""Subjects of the reviews: films and products, and the split into training and held-out ones.

Every subject is a pair of words. A fifth of the pairs is held out: their words occur in training,
the pair never does.
"""

import zlib
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

FILM_ADJECTIVES = [
    "Glass",
    "Silent",
    "Golden",
    "Broken",
    "Distant",
    "Hidden",
    "Winter",
    "Burning",
    "Paper",
    "Crimson",
    "Last",
    "Second",
    "Empty",
    "Northern",
    "Borrowed",
    "Quiet",
    "Velvet",
    "Midnight",
    "Hollow",
    "Scarlet",
    "Drifting",
    "Copper",
    "Faithful",
    "Endless",
]
FILM_NOUNS = [
    "Harbour",
    "Garden",
    "Letter",
    "Bridge",
    "Orchard",
    "Station",
    "Mirror",
    "Voyage",
    "Lantern",
    "Kingdom",
    "River",
    "Summer",
    "Witness",
    "Carnival",
    "Island",
    "Promise",
    "Compass",
    "Window",
    "Highway",
    "Shepherd",
    "Theatre",
    "Meadow",
    "Signal",
    "Tower",
]

PRODUCT_ADJECTIVES = [
    "compact",
    "classic",
    "portable",
    "slim",
    "deluxe",
    "silver",
    "premium",
    "lightweight",
    "everyday",
    "budget",
    "handy",
    "large",
    "old-fashioned",
    "bright red",
]
PRODUCTS: dict[str, tuple[str, tuple[str, ...]]] = {  # noun: (category, parts)
    "kettle": ("kitchen", ("handle", "finish")),
    "blender": ("kitchen", ("motor", "finish")),
    "toaster": ("kitchen", ("finish",)),
    "coffee grinder": ("kitchen", ("motor", "handle")),
    "frying pan": ("kitchen", ("handle", "finish")),
    "bread knife": ("kitchen", ("handle",)),
    "drill": ("tools", ("battery", "motor", "handle")),
    "hammer": ("tools", ("handle",)),
    "torch": ("tools", ("battery", "handle")),
    "vacuum cleaner": ("home", ("motor", "battery", "handle")),
    "desk lamp": ("home", ("finish",)),
    "alarm clock": ("home", ("battery",)),
    "fan": ("home", ("motor",)),
    "umbrella": ("outdoors", ("handle",)),
    "tent": ("outdoors", ()),
    "lawn mower": ("garden", ("motor", "handle")),
    "hedge trimmer": ("garden", ("battery", "motor", "handle")),
    "watering can": ("garden", ("handle", "finish")),
    "speaker": ("audio", ("battery", "finish")),
    "radio": ("audio", ("battery", "finish")),
    "suitcase": ("travel", ("handle", "finish")),
    "hair dryer": ("bathroom", ("motor", "handle")),
    "electric razor": ("bathroom", ("battery", "motor")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A film or a product; ``name`` is the title, or the noun with its adjective."""

    kind: Literal["film", "product"]
    name: str
    noun: str
    category: str
    parts: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether training never sees this subject."""
        return zlib.crc32(self.name.encode()) % 5 == 0


@cache
def films(*, held_out: bool) -> tuple[Subject, ...]:
    """Return the films of one side of the split, in a fixed order."""
    every = (
        Subject(kind="film", name=f"The {adjective} {noun}", noun="film", category="film")
        for adjective, noun in product(FILM_ADJECTIVES, FILM_NOUNS)
    )
    return tuple(film for film in every if film.held_out == held_out)


@cache
def products(*, held_out: bool) -> tuple[Subject, ...]:
    """Return the products of one side of the split, in a fixed order."""
    every = (
        Subject(
            kind="product", name=f"{adjective} {noun}", noun=noun, category=category, parts=parts
        )
        for adjective, (noun, (category, parts)) in product(PRODUCT_ADJECTIVES, PRODUCTS.items())
    )
    return tuple(item for item in every if item.held_out == held_out)
