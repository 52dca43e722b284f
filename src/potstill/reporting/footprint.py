"""What it keeps and what it costs: a row a model, from what is sealed, what was measured, and what prices are given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.units import amount, size

Measured = Mapping[str, Any]
"""What stands in no artifact: `speeds` by model, as `money.Gauge` measured; `endpoints` by model, each with its `price`
(USD per million tokens, or None) and the `tokens_per_second` of a reply as seen from here."""

NEARLY_ONE = 1.5
"""Sizes that differ by less than this factor are told as alike."""


def with_footprint(report: dict[str, Any], measured: Measured) -> dict[str, Any]:
    """The report with its footprint as rows; as it is where nothing is known of any model."""
    sealed = report.get("footprint")
    if not sealed or not sealed["models"]:
        return {**report, "footprint": None}
    rows = [_row(name, sealed, report, measured) for name in report["models"] if name in sealed["models"]]
    found = {"teacher": sealed["teacher"], "machine_usd_per_hour": sealed["machine_usd_per_hour"], "models": rows}
    return {**report, "footprint": {**found, "sentences": _sentences(found)}}


def _row(name: str, sealed: Mapping[str, Any], report: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    amounts, members = sealed["models"][name], report["members"].get(name, [name])
    endpoint = measured.get("endpoints", {}).get(name)
    speeds = [measured["speeds"][one] for one in members if one in measured.get("speeds", {})]
    if endpoint is not None:
        speed, memory = endpoint["tokens_per_second"], None
        usd = _paid(amounts, endpoint["price"])
    else:
        speed = _mean([one["tokens"] / one["seconds"] for one in speeds if one["seconds"]])
        memory = _mean([one["memory_bytes"] for one in speeds])
        usd = _hired(amounts, speed, sealed["machine_usd_per_hour"])
    return {
        "name": name,
        "endpoint": endpoint is not None,
        "kept": {suite: ratios[name] for suite, ratios in sealed["kept"].items() if name in ratios},
        "parameters": amounts["parameters"],
        "weights_bytes": amounts["weights_bytes"],
        "tokens_per_second": speed,
        "memory_bytes": memory,
        "memory_of": speeds[0]["memory_of"] if speeds else "",
        "device": speeds[0]["device"] if speeds else "",
        "usd_per_1000_answers": usd,
    }


def _paid(amounts: Mapping[str, float | None], price: Mapping[str, float] | None) -> float | None:
    """USD for 1,000 answers as long as those that were asked for, at a price per million tokens."""
    if price is None or not amounts["answers"]:
        return None
    usd = price["input"] * (amounts["prompt_tokens"] or 0) + price["output"] * (amounts["completion_tokens"] or 0)
    return usd / 1e6 / amounts["answers"] * 1000


def _hired(amounts: Mapping[str, float | None], speed: float | None, usd_per_hour: float | None) -> float | None:
    """USD for 1,000 answers on a machine that costs so much an hour and does nothing else."""
    if usd_per_hour is None or not speed or not amounts["answers"]:
        return None
    seconds = (amounts["completion_tokens"] or 0) / amounts["answers"] / speed
    return 1000 * seconds * usd_per_hour / 3600


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sentences(found: Mapping[str, Any]) -> list[str]:
    """Of each student and suite, what it keeps and with how much; nothing where there is no teacher."""
    rows = {row["name"]: row for row in found["models"]}
    teacher = rows.get(found["teacher"])
    if teacher is None:
        return []
    return [
        _sentence(row, teacher, suite, ratio)
        for row in found["models"]
        for suite, ratio in row["kept"].items()
        if "/" not in suite  # aspects have a table
    ]


def _sentence(row: Mapping[str, Any], teacher: Mapping[str, Any], suite: str, ratio: Mapping[str, Any]) -> str:
    name, whose = row["name"], f"the teacher's score on {suite}"
    if ratio["mean"] is None or ratio["low"] is None:
        return f"What share of {whose} {name} keeps cannot be told."
    share = f"{100 * ratio['mean']:.0f}% [{100 * ratio['low']:.0f}, {100 * ratio['high']:.0f}]"
    parts = [_of_its(row, teacher, "parameters", "parameters"), _of_its(row, teacher, "weights_bytes", "bytes on disk")]
    parts.append(_of_its(row, teacher, "usd_per_1000_answers", "cost"))
    told = [part for part in parts if part]
    return f"{name} keeps {share} of {whose}{f', with {_listed(told)}' if told else ''}."


def _of_its(row: Mapping[str, Any], teacher: Mapping[str, Any], what: str, word: str) -> str:
    """1/12 of its parameters; nothing where either is unknown."""
    if not row[what] or not teacher[what]:
        return ""
    times = teacher[what] / row[what]
    if times >= NEARLY_ONE:
        return f"1/{times:,.0f} of its {word}"
    return f"{1 / times:.2g} times its {word}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def footprint_table(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """As the template shows it."""
    found = report.get("footprint")
    if not found:
        return None
    suites = list(dict.fromkeys(suite for row in found["models"] for suite in row["kept"] if "/" not in suite))
    return {
        "teacher": found["teacher"],
        "suites": suites,
        "rows": [_shown(row, suites, found["teacher"]) for row in found["models"]],
        "sentences": found["sentences"],
        "hired": found["machine_usd_per_hour"],
    }


def _shown(row: Mapping[str, Any], suites: Sequence[str], teacher: str | None) -> dict[str, Any]:
    speed, usd = row["tokens_per_second"], row["usd_per_1000_answers"]
    return {
        "name": row["name"],
        "cells": [_share(row["kept"].get(suite), is_teacher=row["name"] == teacher) for suite in suites],
        "parameters": _known(row["parameters"], amount),
        "bytes": _known(row["weights_bytes"], size),
        "speed": "unknown" if speed is None else f"{speed:,.0f}",
        "where": "one reply" if row["endpoint"] else row["device"],
        "memory": _known(row["memory_bytes"], size),
        "memory_of": row["memory_of"],
        "usd": "unknown" if usd is None else _usd(usd),
    }


def _share(ratio: Mapping[str, Any] | None, *, is_teacher: bool) -> dict[str, str]:
    if is_teacher:
        return {"share": "100%", "range": "the teacher"}
    if ratio is None or ratio["mean"] is None or ratio["low"] is None:
        return {"share": "–", "range": "cannot be told"}
    ends = [f"{100 * ratio[end]:.1f}%" for end in ("low", "high")]
    return {"share": f"{100 * ratio['mean']:.1f}%", "range": " to ".join(ends)}


def _known(value: float | None, words: Callable[[float], str]) -> str:
    return "unknown" if value is None else words(value)


def _usd(value: float) -> str:
    """Two digits, or as many as show something."""
    return f"${value:,.2f}" if value >= 0.1 else f"${value:.2g}" if value else "$0"
