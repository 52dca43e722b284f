"""Stage `teach_judge`: what a large judge said of answers becomes chats that teach a small model to judge alike.

The user's turn is the very prompt that the stage `judge` asks, the assistant's turn a reply in the form that it reads;
so the model that `sft` makes of them can be named as the `judge` of that stage, or of an evaluation by aspects. Scores
that judges like to give would drown the others, so the rows are balanced over scores. A lesson is what one judge may
say to that prompt: a mean between two numbers, or a rating without its rationale, is none.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Chat, Dropped, Message, Rating
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work
from potstill.teachers.aspects import ASPECTS, HIGHEST, LOWEST, render_aspect_prompt
from potstill.teachers.base import request_seed
from potstill.teachers.ratings import NOT_APPLICABLE, is_not_applicable


class TeachJudge(StageConfig):
    """Make chats of a judge's ratings."""

    kind: Literal["teach_judge"]
    data: Annotated[str, Reference(("ratings",))]
    """Answers with the ratings of the judge to learn from."""
    mode: Literal["aspects", "single"] = "aspects"
    """How the small judge will be asked: the `mode` of the stage `judge`. aspects: about all answers to a prompt in one
    request. single: about one at a time, as an evaluation by aspects does too."""
    balance: bool = True
    """No score more often than the median one, aspect by aspect; which ratings stay is drawn by seed."""
    most: int | None = Field(default=None, ge=1)
    """At most so many ratings of each score, aspect by aspect."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        return Expected(rows["data"])


@dataclass(frozen=True)
class _Sheet:
    """One request to a judge, and what it said: the places of the answers in the order they are shown."""

    place: int
    """Of the row among all."""
    id: str
    aspect: str
    shown: tuple[int, ...]
    scores: tuple[str, ...]


def run(config: TeachJudge, inputs: Inputs, work: Work) -> Facts:
    """Choose the ratings to learn from, write them as chats. Only what is chosen by is held in memory."""
    data = inputs.one("data")
    dropped: list[Dropped] = []
    sheets = [
        s for place, row in enumerate(data.rows(Answers)) for s in _sheets(config, place, row, work.seed, dropped)
    ]
    if not sheets:
        reasons = ", ".join(f"{count} {reason}" for reason, count in _counts(dropped).items()) or "there are none"
        advice = "Give it answers that one judge has rated by aspects, each with its rationale, in one order"
        raise DataError(data.name, f"holds no rating that can be taught ({reasons})", advice)
    chosen = set(_balanced(config, sheets, work.seed))
    dropped += [Dropped(id=s.id, reason="balance", detail=", ".join(s.scores)) for s in sheets if s not in chosen]
    count = work.keep(_chats(inputs, chosen, work))
    work.drop(dropped)
    return {
        "rows": count,
        "dropped": _counts(dropped),
        "scores_given": _by_score(sheets),
        "scores_kept": _by_score(chosen),
    }


def _sheets(config: TeachJudge, place: int, row: Answers, seed: int, dropped: list[Dropped]) -> Iterator[_Sheet]:
    """The requests that a row makes. A rating that could not be read, or that no judge would write so, teaches none."""
    for i, candidate in enumerate(row.candidates):
        heard = [rating for rating in candidate.ratings if not rating.judge]
        faults = [(rating, fault) for rating in heard if (fault := _fault(rating))]
        for rating, fault in faults:
            said = "" if rating.score is None else _number(rating)
            dropped.append(Dropped(id=f"{row.id}-{rating.aspect}-{i}", reason=fault, detail=said))
    for aspect in ASPECTS:
        ratings = [_of(candidate, aspect) for candidate in row.candidates]
        rated = [i for i, rating in enumerate(ratings) if rating and not _fault(rating)]
        random.Random(request_seed(seed, row.id, aspect, "order")).shuffle(rated)
        for shown in [rated] if config.mode == "aspects" else [[i] for i in rated]:
            scores = tuple(_score(row.candidates[i], aspect) for i in shown)
            name = f"{row.id}-{aspect}" + ("" if config.mode == "aspects" else f"-{shown[0]}")
            if shown:
                yield _Sheet(place, name, aspect, tuple(shown), scores)


def _of(candidate: Candidate, aspect: str) -> Rating | None:
    """The word of the judge; of several judges, that of all together."""
    return next((rating for rating in candidate.ratings if rating.aspect == aspect and not rating.judge), None)


def _fault(rating: Rating) -> str:
    """Why a rating cannot be taught, or nothing."""
    if rating.aspect not in ASPECTS:
        return "other_aspect"
    if rating.score is None and not is_not_applicable(rating):
        return "unread"
    if rating.score is not None and not LOWEST <= rating.score <= HIGHEST:
        return "other_scale"
    if rating.score is not None and not rating.score.is_integer():
        return "not_whole"  # a mean of judges or of orders, which the prompt does not allow
    return "" if _rationale(rating) else "no_rationale"


def _score(candidate: Candidate, aspect: str) -> str:
    """As a judge writes it."""
    rating = _of(candidate, aspect)
    assert rating is not None
    return _number(rating)


def _number(rating: Rating) -> str:
    return NOT_APPLICABLE if rating.score is None else f"{rating.score:g}"


def _rationale(rating: Rating) -> str:
    """In one line, so that nothing in it looks like another rating."""
    return " ".join(rating.rationale.removeprefix(f"{NOT_APPLICABLE}:").split())


def _balanced(config: TeachJudge, sheets: list[_Sheet], seed: int) -> Iterator[_Sheet]:
    """The requests none of whose scores has had its share yet: those with the rarest scores first, drawn by seed."""
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for sheet in sheets:
        given[sheet.aspect].update(sheet.scores)
    caps = {
        aspect: sorted(counts.values())[(len(counts) - 1) // 2] if config.balance else counts.total()
        for aspect, counts in given.items()
    }
    taken: Counter[tuple[str, str]] = Counter()
    order = list(sheets)
    random.Random(request_seed(seed, "balance")).shuffle(order)
    for sheet in sorted(order, key=lambda sheet: min(given[sheet.aspect][score] for score in sheet.scores)):
        cap = min(caps[sheet.aspect], config.most or caps[sheet.aspect])
        if all(taken[sheet.aspect, score] < cap for score in sheet.scores):
            taken.update((sheet.aspect, score) for score in sheet.scores)
            yield sheet


def _chats(inputs: Inputs, chosen: set[_Sheet], work: Work) -> Iterator[Chat]:
    by_row: dict[int, list[_Sheet]] = defaultdict(list)
    for sheet in chosen:
        by_row[sheet.place].append(sheet)
    for place, row in enumerate(inputs.one("data").rows(Answers)):
        for sheet in sorted(by_row.get(place, ()), key=lambda sheet: sheet.id):
            yield _chat(row, sheet)
        work.progress(place + 1, 0, "rows")


def _chat(row: Answers, sheet: _Sheet) -> Chat:
    aspect = next(aspect for aspect in ASPECTS if aspect == sheet.aspect)
    shown = [row.candidates[i] for i in sheet.shown]
    asked = render_aspect_prompt(aspect, row.prompt.messages, [candidate.text for candidate in shown])
    said = "\n\n".join(_block(number, candidate, aspect) for number, candidate in enumerate(shown, start=1))
    return Chat(id=sheet.id, messages=(*asked, Message(role="assistant", content=said)), category=row.prompt.category)


def _block(number: int, candidate: Candidate, aspect: str) -> str:
    rating = _of(candidate, aspect)
    assert rating is not None
    return f"Text {number}\nRating: {_number(rating)}\nRationale: {_rationale(rating)}"


def _counts(dropped: list[Dropped]) -> dict[str, int]:
    return dict(sorted(Counter(row.reason for row in dropped).items()))


def _by_score(sheets: "list[_Sheet] | set[_Sheet]") -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sheet in sheets:
        counts[sheet.aspect].update(sheet.scores)
    return {aspect: dict(sorted(counts[aspect].items())) for aspect in ASPECTS if aspect in counts}


STAGE = Stage(config=TeachJudge, produces="chats", run=run)
