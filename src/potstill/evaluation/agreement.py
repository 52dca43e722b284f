"""How far judges agree, with each other and with people: alpha, kappa, shares and a regression, with intervals.

Rows of one prompt depend on each other, so the prompt is the cluster everywhere. No bootstrap: the same answers give
the same numbers everywhere. What cannot be said is None, never NaN.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from potstill.evaluation.correlation import FEWEST, Matched, Table, jackknifed
from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.statistics import Estimate

Metric = Literal["nominal", "ordinal", "interval"]

STEEPEST = 25.0
"""A coefficient beyond this means that the data are separated: there is no finite one."""


@dataclass
class Coincidences:
    """Krippendorff's alpha, gathered unit by unit; what it holds grows with the number of distinct values only."""

    weights: dict[tuple[Fraction, Fraction], Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    units: int = 0

    def add(self, values: Iterable[float]) -> None:
        """The values that a unit was given. One value alone can neither agree nor disagree and is left out."""
        given = Counter(Fraction(value) for value in values)
        size = given.total()
        if size < 2:
            return
        self.units += 1
        for one, n_one in given.items():
            for other, n_other in given.items():
                pairs = n_one * (n_other - (one == other))
                if pairs:
                    self.weights[one, other] += Fraction(pairs, size - 1)

    def alpha(self, metric: Metric) -> float | None:
        """1 is perfect agreement, 0 what chance gives (Krippendorff 2011, "Computing Krippendorff's alpha", eq. 1).

        None without two units, or where all values are the same.
        """
        totals: dict[Fraction, Fraction] = defaultdict(Fraction)
        for (one, _), weight in self.weights.items():
            totals[one] += weight
        n = sum(totals.values(), Fraction(0))
        distance = _distances(sorted(totals), totals, metric)
        observed = sum((w * distance(one, other) for (one, other), w in self.weights.items()), Fraction(0))
        expected = sum((totals[c] * totals[k] * distance(c, k) for c in totals for k in totals), Fraction(0))
        return float(1 - (n - 1) * observed / expected) if expected else None


def _distances(
    values: Sequence[Fraction], totals: Mapping[Fraction, Fraction], metric: Metric
) -> Callable[[Fraction, Fraction], Fraction]:
    """The squared difference of two values under a metric."""
    if metric == "nominal":
        return lambda one, other: Fraction(one != other)
    if metric == "interval":
        return lambda one, other: (one - other) ** 2
    below, sums = Fraction(0), dict[Fraction, Fraction]()
    for value in values:
        sums[value] = below + totals[value] / 2
        below += totals[value]
    return lambda one, other: (sums[one] - sums[other]) ** 2


@dataclass(frozen=True)
class Valued:
    """A value, and the cluster of those that it depends on."""

    cluster: str
    value: float


def clustered_share(rows: Sequence[Valued], asked: int | None = None) -> Estimate:
    """A share of 0-or-1 values with Wilson's interval on the effective number of them (Korn and Graubard 1998).

    Its quantile is Student's with a degree of freedom less than clusters: few clusters hardly tell their own variance.
    The effective number is that of independent values with the same variance as the linearised one over clusters.
    Where that variance is nothing, each cluster counts as one value.
    """
    n = len(rows)
    coverage = n / asked if asked else float(n > 0)
    if n == 0:
        return Estimate(None, None, None, 0, 0.0)
    share = math.fsum(row.value for row in rows) / n
    residuals: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        residuals[row.cluster].append(row.value - share)
    clusters = len(residuals)
    if clusters < 2:
        return Estimate(share, None, None, n, coverage)
    squares = math.fsum(math.fsum(parts) ** 2 for parts in residuals.values())
    variance = clusters / (clusters - 1) * squares / n**2
    effective = share * (1 - share) / variance if variance > 1e-15 else float(clusters)
    if effective <= 0:  # every value is the same
        effective = float(clusters)
    low, high = _wilson(share, effective, student_quantile(clusters - 1))
    return Estimate(share, low, high, n, coverage)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson (1927) for a share of n values, at a quantile."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


@dataclass
class PairedMean:
    """The mean of differences with Student's t over clusters, gathered cluster by cluster in bounded memory."""

    clusters: int = 0
    n: int = 0
    _sum: float = 0.0
    _square: float = 0.0
    _cross: float = 0.0
    _sizes: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """The values of one cluster."""
        if not values:
            return
        size, total = len(values), math.fsum(values)
        self.clusters += 1
        self.n += size
        self._sum += total
        self._square += total * total
        self._cross += total * size
        self._sizes += size * size

    def estimate(self) -> dict[str, float | int | None]:
        """mean, low, high and n, as JSON."""
        if self.n == 0:
            return {"mean": None, "low": None, "high": None, "n": 0}
        mean = self._sum / self.n
        low = high = None
        if self.clusters > 1:
            squares = max(0.0, self._square - 2 * mean * self._cross + mean * mean * self._sizes)
            variance = self.clusters / (self.clusters - 1) * squares / self.n**2
            half = student_quantile(self.clusters - 1) * math.sqrt(variance)
            low, high = mean - half, mean + half
        return {"mean": mean, "low": low, "high": high, "n": self.n}


def cohen_kappa(rows: Sequence[Matched]) -> Estimate:
    """Agreement beyond what the raters' habits give by chance (Cohen 1960), its interval by a jackknife of clusters.

    None where both always say the same one thing. No interval below `FEWEST` clusters. Where they always agree, the
    jackknife knows no spread: then the lower end is kappa at the lower end of the share of agreement, with the chance
    that their habits give.
    """
    found = jackknifed(rows, _kappa)
    clusters = {row.cluster for row in rows}
    if found.mean is None or (found.low is not None and found.high is not None):
        low, high = found.low, found.high
        return replace(
            found, low=None if low is None else max(-1.0, low), high=None if high is None else min(1.0, high)
        )
    if found.mean < 1 or len(clusters) < FEWEST:
        return found
    chance = _chance_of_agreement(Counter((row.one, row.other) for row in rows))
    least = clustered_share([Valued(row.cluster, 1.0) for row in rows]).low
    assert least is not None, "a share of several clusters has an interval"
    return replace(found, low=(least - chance) / (1 - chance), high=1.0)


def _kappa(table: Table) -> float | None:
    n = sum(table.values())
    same = sum(count for (a, b), count in table.items() if a == b)
    chance = _chance_of_agreement(table)
    return (same / n - chance) / (1 - chance) if n and chance < 1 else None


def _chance_of_agreement(table: Table) -> float:
    """How often two who each keep to their habits, but do not look, say the same."""
    n = sum(table.values())
    one, other = Counter[Hashable](), Counter[Hashable]()
    for (a, b), count in table.items():
        one[a] += count
        other[b] += count
    return sum(one[value] * other[value] for value in one) / (n * n) if n else 1.0


@dataclass(frozen=True)
class Choice:
    """One yes or no, and what may explain it."""

    cluster: str
    yes: bool
    features: tuple[float, ...]


def logistic(trials: Sequence[Choice]) -> list[Estimate] | None:
    """The coefficients of a logistic regression, one a feature, by maximum likelihood. Write a 1 for an intercept.

    Intervals are Student's t on the variance that is robust to clusters (Liang and Zeger 1986, G / (G - 1)).
    None where there is no finite maximum: the features separate the answers, or depend on each other.
    """
    if not trials:
        return None
    size = len(trials[0].features)
    weights = [0.0] * size
    for _ in range(100):
        gradient, information = _slopes(trials, weights)
        step = _solve(information, gradient)
        if step is None:
            return None
        weights = [w + s for w, s in zip(weights, step, strict=True)]
        if max(map(abs, weights)) > STEEPEST:
            return None
        if max(map(abs, step)) < 1e-10:
            break
    else:
        return None
    _, information = _slopes(trials, weights)
    columns = [_solve(information, [float(i == j) for i in range(size)]) for j in range(size)]
    scores: dict[str, list[float]] = {}
    for trial in trials:
        row = scores.setdefault(trial.cluster, [0.0] * size)
        left = trial.yes - _chance(weights, trial.features)
        for i, feature in enumerate(trial.features):
            row[i] += left * feature
    clusters = len(scores)
    estimates = []
    for weight, column in zip(weights, columns, strict=True):
        if column is None:
            return None
        low = high = None
        if clusters > size:
            squares = math.fsum(sum(c * s for c, s in zip(column, row, strict=True)) ** 2 for row in scores.values())
            half = student_quantile(clusters - 1) * math.sqrt(clusters / (clusters - 1) * squares)
            low, high = weight - half, weight + half
        estimates.append(Estimate(weight, low, high, len(trials), 1.0))
    return estimates


def _chance(weights: Sequence[float], features: Sequence[float]) -> float:
    return 1 / (1 + math.exp(-sum(w * f for w, f in zip(weights, features, strict=True))))


def _slopes(trials: Sequence[Choice], weights: Sequence[float]) -> tuple[list[float], list[list[float]]]:
    """The gradient of the log-likelihood, and its information matrix."""
    size = len(weights)
    gradient, information = [0.0] * size, [[0.0] * size for _ in range(size)]
    for trial in trials:
        chance = _chance(weights, trial.features)
        for i, one in enumerate(trial.features):
            gradient[i] += (trial.yes - chance) * one
            for j, other in enumerate(trial.features):
                information[i][j] += chance * (1 - chance) * one * other
    return gradient, information


def _solve(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float] | None:
    """The x of matrix x = vector, by elimination with pivots; None where the matrix has no inverse."""
    rows = [[*line, value] for line, value in zip(matrix, vector, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        if abs(rows[pivot][i]) < 1e-9:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(size):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]
