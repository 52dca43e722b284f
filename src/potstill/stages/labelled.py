"""What people said of answers, as labelled rows hold it: which of two they preferred, and how they graded each."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from itertools import combinations, islice

from potstill.reading.comparisons import HUMAN
from potstill.reading.formats import examine
from potstill.records import Answers, Candidate, Message, Pair, Prompt
from potstill.sources import Data
from potstill.teachers.pairwise import PREFERENCE
from potstill.teachers.ratings import exact_score

SHARES_OF_A_WIN = (HUMAN, PREFERENCE)
"""Aspects that compare an answer with another of its row, which makes no grade of it."""


@dataclass(frozen=True)
class Question:
    """Two answers of a row, and what people said of them: the first's share of the win, person by person."""

    row: Answers
    places: tuple[int, int]
    votes: tuple[float, ...]

    @property
    def texts(self) -> tuple[str, str]:
        one, other = self.places
        return self.row.candidates[one].text, self.row.candidates[other].text


def cluster_of(row: Answers) -> str:
    """The prompt, in short: what is said of answers to one depends on each other."""
    text = json.dumps([[message.role, message.content] for message in row.prompt.messages])
    return sha256(text.encode()).hexdigest()[:16]


def labelled_reader(data: Data, limit: int | None) -> Callable[[], Iterator[Answers]]:
    """Reads the labelled rows, from the start each time it is called; pairs as two answers that one person rated."""
    pairs = data.kind == "pairs"
    if data.kind == "file":  # whatever its shape, it has people's ratings or it has pairs
        first = next(examine(data.path, Answers))
        pairs = first.record is None

    def rows() -> Iterator[Answers]:
        found = map(as_answers, data.rows(Pair)) if pairs else data.rows(Answers)
        yield from islice(found, limit)

    return rows


def as_answers(pair: Pair) -> Answers:
    """A pair as two answers that one person rated."""

    def candidate(model: str, said: Sequence[Message], score: float) -> Candidate:
        text = "\n\n".join(f"{m.role.capitalize()}: {m.content}" if len(said) > 1 else m.content for m in said)
        return Candidate.model_validate(
            {"model": model, "text": text, "ratings": [{"aspect": PREFERENCE, "score": score}]}
        )

    candidates = candidate("chosen", pair.chosen, 1.0), candidate("rejected", pair.rejected, 0.0)
    return Answers(id=pair.id, prompt=Prompt(id=pair.id, messages=pair.prompt), candidates=candidates)


def questions_of(row: Answers, aspect: str) -> Iterator[Question]:
    """Every two usable answers of a row that say different things and that the same people rated."""
    usable = [place for place, candidate in enumerate(row.candidates) if candidate.usable]
    for one, other in combinations(usable, 2):
        votes = votes_on(row.candidates[one], row.candidates[other], aspect)
        if votes and row.candidates[one].text != row.candidates[other].text:
            yield Question(row, (one, other), votes)


def votes_on(one: Candidate, other: Candidate, aspect: str) -> tuple[float, ...]:
    """Of everyone who rated both answers: whether the first has the higher mean, 1, the lower, 0, or neither."""
    first, second = _means(one, aspect), _means(other, aspect)
    return tuple(
        (1 + (first[person] > second[person]) - (first[person] < second[person])) / 2
        for person in first
        if person in second
    )


def people_grade(candidate: Candidate, aspect: str) -> Fraction | None:
    """The mean over people of the mean of what each gave; None where nobody graded it."""
    means = _means(candidate, aspect, but=SHARES_OF_A_WIN)
    return sum(means.values(), Fraction(0)) / len(means) if means else None


def _means(candidate: Candidate, aspect: str, but: Sequence[str] = ()) -> dict[str, Fraction]:
    """By person. No aspect is any of them."""
    given: dict[str, list[Fraction]] = {}
    for rating in candidate.ratings:
        if rating.score is not None and rating.aspect == (aspect or rating.aspect) and rating.aspect not in but:
            given.setdefault(rating.judge, []).append(exact_score(rating.score))
    return {person: sum(scores, Fraction(0)) / len(scores) for person, scores in given.items()}
