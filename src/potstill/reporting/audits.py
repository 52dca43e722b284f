"""What audits found of models, in words, tables and plots: for the page, the summary and the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from potstill.reporting import charts
from potstill.reporting.findings import Finding

Value = Mapping[str, Any]

FLAGGED, CLEAN, UNCLEAR, UNMEASURED = "flagged", "clean", "cannot tell", "not measured"
SIGNS = {FLAGGED: "worse", CLEAN: "better", UNCLEAR: "unclear", UNMEASURED: "unclear"}
"""The colour of each verdict on the page."""
MARKS = {FLAGGED: "▼", CLEAN: "▲", UNCLEAR: "◆", UNMEASURED: "–"}


@dataclass(frozen=True)
class DangerTable:
    """One danger as people read it."""

    title: str
    question: str
    sentence: str
    source: str
    verdicts: tuple[tuple[str, str], ...]
    """(model, verdict)."""
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    """Cells: the value, and its 95% interval."""
    notes: tuple[str, ...]


def danger_tables(audit: Value) -> list[DangerTable]:
    """Every danger of an audit.json."""
    return [
        DangerTable(
            danger["title"],
            danger["question"],
            danger["sentence"],
            danger["source"],
            tuple(danger["verdicts"].items()),
            tuple(danger["columns"]),
            tuple(tuple(map(_cell, row)) for row in danger["rows"]),
            tuple(danger["notes"]),
        )
        for danger in audit["dangers"].values()
    ]


def _cell(cell: str | Value) -> tuple[str, str]:
    if isinstance(cell, str):
        return cell, ""
    if cell["mean"] is None:
        return "–", ""
    low, high = cell["low"], cell["high"]
    ends = "" if low is None or high is None else f"{_number(low, cell)} to {_number(high, cell)}"
    return _number(cell["mean"], cell), ends


def _number(value: float, cell: Value) -> str:
    text = f"{value:.1%}" if cell["share"] else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "−")


def audit_findings(report: Value) -> list[Finding]:
    """Of each audit how much was flagged, could not be told and was not measured; then what was flagged, in full."""
    found = []
    for name, audit in report.get("audits", {}).items():
        found.append(Finding(name, "", "", "unclear", f"Audit {name}", f"{_counted(audit)}."))
        for danger in audit["dangers"].values():
            models = [model for model, verdict in danger["verdicts"].items() if verdict == FLAGGED]
            if models:
                found.append(Finding(name, models[0], "", "worse", danger["title"], danger["sentence"]))
    return found


def _counted(audit: Value) -> str:
    """Dangers by verdict, each with its models."""
    groups: dict[str, list[str]] = {}
    for danger in audit["dangers"].values():
        for verdict in (FLAGGED, CLEAN, UNCLEAR, UNMEASURED):
            models = [model for model, found in danger["verdicts"].items() if found == verdict]
            if models:
                whom = "" if len(models) == len(danger["verdicts"]) else f" ({', '.join(models)})"
                groups.setdefault(verdict, []).append(f"{danger['title'].lower()}{whom}")
    order = [verdict for verdict in (FLAGGED, UNCLEAR, UNMEASURED, CLEAN) if verdict in groups]
    return "; ".join(f"{verdict}: {', '.join(groups[verdict])}" for verdict in order)


def audit_views(report: Value, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the page shows of each audit: its dangers with tables and plots."""
    views = []
    for name, audit in report.get("audits", {}).items():
        pairs = zip(danger_tables(audit), audit["dangers"].values(), strict=True)
        dangers = [{"table": table, **_plot(danger["plot"], table.title, colours)} for table, danger in pairs]
        note = f"{audit['hypotheses']} hypotheses, corrected together: in an audit of models with which nothing is "
        note += "wrong, one time in twenty anything at all is flagged."
        roles = {role: audit[role] for role in ("teacher", "base") if audit.get(role)}
        against = [f"the {role}" if model == role else f"the {role} {model}" for role, model in roles.items()]
        views.append({"name": name, "dangers": dangers, "note": note, "against": " and ".join(against)})
    return views


def _plot(plot: Value, title: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """Strips where the points stand at words; lines where they stand at numbers."""
    series = [one for one in plot["series"] if one["points"]]
    shades = _shades([one["name"] for one in series], colours)
    if any(isinstance(point["at"], str) for one in series for point in one["points"]):
        return {"strips": list(_strips(series, plot["zero"], shades)), "lines": None, "legend": [], "across": ""}
    lines = _lines(series, shades, f"{title}: {plot['up']}") if series else None
    across = f"Horizontal: {plot['across']}. Vertical: {plot['up']}."
    return {"strips": [], "lines": lines, "legend": [(name, shades[name]) for name in shades], "across": across}


def _shades(names: Sequence[str], colours: Mapping[str, str]) -> dict[str, str]:
    """A colour a series: its model's where it is one of the page's."""
    return {name: colours.get(name, f"c{i % charts.COLOURS}") for i, name in enumerate(names)}


def _strips(series: Sequence[Value], zero: float | None, shades: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    points = [point for one in series for point in one["points"]]
    ends = [value for point in points for value in (point["mean"], point["low"], point["high"]) if value is not None]
    span = (min([*ends, 0.0]), max([*ends, 0.0]))
    air = 0.05 * (span[1] - span[0]) or 1.0
    span = (span[0] - air, span[1] + air)
    for one in series:
        for point in one["points"]:
            figure = {"mean": point["mean"], "low": point["low"], "high": point["high"], "share": False}
            strip = charts.interval(
                point["mean"], point["low"], point["high"], span, shades[one["name"]], zero=zero is not None
            )
            mean, ends_ = _cell(figure)
            yield {"name": one["name"], "at": point["at"], "strip": strip, "value": mean, "range": ends_}


def _lines(series: Sequence[Value], shades: Mapping[str, str], label: str) -> Markup:
    """Points over numbers, joined, each with its whisker where it has an interval."""
    points = [point for one in series for point in one["points"]]
    ends = [value for point in points for value in (point["mean"], point["low"], point["high"]) if value is not None]
    frame = charts.Frame.around([float(point["at"]) for point in points], ends)
    parts = [frame.grid()]
    for one in series:
        places = [frame.place(float(point["at"]), point["mean"]) for point in one["points"]]
        inner = [Markup('<polyline class="line" points="{}"/>').format(charts.points(places))]
        for point, (x, _) in zip(one["points"], places, strict=True):
            if point["low"] is not None and point["high"] is not None:
                top, bottom = (frame.place(float(point["at"]), point[end])[1] for end in ("high", "low"))
                inner.append(
                    Markup('<line class="whisker" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
                        x, top, bottom
                    )
                )
        inner.append(charts.corner_dots(places) if len(places) <= charts.MOST_DOTS else Markup(""))
        parts.append(Markup('<g class="{}"><title>{}</title>{}</g>').format(
            shades[one["name"]], one["name"], Markup("").join(inner)))  # fmt: skip
    return charts.framed(Markup("").join(parts), "of-audit", label)
