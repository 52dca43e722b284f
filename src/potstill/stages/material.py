"""Stage `material`: given texts become prompts about them, the text in the user's first turn.

UltraChat's third sector (Ding et al. 2023, section 3.4): up to five questions about each piece of text.
"""

import random
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.errors import DataError
from potstill.records import Dropped, Message, Prompt, Text
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.stages.prompting import TOKENS_PER_PROMPT, Prompting, Writer, read_list, sieve
from potstill.teachers.base import connect, request_seed


class Material(Prompting):
    """Have a teacher think of what a reader of each text might want done with it."""

    PROMPTS: ClassVar[tuple[str, ...]] = ("material", "material_turn", "domain")

    kind: Literal["material"]
    texts: Annotated[str, Reference(("texts",))]
    """The texts, such as pages, articles or the documents of a firm."""
    questions: int = Field(default=5, ge=1)
    """How many questions to ask for about each text; of what comes, no more are used."""
    novelty: float | None = Field(default=0.9, gt=0, le=1)
    """Drop a question whose ROUGE-L F against another about the same text is over this; null: only the same ones."""
    min_characters: int = Field(default=200, ge=1)
    """Leave out shorter texts."""
    max_characters: int = Field(default=8000, ge=1)
    """Leave out longer texts: none is cut."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["texts"]
        tokens = calls * (self.max_characters // 8 + self.questions * TOKENS_PER_PROMPT)
        return Expected(calls * self.questions, calls, tokens)


def run(config: Material, inputs: Inputs, work: Work) -> Facts:
    """Text by text, each asked about once."""
    data = inputs.one("texts")
    total = sum(1 for _ in data.rows(Text))  # so that a bad row is found before anything is asked
    if not total:
        raise DataError(data.name, "there are no texts", "Give it some")
    writer = Writer(config, inputs, work.seed)
    with connect(inputs.model("teacher"), work.account) as teacher, work.harvest() as harvest:
        talks = (_about(writer, row) for row in data.rows(Text))
        for done, (row, questions, dropped) in enumerate(convey(talks, {"teacher": teacher}), start=1):
            for each in dropped:
                harvest.drop(each)
            known = sieve(config)
            for place, question in enumerate(questions):
                name = f"{row.id}-{place}"
                if place >= config.questions:
                    harvest.drop(Dropped(id=name, reason="beyond_count", detail=question))
                elif known.take(harvest, name, question):
                    harvest.keep(_prompt(writer, name, row, question))
            work.progress(done, total, "texts", prompts=harvest.rows)
    if not writer.first:
        raise DataError(
            data.name,
            f"no text has {config.min_characters} to {config.max_characters} characters",
            "Give other texts, or change min_characters and max_characters",
        )
    if not harvest.rows:
        raise writer.nothing(inputs.model("teacher").name, harvest, "a question")
    return {"rows": harvest.rows, "texts": total, "dropped": harvest.reasons, "replies": writer.tally.facts()}


def _about(writer: Writer, row: Text) -> Talk[tuple[Text, list[str], list[Dropped]]]:
    """The questions about a text, and what could not be used."""
    config, length = writer.config, len(row.text)
    assert isinstance(config, Material)
    if not config.min_characters <= length <= config.max_characters:
        reason = "text_too_short" if length < config.min_characters else "text_too_long"
        return row, [], [Dropped(id=row.id, reason=reason, detail=f"{length} characters")]
    dropped: list[Dropped] = []
    request = writer.request("material", row.id, "questions", reads=read_list, text=row.text, wanted=config.questions)
    reply = yield Ask("teacher", request)
    return row, writer.items(dropped.append, row.id, reply), dropped


def _prompt(writer: Writer, name: str, row: Text, question: str) -> Prompt:
    """The question and the text in one turn, in an order that is drawn."""
    first = random.Random(request_seed(writer.seed, name, "order")).random() < 0.5
    said = writer.prompts.render("material_turn", text=row.text, question=question, text_first=first).strip()
    return Prompt(id=name, messages=(Message(role="user", content=said),))


STAGE = Stage(config=Material, produces="prompts", run=run)
