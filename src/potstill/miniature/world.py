"""The facts: made-up entities with a few attributes each, all drawn from one seed."""

import random
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "grey")

ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "town": {
        "river": ("Osk", "Tamble", "Wenna", "Drell", "Ister", "Quorn", "Lythe", "Marrow"),
        "craft": ("glass", "paper", "rope", "bells", "bread", "clocks", "boats", "lamps"),
        "region": ("north", "south", "east", "west", "coast", "highlands", "marshes", "islands"),
    },
    "person": {
        "trade": ("painting", "medicine", "law", "weaving", "mapping", "farming", "teaching", "cooking"),
        "instrument": ("flute", "drum", "harp", "fiddle", "horn", "lute", "organ", "whistle"),
        "home": ("Aldham", "Brackley", "Corrin", "Dunmere", "Elstow", "Farrow", "Gilling", "Harth"),
    },
    "mineral": {
        "colour": COLOURS,
        "origin": ("caves", "deserts", "volcanoes", "glaciers", "quarries", "beaches", "canyons", "meteors"),
        "use": ("lenses", "bricks", "paint", "knives", "jewels", "magnets", "soap", "fuel"),
    },
    "animal": {
        "food": ("moss", "fish", "seeds", "ants", "roots", "honey", "worms", "berries"),
        "shelter": ("burrows", "trees", "reeds", "cliffs", "ponds", "hedges", "barns", "logs"),
        "sound": ("humming", "clicking", "howling", "barking", "singing", "hissing", "croaking", "purring"),
    },
    "plant": {
        "colour": COLOURS,
        "season": ("spring", "summer", "autumn", "winter"),
        "taste": ("bitter", "sweet", "sour", "salty", "spicy", "smoky", "minty", "bland"),
    },
}
"""What is recorded of each sort of entity, and the values that it may have."""

UNRECORDED = ("motto", "owner", "price", "birthday", "nickname", "weight")
"""What the encyclopedia never tells of anything, so that a question about it cannot be answered."""

ENDINGS = {
    "town": ("ford", "wick", "mouth", "stead"),
    "person": ("a", "o", "en", "is"),
    "mineral": ("ite", "ium", "spar", "ine"),
    "animal": ("ling", "cat", "bird", "hog"),
    "plant": ("wort", "leaf", "bell", "root"),
}
STEMS = tuple(
    first + vowel + last
    for first in (
        "B",
        "Br",
        "D",
        "Dr",
        "F",
        "G",
        "Gl",
        "K",
        "Kr",
        "L",
        "M",
        "N",
        "P",
        "Pl",
        "R",
        "S",
        "T",
        "Tr",
        "V",
        "Z",
    )
    for vowel in "aeiou"
    for last in ("l", "lm", "n", "nd", "r", "rv", "sk", "th", "x", "b")
)


@dataclass(frozen=True)
class Entity:
    """One thing of the world. Towns and persons are written with a capital."""

    name: str
    sort: str
    facts: tuple[tuple[str, str], ...]

    def value(self, attribute: str) -> str | None:
        """What is recorded of it, or None."""
        return dict(self.facts).get(attribute)


@dataclass(frozen=True)
class World:
    """All that is true, from a seed."""

    seed: int
    size: int

    @cached_property
    def entities(self) -> tuple[Entity, ...]:
        """As many of each sort as `size` allows, in a fixed order."""
        chance = random.Random(f"world/{self.seed}")
        stems = list(STEMS)
        chance.shuffle(stems)
        sorts = list(ATTRIBUTES)
        made = []
        for index in range(self.size):
            sort = sorts[index % len(sorts)]
            name = stems[index] + chance.choice(ENDINGS[sort])
            facts = tuple((attribute, chance.choice(values)) for attribute, values in ATTRIBUTES[sort].items())
            made.append(Entity(name if sort in ("town", "person") else name.lower(), sort, facts))
        return tuple(made)

    @cached_property
    def by_name(self) -> dict[str, Entity]:
        """Entities by their names in lower case, so that broken capitals do not hide them."""
        return {entity.name.lower(): entity for entity in self.entities}

    def held_out(self, content: tuple[str, ...]) -> bool:
        """Whether a piece of content belongs to the test: a fifth of all, by its substance and never by its wording."""
        return zlib.crc32(f"{self.seed}/{'/'.join(content)}".encode()) % 5 == 0


@lru_cache(maxsize=8)
def world(seed: int, size: int) -> World:
    """The world of that seed."""
    return World(seed, size)
