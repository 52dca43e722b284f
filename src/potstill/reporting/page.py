"""report.html: one file with its style inside, no script, and a policy that forbids it every request."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill import __version__
from potstill.evaluation.failures import told_failures
from potstill.members import families, pools, spoken
from potstill.reporting import charts
from potstill.reporting.audits import MARKS, SIGNS, audit_findings, audit_views
from potstill.reporting.claims import beside, claim_findings
from potstill.reporting.differences import difference_of, in_seeds, verdict_of
from potstill.reporting.findings import compare, findings, remark, reservations
from potstill.reporting.footprint import footprint_table
from potstill.reporting.judges import judge_table
from potstill.reporting.side_by_side import side_by_side
from potstill.reporting.told import Form, extent, reach, seeds_apart, strip, told, told_difference, values
from potstill.units import amount, duration, size

RADAR_AXES = 3
"""Fewer categories than this make no radar."""
LONGEST_FACT = 80
# Characters that end a file or turn the direction of what follows; a model may write them, a page must not obey them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def page(report: Mapping[str, Any], timings: Mapping[str, Mapping[str, float | bool]], out: Path) -> str:
    """The whole page as text."""
    style = _environment().get_template("style.css").render()
    colours = charts.colour_classes(report["models"])
    colours |= {one: colours[row] for row, members in report["members"].items() for one in members if row in colours}
    found = [*(claim_findings(report) or findings(report)), *audit_findings(report)]
    text = (
        _environment()
        .get_template("report.html")
        .render(
            title=report["title"] or out.resolve().name,
            version=__version__,
            style=Markup(style),  # our own file, not a model's words
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            models=report["models"],
            colours=colours,
            headline=found[0] if found else None,
            findings=found[1:],
            reservations=reservations(report),
            against=report["against"],
            beside=beside(report),
            ladder=_ladder(report, timings, colours) if report["against"] else None,
            footprint=footprint_table(report),
            members={name: spoken(names) for name, names in report["members"].items()},
            suites=[_suite(name, suite, report, colours) for name, suite in _plain_suites(report).items()],
            aspects=_aspects(report, colours),
            controlled=_controlled(report),
            curves=_curves(report, colours),
            made=_made(report),
            trials=[judge_table(name, trial) for name, trial in report.get("trials", {}).items()],
            audits=audit_views(report, colours),
            answers=report["answers"],
            failed=[
                {"name": name, "sentence": f"{told_failures(found)}.", "examples": found["examples"]}
                for name, found in report.get("failed", {}).items()
            ],
            times=_times(timings),
            result=_result(report, out),
        )
    )
    return _CONTROL.sub("\ufffd", text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("potstill.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.globals |= {"signs": SIGNS, "marks": MARKS}
    return environment


def _plain_suites(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: suite for name, suite in report["suites"].items() if suite["protocol"] != "aspects"}


def _suite(
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


def _aspects(report: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
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


def _ladder(
    report: Mapping[str, Any], timings: Mapping[str, Mapping[str, float | bool]], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Everything against one, as the template shows it."""
    rows = side_by_side(report, timings)
    suites = {name: report["suites"][name] for name in rows[0]["suites"]} if rows else {}
    return {
        "suites": [{"name": name, "lower": not suite["higher_is_better"]} for name, suite in suites.items()],
        "rows": [
            {
                "name": row["name"],
                "colour": colours[row["name"]],
                "seeds": ", ".join(row["seeds"]),
                "cells": [_against(row["suites"][name], suite) for name, suite in suites.items()],
                "seconds": row["seconds"],
                "steps": amount(row["steps"]),
                "tokens": amount(row["learnt_tokens"]),
                "bytes": size(row["signal_bytes"]),
                "per_token": "" if row["bytes_per_token"] is None else f"{row['bytes_per_token']:,.1f}",
            }
            for row in rows
        ],
    }


def _against(cell: Mapping[str, Any] | None, suite: Mapping[str, Any]) -> dict[str, Any] | None:
    """A score and its difference."""
    if cell is None:
        return None
    form, paired = Form.of(suite), cell["difference"]
    gain = None
    if paired is not None:
        gain = {
            "verdict": verdict_of(paired, suite["higher_is_better"]),
            "told": told_difference(paired, form),
            "seeds": in_seeds(paired),
        }
    return {"told": told(cell, form), "spread": seeds_apart(cell, form), "gain": gain}


def _controlled(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What one field did, where two models differ in nothing else: the paired differences, read as an experiment."""
    lines = []
    for pair in report["controlled"]:
        for name, suite in report["suites"].items():
            finding = compare(name, suite, pair["later"], pair["earlier"])
            if finding is not None and suite["protocol"] != "aspects":
                lines.append({**pair, "verdict": finding.verdict, "text": finding.text})
    return lines


def _curves(report: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """A chart for each model's loss, and one for its accuracy where it has one."""
    shown = []
    for model, splits in _mean_curves(report["curves"]).items():
        metrics = [m for split in splits.values() for m in split if m == "loss" or "accuracy" in m]
        for metric in dict.fromkeys(metrics):
            series = {split: named[metric] for split, named in splits.items() if named.get(metric)}
            if series:
                title = f"{model}: {metric.replace('_', ' ')}"
                chart = charts.curve(series, colours.get(model, "baseline"), title)
                shown.append({"model": model, "metric": metric.replace("_", " "), "splits": list(series), "svg": chart})
    return shown


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


def _made(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each stage counted and decided while it made its model."""
    return [
        {"name": name, "kind": stage["kind"], "facts": list(_flat(stage["facts"]))}
        for name, stage in ((names[0], report["stages"][names[0]]) for names in pools(report["stages"]).values())
    ]


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Facts as (name, value) in words, those inside others with both names."""
    for key, value in facts.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, f"{value:,}"
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield name, text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]}…"


def _times(timings: Mapping[str, Mapping[str, float | bool]]) -> dict[str, Any]:
    """A row a stage; the members of a family together."""
    seconds = {
        family: sum(float(timings[one]["seconds"]) for one in names) for family, names in families(timings).items()
    }
    longest = max(seconds.values(), default=0.0) or 1.0
    return {
        "rows": [
            {
                "name": family,
                "members": spoken(names),
                "seconds": seconds[family],
                "before": all(timings[one]["sealed_before"] for one in names),
                "bar": charts.bar(seconds[family] / longest),
            }
            for family, names in families(timings).items()
        ],
        "total": sum(float(t["seconds"]) for t in timings.values()),
    }


def _result(report: Mapping[str, Any], out: Path) -> dict[str, str] | None:
    """The model that the page hands over: the last of those that were made here."""
    if not report["stages"]:
        return None
    name = list(report["stages"])[-1]
    folder = Path(out)
    if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return {
        "name": shlex.quote(name),
        "run": shlex.quote(folder.as_posix()),
        "path": json.dumps((folder / name).as_posix(), ensure_ascii=False),
    }
