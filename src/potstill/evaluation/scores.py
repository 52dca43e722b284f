"""One suite's scores: every value in observations.jsonl; in scores.json the estimates and every paired difference."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.artifact import storage_errors
from potstill.errors import DataError, reading
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
from potstill.evaluation.stored import read_typed
from potstill.members import pools
from potstill.reading.files import quote, read_lines
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, kind_of, string

SCORES_FILE = "scores.json"
OBSERVATIONS_FILE = "observations.jsonl"
LARGEST = 1e50
"""Of a value or a weight: squares of sums of these are still numbers."""
ROUNDING = 1e-6
"""By which a value may leave its scale."""
BEYOND_SCALE = {"mt_bench": (0.0, 10.0), "alpaca_eval_length_controlled": (-LARGEST, LARGEST)}
"""From where to where single values reach that leave their scale, by protocol. Some judges write [[0]], which counts as
published; the pseudo-values of a fitted rate have their mean alone on its scale."""


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


class _Counted(BaseModel):
    """How many values a model's estimate is of."""

    n: int


class _Suite(BaseModel):
    """What is read of a suite in scores.json. Its estimates are computed anew."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    protocol: str
    scale: tuple[float, float | None]
    higher_is_better: bool
    share: bool
    unit: str
    models: dict[str, _Counted]

    def measure(self) -> Measure:
        return Measure(self.protocol, self.scale, self.higher_is_better, self.share, self.unit)

    def bounds(self) -> tuple[float, float]:
        """Of a single value."""
        low, high = BEYOND_SCALE.get(self.protocol, self.scale)
        return max(low, -LARGEST), LARGEST if high is None else min(high, LARGEST)


class _Scores(BaseModel):
    suites: dict[str, _Suite]


@reading()
def read_results(folder: Path) -> dict[str, SuiteResult]:
    """The suites of an evaluation, value by value. DataError at the first thing that is not as potstill writes it."""
    suites = _read_suites(folder / SCORES_FILE)
    rows = _Rows(suites)
    path = folder / OBSERVATIONS_FILE
    if path.stat().st_size:  # else nothing was scored, or it is lost
        read_typed(read_lines(path), str(path), rows.keep)
    for name, suite in suites.items():
        for model, told in suite.models.items():
            count = sum(row.value is not None for row in rows.found[name][model])
            if count != told.n:
                what = f"it holds {count} values of '{model}' in '{name}'; expected {told.n}, as {SCORES_FILE} counts"
                raise DataError(str(path), what, "Copy or seal the evaluation again")
    return {name: SuiteResult(suite.measure(), rows.found[name]) for name, suite in suites.items()}


def _read_suites(path: Path) -> dict[str, _Suite]:
    try:
        return _Scores.model_validate_json(path.read_bytes()).suites
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        remedy = "Run the evaluation again, which writes them anew"
        raise DataError(str(path), f"these are not scores as potstill writes them ({what})", remedy) from error


class _Rows:
    """The observations of each suite and model, every row checked against what scores.json says of its suite."""

    def __init__(self, suites: Mapping[str, _Suite]) -> None:
        self.found: dict[str, dict[str, list[Observation]]] = {
            name: {model: [] for model in suite.models} for name, suite in suites.items()
        }
        self._bounds = {name: suite.bounds() for name, suite in suites.items()}
        self._met = {(name, model): set[tuple[str, str]]() for name, suite in suites.items() for model in suite.models}

    def keep(self, row: Columns) -> None:
        suite, model, question, part = (string(row, column) for column in ("suite", "model", "question", "part"))
        met = self._met.get((suite, model))
        if met is None:
            raise ShapeError(f"{SCORES_FILE} has no {quote(model)!r} in a suite {quote(suite)!r}; expected what it has")
        before = len(met)
        met.add((question, part))
        if len(met) == before:
            said = f"question {quote(question)!r}, part {quote(part)!r} of {quote(model)!r} stands there twice"
            raise ShapeError(f"{said}; expected it once")
        unscored = "value" in row and row["value"] is None
        value = None if unscored else _number(row, "value", *self._bounds[suite])
        weight = _number(row, "weight", 0.0, LARGEST)
        if weight <= 0 and value is not None:
            raise ShapeError(f"'weight' is {weight:g}; expected a number above 0")
        stratum = string(row, "stratum") if "stratum" in row else ""
        self.found[suite][model].append(Observation(question, part, value, weight, string(row, "category"), stratum))


def _number(row: Columns, column: str, low: float, high: float) -> float:
    value = row.get(column)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ShapeError(f"{column!r} is {kind_of(value)}; expected a number from {low:g} to {high:g}")
    if not low - ROUNDING <= value <= high + ROUNDING:  # neither is one that is no number
        raise ShapeError(f"{column!r} is {quote(str(value))}; expected a number from {low:g} to {high:g}")
    return float(value)
