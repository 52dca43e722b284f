"""The spread of a weighted mean: its standard error where questions, and perhaps seeds, are clusters."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple, Self

from potstill.evaluation.distributions import LEVEL, student_below, student_outside, student_quantile


class Value(NamedTuple):
    """One value in a mean."""

    question: str
    value: float
    weight: float = 1.0
    seed: str = ""
    """Of the model that was asked."""
    stratum: str = ""
    """Of the question."""


@dataclass(frozen=True)
class Spread:
    """A mean, its standard error, and of how many independent pieces that is known."""

    mean: float
    error: float
    freedom: int
    """Degrees of freedom."""

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval; each of its ends is a one-sided bound of (1 + level) / 2."""
        half = student_quantile(self.freedom, level) * self.error
        return self.mean - half, self.mean + half

    def p_of(self, mean: float) -> float:
        """Two-sided: how likely a mean is at least as far from `mean`, were that the true one."""
        return student_outside(self._t(mean), self.freedom)

    def p_at_most(self, mean: float) -> float:
        """One-sided: how likely a mean is as low as this one or lower, were `mean` or more the true one."""
        return student_below(self._t(mean), self.freedom)

    def turned(self) -> Self:
        """The mean with the other sign."""
        return replace(self, mean=-self.mean)

    def _t(self, mean: float) -> float:
        if self.error > 0:
            return (self.mean - mean) / self.error
        return math.copysign(math.inf, self.mean - mean) if self.mean != mean else 0.0


def spread_over_questions(rows: Sequence[Value]) -> Spread | None:
    """By the linearised mean (Liang and Zeger 1986): a question is a cluster, G / (G - 1). None of fewer than two.

    Where questions have strata, only how they differ inside those counts (Cochran 1977, eq. 5.10).
    """
    mean = weighted_mean(rows)
    if mean is None:
        return None
    variance, freedom = _variance(rows, mean, lambda row: row.question, _stratum)
    return Spread(mean, math.sqrt(variance), freedom) if freedom > 0 else None


def spread_over_seeds(rows: Sequence[Value]) -> Spread | None:
    """Of other questions, asked of models of other seeds: both are clusters, and cross each other.

    V = V_questions + V_seeds - V_both (Cameron, Gelbach and Miller 2011, eq. 2.13), never below the larger of the first
    two. Their t with min(clusters) - 1 degrees is too wide where questions make most of the variance, as they mostly
    do, so the degrees are Satterthwaite's (1946) for the sum of the two. None without two of each.
    """
    mean = weighted_mean(rows)
    if mean is None:
        return None
    of_questions, questions = _variance(rows, mean, lambda row: row.question, _stratum)
    of_seeds, seeds = _variance(rows, mean, lambda row: row.seed)
    of_both, _ = _variance(rows, mean, lambda row: (row.question, row.seed), _stratum)
    if questions < 1 or seeds < 1:
        return None
    variance = max(of_questions + of_seeds - of_both, of_questions, of_seeds)
    pieces = of_questions**2 / questions + of_seeds**2 / seeds
    freedom = (of_questions + of_seeds) ** 2 / pieces if pieces > 0 else questions
    return Spread(mean, math.sqrt(variance), max(min(questions, seeds), math.floor(freedom)))


def grain(rows: Sequence[Value], answers: Callable[[Value], bool] = lambda row: True) -> float:
    """The most that one question moves the mean by, of the strata whose questions were all answered alike.

    Answers are right (1) or wrong (0), or a difference of two such; other values, which `answers` leaves out where it
    knows better, have no grain. 0 where no stratum is alike: then the spread tells.
    """
    total = math.fsum(row.weight for row in rows)
    weights: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    values: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        weights[row.stratum][row.question] += row.weight
        values[row.stratum].add(row.value if answers(row) else math.nan)
    alike = [stratum for stratum, found in values.items() if len(found) == 1 and found <= {-1.0, 0.0, 1.0}]
    return max((weight for stratum in alike for weight in weights[stratum].values()), default=0.0) / (total or 1.0)


def widened(spread: Spread, coarse: float) -> Spread:
    """The spread with what it cannot show: of questions answered alike, whose `grain` is `coarse`, others may not be.

    Its end lies then, as Wilson's of a share of 0, z^2 questions away: that is the rule of three, nearly.
    """
    return replace(spread, error=math.hypot(spread.error, NormalDist().inv_cdf(0.5 + LEVEL / 2) * coarse))


