"""Stage `label`: a teacher labels the user's own inputs; the votes that agree become chats from input to label.

Each input is asked about several times. What a vote did not clearly say is unread, never a default label, and counts
against the agreement. The facts tell how far the votes agree beyond chance (Krippendorff's alpha).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from potstill.errors import DataError, TeacherError
from potstill.evaluation.agreement import Coincidences
from potstill.reading.files import read_lines
from potstill.reading.formats import SNIFFED, sniff
from potstill.records import Chat, Dropped, Message, Prompt, Text
from potstill.skills.labels import count_votes, read_label, read_value
from potstill.skills.tools import find_fault, find_unchecked
from potstill.sources import Data, Inputs
from potstill.stages.asking import Asking, Prompts, Tally
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_VOTE = 300  # for forecasts
REPLY_SHOWN = 120


class Label(Asking):
    """Have a teacher label inputs, by several votes."""

    PROMPTS: ClassVar[tuple[str, ...]] = ("label",)

    kind: Literal["label"]
    teacher: ModelName
    """Who labels."""
    data: Annotated[str, Reference(("prompts", "texts", "chats"))]
    """What to label: texts, prompts, or the first prompts of chats."""
    instruction: str = Field(min_length=1)
    """What the labels say of an input, in a sentence or more: "Name the department that should answer this." """
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The labels to choose from: exactly one fits each input."""
    answer_schema: dict[str, Any] | None = None
    """In place of labels: the JSON Schema of what to find in an input. What is learnt is the JSON value. It may use
    type, enum, const, anyOf, properties, required, additionalProperties and items."""
    system: str | None = None
    """A system turn of the chats that are made: what the student will be told when it is to label."""
    votes: int = Field(default=3, ge=1, le=99)
    """How often each input is asked about."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the votes. At 0 all votes would be the same one."""
    min_agreement: float = Field(default=0.5, ge=0, le=1)
    """Inputs on whose winning label less than this share of the votes agrees are left out, as are ties."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest reply."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Label":
        if bool(self.labels) == (self.answer_schema is not None):
            raise ValueError("give either labels to choose from or an answer_schema")
        if self.answer_schema is not None and (fault := find_unchecked(self.answer_schema, "answer_schema")):
            raise ValueError(fault)
        folded = [label.strip().casefold() for label in self.labels]
        if len(set(folded)) < len(folded) or (self.labels and len(folded) < 2):
            raise ValueError("labels must be two or more, different in more than case")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("several votes need a temperature above 0, or they are all the same one")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["data"] * self.votes
        return Expected(rows["data"], calls, calls * TOKENS_PER_VOTE, tokens_per_row=rows.get("data.tokens"))

    @property
    def schema_text(self) -> str:
        """What an endpoint is told that keeps answers to a schema."""
        if self.answer_schema is not None:
            return json.dumps(self.answer_schema)
        label = {"type": "string", "enum": list(self.labels)}
        return json.dumps(
            {"type": "object", "properties": {"label": label}, "required": ["label"], "additionalProperties": False}
        )

    def read(self, text: str, shown: str) -> str | None:
        """The label or value that a reply to a text gives; None where it gives none."""
        if self.answer_schema is None:
            return read_label(text, self.labels, [shown])
        value = read_value(text)
        return None if value is None or find_fault(json.loads(value), self.answer_schema, "answer") else value


@dataclass
class _Poll:
    """What came of all votes."""

    finishes: Tally = field(default_factory=Tally)
    read: int = 0
    agreement: Coincidences = field(default_factory=Coincidences)
    numbers: dict[str, int] = field(default_factory=dict)
    """A number for each label that was given; which, says nothing."""
    shares: Counter[float] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    dropped: list[Dropped] = field(default_factory=list)
    first_bad: Reply | None = None


def run(config: Label, inputs: Inputs, work: Work) -> Facts:
    """Ask for the votes, count them, keep what they agree on."""
    data, model, poll = inputs.one("data"), inputs.model("teacher"), _Poll()
    prompts = Prompts(inputs)
    total = sum(1 for _ in _inputs(data))
    if not total:
        raise DataError(data.name, "there is nothing to label", "Give it some rows")
    with connect(model, work.account) as teacher:
        replies = teacher.complete(r for row in _inputs(data) for r in _requests(config, prompts, row, work.seed))
        count = work.keep(_labelled(config, data, replies, poll, work, total))
    work.drop(poll.dropped)
    if not count:
        bad = poll.first_bad or Reply("")
        said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
        what = f"no input got a label that its votes agree on. The first vote that could not be read: {said!r}"
        raise TeacherError(model.name, what, remedy(bad, "Use another teacher, or lower min_agreement", "max_tokens"))
    alpha = poll.agreement.alpha("nominal")
    return {
        "rows": count,
        "dropped": dict(sorted(Counter(row.reason for row in poll.dropped).items())),
        **({"labels": {label: poll.labels[label] for label in config.labels}} if config.labels else {}),
        "votes": {"asked": total * config.votes, "read": poll.read, **poll.finishes.facts()},
        "agreement": {f"{share:.2f}": poll.shares[share] for share in sorted(poll.shares)},
        "krippendorff_alpha": None if alpha is None else round(alpha, 6),
    }


def _inputs(data: Data) -> Iterator[Prompt]:
    """What to label, as prompts. Of a chat, what its user said first."""
    if data.kind == "texts" or (data.kind == "file" and _holds_texts(data)):
        for text in data.rows(Text):
            yield Prompt(id=text.id, messages=(Message(role="user", content=text.text),))
    elif data.kind == "chats":
        for chat in data.rows(Chat):
            first = next(i for i, message in enumerate(chat.messages) if message.role == "assistant")
            yield Prompt(id=chat.id, messages=chat.messages[:first], category=chat.category)
    else:
        yield from data.rows(Prompt)


def _holds_texts(data: Data) -> bool:
    return sniff(list(islice(read_lines(data.path), SNIFFED)), data.name) == "texts"


def _shown(row: Prompt) -> str:
    """What of a prompt is labelled."""
    return "\n\n".join(message.content for message in row.messages if message.role != "system")


def _requests(config: Label, prompts: Prompts, row: Prompt, seed: int) -> Iterator[Request]:
    text = _shown(row)
    asked = prompts.render(
        "label", instruction=config.instruction.strip(), labels=config.labels, schema=config.schema_text, text=text
    ).strip()
    for vote in range(config.votes):
        yield Request(
            messages=(Message(role="user", content=asked),),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(seed, row.id, "vote", vote),
            schema=config.schema_text,
            attempts=1 + config.ask_again,
            accept=lambda reply: config.is_whole(reply) and config.read(reply.text, text) is not None,
        )


def _labelled(
    config: Label, data: Data, replies: Iterator[Reply], poll: _Poll, work: Work, total: int
) -> Iterator[Chat]:
    for done, row in enumerate(_inputs(data), start=1):
        votes = [_vote(config, row, next(replies), poll) for _ in range(config.votes)]
        poll.agreement.add(poll.numbers.setdefault(vote, len(poll.numbers)) for vote in votes if vote is not None)
        result = count_votes(votes)
        poll.shares[round(result.agreement, 6)] += 1
        fault = _fault(config, votes, result.winner, result.agreement)
        if fault:
            detail = json.dumps(dict(Counter(vote or "unread" for vote in votes).most_common()), ensure_ascii=False)
            poll.dropped.append(Dropped(id=row.id, reason=fault, detail=detail))
        else:
            assert result.winner is not None
            poll.labels[result.winner] += 1
            yield _chat(config, row, result.winner)
        work.progress(done, total, "inputs", agreement=result.agreement)


def _vote(config: Label, row: Prompt, reply: Reply, poll: _Poll) -> str | None:
    poll.finishes.add(reply)
    found = config.read(reply.text, _shown(row)) if config.is_whole(reply) else None
    poll.read += found is not None
    if found is None:
        poll.first_bad = poll.first_bad or reply
    return found


def _fault(config: Label, votes: list[str | None], winner: str | None, agreement: float) -> str:
    if not any(vote is not None for vote in votes):
        return "unread"
    if winner is None:
        return "tie"
    return "low_agreement" if agreement < config.min_agreement else ""


def _chat(config: Label, row: Prompt, label: str) -> Chat:
    asked = list(row.messages)
    if config.system is not None:
        asked = [Message(role="system", content=config.system), *(m for m in asked if m.role != "system")]
    return Chat(id=row.id, messages=(*asked, Message(role="assistant", content=label)), category=row.category)


STAGE = Stage(config=Label, produces="chats", run=run, version=2)
