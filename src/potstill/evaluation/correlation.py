"""Rank and product-moment correlations of a table of two raters' grades, and the jackknife of clusters for statistics
of such tables.

A table counts pairs of values. Values may be floats or fractions: equal ones are ties, which fractions keep exact.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.statistics import Estimate

FEWEST = 10
"""The clusters from which a jackknife gives an interval."""

Table = Mapping[tuple[Any, Any], int]
"""How often the one said this and the other that."""


@dataclass(frozen=True)
class Matched:
    """Two raters' words on the same thing."""

    cluster: str
    one: Any
    other: Any


def jackknifed(
    rows: Sequence[Matched], statistic: Callable[[Table], float | None], *, fisher: bool = False
) -> Estimate:
    """A statistic of a table with the interval of Student's t on the jackknife of clusters (Efron and Stein 1981).

    `fisher`: the interval is taken on atanh of the statistic (Fisher 1915), as for correlations, whose spread shrinks
    towards 1. No interval below `FEWEST` clusters, where leaving one out leaves nothing to say, or where it never
    changes anything, as with two who always agree: such a jackknife knows no spread.
    """
    total, parts = Counter[tuple[Any, Any]](), dict[str, Counter[tuple[Any, Any]]]()
    for row in rows:
        total[row.one, row.other] += 1
        parts.setdefault(row.cluster, Counter())[row.one, row.other] += 1
    value = statistic(total)
    alone = Estimate(value, None, None, len(rows), float(bool(rows)))
    if value is None or len(parts) < FEWEST:
        return alone
    left_out = [statistic(total - part) for part in parts.values()]
    known = [one for one in left_out if one is not None]
    if len(known) < len(left_out) or (fisher and max(map(abs, (value, *known))) > 1 - 1e-12):
        return alone
    centre, spread = (math.atanh(value), [math.atanh(one) for one in known]) if fisher else (value, known)
    groups, mean = len(spread), math.fsum(spread) / len(spread)
    variance = (groups - 1) / groups * math.fsum((one - mean) ** 2 for one in spread)
    half = student_quantile(groups - 1) * math.sqrt(variance)
    if half < 1e-9:
        return alone
    ends = [centre - half, centre + half]
    low, high = map(math.tanh, ends) if fisher else ends
    return Estimate(value, low, high, len(rows), 1.0)


def pearson(table: Table) -> float | None:
    """The product-moment correlation; None where one of the two always says the same."""
    n = sum(table.values())
    if n < 2:
        return None
    cells = [(float(one), float(other), count) for (one, other), count in table.items()]
    means = [math.fsum(cell[side] * cell[2] for cell in cells) / n for side in (0, 1)]
    away = [(one - means[0], other - means[1], count) for one, other, count in cells]
    squares = [math.fsum(cell[side] ** 2 * cell[2] for cell in away) for side in (0, 1)]
    if min(squares) <= 1e-18 * n:
        return None
    both = math.fsum(one * other * count for one, other, count in away)
    return max(-1.0, min(1.0, both / math.sqrt(squares[0] * squares[1])))


def spearman(table: Table) -> float | None:
    """The correlation of ranks, of which equal values share their mean (Spearman 1904)."""
    ranks = [_midranks(table, side) for side in (0, 1)]
    found = Counter[tuple[float, float]]()
    for (one, other), count in table.items():
        found[ranks[0][one], ranks[1][other]] += count
    return pearson(found)


def _midranks(table: Table, side: int) -> dict[Any, float]:
    counts = Counter[Any]()
    for values, count in table.items():
        counts[values[side]] += count
    ranks, before = {}, 0
    for value in sorted(counts):
        ranks[value] = before + (counts[value] + 1) / 2
        before += counts[value]
    return ranks


def kendall(table: Table) -> float | None:
    """Tau-b (Kendall 1945): of pairs in which both see a difference, those in the same order less those in the other,
    over the geometric mean of the pairs that each tells apart. None where one of the two tells none apart."""
    n = sum(table.values())
    apart = [_pairs(n) - sum(map(_pairs, _counts(table, side))) for side in (0, 1)]
    if min(apart) <= 0:
        return None
    places = {value: place for place, value in enumerate(sorted({other for _, other in table}), start=1)}
    seen, so_far, score = _Sums(len(places)), 0, 0
    for _, group in groupby(sorted(table.items(), key=lambda cell: cell[0][0]), key=lambda cell: cell[0][0]):
        cells = [(places[other], count) for (_, other), count in group]
        score += sum(count * (seen.up_to(place - 1) - (so_far - seen.up_to(place))) for place, count in cells)
        for place, count in cells:
            seen.add(place, count)
            so_far += count
    return score / math.sqrt(apart[0] * apart[1])


class _Sums:
    """Counts by place, from 1, and their sums from the left (Fenwick 1994): both in the logarithm of the places."""

    def __init__(self, places: int) -> None:
        self._sums = [0] * (places + 1)

    def add(self, place: int, count: int) -> None:
        while place < len(self._sums):
            self._sums[place] += count
            place += place & -place

    def up_to(self, place: int) -> int:
        total = 0
        while place:
            total += self._sums[place]
            place -= place & -place
        return total


def _counts(table: Table, side: int) -> list[int]:
    counts = Counter[Any]()
    for values, count in table.items():
        counts[values[side]] += count
    return list(counts.values())


def _pairs(n: int) -> int:
    return n * (n - 1) // 2
