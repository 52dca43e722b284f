"""Stage `binarize`: rated answers become pairs of one to prefer and one to avoid, under policies that are spelled out.

By default the preferred answer is the one with the highest mean rating, drawn by seed where several share it, and the
other a random one of those rated lower (Zephyr, Tunstall et al. 2023, section 3). A tie is never a preference, nor are
two texts that are the same. Rows are read anew for each pass: memory holds counts and, at most, a number for a pair.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from math import floor
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Dropped, Message, Pair, Rating
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work
from potstill.teachers.aspects import OVERALL
from potstill.teachers.base import request_seed
from potstill.teachers.ratings import exact_score, is_not_applicable

BIN = 0.5  # width of the margins' histogram
PAIRWISE = ("win_share", "bradley_terry")


class Binarize(StageConfig):
    """Make preference pairs of rated answers."""

    kind: Literal["binarize"]
    data: Annotated[str, Reference(("ratings",))]
    """Answers with their ratings."""
    chosen: Literal["best_mean", "best_overall", "best_aspect", "win_share"] = "best_mean"
    """What the answer to prefer is best in: the mean over its aspects; the overall score; one aspect; comparisons."""
    aspect: str = ""
    """The aspect that best_aspect goes by."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """Of the aspects in best_mean, by name. Those not named weigh 1; 0 leaves one out."""
    judges: tuple[str, ...] = ()
    """Of several judges, those whose ratings count, each alike. By default what the judge stage made of all, or, where
    every rating has a name, as those of people, all of them."""
    rejected: Literal["random", "worst", "second", "other_model"] = "random"
    """The answer to avoid, of those rated lower: a random one; the lowest; the next below; the lowest of another model
    than the preferred answer's."""
    pairs_per_prompt: int | Literal["all"] = 1
    """How many pairs a prompt may give: the preferred answer against so many others; all: every two answers that
    differ in score, whichever they are."""
    min_margin: float = Field(default=0.0, ge=0)
    """Drop pairs whose scores are nearer than this. Equal scores are always dropped."""
    largest_margins: int | None = Field(default=None, ge=1)
    """Keep only this many pairs, those with the largest margins."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Drop pairs in which one text is more than so many times as long as the other, so that length teaches less."""
    min_rated: float = Field(default=0.5, gt=0, le=1)
    """Use only answers that have a score on at least this share of the aspects that count."""
    not_applicable: Literal["missing", "left_out"] = "missing"
    """What an N/A is to min_rated: an aspect without a score, or none that counts. It is never a number."""

    @field_validator("pairs_per_prompt")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("pairs_per_prompt must be 1 or more, or all")
        return value

    @model_validator(mode="after")
    def _aspect_fits(self) -> "Binarize":
        if (self.chosen == "best_aspect") != bool(self.aspect):
            raise ValueError("'aspect' and chosen: best_aspect belong together; give both or neither")
        if self.weights and self.chosen != "best_mean":
            raise ValueError("'weights' are those of chosen: best_mean")
        if self.pairs_per_prompt == "all" and self.rejected != "random":
            raise ValueError("pairs_per_prompt: all takes every pair, so 'rejected' has nothing to choose")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        each = 6 if self.pairs_per_prompt == "all" else self.pairs_per_prompt
        return Expected(rows=min(rows["data"] * each, self.largest_margins or rows["data"] * each))


@dataclass(frozen=True)
class Choice:
    """A pair before it is written, with what the facts count."""

    id: str
    row: Answers
    chosen: Candidate
    rejected: Candidate
    scores: tuple[Fraction, Fraction]
    shared_best: bool
    """Another answer with another text had the same highest score."""

    @property
    def margin(self) -> Fraction:
        return self.scores[0] - self.scores[1]


Scored = tuple[Candidate, Fraction]


def run(config: Binarize, inputs: Inputs, work: Work) -> Facts:
    """Choose pairs from every row that has some."""
    data, names = inputs.one("data"), _Names()

    def outcomes() -> Iterator[Choice | Dropped]:
        for row in data.rows(Answers):
            names.add(row)
            yield from choose(config, row, work.seed)

    largest = _largest(config.largest_margins, outcomes(), work.seed) if config.largest_margins else None

    def final() -> Iterator[Choice | Dropped]:
        for number, found in enumerate(outcomes()):
            if isinstance(found, Choice) and largest is not None and number not in largest:
                yield Dropped(id=found.id, reason="smaller_margin", detail=f"{float(found.margin):.3f}")
            else:
                yield found

    counts = _Counts()

    def pairs() -> Iterator[Pair]:
        for done, found in enumerate(final(), start=1):
            counts.add(found)
            work.progress(done, 0, "pairs")
            if isinstance(found, Choice):
                yield _pair(found)

    count = work.keep(pairs())
    names.check(config, data.name)
    if not count:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items())) or "no rows"
        raise DataError(data.name, f"no pair can be made ({why})", "See to the judge and the answers")
    work.drop(found for found in final() if isinstance(found, Dropped))
    return counts.to_json()


