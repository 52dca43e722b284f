"""One suite's scores: every value in observations.jsonl; in scores.json the estimates and every paired difference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from potstill.artifact import read_json, storage_errors
from potstill.evaluation.statistics import (
    Estimate,
    Observation,
    by_category,
    mean_estimate,
    paired_difference,
    paired_differences,
    pooled,
    share_estimate,
)
from potstill.members import pools, seeds

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
    """A share of independent questions, whose interval is Wilson's."""
    unit: str = ""


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
        groups = {name: names for name, names in pools(self.observations).items() if names != [name]}
        return {**found, "pooled": self._pooled(groups, found["models"])} if groups else found

    def _pooled(self, groups: Mapping[str, Sequence[str]], alone: Mapping[str, Any]) -> dict[str, Any]:
        """The rows with each family's members as one, whose value for a question is the mean over its members."""
        rows = {name: pooled([self.observations[n] for n in names]) for name, names in pools(self.observations).items()}
        found = replace(self, observations=rows)._json()
        for name, names in groups.items():
            row, whole = found["models"][name], [row for one in names for row in self.observations[one]]
            row["coverage"] = sum(one.value is not None for one in whole) / len(whole) if whole else 0.0
            row["members"] = {one: alone[one]["mean"] for one in names}
        for earlier, later in combinations(rows, 2):
            found["paired"][f"{later}-{earlier}"]["members"] = self._by_seed(pools(self.observations), later, earlier)
        return {key: found[key] for key in ("models", "categories", "paired")}

    def _by_seed(self, groups: Mapping[str, Sequence[str]], later: str, earlier: str) -> dict[str, float | None]:
        """The difference in each seed that both have, or of each seed of one to the other, which has none."""
        by_seed = [
            {seeds([name])[0] if seeds([name]) else "": name for name in groups[one]} for one in (later, earlier)
        ]
        found: dict[str, float | None] = {}
        for seed in dict.fromkeys(seed for one in by_seed for seed in one if seed):
            ends = [one.get(seed, one.get("")) for one in by_seed]
            if ends[0] is not None and ends[1] is not None:
                found[seed] = paired_difference(self.observations[ends[0]], self.observations[ends[1]]).mean
        return found

    def _json(self) -> dict[str, Any]:
        groups = {name: by_category(rows) for name, rows in self.observations.items()}
        categories = list(dict.fromkeys(category for found in groups.values() for category in found))
        differences = paired_differences(list(self.observations), self.observations)
        return {
            "protocol": self.measure.protocol,
            "scale": list(self.measure.scale),
            "higher_is_better": self.measure.higher_is_better,
            "unit": self.measure.unit,
            "share": self.measure.share,
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
