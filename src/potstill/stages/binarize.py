"""Stage `binarize`: rated answers become pairs of one to prefer and one to avoid.

The preferred answer is the one with the highest mean rating, drawn by seed where several share it. The other is a
random one of those rated lower (Zephyr, Tunstall et al. 2023, section 3) or the lowest of all. A tie is never a
preference, nor are two texts that are the same.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Annotated, Literal

from pydantic import Field

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Dropped, Message, Pair
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work
from potstill.teachers.base import request_seed

BIN = 0.5  # width of the margins' histogram


class Binarize(StageConfig):
    """Make preference pairs of rated answers."""

    kind: Literal["binarize"]
    data: Annotated[str, Reference(("ratings",))]
    """Answers with their ratings."""
    chosen: Literal["best_mean"] = "best_mean"
    """The answer to prefer: the one with the highest mean over its aspects."""
    rejected: Literal["random", "worst"] = "random"
    """The answer to avoid: a random one of those rated lower, or the one rated lowest."""
    min_margin: float = Field(default=0.0, ge=0)
    """Drop pairs whose means are nearer than this. Equal means are always dropped."""
    largest_margins: int | None = Field(default=None, ge=1)
    """Keep only this many pairs, those with the largest margins."""
    min_rated: float = Field(default=0.5, gt=0, le=1)
    """Use only answers that have a score on at least this share of their aspects."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        return Expected(rows=min(rows["data"], self.largest_margins or rows["data"]))


@dataclass(frozen=True)
class Choice:
    """A pair before it is written, with what the facts count."""

    row: Answers
    chosen: Candidate
    rejected: Candidate
    means: tuple[Fraction, Fraction]
    shared_best: bool
    """Another answer with another text had the same highest mean."""

    @property
    def margin(self) -> Fraction:
        return self.means[0] - self.means[1]


def run(config: Binarize, inputs: Inputs, work: Work) -> Facts:
    """Choose a pair from every row that has one."""
    choices: list[Choice] = []
    dropped: list[Dropped] = []
    for done, row in enumerate(inputs.one("data").rows(Answers), start=1):
        found = choose(config, row, work.seed)
        if isinstance(found, Choice):
            choices.append(found)
        else:
            dropped.append(found)
        work.progress(done, 0, "rows")
    if config.largest_margins is not None:
        choices, rest = _largest(choices, config.largest_margins, work.seed)
        dropped += [Dropped(id=c.row.id, reason="smaller_margin", detail=f"{float(c.margin):.3f}") for c in rest]
    reasons = dict(sorted(Counter(row.reason for row in dropped).items()))
    if not choices:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "no rows"
        raise DataError(inputs.one("data").name, f"no pair can be made ({why})", "See to the judge and the answers")
    count = work.keep(_pair(choice) for choice in choices)
    work.drop(dropped)
    return {
        "rows": count,
        "dropped": reasons,
        "shared_best": sum(choice.shared_best for choice in choices),
        "mean_margin": round(float(sum((c.margin for c in choices), Fraction(0)) / count), 6),
        "margins": _histogram([choice.margin for choice in choices]),
        "chosen_models": _models(choice.chosen for choice in choices),
        "rejected_models": _models(choice.rejected for choice in choices),
    }


def choose(config: Binarize, row: Answers, seed: int) -> Choice | Dropped:
    """The pair of a row, or why there is none."""
    means = [(c, mean) for c in row.candidates if (mean := mean_score(c, config.min_rated)) is not None]
    if len(means) < 2:
        return Dropped(id=row.id, reason="too_few_rated", detail=f"{len(means)} of {len(row.candidates)}")
    chance = random.Random(request_seed(seed, row.id, "pair"))
    highest = max(mean for _, mean in means)
    best = [candidate for candidate, mean in means if mean == highest]
    chosen = chance.choice(best)
    others = [(candidate, mean) for candidate, mean in means if candidate.text != chosen.text]
    if not others:
        return Dropped(id=row.id, reason="identical", detail="all usable answers are the same text")
    lower = [(candidate, mean) for candidate, mean in others if mean < highest]
    if not lower:
        return Dropped(id=row.id, reason="tie", detail=f"all at {float(highest):.3f}")
    if config.rejected == "worst":
        lowest = min(mean for _, mean in lower)
        lower = [(candidate, mean) for candidate, mean in lower if mean == lowest]
    rejected, mean = chance.choice(lower)
    if highest - mean < Fraction(config.min_margin):
        return Dropped(id=row.id, reason="small_margin", detail=f"{float(highest - mean):.3f}")
    shared = any(candidate.text != chosen.text for candidate in best)
    return Choice(row, chosen, rejected, (highest, mean), shared)


def mean_score(candidate: Candidate, min_rated: float) -> Fraction | None:
    """The exact mean of a candidate's scores; None where it has too few, or no usable text."""
    scores = [Fraction(rating.score) for rating in candidate.ratings if rating.score is not None]
    if candidate.finish != "stop" or not scores or len(scores) < min_rated * len(candidate.ratings):
        return None
    return sum(scores, Fraction(0)) / len(scores)


def _largest(choices: list[Choice], count: int, seed: int) -> tuple[list[Choice], list[Choice]]:
    """The choices with the largest margins, in their old order, and the rest. Equal margins are ordered by seed."""
    ranked = sorted(choices, key=lambda choice: (-choice.margin, request_seed(seed, choice.row.id, "rank")))
    kept = {id(choice) for choice in ranked[:count]}
    return [c for c in choices if id(c) in kept], [c for c in choices if id(c) not in kept]


def _pair(choice: Choice) -> Pair:
    return Pair(
        id=choice.row.id,
        prompt=choice.row.prompt.messages,
        chosen=(Message(role="assistant", content=choice.chosen.text),),
        rejected=(Message(role="assistant", content=choice.rejected.text),),
        chosen_score=float(choice.means[0]),
        rejected_score=float(choice.means[1]),
        category=choice.row.prompt.category,
    )


def _histogram(margins: list[Fraction]) -> dict[str, int]:
    """Counts by the lower edge of each bin."""
    counts = Counter(floor(margin / Fraction(BIN)) for margin in margins)
    return {f"{step * BIN:.1f}": counts[step] for step in sorted(counts)}


def _models(candidates: Iterable[Candidate]) -> dict[str, int]:
    return dict(sorted(Counter(candidate.model for candidate in candidates).items()))


STAGE = Stage(config=Binarize, produces="pairs", run=run)
