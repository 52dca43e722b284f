"""A row of an artifact as pages show it: turns, answers side by side, ratings with their words. Plain data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from potstill.artifact import DROPPED_FILE, ROWS_FILE
from potstill.records import ROWS, Answers, Candidate, Chat, Dropped, Feedback, Message, Pair, Prompt, Record
from potstill.records import Text as TextRecord
from potstill.reporting.numbers import number

TITLE = 180
"""Characters of a row's first words in a list."""
FOLD = 1500
"""Characters of a text that stand open; the rest is folded away."""


@dataclass(frozen=True)
class Said:
    """One turn."""

    role: str
    text: str
    learnt: bool | None = None
    """Whether it is learnt; None where that is not asked of such a row."""
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rated:
    """One judge's word on one aspect."""

    aspect: str
    score: str
    judge: str = ""
    words: str = ""


@dataclass(frozen=True)
class Side:
    """One of several answers."""

    name: str
    turns: tuple[Said, ...]
    note: str = ""
    ratings: tuple[Rated, ...] = ()
    verdict: str = ""
    """better or worse, where one is preferred."""


@dataclass(frozen=True)
class Row:
    """Everything of a row."""

    id: str
    title: str
    category: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    """(what, value), for the head of a row."""
    turns: tuple[Said, ...] = ()
    sides: tuple[Side, ...] = ()
    values: tuple[tuple[str, str], ...] = field(default=())
    """What of it has no shape of its own."""
    fault: str = ""
    """Why it cannot be read."""


def row_type(produces: str, file: str) -> type[Record] | None:
    """The kind of record that a file of an artifact holds; None where its lines are something else."""
    if file == DROPPED_FILE:
        return Dropped
    return ROWS.get(produces) if file == ROWS_FILE else None


def shown(line: bytes, kind: type[Record] | None) -> Row:
    """A line of a file. One that cannot be read says so in its place."""
    try:
        if kind is None:
            return _of_lines(json.loads(line))
        return _of_record(kind.model_validate_json(line))
    except (ValidationError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        text = line[:FOLD].decode("utf-8", "replace")
        return Row("", "a line that cannot be read", values=(("as it stands", text),), fault=why)


def _of_record(row: Record) -> Row:
    match row:
        case TextRecord():
            return Row(row.id, _title(row.text), turns=(Said("text", row.text),))
        case Chat():
            return _chat(row)
        case Prompt():
            more = [*(Said("then", text) for text in row.follow_ups), *(Said("reference", t) for t in row.references)]
            tags = tuple((name, value) for name in ("persona", "counterpart") if (value := getattr(row, name)))
            return Row(row.id, _asked(row.messages), row.category, tags, (*_turns(row.messages), *more))
        case Answers():
            sides = tuple(map(_candidate, row.candidates))
            tags = tuple((side.name, _mean_words(side.ratings)) for side in sides)
            return Row(
                row.id, _asked(row.prompt.messages), row.prompt.category, tags, _turns(row.prompt.messages), sides
            )
        case Pair():
            return _pair(row)
        case Feedback():
            word = "desirable" if row.desirable else "not desirable"
            side = Side(word, _turns(row.answer), verdict="better" if row.desirable else "worse")
            return Row(row.id, _asked(row.prompt), row.category, (("", word),), _turns(row.prompt), (side,))
        case Dropped():
            turns = _turns(row.chat.messages) if row.chat else ()
            title = row.detail or (_asked(row.chat.messages) if row.chat else row.id)
            values = (("why", row.detail),) if row.detail else ()
            return Row(row.id, _title(title), "", (("", row.reason),), turns, values=values)
    raise TypeError(type(row).__name__)


def _chat(row: Chat) -> Row:
    turns = tuple(Said(m.role, m.content, m.train if m.role == "assistant" else False, _calls(m)) for m in row.messages)
    return Row(row.id, _asked(row.messages), row.category, (("turns", str(len(turns))),), turns)


def _pair(row: Pair) -> Row:
    scores = [("chosen", row.chosen_score), ("rejected", row.rejected_score)]
    tags = tuple((name, number(score)) for name, score in scores if score is not None)
    sides = (
        Side("chosen", _turns(row.chosen), _score(row.chosen_score), verdict="better"),
        Side("rejected", _turns(row.rejected), _score(row.rejected_score), verdict="worse"),
    )
    return Row(row.id, _asked(row.prompt), row.category, tags, _turns(row.prompt), sides)


def _score(score: float | None) -> str:
    return "" if score is None else f"score {number(score)}"


def _candidate(one: Candidate) -> Side:
    ended = "" if one.finish == "stop" else f"{one.finish}: {one.reason}" if one.reason else one.finish
    note = ", ".join(part for part in (ended, f"told to mind {one.principle}" if one.principle else "") if part)
    ratings = tuple(
        Rated(r.aspect.replace("_", " "), "none" if r.score is None else number(r.score), r.judge, r.rationale)
        for r in one.ratings
    )
    return Side(one.model, (Said("assistant", one.text),), note, ratings)


def _mean_words(ratings: Sequence[Rated]) -> str:
    """The ratings of one answer, as they stand."""
    return " ".join(one.score for one in ratings if not one.judge) or ""


def _turns(messages: Sequence[Message]) -> tuple[Said, ...]:
    return tuple(Said(m.role, m.content, calls=_calls(m)) for m in messages)


def _calls(message: Message) -> tuple[str, ...]:
    return tuple(f"{call.name}({call.arguments})" for call in message.tool_calls)


def _asked(messages: Sequence[Message]) -> str:
    """What the user says first."""
    return _title(next((m.content for m in messages if m.role == "user"), messages[0].content if messages else ""))


def _title(text: str) -> str:
    text = " ".join(text[: 4 * TITLE].split())
    return text if len(text) <= TITLE else f"{text[:TITLE]}…"


def _of_lines(value: Any) -> Row:
    """A line of an evaluation's answers, or of any other file of JSON lines."""
    if not isinstance(value, Mapping):
        return Row("", _title(str(value)), values=(("value", str(value)),))
    turns = value.get("turns")
    if isinstance(turns, list) and "suite" in value and "model" in value:
        return _answer_line(value)
    title = _title(", ".join(f"{name} {_plain(one)}" for name, one in value.items()))
    return Row(str(value.get("id", "")), title, values=tuple((str(name), _plain(one)) for name, one in value.items()))


def _answer_line(value: Mapping[str, Any]) -> Row:
    said: list[Said] = []
    for turn in value["turns"]:
        said += [Said("user", turn["user"]), Said("assistant", turn["assistant"] or "")]
        score = "none" if turn["score"] is None else number(float(turn["score"]))
        said.append(Said(f"judge, {score}", turn.get("judgment") or turn.get("reason") or ""))
    first = value["turns"][0]["user"] if value["turns"] else ""
    tags = (("", str(value["model"])), ("", str(value["suite"])))
    return Row(str(value["id"]), _title(first), str(value.get("category", "")), tags, tuple(said))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def first_rows(path: Any, kind: type[Record] | None, count: int) -> Iterator[Row]:
    """The first rows of a file, each of no more bytes than a page bears."""
    with path.open("rb") as file:
        for place, line in enumerate(file):
            if place >= count:
                return
            yield shown(line, kind)
