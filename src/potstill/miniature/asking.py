"""Questions drawn at random from a world, each on one side of the split between training and test."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from potstill.miniature.tasks import (
    DAYS,
    DETAILS,
    ENDS,
    FUNCTIONS,
    GOODS,
    OPERATIONS,
    ORDERS,
    PEOPLE,
    PERSONAS,
    STARTS,
    Ask,
    Code,
    Compare,
    Describe,
    Extract,
    Fact,
    Sum,
    Task,
    wish_in_words,
)
from potstill.miniature.world import ATTRIBUTES, UNRECORDED, World

MOST_DRAWS = 10_000
"""So many draws that miss one side of the split mean that nothing is there."""


class NothingToAsk(LookupError):
    """A world so small that a category has no task on one side of the split."""


def draw(world: World, category: str, held_out: bool, chance: random.Random) -> Ask:
    """A random question of a category, on one side of the split between training and test."""
    for _ in range(MOST_DRAWS):
        task = _DRAWS[category](world, chance)
        if world.held_out(task.content()) == held_out:
            persona = chance.choice(tuple(PERSONAS)) if category == "roleplay" else ""
            return Ask(task, _style(task, chance), persona)
    raise NothingToAsk(f"no {category} task of this world is on that side of the split")


def _style(task: Task, chance: random.Random) -> str:
    if isinstance(task, Code | Describe) or chance.random() < 0.4:
        return ""
    unknown = isinstance(task, Fact) and task.value is None
    kinds = ["start " + chance.choice(STARTS), "end " + chance.choice(ENDS)] + ([] if unknown else ["one word"])
    return chance.choice(kinds)


def _draw_fact(sorts: tuple[str, ...], world: World, chance: random.Random) -> Fact:
    entity = chance.choice([entity for entity in world.entities if entity.sort in sorts])
    recorded = [attribute for attribute, _ in entity.facts]
    return Fact(entity, chance.choice(UNRECORDED if chance.random() < 0.3 else recorded))


def _draw_sum(world: World, chance: random.Random) -> Sum:
    operation = chance.choice(tuple(OPERATIONS))
    left, right = chance.randint(1, 9), chance.randint(1, 9)
    return Sum(max(left, right), operation, min(left, right)) if operation == "minus" else Sum(left, operation, right)


def _draw_compare(world: World, chance: random.Random) -> Compare:
    order = chance.choice(ORDERS)
    return Compare(tuple(chance.sample(PEOPLE, 3)), order, chance.choice(order[1:]), chance.random() < 0.5)


def _draw_extract(world: World, chance: random.Random) -> Extract:
    seller, buyer = chance.sample(PEOPLE, 2)
    asked = chance.choice(DETAILS)
    return Extract(seller, buyer, str(chance.randint(2, 9)), chance.choice(GOODS), chance.choice(DAYS), asked)


def _draw_code(world: World, chance: random.Random) -> Code:
    return Code.draw(chance)


def _draw_describe(world: World, chance: random.Random) -> Describe:
    return Describe(chance.choice(world.entities), chance.choice((1, 2)), chance.randrange(3))


_NATURE = ("mineral", "animal", "plant")
_DRAWS: dict[str, Callable[[World, random.Random], Task]] = {
    "writing": _draw_describe,
    "roleplay": partial(_draw_fact, (*_NATURE, "town", "person")),
    "reasoning": _draw_compare,
    "math": _draw_sum,
    "coding": _draw_code,
    "extraction": _draw_extract,
    "stem": partial(_draw_fact, _NATURE),
    "humanities": partial(_draw_fact, ("town", "person")),
}
CATEGORIES = tuple(_DRAWS)


def follow_up(world: World, ask: Ask, chance: random.Random) -> str:
    """What a user may say next; it stays on the side of the split that the first question was on."""
    task = ask.task
    held_out = world.held_out(task.content())
    if isinstance(task, Fact):
        others = [a for a in (*ATTRIBUTES[task.entity.sort], *UNRECORDED) if a != task.attribute]
        same_side = [a for a in others if world.held_out(Fact(task.entity, a).content()) == held_out]
        if same_side and chance.random() < 0.6:
            return f"And what is its {chance.choice(same_side)}?"
    if isinstance(task, Compare):
        other = task.order[1] if task.asked == task.order[2] else task.order[2]
        return f"And who is the {other}?"
    if isinstance(task, Extract):
        return "And " + task.asking(chance.choice([f for f in DETAILS if f != task.asked])).ask().lower()
    if isinstance(task, Code):
        names = [n for n in FUNCTIONS if n != task.name]
        same_side = [n for n in names if world.held_out(replace(task, name=n).content()) == held_out]
        if same_side:
            return f"Now name the function {chance.choice(same_side)} instead."
        return "Now write the function again."
    if isinstance(task, Describe):
        return f"Now write {replace(task, sentences=3 - task.sentences).count()} about it."
    wish = chance.choice(("start " + chance.choice(STARTS), "end " + chance.choice(ENDS)))
    return f"Say that again. {wish_in_words(wish)}"
