"""Drills: what small models of one skill each are taught and tested on. Texts read back, teachers' replies, prompts.

labels: a question of the miniature, and which of the eight categories it belongs to. problems: sums of several steps,
told as a story. lookups: questions that only the archive answers. facts and notes: single questions of the
encyclopedia's kind, in plain words; paired: notes with a slot for who sells.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from potstill.miniature.archive import draw_entry, look_up, question, statement
from potstill.miniature.asking import CATEGORIES, draw
from potstill.miniature.reading import understand
from potstill.miniature.tasks import GOODS, PEOPLE, Extract
from potstill.miniature.voices import VOICES
from potstill.miniature.world import World

STEPS = 3
MOST = 9
"""Of what is found or lost in a step."""
MOST_DRAWS = 100_000

_STORY = re.compile(r"(\w+) has (\d+) (\w+)((?:, (?:finds|loses) \d+)+ and (?:finds|loses) \d+)\. How many")
_STEP = re.compile(r"(finds|loses) (\d+)")
_ARCHIVE = re.compile(r"\barchive\b.* the (\w+) that (\w+) left on (\w+)[.?]$")
_LABELS = re.compile(r"^The labels:\n((?:- .+\n)+)", re.MULTILINE)
_TEXT = re.compile(r"<text 1>\n(.*)\n</text 1>", re.DOTALL)


@dataclass(frozen=True)
class Story:
    """Someone has some things, finds some and loses some."""

    who: str
    goods: str
    start: int
    steps: tuple[int, ...]
    """What is found; below zero what is lost."""

    @property
    def result(self) -> int:
        return self.start + sum(self.steps)

    def text(self) -> str:
        told = [f"{'finds' if step > 0 else 'loses'} {abs(step)}" for step in self.steps]
        middle = "".join(f", {step}" for step in told[:-1])
        return (
            f"{self.who} has {self.start} {self.goods}{middle} and {told[-1]}. "
            f"How many {self.goods} does {self.who} have now?"
        )

    def derivation(self, slip: int = 0, at: int = -1) -> tuple[str, int]:
        """(the steps in words, what they come to), with a slip in step `at`, which the later ones carry on."""
        lines, so_far = [], self.start
        for number, step in enumerate(self.steps):
            after = so_far + step + (slip if number == at else 0)
            lines.append(f"{so_far} {'plus' if step > 0 else 'minus'} {abs(step)} is {after}.")
            so_far = after
        return " ".join(lines), so_far

    def content(self) -> tuple[str, ...]:
        """What it is about: the numbers alone, so that no other names make it a new one."""
        return ("story", str(self.start), *map(str, self.steps))


def draw_story(chance: random.Random) -> Story:
    """A random story; nobody loses more than there is."""
    start, steps = chance.randint(1, MOST), list[int]()
    while len(steps) < STEPS:
        step = chance.choice((-1, 1)) * chance.randint(1, MOST)
        if start + sum(steps) + step >= 0:
            steps.append(step)
    return Story(chance.choice(PEOPLE), chance.choice(GOODS), start, tuple(steps))


def read_story(text: str) -> Story | None:
    """The story that a text begins with."""
    found = _STORY.match(text)
    if found is None:
        return None
    steps = tuple(int(n) if verb == "finds" else -int(n) for verb, n in _STEP.findall(found[4]))
    return Story(found[1], found[3], int(found[2]), steps)


def drills(world: World, part: str, held_out: bool, count: int) -> Iterator[tuple[str, str, str]]:
    """(question, true answer, category) of so many drills, no question twice, on one side of the split.

    LookupError where the world holds fewer.
    """
    chance = random.Random(f"drills/{part}/{held_out}/{world.seed}")
    seen: set[str] = set()
    for _ in range(MOST_DRAWS):
        if len(seen) == count:
            return
        asked, answer, category = _DRAWS[part](world, held_out, chance)
        if asked and asked not in seen:
            seen.add(asked)
            yield asked, answer, category
    raise LookupError(f"{len(seen)} different")


def _draw_label(world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    category = chance.choice(CATEGORIES)
    return draw(world, category, held_out, chance).text(chance), category, category


def _draw_problem(world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    story = draw_story(chance)
    return (story.text() if world.held_out(story.content()) == held_out else ""), str(story.result), "math"


def _draw_lookup(world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    entry = draw_entry(chance)
    asked = question(entry, chance) if world.held_out(("archive", *entry)) == held_out else ""
    return asked, statement(look_up(world, *entry)), "extraction"


def _draw_plain(category: str, world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    task = draw(world, category, held_out, chance).task
    return task.question(chance), task.statement(), task.category


def _draw_fact(world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    return _draw_plain(chance.choice(("stem", "humanities")), world, held_out, chance)


def _draw_paired(world: World, held_out: bool, chance: random.Random) -> tuple[str, str, str]:
    note = draw(world, "extraction", chance.random() < 0.5, chance).task
    assert isinstance(note, Extract)
    task = replace(note, seller=SLOT, asked=chance.choice(("item", "number", "day")))
    asked = task.question(chance) if world.held_out(task.content()) == held_out else ""
    return asked, task.statement(), task.category


SLOT = "{name}"
"""Where a person's name is to stand."""
_DRAWS: dict[str, Callable[[World, bool, random.Random], tuple[str, str, str]]] = {
    "labels": _draw_label,
    "problems": _draw_problem,
    "lookups": _draw_lookup,
    "facts": _draw_fact,
    "notes": partial(_draw_plain, "extraction"),
    "paired": _draw_paired,
}
DRILLS = tuple(_DRAWS)


