"""What can be asked in the miniature: each task knows its question, its true answer, and the content it is about."""

import random
from dataclasses import dataclass, replace

from potstill.miniature.world import ATTRIBUTES, Entity

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
DETAILS = ("seller", "buyer", "item", "number", "day")
"""What can be asked of a note about a sale."""
PERSONAS = {"pirate": "Arr!", "robot": "Beep!", "knight": "Hark!", "wizard": "Behold!"}
"""Who a model may be asked to be, and how such a one begins to speak."""


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
        wish = wish_in_words(self.style)
        said = self.task.question(chance) + (f" {wish}" if wish else "")
        return f"You are a {self.persona}. {said}" if self.persona else said


def wish_in_words(style: str) -> str:
    """How a user says which form the answer should have."""
    kind, _, word = style.partition(" ")
    return {
        "": "",
        "one": "Answer in one word.",
        "start": f"Start with the word {word}.",
        "end": f"End with the word {word}.",
    }[kind]
