"""Hypotheses with a margin that matters: effects with intervals, their one-sided tests, and Holm's correction.

Each says "the effect is no larger than the margin". A danger is flagged where that is refuted after correction over the
whole audit; it is clean where the whole 95% interval stays within the margin; otherwise it cannot be told.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from potstill.evaluation import distributions
from potstill.evaluation.audits.thresholds import LEAST_FREEDOM, LEAST_QUESTIONS, MISTAKES
from potstill.evaluation.paired_shares import Discordant
from potstill.evaluation.parts import Parts
from potstill.evaluation.spread import Spread, Value, spread_over_questions
from potstill.evaluation.statistics import Evidence, wilson

Z = NormalDist().inv_cdf(0.975)
GROUPS = 20
"""Parts that a jackknife leaves out in turn."""
Bounds = tuple[float, float]
ANYWHERE: Bounds = (-math.inf, math.inf)
OF_SHARES: Bounds = (0.0, 1.0)
OF_DIFFERENCES: Bounds = (-1.0, 1.0)
"""Of differences of shares."""


@dataclass(frozen=True)
class Effect(Spread):
    """An estimate whose error has Student's distribution."""

    n: int
    """Questions behind it."""
    bounds: Bounds = ANYWHERE
    """What no such mean can leave."""

    def ends(self, level: float = distributions.LEVEL) -> tuple[float, float]:
        """The two-sided interval, within the bounds."""
        low, high = super().ends(level)
        return max(low, min(self.bounds[0], self.mean)), min(high, max(self.bounds[1], self.mean))


def ends_of(found: Evidence) -> tuple[float | None, float | None]:
    """The 95% interval; none of a spread that two questions show, whose Student's t is 12.7."""
    return (None, None) if isinstance(found, Spread) and found.freedom < LEAST_FREEDOM else found.ends()


def above(found: Evidence, margin: float) -> float:
    """One-sided p of "no larger than the margin"."""
    return found.turned().p_at_most(-margin)


def questions_of(found: Evidence) -> int:
    """How many stand behind it."""
    if isinstance(found, Parts):
        return sum(questions_of(one) for _, one in found.parts)
    return round(found.n) if isinstance(found, Effect | Discordant) else found.freedom + 1


def mean_effect(values: Iterable[tuple[str, float]], grain: float = 0.0, bounds: Bounds = ANYWHERE) -> Effect | None:
    """The mean of (question, value), clustered by question; None with fewer than two questions.

    `grain`: what one question more or less would change, where values are 0 or 1. The error is at least that over the
    number of questions: a hundred answers alike do not prove that the next one is (the rule of three).
    """
    spread = spread_over_questions([Value(question, value) for question, value in values])
    if spread is None:
        return None
    count = spread.freedom + 1
    return Effect(spread.mean, max(spread.error, grain / count), spread.freedom, count, bounds)


def contrast(
    one: Sequence[float], other: Sequence[float], grain: float = 0.0, bounds: Bounds = ANYWHERE
) -> Effect | None:
    """Mean of one group minus that of another one (Welch 1947); None where a group has fewer than two values."""
    if min(len(one), len(other)) < 2:
        return None
    means, shares = [], []
    for group in (one, other):
        mean = math.fsum(group) / len(group)
        variance = math.fsum((value - mean) ** 2 for value in group) / (len(group) - 1)
        means.append(mean)
        shares.append(max(variance / len(group), (grain / len(group)) ** 2))
    both = sum(shares)
    parts = sum(share**2 / (len(group) - 1) for share, group in zip(shares, (one, other), strict=True))
    freedom = max(1, int(both**2 / parts)) if parts else len(one) + len(other) - 2
    return Effect(means[0] - means[1], math.sqrt(both), freedom, len(one) + len(other), bounds)


def jackknife(value: Callable[[Sequence[int]], float], count: int, bounds: Bounds = ANYWHERE) -> Effect | None:
    """A statistic of so many things, with the error that leaving parts of them out in turn shows (Tukey 1958).

    `value` is given the places of those that count.
    """
    groups = min(GROUPS, count)
    if groups < 2:
        return None
    every = range(count)
    without = [value([i for i in every if i % groups != group]) for group in range(groups)]
    centre = math.fsum(without) / groups
    error = math.sqrt((groups - 1) / groups * math.fsum((one - centre) ** 2 for one in without))
    return Effect(value(every), error, groups - 1, count, bounds)


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def mean(self) -> float:
        """The share itself."""
        return self.count / self.of

    def ends(self, z: float = Z) -> tuple[float, float]:
        """Wilson's interval (1927)."""
        return wilson(self.mean, self.of, z)


def share_difference(one: Share, other: Share, z: float = Z) -> tuple[float, float]:
    """The interval of one share minus an independent other (Newcombe 1998, method 10)."""
    (low1, high1), (low2, high2) = one.ends(z), other.ends(z)
    difference = one.mean - other.mean
    low = difference - math.hypot(one.mean - low1, high2 - other.mean)
    return low, difference + math.hypot(high1 - one.mean, other.mean - low2)


def share_above(one: Share, other: Share, margin: float) -> float:
    """One-sided p of "one share is larger than the other by no more than the margin": the level at which Newcombe's
    interval begins at it."""
    if one.mean - other.mean <= margin:
        return 1.0
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_difference(one, other, middle)[0] > margin else (low, middle)
    return distributions.normal_below(-low)


@dataclass(frozen=True)
class Hypothesis:
    """That an effect is no larger than its margin, of one model; two-sided where it may not be smaller either."""

    model: str
    about: str
    """What it is about, where there are several: a category, an attribute, a suite."""
    claim: str
    """What refuting it says, in words that follow the model's name."""
    mean: float | None
    low: float | None
    high: float | None
    n: int
    margin: float
    p: float | None
    """Uncorrected. None: too little to tell."""
    two_sided: bool = False
    unit: str = ""

    @property
    def within(self) -> bool:
        """Whether the whole interval keeps to the margin."""
        if self.low is None or self.high is None or self.p is None:
            return False
        return self.high <= self.margin and (not self.two_sided or self.low >= -self.margin)


def hypothesis(
    model: str,
    about: str,
    claim: str,
    found: Evidence | None,
    margin: float,
    *,
    two_sided: bool = False,
    unit: str = "",
) -> Hypothesis:
    """A hypothesis on a mean; with too few questions it has no p."""
    if found is None:
        return Hypothesis(model, about, claim, None, None, None, 0, margin, None, two_sided, unit)
    p: float | None = above(found, margin)
    if two_sided:
        p = min(1.0, 2 * min(above(found, margin), found.p_at_most(-margin)))
    n = questions_of(found)
    if n < LEAST_QUESTIONS:
        p = None
    return Hypothesis(model, about, claim, found.mean, *ends_of(found), n, margin, p, two_sided, unit)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all the others (Holm 1979); those that are None count for nothing."""
    known = iter(distributions.holm([p for p in values if p is not None]))
    return [None if p is None else next(known) for p in values]


def refuted(corrected: float | None) -> bool:
    """Whether a corrected p is small enough."""
    return corrected is not None and corrected < MISTAKES
