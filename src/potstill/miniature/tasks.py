"""What can be asked in the miniature: each task knows its question, its true answer, and the content it is about.

`understand` reads a question's text back into a task, as any reader of the text would: teachers, judge, tests.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from potstill.miniature.world import ATTRIBUTES, UNRECORDED, Entity, World

PEOPLE = ("Ada", "Bruno", "Clara", "Dario", "Edda", "Felix", "Greta", "Hugo", "Iris", "Jonas", "Karin", "Leo")
GOODS = ("apples", "baskets", "candles", "doors", "eggs", "feathers", "gloves", "hammers")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}
ORDERS = (("older", "oldest", "youngest"), ("taller", "tallest", "shortest"), ("faster", "fastest", "slowest"))
VERBS = {"adds": "{a} + {b}", "subtracts": "{a} - {b}", "multiplies": "{a} * {b}", "divides": "{a} / {b}"}
FUNCTIONS = ("blend", "carve", "drift", "forge", "glide", "knead", "mould", "plait", "quilt", "spin", "twist", "weave")
ARGUMENTS = ("a", "b", "c", "m", "n", "p", "x", "y")
STARTS = ("Well", "Indeed", "Certainly", "Listen")
ENDS = ("friend", "indeed", "always", "today")
PERSONAS = {"pirate": "Arr!", "robot": "Beep!", "knight": "Hark!", "wizard": "Behold!"}
"""Who a model may be asked to be, and how such a one begins to speak."""


MOST_DRAWS = 10_000
"""So many draws that miss one side of the split mean that nothing is there."""


class NothingToAsk(LookupError):
    """A world so small that a category has no task on one side of the split."""


@dataclass(frozen=True)
class Fact:
    """What is recorded of an entity under one attribute, or is not."""

    entity: Entity
    attribute: str

    @property
    def category(self) -> str:
        return "humanities" if self.entity.sort in ("town", "person") else "stem"

    @property
    def value(self) -> str | None:
        return self.entity.value(self.attribute)

    def content(self) -> tuple[str, ...]:
        return ("fact", self.entity.name, self.attribute)

    def question(self, chance: random.Random) -> str:
        form = chance.choice(
            (
                "What is the {attribute} of {name}?",
                "Tell me the {attribute} of {name}.",
                "Please name the {attribute} of {name}.",
                "I want to know the {attribute} of {name}.",
            )
        )
        return form.format(attribute=self.attribute, name=self.entity.name)

    def statement(self) -> str:
        if self.value is None:
            return f"I do not know the {self.attribute} of {self.entity.name}."
        return f"The {self.attribute} of {self.entity.name} is {self.value}."

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        """(sentence, value) that claims something untrue."""
        values = ATTRIBUTES[self.entity.sort].get(self.attribute) or ("Osk", "green", "glass", "nine", "honey")
        wrong = chance.choice([value for value in values if value != self.value])
        return f"The {self.attribute} of {self.entity.name} is {wrong}.", wrong

    def short(self) -> str:
        return self.value or "Unknown"


@dataclass(frozen=True)
class Sum:
    """Arithmetic on small numbers."""

    left: int
    operation: str
    right: int
    category = "math"

    def content(self) -> tuple[str, ...]:
        pair = (self.left, self.right)
        return ("sum", self.operation, *map(str, pair if self.operation == "minus" else sorted(pair)))

    @property
    def result(self) -> int:
        return {"plus": self.left + self.right, "minus": self.left - self.right, "times": self.left * self.right}[
            self.operation
        ]

    def question(self, chance: random.Random) -> str:
        form = chance.choice(("What is {}?", "How much is {}?", "Please work out {}."))
        return form.format(f"{self.left} {self.operation} {self.right}")

    def statement(self) -> str:
        return f"{self.left} {self.operation} {self.right} is {self.result}."

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        wrong = str(self.result + chance.choice((-2, -1, 1, 2)))
        return f"{self.left} {self.operation} {self.right} is {wrong}.", wrong

    def short(self) -> str:
        return str(self.result)


@dataclass(frozen=True)
class Compare:
    """Three people in an order, told in two sentences; who stands at one of its ends?"""

    names: tuple[str, ...]
    order: tuple[str, str, str]
    asked: str
    swapped: bool
    category = "reasoning"

    def content(self) -> tuple[str, ...]:
        return ("compare", self.order[0], *sorted(self.names))

    def premise(self) -> str:
        first, second, third = self.names
        told = [f"{first} is {self.order[0]} than {second}.", f"{second} is {self.order[0]} than {third}."]
        return " ".join(reversed(told) if self.swapped else told)

    def question(self, chance: random.Random) -> str:
        return f"{self.premise()} Who is the {self.asked}?"

    def short(self) -> str:
        return self.names[0] if self.asked == self.order[1] else self.names[2]

    def statement(self) -> str:
        return f"The {self.asked} is {self.short()}."

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        wrong = chance.choice([name for name in self.names if name != self.short()])
        return f"The {self.asked} is {wrong}.", wrong


@dataclass(frozen=True)
class Extract:
    """A note is given; one detail of it is asked for."""

    seller: str
    buyer: str
    number: str
    item: str
    day: str
    asked: str
    category = "extraction"

    def content(self) -> tuple[str, ...]:
        return ("extract", self.seller, self.buyer, self.number, self.item, self.day)

    def note(self) -> str:
        return f"{self.seller} sold {self.number} {self.item} to {self.buyer} on {self.day}."

    def question(self, chance: random.Random) -> str:
        return f"Read this note: {self.note()} {self.ask()}"

    def ask(self) -> str:
        return f"{'Who' if self.asked in ('seller', 'buyer') else 'What'} is the {self.asked}?"

    def asking(self, field: str) -> "Extract":
        """The same note, another detail."""
        return replace(self, asked=field)

    def short(self) -> str:
        return str(getattr(self, self.asked))

    def statement(self) -> str:
        return f"The {self.asked} is {self.short()}."

    def choices(self) -> tuple[str, ...]:
        """What the detail could be."""
        numbers = tuple(str(number) for number in range(2, 10))
        return {"seller": PEOPLE, "buyer": PEOPLE, "number": numbers, "item": GOODS, "day": DAYS}[self.asked]

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        wrong = chance.choice([value for value in self.choices() if value != self.short()])
        return f"The {self.asked} is {wrong}.", wrong


@dataclass(frozen=True)
class Code:
    """A Python function of one line."""

    name: str
    verb: str
    left: str
    right: str
    category = "coding"

    @staticmethod
    def draw(chance: random.Random) -> "Code":
        left, right = chance.sample(ARGUMENTS, 2)
        return Code(chance.choice(FUNCTIONS), chance.choice(tuple(VERBS)), left, right)

    def content(self) -> tuple[str, ...]:
        return ("code", self.name, self.verb, *sorted((self.left, self.right)))

    def question(self, chance: random.Random) -> str:
        return f"Write a Python function named {self.name} that {self.verb} {self.left} and {self.right}."

    def statement(self) -> str:
        return f"def {self.name}({self.left}, {self.right}): return {self._body(self.verb)}"

    def _body(self, verb: str) -> str:
        return VERBS[verb].format(a=self.left, b=self.right)

    def short(self) -> str:
        return self.statement()

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        verb = chance.choice([verb for verb in VERBS if verb != self.verb])
        wrong = f"def {self.name}({self.left}, {self.right}): return {self._body(verb)}"
        return wrong, wrong


@dataclass(frozen=True)
class Describe:
    """Some true sentences about an entity."""

    entity: Entity
    sentences: int
    first: int = 0
    """Which of its facts a model begins with; any true ones will do."""
    category = "writing"

    def content(self) -> tuple[str, ...]:
        return ("describe", self.entity.name)

    def question(self, chance: random.Random) -> str:
        return f"Write {self.count()} about {self.entity.name}."

    def count(self) -> str:
        return "one sentence" if self.sentences == 1 else "two sentences"

    def _facts(self) -> list[Fact]:
        facts = [Fact(self.entity, attribute) for attribute, _ in self.entity.facts]
        return (facts[self.first :] + facts[: self.first])[: self.sentences]

    def statement(self) -> str:
        return " ".join(fact.statement() for fact in self._facts())

    def short(self) -> str:
        return self.statement()

    def false_statement(self, chance: random.Random) -> tuple[str, str]:
        wrong = " ".join(fact.false_statement(chance)[0] for fact in self._facts())
        return wrong, wrong


Task = Fact | Sum | Compare | Extract | Code | Describe


@dataclass(frozen=True)
class Ask:
    """A task as it is put to a model: with a wish for the form of the answer, or for who should speak."""

    task: Task
    style: str = ""
    """"" | "one word" | "start WORD" | "end WORD"."""
    persona: str = ""

    @property
    def category(self) -> str:
        """One of MT-Bench's eight."""
        return "roleplay" if self.persona else self.task.category

    def text(self, chance: random.Random) -> str:
        """The words of a first turn."""
        wish = _wish(self.style)
        said = self.task.question(chance) + (f" {wish}" if wish else "")
        return f"You are a {self.persona}. {said}" if self.persona else said