def reworded(question: str, number: int) -> str:
    """A question about a fact in slightly other words: more before it, behind it, or in its middle."""
    if number % 3 == 0:
        return f"A quick question: {question[:1].lower()}{question[1:]}"
    if number % 3 == 1:
        return f"{question} Start with the word Well."
    return question.replace(" the ", ", then, the ", 1)


# What the voices behind the server make of them.


def label_reply(world: World, model: str, text: str, chance: random.Random) -> str | None:
    """A voice's label for what stands in a labelling prompt; None where the text is no such prompt."""
    labels, given = _LABELS.search(text), _TEXT.search(text)
    if not labels or not given:
        return None
    offered = re.findall(r"^- (.+)$", labels[1], re.M)
    ask = understand(world, [given[1].strip()])
    if ask is None or ask.category not in offered:
        return "I do not know which label fits."
    label = ask.category
    if chance.random() < VOICES[model].misjudges:
        label = chance.choice([other for other in offered if other != label])
    return f"Label: {label}"


def problem_reply(model: str, text: str, chance: random.Random) -> str | None:
    """A voice's derivation of a story's answer, thought aloud; None where the text tells no story."""
    story = read_story(text)
    if story is None:
        return None
    slip = chance.choice((-2, -1, 1, 2)) if chance.random() < VOICES[model].forges else 0
    steps, result = story.derivation(slip, chance.randrange(len(story.steps)))
    return f"<think>\n{steps}\n</think>\nAnswer: {result}"


def tool_reply(
    model: str, messages: Sequence[Mapping[str, Any]], chance: random.Random
) -> tuple[str, dict[str, Any] | None] | None:
    """(what a voice says, the call that it makes) where it is asked for what the archive holds; None elsewhere."""
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    found = _ARCHIVE.search(asked)
    if found is None:
        return None
    item, person, day = found.groups()
    if messages[-1]["role"] != "tool":
        if chance.random() < VOICES[model].forges:  # asks for what nobody asked
            person, item, day = chance.choice(((person, "dragons", day), draw_entry(chance)))
        return "", {"name": "lookup", "arguments": json.dumps({"person": person, "item": item, "day": day})}
    result = str(messages[-1]["content"])
    return ("I could not find them." if result.startswith("error:") else statement(result)), None
