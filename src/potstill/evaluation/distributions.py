"""Student's t and the binomial: quantiles and tails, the same bytes on every machine and without a dependency."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

LEVEL = 0.95
NORMAL_BEYOND = 2000  # degrees of freedom from which Student's t and the normal quantile agree to 0.06%

_NORMAL = NormalDist()


@cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = level for that many degrees of freedom, to 1e-12 relative."""
    if freedom > NORMAL_BEYOND:
        return _NORMAL.inv_cdf(0.5 + level / 2)
    low, high = 0.0, 1.0
    while _student_inside(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def student_outside(t: float, freedom: int) -> float:
    """P(|T| > |t|): the two-sided p-value of a t."""
    if math.isinf(t):
        return 0.0
    if freedom > NORMAL_BEYOND:
        return math.erfc(abs(t) / math.sqrt(2))
    return max(0.0, 1 - _student_inside(abs(t), freedom))


def student_below(t: float, freedom: int) -> float:
    """P(T < t): the one-sided p-value of a mean that ought not to lie so low."""
    outside = student_outside(t, freedom) / 2
    return outside if t < 0 else 1 - outside


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


def normal_below(z: float) -> float:
    """P(Z < z)."""
    return math.erfc(-z / math.sqrt(2)) / 2


def coin_at_least(heads: int, tosses: int) -> float:
    """P(that many heads or more in so many tosses of a fair coin), exact."""
    if heads <= 0:
        return 1.0
    if heads > tosses:
        return 0.0
    log_all = tosses * math.log(2)
    ways = (
        math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) for k in range(heads, tosses + 1)
    )
    return min(1.0, math.fsum(math.exp(way - log_all) for way in ways))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for there being several (Holm 1979), in their order: rejecting those at or below a level
    rejects any true hypothesis at all with at most that probability, however the tests depend on each other."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted
