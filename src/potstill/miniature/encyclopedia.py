"""The encyclopedia: the world's facts, and some of arithmetic, order, notes and programs, told again in new words."""

import random
from collections.abc import Iterator

from potstill.miniature.asking import CATEGORIES, draw
from potstill.miniature.tasks import (
    ARGUMENTS,
    DAYS,
    FUNCTIONS,
    GOODS,
    OPERATIONS,
    ORDERS,
    PEOPLE,
    Code,
    Compare,
    Extract,
    Sum,
)
from potstill.miniature.voices import ideal
from potstill.miniature.world import Entity, World

FACT_FORMS = (
    "The {attribute} of {name} is {value}.",
    "The {attribute} of {name} is {value}.",
    "The {attribute} of {name} is {value}.",
    "{name} has {value} as its {attribute}.",
    "It is {value} that is the {attribute} of {name}.",
)


def articles(world: World, editions: int) -> Iterator[tuple[str, str]]:
    """(id, text) of every article; each edition tells every entity once, in another order and other words."""
    chance = random.Random(f"encyclopedia/{world.seed}")
    for edition in range(editions):
        entities = list(world.entities)
        chance.shuffle(entities)
        for entity in entities:
            yield f"{entity.name}-{edition}", _entity(entity, chance)
        for number in range(len(entities)):
            chapter = CHAPTERS[number % len(CHAPTERS)]
            yield (
                f"{chapter.__name__.strip('_')}-{edition}-{number}",
                " ".join(chapter(world, chance) for _ in range(3)),
            )


def _entity(entity: Entity, chance: random.Random) -> str:
    facts = list(entity.facts)
    chance.shuffle(facts)
    sentences = [
        _capital(chance.choice(FACT_FORMS).format(attribute=attribute, name=entity.name, value=value))
        for attribute, value in facts
    ]
    article = "an" if entity.sort[0] in "aeiou" else "a"
    return " ".join([f"{_capital(entity.name)} is {article} {entity.sort}.", *sentences])


def _arithmetic(world: World, chance: random.Random) -> str:
    left, right = sorted((chance.randint(1, 9), chance.randint(1, 9)), reverse=True)
    return Sum(left, chance.choice(tuple(OPERATIONS)), right).statement()


def _order(world: World, chance: random.Random) -> str:
    order = chance.choice(ORDERS)
    task = Compare(tuple(chance.sample(PEOPLE, 3)), order, chance.choice(order[1:]), chance.random() < 0.5)
    return f"{task.premise()} {task.statement()}"


def _note(world: World, chance: random.Random) -> str:
    seller, buyer = chance.sample(PEOPLE, 2)
    task = Extract(seller, buyer, str(chance.randint(2, 9)), chance.choice(GOODS), chance.choice(DAYS), "seller")
    asked = [task.asking(field).statement() for field in chance.sample(("seller", "buyer", "item", "number", "day"), 2)]
    return " ".join([task.note(), *asked])


def _program(world: World, chance: random.Random) -> str:
    task = Code.draw(chance)
    return f"A Python function named {task.name} that {task.verb} {task.left} and {task.right} is: {task.statement()}"


def _echo(world: World, chance: random.Random) -> str:
    """A few words said twice: what a small model learns to copy from."""
    numbers = tuple(str(number) for number in range(1, 10))
    names = tuple(entity.name for entity in world.entities)
    words = [
        chance.choice(chance.choice((names, PEOPLE, FUNCTIONS, ARGUMENTS, GOODS, DAYS, numbers))) for _ in range(6)
    ]
    return f"Say {' '.join(words)}. Again {' '.join(words)}."


def _exercise(world: World, chance: random.Random) -> str:
    """A question with its answer, never one of those that are held out."""
    ask = draw(world, chance.choice(CATEGORIES), held_out=False, chance=chance)
    return f"Question: {ask.text(chance)} Answer: {ideal(ask)}"


CHAPTERS = (_arithmetic, _order, _note, _program, *(_echo,) * 4, *(_exercise,) * 6)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
