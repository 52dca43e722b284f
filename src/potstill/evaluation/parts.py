"""A mean over parts that are known in different ways: some by right and wrong answers, others by a spread.

The interval puts the parts' own together (MOVER: Zou and Donner 2008, eq. 5), so that the mean is never surer than what
it is made of: a spread that happens to be next to nothing in one part says nothing of the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from potstill.evaluation.distributions import LEVEL, student_quantile
from potstill.evaluation.paired_shares import Discordant
from potstill.evaluation.spread import Spread

LEAST_P = 1e-12
"""Smaller ones are told as this."""
_HALVINGS = 40


@dataclass(frozen=True)
class Parts:
    """Independent parts, each with its weight in the mean; the weights sum to 1."""

    parts: tuple[tuple[float, Spread | Discordant], ...]

    @property
    def mean(self) -> float:
        """The weighted mean of the parts'."""
        return math.fsum(weight * one.mean for weight, one in self.parts)

    @property
    def error(self) -> float:
        """The standard error that a normal mean with this interval has."""
        low, high = self.ends()
        return (high - low) / 2 / student_quantile(10**9)

    def ends(self, level: float = LEVEL) -> tuple[float, float]:
        """How far each part's end lies from its mean, as errors add up: by their squares."""
        found = [(weight, one.mean, *one.ends(level)) for weight, one in self.parts]
        below = math.sqrt(math.fsum((weight * (mean - low)) ** 2 for weight, mean, low, _ in found))
        above = math.sqrt(math.fsum((weight * (high - mean)) ** 2 for weight, mean, _, high in found))
        return self.mean - below, self.mean + above

    def p_of(self, mean: float) -> float:
        """Two-sided: one less the level at which the interval reaches `mean`."""
        if mean == self.mean:
            return 1.0
        if mean < self.mean:
            return _where(lambda level: self.ends(level)[0] > mean)
        return _where(lambda level: self.ends(level)[1] < mean)

    def p_at_most(self, mean: float) -> float:
        """One-sided: how likely a mean is as low as this one or lower, were `mean` or more the true one."""
        half = self.p_of(mean) / 2
        return half if mean >= self.mean else 1 - half

    def turned(self) -> "Parts":
        """The mean with the other sign."""
        return Parts(tuple((weight, one.turned()) for weight, one in self.parts))


def _where(outside: Callable[[float], bool]) -> float:
    """The least p at whose level a mean is still outside the interval, by halving its logarithm."""
    low, high = math.log(LEAST_P), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if outside(1 - math.exp(middle)) else (middle, high)
    return math.exp(high)
