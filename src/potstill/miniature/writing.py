"""What the miniature's voices write when they are asked for tasks, topics, people, rewritings or examples.

Each request is known by its first line, as any reader would know it. Everything that is made of it is one of the
miniature's own questions, on the training side of its split.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from potstill.miniature.asking import CATEGORIES, NothingToAsk, draw
from potstill.miniature.reading import understand
from potstill.miniature.tasks import PERSONAS, STARTS, Ask, Code, Compare, Describe, Fact, wish_in_words
from potstill.miniature.voices import Voice, answer
from potstill.miniature.world import ATTRIBUTES, World

MOST_TRIES = 100


def write(world: World, voice: Voice, text: str, chance: random.Random) -> str | None:
    """The reply to a request for something to be written, or None where the text is none."""
    made = _WRITERS.get(text.split("\n", 1)[0].strip())
    return made(world, voice, text, chance) if made else None


def new_question(world: World, chance: random.Random) -> str:
    """A question as users of this world ask them."""
    return draw(world, chance.choice(CATEGORIES), held_out=False, chance=chance).text(chance)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _wanted(text: str) -> int:
    found = re.search(r"^(?:Name|Describe|Write) (\d+) |, up to (\d+),", text, re.M)
    return int(found[1] or found[2]) if found else 5


def _path(text: str) -> list[str]:
    """The topic that a request is about, from the whole to the part."""
    for pattern in (
        r"^Topic: (.+)$",
        r"the topic (.+?), each",
        r"interested in (.+?) would",
        r"an assistant about (.+?)\.",
    ):
        if found := re.search(pattern, text, re.M):
            return [part.strip() for part in found[1].split(" > ")]
    return []


def _shown(text: str) -> list[str]:
    return [said for _, said in re.findall(r"<text (\d+)>\n(.*?)\n?</text \1>", text, re.S)]


def _topics(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    path = _path(text) if "parts of the topic" in text else []
    names = ATTRIBUTES.get(path[-1].lower(), ()) if path else [*ATTRIBUTES, *CATEGORIES]
    return _listed(list(names)[: _wanted(text)])


def _names(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    sorts = [part.lower() for part in _path(text) if part.lower() in ATTRIBUTES]
    known = [entity.name for entity in world.entities if not sorts or entity.sort in sorts]
    return _listed(chance.sample(known, min(_wanted(text), len(known))))


def _people(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    places = [entity.name for entity in world.entities if entity.sort == "town"]
    people = [f"a {persona} from {place} who is curious" for persona in PERSONAS for place in places]
    return _listed(chance.sample(people, min(_wanted(text), len(people))))


def _questions(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    path, named = _path(text), re.search(r"^In particular: (\w+)$", text, re.M)
    return _listed(_question(world, path, named[1] if named else "", chance) for _ in range(_wanted(text)))


def _question(world: World, path: list[str], named: str, chance: random.Random) -> str:
    """About the entity that is named, or one of the sort that the topic is, or about anything."""
    sorts = [part.lower() for part in path if part.lower() in ATTRIBUTES]
    attribute = path[-1].lower() if path else ""
    for _ in range(MOST_TRIES):
        entity = world.by_name.get(named.lower())
        if entity is None and sorts:
            entity = chance.choice([known for known in world.entities if known.sort == sorts[-1]])
        if entity is None:
            break
        recorded = list(ATTRIBUTES[entity.sort])
        task = Fact(entity, attribute if attribute in recorded else chance.choice(recorded))
        if not world.held_out(task.content()):
            return Ask(task).text(chance)
    category = path[-1].lower() if path and path[-1].lower() in CATEGORIES else chance.choice(CATEGORIES)
    return draw(world, category, held_out=False, chance=chance).text(chance)


def _instructions(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    made = (draw(world, "writing", held_out=False, chance=chance).text(chance) for _ in range(_wanted(text)))
    return _listed(made)


def _detailed(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    ask = understand(world, _shown(text)[:1])
    if ask is None or not isinstance(ask.task, Describe):
        return "I am not sure what you mean by that."
    return Ask(replace(ask.task, sentences=2)).text(chance)


def _about_a_text(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    known = [name for name in dict.fromkeys(re.findall(r"\w+", _shown(text)[0])) if name.lower() in world.by_name]
    return _listed(_question(world, [], chance.choice(known) if known else "", chance) for _ in range(_wanted(text)))


def _rewritten(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    """With a wish for its form; or another of its category, where a new one is wanted."""
    said = _shown(text)[0].strip()
    ask = understand(world, [said])
    if ask is None:
        return said
    if "write a new one" in text:
        try:
            return draw(world, ask.category, held_out=False, chance=chance).text(chance)
        except NothingToAsk:
            return said
    if isinstance(ask.task, Describe):
        return Ask(replace(ask.task, sentences=2)).text(chance)
    if ask.style or isinstance(ask.task, Code):
        return said
    return f"{said} {wish_in_words(f'start {chance.choice(STARTS)}')}"


def _equal(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    asks = [understand(world, [said.strip()]) for said in _shown(text)]
    same = len(asks) == 2 and asks[0] is not None and asks[0] == asks[1]
    return "equal" if same else "not equal"


def _kind(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    ask = understand(world, re.findall(r"^Task: (.+)$", text, re.M)[-1:])
    return "yes" if ask and isinstance(ask.task, Compare) else "no"


def _examples(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    ask = understand(world, re.findall(r"^Task: (.+)$", text, re.M)[-1:])
    if ask is None:
        return "I am not sure what you mean by that."
    return f"Example 1\nInput: none\nOutput: {answer(ask, voice, chance)}"


def _labelled(world: World, voice: Voice, text: str, chance: random.Random) -> str:
    ask = understand(world, re.findall(r"^Task: (.+)$", text, re.M)[-1:])
    if ask is None or not isinstance(ask.task, Compare):
        return "I am not sure what you mean by that."
    blocks = []
    for number in range(1, min(_wanted(text), 3) + 1):
        other = replace(ask.task, names=tuple(chance.sample(sorted(ask.task.names), 3)))
        blocks.append(f"Example {number}\nLabel: {other.short()}\nInput: {other.premise()}")
    return "\n\n".join(blocks)


_WRITERS: dict[str, Callable[[World, Voice, str, random.Random], str]] = {
    "# Topics": _topics,
    "# Names": _names,
    "# People": _people,
    "# Questions": _questions,
    "# Writing tasks": _instructions,
    "# More detail": _detailed,
    "# Questions about a text": _about_a_text,
    "# Rewrite": _rewritten,
    "# Same or not": _equal,
    "# Kind of task": _kind,
    "# Examples of a task": _examples,
    "# Examples for each label": _labelled,
}
