"""Scores: every suite of every evaluation, with intervals, categories and differences."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.artifact import read_json
from potstill.evaluation.failures import failed_judgments, told_failures
from potstill.members import pools, spoken
from potstill.reporting import charts
from potstill.reporting.findings import noted
from potstill.reporting.questions import ANSWERS_FILE, read_lines
from potstill.reporting.suites import aspect_views, folded, plain_suites, suite_view, told_apart
from potstill.runs.survey import StageView
from potstill.view.site import Site

TITLE, PATH = "Scores", "/scores"


def routes(site: Site) -> list[Route]:
    """One page."""

    def whole(request: Request) -> Response:
        return site.page(request, "page_scores.html", **suites_of(site.survey().sealed("scores")))

    return [Route(PATH, whole)]


def suites_of(evaluations: Sequence[StageView]) -> dict[str, Any]:
    """What the templates of suites take."""
    found: list[tuple[str, str, Any]] = []
    models: dict[str, None] = {}
    failed = []
    for stage in evaluations:
        assert stage.artifact is not None
        scores = read_json(stage.artifact.path / "scores.json")
        models |= dict.fromkeys(scores["models"])
        notes = stage.artifact.facts.get("notes", {})
        found += [(stage.name, name, noted(folded(suite), name, notes)) for name, suite in scores["suites"].items()]
        unread = failed_judgments(read_lines(stage.artifact.path / ANSWERS_FILE))
        if unread["failed"]:
            failed.append({"name": stage.name, "sentence": f"{told_failures(unread)}.", "examples": unread["examples"]})
    groups = pools(models)
    report: dict[str, Any] = {"models": list(groups), "suites": told_apart(found), "against": None}
    colours = charts.colour_classes(list(groups))
    colours |= {one: colours[row] for row, members in groups.items() for one in members}
    return {
        "suites": [suite_view(name, suite, report, colours) for name, suite in plain_suites(report).items()],
        "aspects": aspect_views(report, colours),
        "members": {name: spoken(names) for name, names in groups.items() if names != [name]},
        "failed": failed,
        "colours": colours,
    }
