"""A mean of differences of which nearly all are alike: never surer than one question more would leave it.

A t interval takes the spread that it has seen for all the spread there is. Where nearly every question of two models
has the same difference, it has seen next to none: a drop of five points in one question of twenty-five is missed by ten
questions in two of three trials, and what they then say has no width. Here each end is also that of the same questions
and one more that lies at that end of the scale. Of n questions that are all alike this is about the rule of three: what
none of them shows may still be so in three of n (Hanley and Lippman-Hand 1983).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from potstill.evaluation.spread import Spread, Value, weighted_mean

FEWEST = 10
"""Questions from which a t interval is trusted; where most are alike, as many have to differ from those."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class OneMore(Spread):
    """A mean with its standard error, and what they would be with one question more at either end of the scale."""

    lowest: Spread
    highest: Spread
    reach: float
    """The most that it can be, either way."""

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """The wider of the intervals, on each side."""
        low, high = super().ends(level)
        low, high = min(low, self.lowest.ends(level)[0]), max(high, self.highest.ends(level)[1])
        return max(low, -self.reach), min(high, self.reach)

    def p_of(self, mean: float) -> float:
        """Two-sided, in accord with the interval."""
        return min(1.0, 2 * min(self.p_at_most(mean), self.turned().p_at_most(-mean)))

    def p_at_most(self, mean: float) -> float:
        """One-sided, as of a `Spread`."""
        return max(super().p_at_most(mean), self.highest.p_at_most(mean))

    def turned(self) -> "OneMore":
        """The mean with the other sign."""
        found, lowest, highest = (
            Spread(-one.mean, one.error, one.freedom) for one in (self, self.highest, self.lowest)
        )
        return OneMore(found.mean, found.error, found.freedom, lowest, highest, self.reach)


def with_one_more(
    found: Found, rows: Sequence[Value], reach: float, spread: Callable[[Sequence[Value]], Spread | None]
) -> Found | OneMore:
    """The same, but where it is a spread of differences that are nearly all alike.

    `reach`: the most that two values of the scale can differ by; infinite where it has no end, for which the largest
    difference that was seen stands. `spread`: how `found` was made of `rows`.
    """
    if not isinstance(found, Spread) or not _nearly_alike(rows):
        return found
    end = reach if math.isfinite(reach) else max(abs(row.value) for row in rows)
    lowest, highest = (spread([*rows, *_another(rows, value)]) for value in (-end, end))
    if lowest is None or highest is None:
        return found
    return OneMore(found.mean, found.error, found.freedom, lowest, highest, reach)


def _nearly_alike(rows: Sequence[Value]) -> bool:
    """Whether three in four questions have one value, and too few another for their spread to be trusted."""
    of_question: dict[str, list[Value]] = defaultdict(list)
    for row in rows:
        of_question[row.question].append(row)
    alike = max(Counter(round(weighted_mean(found) or 0.0, 9) for found in of_question.values()).values())
    return len(of_question) - alike < FEWEST and 4 * alike >= 3 * len(of_question)


def _another(rows: Sequence[Value], value: float) -> list[Value]:
    """One question more, of every seed, that weighs as much as the others do."""
    seeds = dict.fromkeys(row.seed for row in rows)
    questions = len({row.question for row in rows})
    weight = math.fsum(row.weight for row in rows) / questions / len(seeds)
    return [Value("\0one more", value, weight, seed, rows[0].stratum) for seed in seeds]
