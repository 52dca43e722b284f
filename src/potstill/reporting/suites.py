"""Suites as a page shows them: estimates with their intervals, radars, paired differences, aspects."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from potstill.reporting import charts
from potstill.reporting.differences import difference_of, verdict_of
from potstill.reporting.findings import remark
from potstill.reporting.told import Form, extent, reach, strip, told, told_difference, values

T = TypeVar("T")

RADAR_AXES = 3
"""Fewer categories than this make no radar."""


def plain_suites(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: suite for name, suite in report["suites"].items() if suite["protocol"] != "aspects"}


def suite_view(
    name: str, suite: Mapping[str, Any], report: Mapping[str, Any], colours: Mapping[str, str]
) -> dict[str, Any]:
    """A suite as the template shows it: a row a model, a row a difference, a radar where there are categories."""
    span = _span(suite)
    categories = list(suite["categories"])
    models = [model for model in report["models"] if model in suite["models"]]
    form = Form.of(suite)
    radar = None
    # What could not be read is no zero: a category that a model has no score in stands in the table alone.
    found = {c: values([suite["categories"][c][m] for m in models]) for c in categories}
    axes = [c for c in categories if None not in found[c]]
    if len(axes) >= RADAR_AXES and models:
        drawn = {m: [v for c in axes if (v := found[c][place]) is not None] for place, m in enumerate(models)}
        radar = charts.radar(axes, drawn, _radar_span(suite, [v for row in drawn.values() for v in row]), colours)
    paired = _paired(suite, models, report["against"])
    return {
        "name": name,
        "protocol": suite["protocol"],
        "unit": suite["unit"],
        "explanation": EXPLANATIONS[suite["protocol"]] + (f" Here {words}." if (words := remark(suite)) else ""),
        "rows": [_row(row, estimate, suite, span, colours) for row, estimate in suite["models"].items()],
        "ends": [f"{100 * end:g}%" if form.percent else f"{end:.3g}" for end in span],
        "models": models,
        "radar": radar,
        "categories": [
            {"name": c, "cells": [told(suite["categories"][c][m], form) for m in models]} for c in categories
        ],
        "paired": paired,
        "comparisons": max((one["comparisons"] for one in paired), default=0),
    }


EXPLANATIONS = {
    "mt_bench": "A judge grades every turn of every dialogue from 1 to 10. Higher is better.",
    "aspects": "A judge rates every turn from 1 to 5 on one aspect at a time. Higher is better.",
    "answer_loss": "How surprised each model is by given answers it never trained on. Lower is better.",
    "preference": "In how many held-out pairs a model's implicit reward prefers the answer that was preferred, "
    "beside what can be had without preference training. Higher is better.",
    "mt_bench_pairs": "Every turn is compared with a baseline's in both orders: won only where both say so, else a "
    "tie, which counts as half. Higher is better.",
    "alpaca_eval": "How often a judge prefers each model's answer when it is compared with a baseline's. Longer "
    "answers are often preferred for their length alone. Higher is better.",
    "alpaca_eval_length_controlled": "What the win rate against the baseline would be if all answers were of its "
    "length, by a regression. Higher is better.",
    "exact": "How many answers a checker finds right. Higher is better.",
    "leaderboard": "How often a model finds the right choice the likeliest, asked as the Open LLM Leaderboard asked. "
    "Higher is better.",
    "template_effect": "What each model's chat template changes on the same questions: the share right with it minus "
    "that without. Above zero, the template helps.",
}


def _span(suite: Mapping[str, Any]) -> tuple[float, float]:
    """What a strip shows: the whole scale, or, where it has no end, what was measured with some air."""
    low, high = suite["scale"]
    if high is not None:
        return low, high
    ends = extent(list(suite["models"].values()))
    return (min(ends) - 0.1 * (max(ends) - min(ends)), max(ends) * 1.02) if ends else (low, low + 1.0)


def _radar_span(suite: Mapping[str, Any], values: Sequence[float]) -> tuple[float, float]:
    """The whole scale from its centre, so that areas do not flatter."""
    low, high = suite["scale"]
    return (0.0 if low == 1 else low, high) if high is not None else (0.0, max(values))


def _row(
    name: str,
    estimate: Mapping[str, Any],
    suite: Mapping[str, Any],
    span: tuple[float, float],
    colours: Mapping[str, str],
) -> dict[str, Any]:
    colour = colours.get(name, "baseline")
    columns = told(estimate, Form.of(suite)).columns(strip(estimate, span, colour))
    return {"name": name, "colour": colour, "columns": columns}


def _paired(suite: Mapping[str, Any], models: Sequence[str], against: str | None) -> list[dict[str, Any]]:
    """Every difference that ends in a model, the last model's first; where all are set against one, those alone."""
    names = list(suite["models"])
    pairs = [(later, earlier) for i, later in enumerate(names) for earlier in names[:i] if later in models]
    if against is not None:
        pairs = [(later, against) for later in names if later in models and later != against]
    found = {pair: one for pair in reversed(pairs) if (one := difference_of(suite, *pair)) is not None}
    far = reach(list(found.values()))
    return [_difference(later, earlier, paired, suite, far) for (later, earlier), paired in found.items()]


def _difference(
    later: str, earlier: str, paired: Mapping[str, Any], suite: Mapping[str, Any], far: float
) -> dict[str, Any]:
    verdict = verdict_of(paired, suite["higher_is_better"])
    return {
        "later": later,
        "earlier": earlier,
        "verdict": verdict,
        "told": told_difference(paired, Form.of(suite)),
        "comparisons": paired["comparisons"],
        "strip": strip(paired, (-far, far), verdict, zero=True),
    }


def aspect_views(report: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """The suites of aspects, gathered: a row an aspect, a column a model, and what the last model gained."""
    gathered: dict[str, dict[str, Any]] = {}
    for name, suite in report["suites"].items():
        if suite["protocol"] == "aspects":
            group, _, aspect = name.rpartition("/")
            gathered.setdefault(group, {})[aspect.replace("_", " ")] = suite
    return [_aspect_table(group, found, report["models"]) for group, found in gathered.items()]


def _aspect_table(name: str, suites: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    models = [model for model in order if all(model in suite["models"] for suite in suites.values())]
    gains = {
        aspect: difference_of(suite, models[-1], models[-2]) if len(models) > 1 else None
        for aspect, suite in suites.items()
    }
    far = reach(list(gains.values()))
    return {
        "name": name,
        "models": models,
        "explanation": EXPLANATIONS["aspects"],
        "rows": [
            {
                "name": aspect,
                "cells": [told(suite["models"][model], Form.of(suite)) for model in models],
                "gain": _difference(models[-1], models[-2], gain, suite, far) if (gain := gains[aspect]) else None,
            }
            for aspect, suite in suites.items()
        ],
    }


def told_apart(found: Sequence[tuple[str, str, T]]) -> dict[str, T]:
    """What belongs to the suites of all evaluations; a name that two of them use is told apart by the evaluation's."""
    names = [name for _, name, _ in found]
    return {name if names.count(name) == 1 else f"{origin}: {name}": one for origin, name, one in found}


def folded(suite: Mapping[str, Any]) -> dict[str, Any]:
    """With the members of a family as one row."""
    return {**{key: value for key, value in suite.items() if key != "pooled"}, **suite.get("pooled", {})}