def weighted_mean(rows: Sequence[Value]) -> float | None:
    """None where there is nothing, or all of it weighs nothing."""
    total = math.fsum(row.weight for row in rows)
    return math.fsum(row.value * row.weight for row in rows) / total if rows and total > 0 else None


def _stratum(row: Value) -> str:
    return row.stratum


def _variance(
    rows: Sequence[Value],
    mean: float,
    cluster_of: Callable[[Value], Hashable],
    stratum_of: Callable[[Value], str] = lambda row: "",
) -> tuple[float, int]:
    """The variance of the mean under one way to cluster, and its degrees of freedom: clusters less strata."""
    total = math.fsum(row.weight for row in rows)
    residuals: dict[Hashable, list[float]] = defaultdict(list)
    stratum = {cluster_of(row): stratum_of(row) for row in rows}
    for row in rows:
        residuals[cluster_of(row)].append(row.weight * (row.value - mean) / total)
    strata: dict[str, list[float]] = defaultdict(list)
    for cluster, parts in residuals.items():
        strata[stratum[cluster]].append(math.fsum(parts))
    groups = _with_company(list(strata.values()))
    return math.fsum(map(_squares, groups)), len(residuals) - len(groups)


def _with_company(strata: Sequence[list[float]]) -> list[list[float]]:
    """The strata; those of one cluster, whose spread nothing tells, as one, or with another where there is but one."""
    groups = [group for group in strata if len(group) > 1]
    alone = [one for group in strata if len(group) == 1 for one in group]
    if len(alone) == 1 and groups:
        return [groups[0] + alone, *groups[1:]]
    return [*groups, alone] if alone else groups


def _squares(residuals: Sequence[float]) -> float:
    """G / (G - 1) times the squares around the mean of one stratum, which is 0 where there is no other."""
    count, middle = len(residuals), math.fsum(residuals) / len(residuals)
    return math.fsum((one - middle) ** 2 for one in residuals) * count / max(1, count - 1)


Known = tuple[float, float, float]
"""A mean and the ends of its interval."""


def ratio_of(upper: Known, lower: Known) -> tuple[float | None, float | None, float | None]:
    """The ratio of two means with its interval from theirs (Donner and Zou 2012, eq. 9, of nothing shared).

    Three times None where the lower one is not above 0, or not known to within a factor of two.
    """
    (above, low, high), (below, least, most) = upper, lower
    if least <= 0 or most >= 2 * below:
        return None, None, None

    def end(side: int, of_upper: float, of_lower: float) -> float:
        scale = of_lower * (2 * below - of_lower)
        root = math.sqrt(max(0.0, (above * below) ** 2 - of_upper * (2 * above - of_upper) * scale))
        return (above * below + side * root) / scale

    ratio = above / below
    return ratio, min(ratio, end(-1, low, most)), max(ratio, end(1, high, least))


def ratio_ends(
    rows: Sequence[tuple[Value, Value]], level: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """The ratio of two weighted means over the same questions, with Fieller's (1954) interval on clustered residuals.

    It holds every rho at which the mean of (upper - rho * lower) may be 0. Nothing is said, three times None, where the
    lower mean is not above 0 beyond its own interval: there Fieller's set is not an interval.
    """
    upper, lower = [one for one, _ in rows], [other for _, other in rows]
    above, below = weighted_mean(upper), weighted_mean(lower)
    if above is None or below is None or below <= 0:
        return None, None, None
    total = math.fsum(row.weight for row in upper)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one, other in rows:
        sums[one.question][0] += one.weight * (one.value - above) / total
        sums[one.question][1] += other.weight * (other.value - below) / total
    clusters = len(sums)
    if clusters < 2:
        return None, None, None
    scale = clusters / (clusters - 1) * student_quantile(clusters - 1, level) ** 2
    var_above = scale * math.fsum(a * a for a, _ in sums.values())
    covariance = scale * math.fsum(a * b for a, b in sums.values())
    var_below = scale * math.fsum(b * b for _, b in sums.values())
    if below**2 <= var_below:
        return None, None, None
    # rho^2 (below^2 - var_below) - 2 rho (above below - covariance) + above^2 - var_above <= 0
    leading, middle = below**2 - var_below, above * below - covariance
    root = math.sqrt(max(0.0, middle**2 - leading * (above**2 - var_above)))
    ratio = above / below
    return ratio, min(ratio, (middle - root) / leading), max(ratio, (middle + root) / leading)
