"""Scores on a terminal, in the roomiest table that it is wide enough for."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from potstill.reporting.differences import verdict_of
from potstill.reporting.findings import remark
from potstill.reporting.told import Form, told, told_difference, widest
from potstill.units import duration

MOST_COLUMNS = 6
"""Of models, before they become rows."""
BESIDE, BELOW = " ", "\n"
"""Where an interval stands: beside its mean, or below it."""


def score_table(summary: Mapping[str, Any], width: int) -> RenderableType:
    """Means with their 95% intervals: suites by models, or models by suites where they are many or long.

    No number is cut, whatever the width. Where there is much room, a column sets the last model against the one before;
    a difference stands out where it is beyond chance, corrected for all comparisons of the suite.
    """
    table = next((table for table in _shapes(summary) if _width(table) <= width), None)
    parts: list[RenderableType] = [table] if table is not None else _in_parts(summary, width)
    said = ((name, remark(measure)) for name, measure in summary["measures"].items())
    return Group(*parts, *(Text(f"{name}: {words}", "dim") for name, words in said if words))


def _shapes(summary: Mapping[str, Any]) -> Iterator[Table]:
    """From the roomiest."""
    if len(summary["models"]) <= MOST_COLUMNS:
        yield _by_suite(summary, BESIDE, pair=True)
        yield _by_suite(summary, BESIDE)
        yield _by_suite(summary, BELOW)
    yield _by_model(summary, list(summary["scores"]), BESIDE)
    yield _by_model(summary, list(summary["scores"]), BELOW)


def _in_parts(summary: Mapping[str, Any], width: int) -> list[RenderableType]:
    """As many tables as it takes: models by as many suites as fit, at least one."""
    parts: list[list[str]] = []
    for suite in summary["scores"]:
        if parts and _width(_by_model(summary, [*parts[-1], suite], BELOW)) <= width:
            parts[-1].append(suite)
        else:
            parts.append([suite])
    apart: list[RenderableType] = []
    for suites in parts:
        apart += [_by_model(summary, suites, BELOW), Text()]
    return apart[:-1]


def _by_suite(summary: Mapping[str, Any], between: str, *, pair: bool = False) -> Table:
    models, suites = list(summary["models"]), summary["scores"]
    last = f"{models[-1]}-{models[-2]}" if pair and len(models) > 1 else ""
    table = _table(4 + max(len(part) for suite in suites for part in suite.split("/")))
    for head in [*models, *([f"{models[-1]} − {models[-2]}"] if last else []), "n"]:
        table.add_column(Text(head), justify="right", no_wrap=True)
    group = ""
    for suite, scores in suites.items():
        above, _, name = suite.rpartition("/")
        if above != group and above:
            table.add_row(Text(above.replace("_", " ")))
        group = above
        form = _form(summary, suite)
        cells = [_cell(scores.get(model), between, form, n=False) for model in models]
        if last:
            cells.append(_difference(summary["paired"].get(suite, {}).get(last), between, form))
        label = f"  {name.replace('_', ' ')}" if above else name.replace("_", " ")
        table.add_row(Text(label), *cells, _counts(scores))
    return table


def _by_model(summary: Mapping[str, Any], suites: Sequence[str], between: str) -> Table:
    """With the counts in the head."""
    scores = summary["scores"]
    table = _table(2 + max(map(len, summary["models"])))
    for suite in suites:
        head = suite.replace("_", " ").replace("/", "\n")
        table.add_column(Text(f"{head}\nn {_counts(scores[suite])}"), justify="right", no_wrap=True, vertical="top")
    for model in summary["models"]:
        cells = [_cell(scores[suite].get(model), between, _form(summary, suite), n=False) for suite in suites]
        table.add_row(Text(model), *cells)
    return table


def side_by_side_table(summary: Mapping[str, Any], width: int) -> Table:
    """Models, or families of them, by what each scored and took; beside each score the difference to the one that all
    are set against, which stands out where it is beyond chance. Where there is little room, intervals stand below."""
    shapes = [(BESIDE, True), (BELOW, True), (BELOW, False)]
    tables = [_side_by_side(summary, between, roomy=roomy) for between, roomy in shapes]
    return next((table for table in tables if _width(table) <= width), tables[-1])


def _side_by_side(summary: Mapping[str, Any], between: str, *, roomy: bool) -> Table:
    rows = summary["side_by_side"]
    table = _table(6 + max(len(row["name"]) for row in rows))
    for suite in rows[0]["suites"]:
        table.add_column(Text(suite), justify="right", no_wrap=True)
        table.add_column(Text(f"− {summary['against']}"), justify="right", no_wrap=True)
    for name in ("training", "steps", "bytes/token") if roomy else ("training",):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        label = Text.assemble(row["name"], (f"  ×{len(row['seeds'])}" if row["seeds"] else "", "dim"))
        cells: list[Text] = []
        for suite, found in row["suites"].items():
            form = _form(summary, suite)
            cells += [_cell(found, between, form), _difference(found and found["difference"], between, form)]
        took = "" if row["seconds"] is None else duration(row["seconds"])
        figures = ["" if row[one] is None else f"{row[one]:,.0f}" for one in ("steps", "bytes_per_token") if roomy]
        table.add_row(label, *cells, took, *figures)
    return table


def _table(names: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("mean [95% interval]" if names > 20 else "mean", header_style="dim", no_wrap=True)
    return table


def _width(table: Table) -> int:
    """What it takes where nothing is wrapped or cut."""
    console = Console(width=10_000, file=io.StringIO())
    return Measurement.get(console, console.options, table).maximum


def _form(summary: Mapping[str, Any], suite: str) -> Form:
    """How a suite's numbers are written: closer where its intervals are narrow."""
    form = Form.of(summary["measures"][suite])
    narrow = 0 < form.scale * widest(list(summary["scores"][suite].values())) < 0.1
    return replace(form, digits=form.digits + 1) if narrow else form


def _counts(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Of how many values the means of a suite are."""
    counts = sorted({one["n"] for one in scores.values()})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"


def _cell(score: Mapping[str, Any] | None, between: str, form: Form, *, n: bool = True) -> Text:
    """An estimate with its interval, beside it or below it."""
    return Text("-", "dim") if score is None else Text.assemble(*told(score, form).marked(between, n=n))


def _difference(found: Mapping[str, Any] | None, between: str, form: Form) -> Text:
    """A paired difference; one that is beyond chance stands out."""
    if found is None:
        return Text("-", "dim")
    clear = verdict_of(found, higher_is_better=True) != "unclear"
    return Text.assemble(*told_difference(found, form).marked(between, clear=clear, n=False))
