"""Stage `miniature`: one part of the embedded world, as texts or prompts."""

import random
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from typing import Literal, Self

from pydantic import Field, model_validator

from potstill.errors import RecipeError
from potstill.miniature.asking import CATEGORIES, NothingToAsk, draw, follow_up
from potstill.miniature.drills import DRILLS, drills, reworded
from potstill.miniature.encyclopedia import articles
from potstill.miniature.reading import understand
from potstill.miniature.tasks import Ask
from potstill.miniature.voices import ideal
from potstill.miniature.world import World, world
from potstill.records import Message, Prompt, Record, Text
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ServerName, Stage, StageConfig, Work

WITH_REFERENCES = ("math", "reasoning", "coding")
MOST_DRAWS = 20_000
"""So many draws without a new prompt mean that there is none left."""


class Miniature(StageConfig):
    """Write one part of the miniature's world."""

    kind: Literal["miniature"]
    server: ServerName
    """The miniature server whose world it is."""
    part: Literal["articles", "seeds", "questions", "labels", "problems", "lookups", "facts", "notes", "paired"]
    """articles: its encyclopedia. seeds: prompts for Self-Instruct to begin with. questions: held out, of two turns.
    Drills of one skill each, with the truth as reference: labels (questions and their category), problems (sums of
    three steps), lookups (what only the archive tells), facts and notes (single questions about the encyclopedia's
    facts, and about a note), and paired (notes with the slot {name} for who sells)."""
    held_out: bool = False
    """Of drills: those of the test, with contents that no other drill has."""
    count: int = Field(default=500, ge=1, le=100_000)
    """How many drills."""
    reworded: bool = False
    """Of facts: the same questions, in slightly other words."""
    editions: int = Field(default=20, ge=1, le=100_000)
    """How many times the encyclopedia tells everything, each time in other words."""
    per_category: int = Field(default=20, ge=1)
    """Prompts in each of the eight categories."""

    @model_validator(mode="after")
    def _can_be_reworded(self) -> Self:
        if self.reworded and self.part != "facts":
            raise ValueError("reworded is for facts alone; leave it out")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        if self.part in DRILLS:
            return Expected(rows=self.count)
        return Expected(rows=self.editions * 200 if self.part == "articles" else self.per_category * len(CATEGORIES))


def run(config: Miniature, inputs: Inputs, work: Work) -> Facts:
    """Write the part."""
    spec = inputs.servers["server"]
    known = world(spec.seed, spec.entities)
    rows: Iterator[Record]
    if config.part == "articles":
        rows = (Text(id=name, text=text) for name, text in articles(known, config.editions))
    elif config.part in DRILLS:
        rows = drilled(known, config.part, config.held_out, config.count)
        if config.reworded:
            rows = (in_other_words(row, number) for number, row in enumerate(rows))
    else:
        rows = prompts(known, config.part == "questions", config.per_category)
    work.drop(())
    return {"rows": work.keep(rows), "dropped": {}}


def prompts(known: World, held_out: bool, per_category: int) -> Iterator[Prompt]:
    """Prompts of every category, no two the same, all on one side of the split between training and test."""
    part = "questions" if held_out else "seeds"
    for category in CATEGORIES:
        chance = random.Random(f"{part}/{category}/{known.seed}")
        seen: set[str] = set()
        while len(seen) < per_category:
            ask, text = _unseen(known, category, held_out, chance, seen, per_category)
            seen.add(text)
            then = follow_up(known, ask, chance)
            asked = [understand(known, turns) for turns in ([text], [text, then])]
            yield Prompt(
                id=f"{part}-{category}-{len(seen)}",
                messages=(Message(role="user", content=text),),
                follow_ups=(then,),
                references=tuple(ideal(ask) for ask in asked if ask) if category in WITH_REFERENCES else (),
                category=category,
            )


def drilled(known: World, part: str, held_out: bool, count: int) -> Iterator[Prompt]:
    """Drills as prompts, each with the truth as its reference."""
    side = "held-out" if held_out else "training"
    try:
        for number, (text, answer, category) in enumerate(drills(known, part, held_out, count)):
            asked = (Message(role="user", content=text),)
            yield Prompt(id=f"{part}-{side}-{number}", messages=asked, references=(answer,), category=category)
    except LookupError as error:
        what = f"it has {error} {side} drills of the part '{part}'; expected {count}"
        raise RecipeError(f"a world of {known.size} entities", what, "Lower count, or raise entities") from error


def in_other_words(row: Prompt, number: int) -> Prompt:
    """The same question of a fact, slightly reworded."""
    asked = row.messages[0].content
    said = Message(role="user", content=reworded(asked, number))
    return row.model_copy(update={"id": f"{row.id}-reworded", "messages": (said,)})


def _unseen(
    known: World, category: str, held_out: bool, chance: random.Random, seen: Set[str], wanted: int
) -> tuple[Ask, str]:
    """A prompt that is not among those seen. RecipeError where the world seems to have no more of them."""
    with suppress(NothingToAsk):
        for _ in range(MOST_DRAWS):
            ask = draw(known, category, held_out, chance)
            text = ask.text(chance)
            if text not in seen:
                return ask, text
    side = "held-out" if held_out else "training"
    raise RecipeError(
        f"a world of {known.size} entities",
        f"it has {len(seen)} different {side} prompts of the category '{category}'; expected {wanted}",
        "Lower the stage's per_category, or raise the server's entities",
    )


STAGE = Stage(config=Miniature, produces=lambda config: "texts" if config.part == "articles" else "prompts", run=run)
