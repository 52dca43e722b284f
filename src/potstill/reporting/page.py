"""report.html: one file with its style and its one script inside, and a policy that forbids it every request."""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill import __version__
from potstill.evaluation.failures import told_failures
from potstill.members import families, pools, spoken
from potstill.reporting import charts
from potstill.reporting.audits import audit_findings, audit_views
from potstill.reporting.claims import beside, claim_findings
from potstill.reporting.curves import curve_charts
from potstill.reporting.differences import in_seeds, verdict_of
from potstill.reporting.environment import harmless, make_environment
from potstill.reporting.findings import compare, findings, reservations
from potstill.reporting.footprint import footprint_table
from potstill.reporting.frozen import frozen, frozen_href
from potstill.reporting.judges import judge_table
from potstill.reporting.numbers import flat
from potstill.reporting.side_by_side import side_by_side
from potstill.reporting.suites import aspect_views, plain_suites, suite_view
from potstill.reporting.told import Form, seeds_apart, told, told_difference
from potstill.units import amount, size


def page(
    report: Mapping[str, Any], timings: Mapping[str, Mapping[str, float | bool]], out: Path, run: Any = None
) -> str:
    """The whole page as text. `run`: a `survey.Survey`, for the graph, rows and questions; None: scores alone."""
    environment = make_environment()
    environment.globals["stage_href"] = frozen_href
    style = environment.get_template("style.css").render()
    script = environment.get_template("compare.js").render()
    colours = charts.colour_classes(report["models"])
    colours |= {one: colours[row] for row, members in report["members"].items() for one in members if row in colours}
    found = [*(claim_findings(report) or findings(report)), *audit_findings(report)]
    text = environment.get_template(
        "report.html"
    ).render(
        title=report["title"] or out.resolve().name,
        version=__version__,
        style=Markup(style),  # our own file, not a model's words
        style_hash=_hash(style),
        script=Markup(script),  # likewise
        script_hash=_hash(script),
        **frozen(run),
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
        suites=[suite_view(name, suite, report, colours) for name, suite in plain_suites(report).items()],
        aspects=aspect_views(report, colours),
        controlled=_controlled(report),
        curves=curve_charts(report["curves"], colours),
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
    return harmless(text)


def _hash(text: str) -> str:
    """As a page's policy names what it allows."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


def _made(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each stage counted and decided while it made its model."""
    return [
        {"name": name, "kind": stage["kind"], "facts": list(flat(stage["facts"]))}
        for name, stage in ((names[0], report["stages"][names[0]]) for names in pools(report["stages"]).values())
    ]


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
