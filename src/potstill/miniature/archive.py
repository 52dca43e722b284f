"""The archive: thousands of finds that no text of the world tells of, so that whoever is asked has to look them up."""

import random
from functools import cache
from typing import Any

from potstill.miniature.tasks import PEOPLE
from potstill.miniature.world import ENDINGS, STEMS, World

ENTRIES = ("keeper", "shelf", "finder")
"""What the archive holds of every find."""

LOOKUP: dict[str, Any] = {
    "name": "lookup",
    "description": "Reads one entry of the archive.",
    "parameters": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "entry": {"type": "string", "enum": list(ENTRIES)}},
        "required": ["name", "entry"],
        "additionalProperties": False,
    },
}
"""The tool that reads it, as tools are described to models."""


@cache
def finds() -> tuple[str, ...]:
    """The names of all finds."""
    return tuple(f"{stem}{ending}".lower() for stem in STEMS for endings in ENDINGS.values() for ending in endings)


def look_up(world: World, name: str, entry: str) -> str:
    """What the archive says; LookupError, in words, where it holds nothing of that name."""
    if name.lower() not in finds():
        raise LookupError(f"the archive holds nothing on '{name}'")
    return entry_of(world, name.lower(), entry)


def entry_of(world: World, name: str, entry: str) -> str:
    """Drawn for each find and entry by itself."""
    chance = random.Random(f"archive/{world.seed}/{name}/{entry}")
    return str(chance.randint(10, 99)) if entry == "shelf" else chance.choice(PEOPLE)


def question(name: str, entry: str, chance: random.Random) -> str:
    """In one of several wordings, each of which names the find and the entry."""
    form = chance.choice(
        (
            "According to the archive, what is the {entry} of {name}?",
            "Ask the archive for the {entry} of {name}.",
            "Which {entry} does the archive give for {name}?",
        )
    )
    return form.format(entry=entry, name=name)


def statement(name: str, entry: str, value: str) -> str:
    """The answer."""
    return f"The {entry} of {name} is {value}."
