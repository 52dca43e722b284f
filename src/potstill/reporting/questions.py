"""Question by question: what two models scored and said to each, the widest differences first, the judge's words too.

A question's value is the mean of what could be scored of it. It is one observation, so it has no interval; the
difference over all questions has one, and stands above them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.reporting import charts
from potstill.reporting.numbers import number

ANSWERS_FILE = "answers.jsonl"
ORDERS = ("difference", "worst", "best", "question")
"""Widest difference either way; where the second does worst, best; as they were asked."""


@dataclass(frozen=True)
class Turn:
    """One turn of a question, with what one model said."""

    user: str
    text: str
    score: str
    judgment: str
    cut: int = 0
    """Characters that are not shown."""


@dataclass(frozen=True)
class Answered:
    """One model's turns to a question."""

    model: str
    value: float | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Question:
    """A question with every model's answer."""

    id: str
    category: str
    answers: Mapping[str, Answered]

    def value(self, model: str) -> float | None:
        """What it scored, on the mean of its turns."""
        found = self.answers.get(model)
        return found.value if found else None

    def difference(self, later: str, earlier: str) -> float | None:
        """None where one of them could not be scored."""
        one, other = self.value(later), self.value(earlier)
        return None if one is None or other is None else one - other

    @property
    def title(self) -> str:
        """What is asked first."""
        for answered in self.answers.values():
            if answered.turns and answered.turns[0].user:
                return answered.turns[0].user
        return self.id


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an evaluation's answers; nothing where it left none."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def read_questions(path: Path, suite: str, longest: int | None = None) -> list[Question]:
    """The questions of a suite in their order. `longest`: characters of an answer or a judgment that are kept."""
    found: dict[str, dict[str, Answered]] = {}
    categories: dict[str, str] = {}
    for line in read_lines(path):
        if line["suite"] == suite:
            categories.setdefault(line["id"], line.get("category", ""))
            found.setdefault(line["id"], {})[line["model"]] = _answered(line, longest)
    return [Question(id_, categories[id_], answers) for id_, answers in found.items()]


def _answered(line: Mapping[str, Any], longest: int | None) -> Answered:
    scores = [turn["score"] for turn in line["turns"] if turn.get("score") is not None]
    value = sum(scores) / len(scores) if scores else None
    return Answered(line["model"], value, tuple(_turn(turn, longest) for turn in line["turns"]))


def _turn(turn: Mapping[str, Any], longest: int | None) -> Turn:
    text, said = turn.get("assistant") or "", turn.get("judgment") or turn.get("reason") or ""
    score = "" if turn.get("score") is None else number(float(turn["score"]))
    end = longest if longest is not None else len(text) + len(said)
    return Turn(turn.get("user") or "", text[:end], score, said[:end], max(0, len(text) - end))


def suites_with_answers(path: Path) -> dict[str, list[str]]:
    """The suites of an evaluation that left answers, each with its models, in their order."""
    found: dict[str, dict[str, None]] = {}
    for line in read_lines(path):
        found.setdefault(line["suite"], {})[line["model"]] = None
    return {suite: list(models) for suite, models in found.items()}


def ordered(questions: Sequence[Question], later: str, earlier: str, order: str) -> list[Question]:
    """Those that cannot be compared stand last."""
    if order == "question":
        return list(questions)

    def place(question: Question) -> tuple[bool, float]:
        apart = question.difference(later, earlier)
        if apart is None:
            return True, 0.0
        return False, {"worst": apart, "best": -apart}.get(order, -abs(apart))

    return sorted(questions, key=place)


def counted(questions: Sequence[Question], later: str, earlier: str) -> dict[str, int]:
    """On how many questions the later one has more, less, and as much; and how many cannot be compared."""
    apart = [question.difference(later, earlier) for question in questions]
    known = [one for one in apart if one is not None]
    return {
        "more": sum(one > 0 for one in known),
        "less": sum(one < 0 for one in known),
        "same": sum(one == 0 for one in known),
        "unknown": len(apart) - len(known),
    }


def reach_of(questions: Sequence[Question], later: str, earlier: str) -> float:
    """How far from 0 the strips of these have to go."""
    return max((abs(one) for q in questions if (one := q.difference(later, earlier)) is not None), default=0.0) or 1.0


def strip_of(question: Question, later: str, earlier: str, far: float) -> Any:
    """The difference drawn as a bar to either side of 0."""
    return charts.diverging(question.difference(later, earlier) or 0.0, far)


def signed(value: float | None) -> str:
    """With its sign."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−") if value else "0"


def plain(value: float | None) -> str:
    """What one model scored of one question."""
    return "none" if value is None else number(round(value, 3))


def sides_of(question: Question, models: Sequence[str]) -> list[tuple[str, str, Answered]]:
    """(model, what it scored, what it said), of those that were asked."""
    return [(name, plain(question.value(name)), question.answers[name]) for name in models if name in question.answers]
