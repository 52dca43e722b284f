"""What a run ends with: summary.json for machines and report.html for people, drawn from a sealed report.

Nothing here imports torch, and nothing in the page asks anyone for anything.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.artifact import read_json, storage_errors, write_json

REPORT_FILE = "report.json"
MEASURE = ("protocol", "unit", "share", "higher_is_better", "baseline", "explained_by")
"""What of a suite says how its numbers are read."""

Timings = Mapping[str, Mapping[str, float | bool]]
"""Per stage: seconds, and sealed_before where an earlier run had made it."""


def render(
    report_artifact: Path, timings: Timings, out: Path, measured: Mapping[str, Any] | None = None, run: Any = None
) -> None:
    """Write summary.json and report.html into `out`, each whole or not at all.

    `measured`: see `footprint.Measured`. `run`: a `survey.Survey`, whose stages and rows the page shows too.
    """
    from potstill.reporting.footprint import with_footprint
    from potstill.reporting.page import page

    report = with_footprint(read_json(report_artifact / REPORT_FILE), measured or {})
    write_json(out / "summary.json", summary(report, timings))
    _write_text(out / "report.html", page(report, timings, out, run))


def summary(report: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
    """The result in one small JSON object: models, scores[suite][model], paired[suite]["b-a"], stages[name]."""
    from potstill.reporting.audits import audit_findings
    from potstill.reporting.claims import claim_findings, claims
    from potstill.reporting.findings import findings, reservations
    from potstill.reporting.side_by_side import side_by_side

    suites = report["suites"]
    return {
        "models": report["models"],
        "headline": [
            *(finding.text for finding in claim_findings(report) or findings(report)),
            *((report.get("footprint") or {}).get("sentences") or ()),
            *reservations(report),
            *(finding.text for finding in audit_findings(report)),
        ],
        "measures": {name: {key: suite[key] for key in MEASURE if key in suite} for name, suite in suites.items()},
        "scores": {name: suite["models"] for name, suite in suites.items()},
        "paired": {name: suite["paired"] for name, suite in suites.items()},
        "categories": {name: suite["categories"] for name, suite in suites.items() if suite["categories"]},
        "stages": {name: dict(times) for name, times in timings.items()},
        **({"footprint": report["footprint"]} if report.get("footprint") else {}),
        **({"audits": _verdicts(report["audits"])} if report.get("audits") else {}),
        **({"claims": claims(report)} if report.get("claims") else {}),
        **({"members": report["members"]} if report.get("members") else {}),
        **(
            {"against": report["against"], "side_by_side": side_by_side(report, timings)}
            if report.get("against")
            else {}
        ),
    }


def _verdicts(audits: Mapping[str, Any]) -> dict[str, Any]:
    """By audit, danger and model."""
    return {
        name: {danger: found["verdicts"] for danger, found in audit["dangers"].items()}
        for name, audit in audits.items()
    }


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        aside.write_text(text, encoding="utf-8", errors="replace")
        aside.replace(path)
