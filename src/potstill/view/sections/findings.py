"""Audits of models and trials of judges."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.artifact import read_json
from potstill.evaluation.judge_trial import TRIAL_FILE
from potstill.reporting.audits import audit_views
from potstill.reporting.judges import judge_table
from potstill.runs.survey import StageView
from potstill.view.site import Site

TITLE, PATH = "Audits", "/audits"
AUDIT_FILE = "audit.json"


def routes(site: Site) -> list[Route]:
    """One page for both."""

    def whole(request: Request) -> Response:
        run = site.survey()
        audits, trials = audit_of(run.sealed("audit")), trial_of(run.sealed("trial"))
        return site.page(request, "page_audits.html", audits=audits, trials=trials)

    return [Route(PATH, whole)]


def audit_of(stages: Sequence[StageView]) -> list[dict[str, Any]]:
    """What the template of audits takes."""
    found = {one.name: read_json(one.artifact.path / AUDIT_FILE) for one in stages if one.artifact is not None}
    return audit_views({"audits": found}, {})


def trial_of(stages: Sequence[StageView]) -> list[Any]:
    """What the template of trials takes."""
    return [
        judge_table(one.name, read_json(one.artifact.path / TRIAL_FILE)) for one in stages if one.artifact is not None
    ]
