"""Hypotheses with a margin that matters: effects with intervals, their one-sided tests, and Holm's correction.

Each says "the effect is no larger than the margin". A danger is flagged where that is refuted after correction over the
whole audit; it is clean where the whole 95% interval stays within the margin; otherwise it cannot be told.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from potstill.evaluation.audits.thresholds import LEAST_QUESTIONS, MISTAKES
from potstill.evaluation.statistics import NORMAL_BEYOND, student_inside, student_quantile

Z = NormalDist().inv_cdf(0.975)
GROUPS = 20
"""Parts that a jackknife leaves out in turn."""


@dataclass(frozen=True)
class Effect:
    """An estimate whose error has Student's distribution."""

    mean: float
    error: float
    """Its standard error."""
    freedom: int
    n: int
    """Questions behind it."""

    @property
    def ends(self) -> tuple[float, float]:
        """The 95% interval."""
        half = student_quantile(self.freedom) * self.error
        return self.mean - half, self.mean + half

    def above(self, margin: float) -> float:
        """One-sided p of "no larger than the margin"."""
        if self.error == 0:
            return 0.0 if self.mean > margin else 1.0
        return student_above((self.mean - margin) / self.error, self.freedom)


def student_above(t: float, freedom: int) -> float:
    """P(T > t)."""
    if freedom > NORMAL_BEYOND:
        return 1 - NormalDist().cdf(t)
    outside = max(0.0, 1 - student_inside(abs(t), freedom)) / 2
    return outside if t >= 0 else 1 - outside


def mean_effect(values: Iterable[tuple[str, float]], grain: float = 0.0) -> Effect | None:
    """The mean of (question, value), clustered by question; None with fewer than two questions.

    `grain`: what one question more or less would change, where values are 0 or 1. The error is at least that over the
    number of questions: a hundred answers alike do not prove that the next one is (the rule of three).
    """
    clusters: dict[str, list[float]] = defaultdict(list)
    for question, value in values:
        clusters[question].append(value)
    count, total = len(clusters), sum(map(len, clusters.values()))
    if count < 2:
        return None
    mean = math.fsum(value for group in clusters.values() for value in group) / total
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in clusters.values())
    error = math.sqrt(count / (count - 1) * squares) / total
    return Effect(mean, max(error, grain / count), count - 1, count)


def contrast(one: Sequence[float], other: Sequence[float], grain: float = 0.0) -> Effect | None:
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
    return Effect(means[0] - means[1], math.sqrt(both), freedom, len(one) + len(other))


def jackknife(value: Callable[[Sequence[int]], float], count: int) -> Effect | None:
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
    return Effect(value(every), error, groups - 1, count)


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
        centre = (self.mean + z * z / (2 * self.of)) / (1 + z * z / self.of)
        spread = self.mean * (1 - self.mean) / self.of + z * z / (4 * self.of**2)
        half = z / (1 + z * z / self.of) * math.sqrt(spread)
        return max(0.0, min(centre - half, self.mean)), min(1.0, max(centre + half, self.mean))


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
    return 1 - NormalDist().cdf(low)


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
    model: str, about: str, claim: str, effect: Effect | None, margin: float, *, two_sided: bool = False, unit: str = ""
) -> Hypothesis:
    """A hypothesis on a mean; with too few questions it has no p."""
    if effect is None:
        return Hypothesis(model, about, claim, None, None, None, 0, margin, None, two_sided, unit)
    p: float | None = effect.above(margin)
    if two_sided:
        turned = Effect(-effect.mean, effect.error, effect.freedom, effect.n)
        p = min(1.0, 2 * min(effect.above(margin), turned.above(margin)))
    if effect.n < LEAST_QUESTIONS:
        p = None
    return Hypothesis(model, about, claim, effect.mean, *effect.ends, effect.n, margin, p, two_sided, unit)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all the others (Holm 1979); those that are None count for nothing."""
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def refuted(corrected: float | None) -> bool:
    """Whether a corrected p is small enough."""
    return corrected is not None and corrected < MISTAKES