@dataclass
class _Names:
    """The aspects and judges that any rating has."""

    aspects: set[str] = field(default_factory=set)
    judges: set[str] = field(default_factory=set)

    def add(self, row: Answers) -> None:
        """Those of a row."""
        for candidate in row.candidates:
            for rating in candidate.ratings:
                self.aspects.add(rating.aspect)
                self.judges.add(rating.judge)

    def check(self, config: Binarize, where: str) -> None:
        """DataError where the config names one that no rating has: a slip of the pen would else weigh nothing."""
        aspects = {*config.weights, *([config.aspect] if config.aspect else [])}
        for what, named, known in (("aspect", aspects, self.aspects), ("judge", set(config.judges), self.judges)):
            if missing := sorted(named - known):
                there = ", ".join(sorted(name for name in known if name)) or "none with a name"
                slip = f"no rating has the {what} {', '.join(map(repr, missing))}; there is {there}"
                raise DataError(where, slip, f"Name {what}s that the ratings have")


def choose(config: Binarize, row: Answers, seed: int) -> list[Choice | Dropped]:
    """The pairs of a row with those that were left out; where it has none at all, why."""
    scored = [(c, score) for c in row.candidates if (score := score_of(config, c)) is not None]
    if len(scored) < 2:
        return [Dropped(id=row.id, reason="too_few_rated", detail=f"{len(scored)} of {len(row.candidates)}")]
    chance = random.Random(request_seed(seed, row.id, "pair"))
    highest = max(score for _, score in scored)
    best = [candidate for candidate, score in scored if score == highest]
    if len({candidate.text for candidate, _ in scored}) == 1:
        return [Dropped(id=row.id, reason="identical", detail="all usable answers are the same text")]
    if config.pairs_per_prompt == "all":
        pairs, equal = _every_pair(scored)
        ties = len(best) == len(scored)
    else:
        equal = []
        chosen = chance.choice(best)
        lower = [(c, score) for c, score in scored if score < highest and c.text != chosen.text]
        pairs = [((chosen, highest), other) for other in _rejected(config, chosen, lower, chance)]
        ties = len(best) == len(scored)
    if not pairs:
        if ties:
            return [Dropped(id=row.id, reason="tie", detail=f"all at {float(highest):.3f}")]
        if config.pairs_per_prompt != "all" and lower:
            return [Dropped(id=row.id, reason="one_model", detail="no lower answer is another model's")]
        return [Dropped(id=row.id, reason="identical", detail="no lower answer has another text")]
    found: list[Choice | Dropped] = []
    for number, ((better, high), (worse, low)) in enumerate(pairs, start=1):
        name = row.id if config.pairs_per_prompt == 1 else f"{row.id}/{number}"
        shared = high == highest and any(candidate.text != better.text for candidate in best)
        found.append(_checked(config, Choice(name, row, better, worse, (high, low), shared)))
    found += (Dropped(id=f"{row.id}/{number}", reason=why) for number, why in enumerate(equal, start=len(pairs) + 1))
    return found


def _every_pair(scored: Sequence[Scored]) -> tuple[list[tuple[Scored, Scored]], list[str]]:
    """Every two answers that differ in score and text, the better first; and why each two others are no pair."""
    pairs, equal = [], []
    for one, other in combinations(scored, 2):
        if one[0].text == other[0].text:
            equal.append("identical")
        elif one[1] == other[1]:
            equal.append("tie")
        else:
            pairs.append((one, other) if one[1] > other[1] else (other, one))
    return pairs, equal


def _rejected(config: Binarize, chosen: Candidate, lower: list[Scored], chance: random.Random) -> list[Scored]:
    """The answers to avoid, by the policy; of equal ones a random one comes first."""
    assert isinstance(config.pairs_per_prompt, int)
    if config.rejected == "other_model":
        lower = [pair for pair in lower if pair[0].model != chosen.model]
    if config.rejected in ("worst", "second", "other_model") and lower:
        if config.pairs_per_prompt == 1:
            end = (max if config.rejected == "second" else min)(score for _, score in lower)
            return [chance.choice([pair for pair in lower if pair[1] == end])]
        chance.shuffle(lower)
        lower.sort(key=lambda pair: -pair[1] if config.rejected == "second" else pair[1])
        return lower[: config.pairs_per_prompt]
    if config.pairs_per_prompt == 1 and lower:
        return [chance.choice(lower)]
    return chance.sample(lower, min(config.pairs_per_prompt, len(lower)))


def _checked(config: Binarize, choice: Choice) -> Choice | Dropped:
    """The pair, unless a limit leaves it out."""
    if choice.margin < exact_score(config.min_margin):
        return Dropped(id=choice.id, reason="small_margin", detail=f"{float(choice.margin):.3f}")
    one, other = sorted((len(choice.chosen.text), len(choice.rejected.text)))
    if config.max_length_ratio is not None and other > config.max_length_ratio * one:
        return Dropped(id=choice.id, reason="length_ratio", detail=f"{other} and {one} characters")
    return choice


