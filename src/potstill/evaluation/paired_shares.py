"""Two shares on the same questions, each answered right or not: only the questions that the two differ on tell.

A t interval trusts three discordant questions as if they were thirty. What stands here does not: the exact test of
McNemar where no difference is the question, and Tango's (1998) score bounds for every other difference. Both are known
where nothing at all differs, which says something too: how far apart the two can be at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from potstill.evaluation.distributions import coin_at_least, normal_below

_HALVINGS = 60


@dataclass(frozen=True)
class Discordant:
    """Of `n` questions, how many only the later one got right (`gained`), and how many only the earlier (`lost`).

    Whole numbers, but where questions weigh differently: see `discordant`.
    """

    n: float
    gained: float
    lost: float

    @property
    def mean(self) -> float:
        """The difference of the shares."""
        return (self.gained - self.lost) / self.n

    @property
    def error(self) -> float:
        """Its standard error, of the plain kind."""
        return math.sqrt(max(0.0, self.gained + self.lost - self.n * self.mean**2)) / self.n

    def p_at_most(self, mean: float) -> float:
        """One-sided: how likely a difference is as low as this, were `mean` or more the true one.

        At 0 it is exact: losses among the discordant questions are tosses of a fair coin (McNemar 1947).
        """
        if mean == 0:
            gained, lost = (math.floor(count + 1e-9) for count in (self.gained, self.lost))
            return coin_at_least(lost, gained + lost)
        return normal_below(self.score(mean))

    def p_of(self, mean: float) -> float:
        """Two-sided: twice the smaller of the one-sided ones."""
        return min(1.0, 2 * min(self.p_at_most(mean), self.turned().p_at_most(-mean)))

    def turned(self) -> "Discordant":
        """The difference the other way round."""
        return Discordant(self.n, self.lost, self.gained)

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """Tango's interval. Where the exact test does not tell it from 0, 0 lies inside it."""
        low, high = self._bound(level), -self.turned()._bound(level)
        if self.p_of(0.0) > 1 - level:
            low, high = min(low, 0.0), max(high, 0.0)
        return min(low, self.mean), max(high, self.mean)

    def _bound(self, level: float) -> float:
        """The lowest difference that the score test with that two-sided level does not refuse."""
        z = NormalDist().inv_cdf(0.5 + level / 2)
        low, high = -1.0, self.mean
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.score(middle) <= z else (middle, high)
        return high

    def score(self, mean: float) -> float:
        """Tango's statistic, standard normal where `mean` is the true difference (Tango 1998, eq. 10 to 12).

        Its variance uses the share of losses that is likeliest under that difference.
        """
        a = 2.0 * self.n
        b = -self.gained - self.lost + (2 * self.n - self.gained + self.lost) * mean
        c = -self.lost * mean * (1 - mean)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = self.n * (2 * share + mean * (1 - mean))
        distance = self.gained - self.lost - self.n * mean
        if variance <= 1e-15:
            return math.copysign(math.inf, distance) if abs(distance) > 1e-12 else 0.0
        return distance / math.sqrt(variance)


def discordant(rows: Sequence[tuple[float, int]]) -> Discordant:
    """What (weight, 1 where gained, -1 where lost, else 0) of each question come to.

    Where weights differ, counts are effective ones: of as many equal questions as would have the variance that the
    discordant ones have with one more of the heaviest, as Fay and Feuer (1997) widen a weighted sum of rare events. So
    they are known too where no question is discordant.
    """
    weights = {weight for weight, _ in rows}
    if len(weights) == 1:
        return Discordant(len(rows), sum(way > 0 for _, way in rows), sum(way < 0 for _, way in rows))
    total = math.fsum(weight for weight, _ in rows)
    gained, lost = (math.fsum(weight for weight, way in rows if way == one) / total for one in (1, -1))
    squares = math.fsum((weight / total) ** 2 for weight, way in rows if way)
    heaviest = max(weights) / total
    n = (gained + lost + heaviest) / (squares + heaviest**2)
    return Discordant(n, n * gained, n * lost)