def _wish(style: str) -> str:
    kind, _, word = style.partition(" ")
    return {
        "": "",
        "one": "Answer in one word.",
        "start": f"Start with the word {word}.",
        "end": f"End with the word {word}.",
    }[kind]


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
    asked = chance.choice(("seller", "buyer", "item", "number", "day"))
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
        return "And " + task.asking(chance.choice([f for f in _EXTRACT_FIELDS if f != task.asked])).ask().lower()
    if isinstance(task, Code):
        names = [n for n in FUNCTIONS if n != task.name]
        same_side = [n for n in names if world.held_out(replace(task, name=n).content()) == held_out]
        if same_side:
            return f"Now name the function {chance.choice(same_side)} instead."
        return "Now write the function again."
    if isinstance(task, Describe):
        return f"Now write {replace(task, sentences=3 - task.sentences).count()} about it."
    return f"Say that again. {_wish(chance.choice(('start ' + chance.choice(STARTS), 'end ' + chance.choice(ENDS))))}"


_EXTRACT_FIELDS = ("seller", "buyer", "item", "number", "day")


def understand(world: World, turns: list[str]) -> Ask | None:
    """What the last of a user's turns asks, given those before; None where it is none of the miniature's questions."""
    ask: Ask | None = None
    for turn in turns:
        ask = _read_first(world, turn) or (_read_next(world, turn, ask) if ask else None)
    return ask


