"""One suite's part of scores.json: estimates per model and category, and every paired difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.evaluation.statistics import (
    Estimate,
    Observation,
    by_category,
    mean_estimate,
    paired_differences,
    share_estimate,
)


@dataclass(frozen=True)
class Measure:
    """What the numbers of a suite are."""

    protocol: str
    scale: tuple[float, float | None]
    """The lowest and the highest value there is; None where there is no highest."""
    higher_is_better: bool = True
    share: bool = False
    """A share of independent questions, whose interval is Wilson's."""
    unit: str = ""


@dataclass(frozen=True)
class SuiteResult:
    """What one suite observed, by the names of its rows in their order: models, and baselines before them."""

    measure: Measure
    observations: Mapping[str, Sequence[Observation]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in scores.json under the suite's name."""
        groups = {name: by_category(rows) for name, rows in self.observations.items()}
        categories = list(dict.fromkeys(category for found in groups.values() for category in found))
        differences = paired_differences(list(self.observations), self.observations)
        return {
            "protocol": self.measure.protocol,
            "scale": list(self.measure.scale),
            "higher_is_better": self.measure.higher_is_better,
            "unit": self.measure.unit,
            "models": {name: self._estimate(rows).to_json() for name, rows in self.observations.items()},
            "categories": {
                category: {name: self._estimate(found.get(category, [])).to_json() for name, found in groups.items()}
                for category in categories
            },
            "paired": {name: difference.to_json() for name, difference in differences.items()},
        }

    def _estimate(self, rows: Sequence[Observation]) -> Estimate:
        if self.measure.share:
            return share_estimate(rows)
        low, high = self.measure.scale
        return mean_estimate(rows, None if high is None else (low, high))
