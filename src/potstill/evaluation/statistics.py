"""Means with 95% intervals, clustered by question; paired differences; coverage.

Intervals are Student's t on the linearised mean (Liang and Zeger 1986: a question is a cluster, G / (G - 1)), not a
bootstrap: exact for equal clusters of normal questions, close for the 0-or-1 and 1-to-10 scores met here, and the same
bytes on every machine without a seed. What a t interval cannot do is bound a share of 0% or 100%, so shares have
Wilson's. Nothing here returns NaN: what cannot be said is None.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import NormalDist

LEVEL = 0.95
NORMAL_BEYOND = 2000  # degrees of freedom from which Student's t and the normal quantile agree to 0.06%


@dataclass(frozen=True)
class Observation:
    """One value that was asked for. Those of one question depend on each other, so the question is the cluster."""

    question: str
    part: str
    """Tells the observations of a question apart: the turn, mostly. Pairing matches on question and part."""
    value: float | None
    """None: it could not be had. It lowers the coverage and enters no mean."""
    weight: float = 1.0
    category: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is. `n` counts the values in the mean, `coverage` is their share of those asked for."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    coverage: float

    def to_json(self) -> dict[str, float | int | None]:
        """As it stands in scores.json."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """The mean of later minus earlier over what both have. `n` counts those."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """As it stands in scores.json."""
        return asdict(self)


def mean_estimate(observations: Iterable[Observation], bounds: tuple[float, float] | None = None) -> Estimate:
    """The weighted mean of the values with its interval; `bounds` are those of the scale, which no mean can leave."""
    rows = list(observations)
    scored = [(row.question, row.value, row.weight) for row in rows if row.value is not None]
    mean, low, high = _clustered(scored, bounds)
    return Estimate(mean, low, high, len(scored), len(scored) / len(rows) if rows else 0.0)


def share_estimate(observations: Iterable[Observation]) -> Estimate:
    """A share of independent 0-or-1 values (0.5 for a tie), one a question, with Wilson's interval (Wilson 1927)."""
    rows = list(observations)
    values = [row.value for row in rows if row.value is not None]
    n, coverage = len(values), len(values) / len(rows) if rows else 0.0
    assert len({row.question for row in rows}) == len(rows), "a share takes one value a question"
    if n == 0:
        return Estimate(None, None, None, 0, coverage)
    share = math.fsum(values) / n
    if n < 2:
        return Estimate(share, None, None, n, coverage)
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, min(low, share), max(high, share), n, coverage)


def paired_difference(later: Iterable[Observation], earlier: Iterable[Observation]) -> Difference:
    """Later minus earlier on the same questions and parts, where both have a value.

    Values that were weighted differently (tokens of two tokenizers, say) are not on one scale and are not paired.
    """
    before = {(row.question, row.part): row for row in earlier}
    rows = []
    for row in later:
        other = before.get((row.question, row.part))
        if other is None or row.value is None or other.value is None or row.weight != other.weight:
            continue
        rows.append((row.question, row.value - other.value, row.weight))
    return Difference(*_clustered(rows, None), len(rows))


def pooled(members: Sequence[Sequence[Observation]]) -> list[Observation]:
    """What several draws of one thing, models of other seeds, come to: each question's and part's mean over those that
    have a value. One that they weigh differently is not on one scale, and has none.

    An interval of these is of other questions, asked of these very members; how members differ it does not say.
    """
    if len(members) == 1:
        return list(members[0])
    found: dict[tuple[str, str], list[Observation]] = defaultdict(list)
    for row in (row for rows in members for row in rows):
        found[row.question, row.part].append(row)
    rows = []
    for group in found.values():
        values = [row.value for row in group if row.value is not None]
        alike = len({row.weight for row in group if row.value is not None}) == 1
        rows.append(replace(group[0], value=math.fsum(values) / len(values) if values and alike else None))
    return rows


def by_category(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """The observations of each category, in the order in which categories are first met; those without one left out."""
    groups: dict[str, list[Observation]] = defaultdict(list)
    for row in observations:
        if row.category:
            groups[row.category].append(row)
    return dict(groups)


def paired_differences(
    names: Sequence[str], observations: Mapping[str, Sequence[Observation]]
) -> dict[str, Difference]:
    """Every later-minus-earlier difference under the name "later-earlier"; `names` gives the order."""
    return {
        f"{later}-{earlier}": paired_difference(observations[later], observations[earlier])
        for i, earlier in enumerate(names)
        for later in names[i + 1 :]
    }


def _clustered(
    rows: Sequence[tuple[str, float, float]], bounds: tuple[float, float] | None
) -> tuple[float | None, float | None, float | None]:
    """Weighted mean, low, high of (cluster, value, weight) rows."""
    total = math.fsum(weight for _, _, weight in rows)
    if not rows or total <= 0:
        return None, None, None
    mean = math.fsum(value * weight for _, value, weight in rows) / total
    residuals: dict[str, list[float]] = defaultdict(list)
    for cluster, value, weight in rows:
        residuals[cluster].append(weight * (value - mean))
    clusters = len(residuals)
    if clusters < 2:
        return mean, None, None
    squares = math.fsum(math.fsum(parts) ** 2 for parts in residuals.values())
    half = student_quantile(clusters - 1) * math.sqrt(clusters / (clusters - 1) * squares) / total
    low, high = mean - half, mean + half
    if bounds is not None:
        low, high = max(low, min(bounds[0], mean)), min(high, max(bounds[1], mean))
    return mean, low, high


@cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level for that many degrees of freedom, to 1e-12 relative."""
    if freedom > NORMAL_BEYOND:
        return NormalDist().inv_cdf(0.5 + level / 2)
    low, high = 0.0, 1.0
    while _student_inside(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _student_inside(t: float, freedom: int) -> float:
    """P(|T| < t): the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    series = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        series += term
    return 2 / math.pi * (angle + sine * series) if odd else sine * series
