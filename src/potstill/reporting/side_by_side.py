"""All models, or families of them, against one: what each scored, what it took, and what it learnt from."""

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.members import seeds
from potstill.reporting.differences import difference_of

Timings = Mapping[str, Mapping[str, float | bool]]


def side_by_side(report: Mapping[str, Any], timings: Timings) -> list[dict[str, Any]]:
    """A row a model, as it stands in summary.json. Figures of a family are means over its members.

    `seconds` are those of the stage that trains, of one member; what was made for several of them is in none.
    """
    suites = {name: suite for name, suite in report["suites"].items() if suite["protocol"] != "aspects"}
    return [_row(name, report, suites, timings) for name in report["models"]]


def _row(name: str, report: Mapping[str, Any], suites: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
    members = report["members"].get(name, [name])
    made = [report["stages"][one] for one in members if one in report["stages"]]
    took = [float(timings[one]["seconds"]) for one in members if one in timings]
    facts = [one["facts"] for one in made]
    row: dict[str, Any] = {
        "name": name,
        "seeds": seeds(members),
        "suites": {suite: _scores(name, found, report["against"]) for suite, found in suites.items()},
        "seconds": _mean(took),
        "steps": _mean([one["steps"] for one in facts if "steps" in one]),
        "learnt_tokens": _mean([one["learnt_tokens"] for one in made if "learnt_tokens" in one]),
        "signal_bytes": _mean([one["signal_bytes"] for one in made if "signal_bytes" in one]),
    }
    tokens = _mean([one["learnt_tokens"] for one in facts if one.get("learnt_tokens")])
    row["bytes_per_token"] = row["signal_bytes"] / tokens if row["signal_bytes"] is not None and tokens else None
    return row


def _scores(name: str, suite: Mapping[str, Any], against: str) -> dict[str, Any] | None:
    """The estimate, and the difference to the one that all are set against."""
    estimate = suite["models"].get(name)
    if estimate is None:
        return None
    difference = None if name == against else difference_of(suite, name, against)
    return {**estimate, "difference": difference}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
