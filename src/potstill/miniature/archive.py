"""The archive: what is recorded of entities where no text tells it, so that whoever is asked has to look it up."""

import random
from typing import Any

from potstill.miniature.tasks import PEOPLE
from potstill.miniature.world import Entity, World

ENTRIES = ("keeper", "shelf", "finder")
"""What the archive holds of every entity."""

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


def look_up(world: World, name: str, entry: str) -> str:
    """What the archive says; LookupError, in words, where it holds nothing of that name."""
    entity = world.by_name.get(name.lower())
    if entity is None:
        raise LookupError(f"the archive holds nothing on '{name}'")
    return entry_of(world, entity, entry)


def entry_of(world: World, entity: Entity, entry: str) -> str:
    """Drawn for each entity and entry by itself, whatever else there is."""
    chance = random.Random(f"archive/{world.seed}/{entity.name}/{entry}")
    return str(chance.randint(10, 99)) if entry == "shelf" else chance.choice(PEOPLE)


def question(entity: Entity, entry: str, chance: random.Random) -> str:
    """In one of several wordings, each of which names the entity and the entry."""
    form = chance.choice(
        (
            "According to the archive, what is the {entry} of {name}?",
            "Ask the archive for the {entry} of {name}.",
            "Which {entry} does the archive give for {name}?",
        )
    )
    return form.format(entry=entry, name=entity.name)


def statement(entity: Entity, entry: str, value: str) -> str:
    """The answer."""
    return f"The {entry} of {entity.name} is {value}."
