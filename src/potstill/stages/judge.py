"""Stage `judge`: a judge rates the answers to each prompt, one aspect at a time (UltraFeedback, Cui et al. 2023).

It sees all answers to a prompt at once, in an order drawn anew for each aspect and without their models' names. Its
reply is parsed strictly: what it did not clearly say is a rating without a score, and the share that could be read is
among the facts.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from potstill.errors import TeacherError
from potstill.records import Answers, Candidate, Dropped, Rating
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, StageConfig, Work
from potstill.teachers.aspects import (
    ASPECTS,
    UNREAD,
    Aspect,
    is_not_applicable,
    parse_aspect_reply,
    render_aspect_prompt,
)
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_CALL = 2500  # for forecasts
REPLY_SHOWN = 120


class Judge(StageConfig):
    """Have a judge rate answers, aspect by aspect, from 1 to 5."""

    kind: Literal["judge"]
    judge: ModelName
    """Who rates."""
    data: Annotated[str, Reference(("answers",))]
    """What to rate."""
    aspects: tuple[Aspect, ...] = Field(default=ASPECTS, min_length=1)
    """Which sides of an answer to look at, each in a request of its own."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment of one aspect."""
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Fail where less than this share of the ratings could be read."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["data"] * len(self.aspects)
        return Expected(rows["data"], calls, calls * TOKENS_PER_CALL)


@dataclass(frozen=True)
class Sitting:
    """One request to the judge: a row, an aspect, and the places of its usable answers in the order they are shown."""

    row: Answers
    aspect: Aspect
    order: tuple[int, ...]


@dataclass
class _Tally:
    """What the judge did, over the whole stage."""

    counts: Counter[str] = field(default_factory=Counter)
    """asked, read, not_applicable, unread."""
    scores: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    first_bad: Reply | None = None

    def add(self, sitting: Sitting, ratings: list[Rating], reply: Reply) -> None:
        for place, rating in zip(sitting.order, ratings, strict=True):
            self.counts["asked"] += 1
            if rating.score is not None:
                self.counts["read"] += 1
                self.scores[sitting.aspect][sitting.row.candidates[place].model].append(rating.score)
            elif is_not_applicable(rating):
                self.counts["not_applicable"] += 1
            else:
                self.counts["unread"] += 1
                self.first_bad = self.first_bad or reply

    @property
    def coverage(self) -> float:
        """Share of the ratings asked for that could be read, N/A included."""
        return 1 - self.counts["unread"] / self.counts["asked"] if self.counts["asked"] else 0.0


def run(config: Judge, inputs: Inputs, work: Work) -> Facts:
    """Rate every answer; fail where the judge talks rubbish."""
    model, tally = inputs.model("judge"), _Tally()
    rows = list(inputs.one("data").rows(Answers))
    dropped = [Dropped(id=row.id, reason="no_usable_answer") for row in rows if not _usable(row)]
    sittings = [sitting for row in rows if _usable(row) for sitting in _sittings(config, row, work.seed)]
    with connect(model, work.account) as judge:
        replies = judge.complete(_request(config, sitting, work.seed) for sitting in sittings)
        count = work.keep(_rated(config, _judge(sittings, replies, tally, work)))
    work.drop(dropped)
    if tally.coverage < config.min_coverage:
        bad = tally.first_bad or Reply("")
        said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
        raise TeacherError(
            model.name,
            f"only {tally.coverage:.0%} of {tally.counts['asked']} ratings could be read; expected "
            f"{config.min_coverage:.0%}. The first that could not: {said!r}",
            remedy(bad, "Use a judge that keeps to the form, or lower min_coverage", "max_tokens"),
        )
    return {
        "rows": count,
        "dropped": {"no_usable_answer": len(dropped)} if dropped else {},
        "ratings": {name: tally.counts[name] for name in ("asked", "read", "not_applicable", "unread")},
        "coverage": round(tally.coverage, 6),
        "mean_scores": {
            aspect: {name: _figures(scores) for name, scores in sorted(tally.scores[aspect].items())}
            for aspect in config.aspects
        },
    }


def _usable(row: Answers) -> list[int]:
    return [place for place, candidate in enumerate(row.candidates) if candidate.finish == "stop"]


def _sittings(config: Judge, row: Answers, seed: int) -> Iterator[Sitting]:
    for aspect in config.aspects:
        order = _usable(row)
        random.Random(request_seed(seed, row.id, aspect, "order")).shuffle(order)
        yield Sitting(row, aspect, tuple(order))


def _request(config: Judge, sitting: Sitting, seed: int) -> Request:
    texts = [sitting.row.candidates[place].text for place in sitting.order]
    return Request(
        messages=render_aspect_prompt(sitting.aspect, sitting.row.prompt.messages, texts),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=request_seed(seed, sitting.row.id, sitting.aspect),
    )


def _judge(
    sittings: list[Sitting], replies: Iterator[Reply], tally: _Tally, work: Work
) -> Iterator[tuple[Sitting, list[Rating]]]:
    for done, (sitting, reply) in enumerate(zip(sittings, replies, strict=True), start=1):
        ratings = read_ratings(sitting, reply)
        tally.add(sitting, ratings, reply)
        work.progress(done, len(sittings), "ratings", coverage=tally.coverage)
        yield sitting, ratings


def read_ratings(sitting: Sitting, reply: Reply) -> list[Rating]:
    """The ratings in a reply, in the order shown. A reply that failed has none, one that was cut those it came to."""
    ratings = parse_aspect_reply(sitting.aspect, reply.text, len(sitting.order))
    if reply.finish == "stop":
        return ratings
    failed = Rating(aspect=sitting.aspect, score=None, rationale=f"{UNREAD}: {reply.reason}")
    return [failed if rating.score is None else rating for rating in ratings]


def _rated(config: Judge, judged: Iterator[tuple[Sitting, list[Rating]]]) -> Iterator[Answers]:
    """Rows with their ratings put back in place, as soon as all aspects of a row are there."""
    given: dict[int, list[Rating]] = defaultdict(list)
    for number, (sitting, ratings) in enumerate(judged, start=1):
        for place, rating in zip(sitting.order, ratings, strict=True):
            given[place].append(rating)
        if number % len(config.aspects) == 0:
            row = sitting.row
            candidates = tuple(_with_ratings(c, given[place]) for place, c in enumerate(row.candidates))
            yield row.model_copy(update={"candidates": candidates})
            given.clear()


def _with_ratings(candidate: Candidate, ratings: list[Rating]) -> Candidate:
    return candidate.model_copy(update={"ratings": tuple(ratings)})


def _figures(scores: list[float]) -> dict[str, float]:
    return {"mean": round(sum(scores) / len(scores), 6), "n": len(scores)}


STAGE = Stage(config=Judge, produces="ratings", run=run)