def score_of(config: Binarize, candidate: Candidate) -> Fraction | None:
    """The exact score that a candidate is chosen by; None where it has too few ratings, or no usable text."""
    if not candidate.usable:
        return None
    given: dict[str, list[Rating]] = {}
    names = {rating.judge for rating in candidate.ratings}
    heard = config.judges or ({""} if "" in names else names)
    for rating in candidate.ratings:
        if rating.judge in heard and _counts(config, rating.aspect):
            given.setdefault(rating.aspect, []).append(rating)
    asked = [ratings for ratings in given.values() if not _left_out(config, ratings)]
    scores = {r[0].aspect: mean for r in asked if (mean := _mean(r)) is not None}
    if not scores or len(scores) < config.min_rated * len(asked):
        return None
    if not config.weights:
        return sum(scores.values(), Fraction(0)) / len(scores)
    weights = {
        aspect: exact_score(config.weights.get(aspect, 1)) for aspect in scores
    }  # those of weight 0 are not here
    return sum((weights[a] * score for a, score in scores.items()), Fraction(0)) / sum(weights.values(), Fraction(0))


def _counts(config: Binarize, aspect: str) -> bool:
    """Whether an aspect is one that the policy goes by."""
    if config.chosen == "best_mean":
        return aspect not in (OVERALL, *PAIRWISE) and config.weights.get(aspect, 1) > 0
    if config.chosen == "win_share":
        return aspect in PAIRWISE
    return aspect == (OVERALL if config.chosen == "best_overall" else config.aspect)


def _left_out(config: Binarize, ratings: Sequence[Rating]) -> bool:
    return config.not_applicable == "left_out" and all(is_not_applicable(rating) for rating in ratings)


def _mean(ratings: Sequence[Rating]) -> Fraction | None:
    scores = [exact_score(rating.score) for rating in ratings if rating.score is not None]
    if len(scores) < 2:
        return scores[0] if scores else None
    return sum(scores, Fraction(0)) / len(scores)


def _largest(count: int, outcomes: Iterator[Choice | Dropped], seed: int) -> frozenset[int]:
    """Which of the outcomes are the pairs with the largest margins. Equal margins are ordered by seed."""
    choices = ((number, found) for number, found in enumerate(outcomes) if isinstance(found, Choice))
    ranked = ((-choice.margin, request_seed(seed, choice.id, "rank"), number) for number, choice in choices)
    return frozenset(number for _, _, number in heapq.nsmallest(count, ranked))


def _pair(choice: Choice) -> Pair:
    return Pair(
        id=choice.id,
        prompt=choice.row.prompt.messages,
        chosen=(Message(role="assistant", content=choice.chosen.text),),
        rejected=(Message(role="assistant", content=choice.rejected.text),),
        chosen_score=float(choice.scores[0]),
        rejected_score=float(choice.scores[1]),
        category=choice.row.prompt.category,
    )


@dataclass
class _Counts:
    """The facts, pair by pair."""

    dropped: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    shared: int = 0
    total: Fraction = Fraction(0)
    margins: Counter[int] = field(default_factory=Counter)
    models: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    longer: int = 0
    as_long: int = 0
    characters: int = 0
    log_ratio: float = 0.0

    def add(self, found: Choice | Dropped) -> None:
        """Count a pair, or what was left out."""
        if isinstance(found, Dropped):
            self.dropped[found.reason] += 1
            return
        self.pairs += 1
        self.shared += found.shared_best
        self.total += found.margin
        self.margins[floor(found.margin / Fraction(BIN))] += 1
        for counter, candidate in zip(self.models, (found.chosen, found.rejected), strict=True):
            counter[candidate.model] += 1
        chosen, rejected = len(found.chosen.text), len(found.rejected.text)
        self.longer += chosen > rejected
        self.as_long += chosen == rejected
        self.characters += chosen - rejected
        self.log_ratio += math.log(max(chosen, 1) / max(rejected, 1))

    def to_json(self) -> dict[str, Any]:
        """`length`: how often the preferred text is the longer one (a half for one as long), and by how much."""
        return {
            "rows": self.pairs,
            "dropped": dict(sorted(self.dropped.items())),
            "shared_best": self.shared,
            "mean_margin": round(float(self.total / self.pairs), 6),
            "margins": {f"{step * BIN:.1f}": self.margins[step] for step in sorted(self.margins)},
            "length": {
                "chosen_longer": round((self.longer + self.as_long / 2) / self.pairs, 6),
                "mean_difference_characters": round(self.characters / self.pairs, 6),
                "mean_ratio": round(math.exp(self.log_ratio / self.pairs), 6),
            },
            "chosen_models": dict(sorted(self.models[0].items())),
            "rejected_models": dict(sorted(self.models[1].items())),
        }


STAGE = Stage(config=Binarize, produces="pairs", run=run, version=3)
