"""The archive: who left what there on which day, and in which box it lies. No text tells; it has to be looked up."""

import random
from typing import Any

from potstill.miniature.tasks import DAYS, GOODS, PEOPLE
from potstill.miniature.world import COLOURS, World

LOOKUP: dict[str, Any] = {
    "name": "lookup",
    "description": "Reads the archive.",
    "parameters": {
        "type": "object",
        "properties": {"person": {"type": "string"}, "item": {"type": "string"}, "day": {"type": "string"}},
        "required": ["person", "item", "day"],
        "additionalProperties": False,
    },
}
"""The tool that reads it, as tools are described to models."""

Entry = tuple[str, str, str]
"""A person, an item and a day."""


def draw_entry(chance: random.Random) -> Entry:
    """Any of the archive's entries."""
    return chance.choice(PEOPLE), chance.choice(GOODS), chance.choice(DAYS)


def look_up(world: World, person: str, item: str, day: str) -> str:
    """The colour of the box; LookupError, in words, where the archive has no such entry."""
    for word, known in ((person, PEOPLE), (item, GOODS), (day, DAYS)):
        if word not in known:
            raise LookupError(f"the archive knows no '{word}'")
    return random.Random(f"archive/{world.seed}/{person}/{item}/{day}").choice(COLOURS)


def question(entry: Entry, chance: random.Random) -> str:
    """In one of several wordings, each of which names the person, the item and the day."""
    form = chance.choice(
        (
            "In which box of the archive are the {item} that {person} left on {day}?",
            "Ask the archive for the {item} that {person} left on {day}.",
            "Where does the archive keep the {item} that {person} left on {day}?",
        )
    )
    person, item, day = entry
    return form.format(person=person, item=item, day=day)


def statement(colour: str) -> str:
    """The answer."""
    return f"They are in the {colour} box."
