"""Training curves: read, thinned to what a page can show, and drawn."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from potstill.members import pools
from potstill.reporting import charts

CURVE_POINTS = 240
"""More than this many points of a curve cannot be told apart on a page."""

Series = dict[str, dict[str, list[list[float]]]]
"""Every number over the steps, by split and name: {"train": {"loss": [[step, value], ...]}}."""


def read_curves(path: Path) -> Series:
    """What a file of curves holds; nothing where there is none. A last line that is being written is left out."""
    series: Series = {}
    for line in _lines(path) if path.is_file() else ():
        split = series.setdefault(line["split"], {})
        for name, value in line.items():
            if name not in ("step", "split") and isinstance(value, int | float) and math.isfinite(value):
                split.setdefault(name, []).append([line["step"], value])
    return {split: {name: _thin(points) for name, points in named.items()} for split, named in series.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _thin(points: Sequence[list[float]]) -> list[list[float]]:
    """At most CURVE_POINTS: means over stretches of equally many points, each at its last step."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    bounds = [len(points) * i // CURVE_POINTS for i in range(CURVE_POINTS + 1)]
    stretches = [points[a:b] for a, b in pairwise(bounds)]
    return [[part[-1][0], math.fsum(value for _, value in part) / len(part)] for part in stretches]


def curve_charts(
    curves: Mapping[str, Series], colours: Mapping[str, str], metrics: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """A chart for each model's loss, and one for its accuracy where it has one; or for these `metrics`."""
    shown, wanted = [], set(metrics)
    for model, splits in _mean_curves(curves).items():
        shown_here = [m for split in splits.values() for m in split if m in wanted or _always(m)]
        for metric in dict.fromkeys(shown_here):
            series = {split: named[metric] for split, named in splits.items() if named.get(metric)}
            if series:
                title = f"{model}: {metric.replace('_', ' ')}"
                chart = charts.curve(series, colours.get(model, "baseline"), title)
                shown.append({"model": model, "metric": metric.replace("_", " "), "splits": list(series), "svg": chart})
    return shown


def _always(metric: str) -> bool:
    return metric == "loss" or "accuracy" in metric


def _mean_curves(curves: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a family as one: the mean over its members at every step that all of them have."""
    found: dict[str, Any] = {}
    for name, members in pools(curves).items():
        first = curves[members[0]]
        found[name] = {
            split: {metric: _mean_curve([curves[one].get(split, {}).get(metric, []) for one in members])
                    for metric in named}
            for split, named in first.items()
        }  # fmt: skip
    return found


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    lines = [{point[0]: point[1] for point in curve} for curve in curves]
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    return [[step, sum(line[step] for line in lines) / len(lines)] for step in steps]