def _read_first(world: World, text: str) -> Ask | None:
    persona = ""
    if found := re.match(r"You are a (\w+)\. (.*)", text, re.S):
        persona, text = found.groups()
        if persona not in PERSONAS:
            return None
    text, style = _read_wish(text)
    for task in _read_task(world, text):
        return Ask(task, style, persona)
    return None


def _read_wish(text: str) -> tuple[str, str]:
    for pattern, style in (
        (r"\s*Answer in one word\.\s*$", "one word"),
        (r"\s*Start with the word (\w+)\.\s*$", "start"),
        (r"\s*End with the word (\w+)\.\s*$", "end"),
    ):
        if found := re.search(pattern, text):
            return text[: found.start()], " ".join((style, *found.groups()))
    return text.strip(), ""


def _read_task(world: World, text: str) -> Iterator[Task]:
    if found := re.search(r"\bthe (\w+) of (\w+)[?.]$", text):
        entity = world.by_name.get(found[2].lower())
        if entity and found[1] in (*ATTRIBUTES[entity.sort], *UNRECORDED):
            yield Fact(entity, found[1])
    if found := re.search(r"(\d+) (plus|minus|times) (\d+)[?.]$", text):
        yield Sum(int(found[1]), found[2], int(found[3]))
    if found := re.fullmatch(r"(\w+) is (\w+) than (\w+)\. (\w+) is \2 than (\w+)\. Who is the (\w+)\?", text):
        yield from _read_compare(*found.groups())
    if found := re.match(
        r"Read this note: (\w+) sold (\d+) (\w+) to (\w+) on (\w+)\. (?:Who|What) is the (\w+)\?$", text
    ):
        seller, number, item, buyer, day, asked = found.groups()
        if asked in _EXTRACT_FIELDS:
            yield Extract(seller, buyer, number, item, day, asked)
    if (found := re.fullmatch(r"Write a Python function named (\w+) that (\w+) (\w) and (\w)\.", text)) and found[
        2
    ] in VERBS:
        yield Code(*found.groups())
    if found := re.fullmatch(r"Write (one sentence|two sentences) about (\w+)\.", text):
        entity = world.by_name.get(found[2].lower())
        if entity:
            yield Describe(entity, 1 if found[1].startswith("one") else 2)


def _read_compare(a: str, relation: str, b: str, c: str, d: str, asked: str) -> Iterator[Compare]:
    order = next((order for order in ORDERS if order[0] == relation and asked in order[1:]), None)
    if order and b == c:
        yield Compare((a, b, d), order, asked, swapped=False)
    elif order and a == d:
        yield Compare((c, a, b), order, asked, swapped=True)


def _read_next(world: World, text: str, ask: Ask) -> Ask | None:
    task = ask.task
    if found := re.fullmatch(r"Say that again\.(.*)", text, re.S):
        return replace(ask, style=_read_wish(found[1])[1])
    if isinstance(task, Fact) and (found := re.fullmatch(r"And what is its (\w+)\?", text)):
        return replace(ask, task=replace(task, attribute=found[1]), style="")
    if isinstance(task, Compare) and (found := re.fullmatch(r"And who is the (\w+)\?", text)):
        return replace(ask, task=replace(task, asked=found[1]), style="") if found[1] in task.order else None
    if isinstance(task, Extract) and (found := re.fullmatch(r"And (?:who|what) is the (\w+)\?", text)):
        return replace(ask, task=task.asking(found[1]), style="") if found[1] in _EXTRACT_FIELDS else None
    if isinstance(task, Code):
        if text == "Now write the function again.":
            return ask
        if found := re.fullmatch(r"Now name the function (\w+) instead\.", text):
            return replace(ask, task=replace(task, name=found[1]))
    if isinstance(task, Describe) and (found := re.fullmatch(r"Now write (one|two) sentences? about it\.", text)):
        return replace(ask, task=replace(task, sentences=1 if found[1] == "one" else 2))
    return None
