"""The archive: hundreds of finds that no text of the world tells of, so that whoever is asked has to look them up."""

import random
from typing import Any

from potstill.miniature.tasks import PEOPLE
from potstill.miniature.world import World

ENTRIES = ("keeper", "finder", "owner")
"""What the archive holds of every find."""
FINDS = tuple(str(number) for number in range(100, 1000))
"""Finds are numbered."""

LOOKUP: dict[str, Any] = {
    "name": "lookup",
    "description": "Reads one entry of the archive.",
    "parameters": {
        "type": "object",
        "properties": {"find": {"type": "string"}, "entry": {"type": "string", "enum": list(ENTRIES)}},
        "required": ["find", "entry"],
        "additionalProperties": False,
    },
}
"""The tool that reads it, as tools are described to models."""


def look_up(world: World, find: str, entry: str) -> str:
    """What the archive says; LookupError, in words, where it holds no such find."""
    if find not in FINDS:
        raise LookupError(f"the archive holds no find '{find}'")
    return entry_of(world, find, entry)


def entry_of(world: World, find: str, entry: str) -> str:
    """Drawn for each find and entry by itself."""
    chance = random.Random(f"archive/{world.seed}/{find}/{entry}")
    return chance.choice(PEOPLE)


def question(find: str, entry: str, chance: random.Random) -> str:
    """In one of several wordings, each of which names the find and the entry."""
    form = chance.choice(
        (
            "According to the archive, who is the {entry} of find {find}?",
            "Ask the archive for the {entry} of find {find}.",
            "Which {entry} does the archive give for find {find}?",
        )
    )
    return form.format(entry=entry, find=find)


def statement(find: str, entry: str, value: str) -> str:
    """The answer."""
    return f"The {entry} of find {find} is {value}."
