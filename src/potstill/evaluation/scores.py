"""One suite's scores: every value in observations.jsonl; in scores.json the estimates and every paired difference."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.artifact import read_json, storage_errors
from potstill.evaluation.seed_pools import pooled_suite
from potstill.evaluation.spread import Value
from potstill.evaluation.statistics import (
    Estimate,
    Observation,
    by_category,
    mean_estimate,
    mean_over_seeds,
    paired_differences,
    share_estimate,
    share_over_seeds,
)
from potstill.members import pools

SCORES_FILE = "scores.json"
OBSERVATIONS_FILE = "observations.jsonl"


@dataclass(frozen=True)
class Measure:
    """What the numbers of a suite are."""

    protocol: str
    scale: tuple[float, float | None]
    """The lowest and the highest value there is; None where there is no highest."""
    higher_is_better: bool = True
    share: bool = False
    """A share, whose interval is Wilson's."""
    unit: str = ""

    def estimate(self, rows: Sequence[Observation]) -> Estimate:
        """The mean of a row, with the interval that suits it."""
        return share_estimate(rows) if self.share else mean_estimate(rows, self._bounds)

    def estimate_over_seeds(self, values: Sequence[Value], asked: int) -> Estimate | None:
        """The same for models of several seeds, of other seeds too; None without two of each."""
        return share_over_seeds(values, asked) if self.share else mean_over_seeds(values, asked, self._bounds)

    @property
    def is_share(self) -> bool:
        """Whether its values are shares or differences of them, which people read in percent."""
        return self.share or self.unit.startswith("share")

    @property
    def reach(self) -> float:
        """The most that two values can differ by."""
        low, high = self.scale
        return math.inf if high is None else high - low

    @property
    def _bounds(self) -> tuple[float, float] | None:
        low, high = self.scale
        return None if high is None else (low, high)


@dataclass(frozen=True)
class SuiteResult:
    """What one suite observed, by the names of its rows in their order: models, and baselines before them."""

    measure: Measure
    observations: Mapping[str, Sequence[Observation]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in scores.json under the suite's name.

        Where rows differ in their seed alone, `pooled` says the same of each of those families as one row.
        """
        found = self._json()
        families = any(names != [name] for name, names in pools(self.observations).items())
        return {**found, "pooled": pooled_suite(self.measure, self.observations)} if families else found

    def _json(self) -> dict[str, Any]:
        groups = {name: by_category(rows) for name, rows in self.observations.items()}
        categories = list(dict.fromkeys(category for found in groups.values() for category in found))
        differences = paired_differences(list(self.observations), self.observations, self.measure.reach)
        return {
            "protocol": self.measure.protocol,
            "scale": list(self.measure.scale),
            "higher_is_better": self.measure.higher_is_better,
            "unit": self.measure.unit,
            "share": self.measure.share,
            "models": {name: self.measure.estimate(rows).to_json() for name, rows in self.observations.items()},
            "categories": {
                category: {
                    name: self.measure.estimate(found.get(category, [])).to_json() for name, found in groups.items()
                }
                for category in categories
            },
            "paired": {name: difference.to_json() for name, difference in differences.items()},
        }


def write_observations(folder: Path, results: Mapping[str, SuiteResult]) -> None:
    """Every value that was asked for, a line each, under the name of its suite and row."""
    path = folder / OBSERVATIONS_FILE
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for suite, result in results.items():
            for model, rows in result.observations.items():
                for row in rows:
                    file.write(json.dumps({"suite": suite, "model": model} | asdict(row), ensure_ascii=False) + "\n")


def read_results(folder: Path) -> dict[str, SuiteResult]:
    """The suites of a sealed evaluation, value by value."""
    suites = read_json(folder / SCORES_FILE)["suites"]
    found: dict[str, dict[str, list[Observation]]] = {
        name: {row: [] for row in suite["models"]} for name, suite in suites.items()
    }
    path = folder / OBSERVATIONS_FILE
    with storage_errors(path), path.open(encoding="utf-8") as file:
        for line in file:
            value = json.loads(line)
            found[value.pop("suite")][value.pop("model")].append(Observation(**value))
    return {name: SuiteResult(_measure(suite), found[name]) for name, suite in suites.items()}


def _measure(suite: Mapping[str, Any]) -> Measure:
    low, high = suite["scale"]
    return Measure(suite["protocol"], (low, high), suite["higher_is_better"], suite["share"], suite["unit"])
