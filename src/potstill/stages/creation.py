"""Stage `creation`: kinds of text become instructions to write one, most of them with details of their own.

UltraChat's second sector (Ding et al. 2023, section 3.3): 20 kinds of text, 200 instructions each, 80% expanded.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal, Self

from pydantic import Field

from potstill.records import Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Harvest, Stage, Work
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.stages.prompting import TOKENS_PER_PROMPT, Prompting, Words, Writer, one_line, read_list, sieve
from potstill.teachers.base import Teacher, connect, request_seed

KINDS = (
    "a short story", "a poem", "a scene of a play", "song lyrics", "an essay", "a letter", "an email", "a speech",
    "a news report", "a blog post", "a product description", "an advertisement", "a review", "a recipe",
    "instructions for use", "a report", "a summary for busy readers", "a lesson plan", "a business plan",
    "a program with an explanation",
)  # fmt: skip


class Creation(Prompting):
    """Have a teacher think of texts that people want written."""

    PROMPTS: ClassVar[tuple[str, ...]] = ("creation", "creation_detail", "domain")

    kind: Literal["creation"]
    texts: tuple[Words, ...] = Field(default=KINDS, min_length=1)
    """The kinds of text."""
    per_text: int = Field(default=200, ge=1)
    """Instructions to ask for of each kind of text."""
    per_request: int = Field(default=20, ge=1)
    """Instructions to ask for at once."""
    detailed: float = Field(default=0.8, ge=0, le=1)
    """The share of instructions that the teacher writes again with more detail; drawn for each."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        wanted = len(self.texts) * self.per_text
        lists = len(self.texts) * ceil(self.per_text / self.per_request)
        more = round(wanted * self.detailed)
        return Expected(wanted, lists + more, TOKENS_PER_PROMPT * (wanted + 5 * (lists + more)))

    def for_trial(self, rows: int) -> Self:
        """Fewer kinds of text, and fewer instructions of each."""
        texts = self.texts[:rows]
        return self.model_copy(update={"texts": texts, "per_text": min(self.per_text, ceil(rows / len(texts)))})


@dataclass(frozen=True)
class _Instruction:
    name: str
    text_kind: str
    text: str


def run(config: Creation, inputs: Inputs, work: Work) -> Facts:
    """All instructions first, so that they are held against each other; then the details."""
    writer, detailed = Writer(config, inputs, work.seed), 0
    with connect(inputs.model("teacher"), work.account) as teacher, work.harvest() as harvest:
        instructions = list(_instructions(writer, teacher, harvest, work))
        talks = (_detail(writer, instruction) for instruction in instructions)
        for done, (instruction, text) in enumerate(convey(talks, {"teacher": teacher}), start=1):
            if isinstance(text, Dropped):
                harvest.drop(text)
            else:
                detailed += text != instruction.text
                messages = (Message(role="user", content=text),)
                harvest.keep(Prompt(id=instruction.name, messages=messages, category=instruction.text_kind))
            work.progress(done, len(instructions), "instructions")
    if not harvest.rows:
        raise writer.nothing(inputs.model("teacher").name, harvest, "an instruction")
    return {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "detailed": detailed,
        "replies": writer.tally.facts(),
    }


def _instructions(writer: Writer, teacher: Teacher, harvest: Harvest, work: Work) -> Iterator[_Instruction]:
    """What is kept of every list."""
    config = writer.config
    assert isinstance(config, Creation)
    sizes = [
        (kind, min(config.per_request, config.per_text - start))
        for kind in config.texts
        for start in range(0, config.per_text, config.per_request)
    ]
    requests = (
        writer.request("creation", "list", number, reads=read_list, text_kind=kind, wanted=wanted)
        for number, (kind, wanted) in enumerate(sizes)
    )
    known = sieve(config)
    for number, ((kind, _), reply) in enumerate(zip(sizes, teacher.complete(requests), strict=True)):
        for place, text in enumerate(writer.items(harvest.drop, f"creation-{number}", reply)):
            name = f"creation-{number}-{place}"
            if known.take(harvest, name, text):
                yield _Instruction(name, kind, text)
        work.progress(number + 1, len(sizes), "lists")


def _detail(writer: Writer, instruction: _Instruction) -> Talk[tuple[_Instruction, str | Dropped]]:
    """The instruction as it is or, for the drawn share, as the teacher writes it with more detail."""
    config, name = writer.config, instruction.name
    assert isinstance(config, Creation)
    if random.Random(request_seed(writer.seed, name, "detailed")).random() >= config.detailed:
        return instruction, instruction.text
    said, most = instruction.text, config.max_words
    request = writer.request("creation_detail", name, "detail", reads=one_line, instruction=said, most_words=most)
    reply = writer.heard((yield Ask("teacher", request)))
    if not config.is_whole(reply):
        return instruction, Dropped(id=name, reason=f"detail_{reply.finish}", detail=reply.reason)
    text = one_line(reply.text)
    if len(text.split()) > config.max_words:
        return instruction, Dropped(id=name, reason="too_long", detail=f"{len(text.split())} words")
    return instruction, text


STAGE = Stage(config=Creation, produces="prompts", run=run)
