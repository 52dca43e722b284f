"""Self-consistency: what a judge says when it is asked the very same thing again.

The askings of one thing are compared two by two, so that N of them give N (N - 1) / 2 values, of one cluster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from potstill.evaluation.agreement import Valued, clustered_share
from potstill.evaluation.correlation import Matched, jackknifed, pearson
from potstill.evaluation.statistics import Observation, mean_estimate


@dataclass(frozen=True)
class Repeated:
    """One thing, and what was said of it each time; None where that could not be read."""

    cluster: str
    values: tuple[float | None, ...]

    def twos(self) -> Iterator[tuple[float, float]]:
        """Every two askings of which both could be read."""
        for one, other in combinations(self.values, 2):
            if one is not None and other is not None:
                yield one, other


def same_again(rows: Sequence[Repeated]) -> dict[str, Any]:
    """The share of two askings that say the same, with an interval, as JSON."""
    asked = sum(len(row.values) * (len(row.values) - 1) // 2 for row in rows)
    found = [Valued(row.cluster, float(one == other)) for row in rows for one, other in row.twos()]
    return clustered_share(found, asked).to_json()


def grades_again(rows: Sequence[Repeated]) -> dict[str, Any]:
    """Test-retest agreement of grades, as JSON: `same`; `difference`, the mean absolute one in points; and
    `correlation`, that of one asking with another, the intraclass correlation of Fisher's double entry (1925)."""
    apart = [Observation(row.cluster, "", abs(one - other)) for row in rows for one, other in row.twos()]
    both = [
        Matched(row.cluster, one, other)
        for row in rows
        for one, other in permutations([value for value in row.values if value is not None], 2)
    ]
    return {
        "same": same_again(rows),
        "difference": mean_estimate(apart, (0.0, float("inf"))).to_json(),
        "correlation": jackknifed(both, pearson, fisher=True).to_json(),
    }
