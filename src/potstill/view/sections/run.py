"""The first page: what the run found, the graph of its stages, and what each took; live while it works."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.artifact import read_json
from potstill.reporting import REPORT_FILE
from potstill.reporting.audits import audit_findings
from potstill.reporting.claims import claim_findings
from potstill.reporting.findings import findings, reservations
from potstill.reporting.stage_views import graph, stage_table
from potstill.runs.survey import Survey
from potstill.view.site import Site, stage_href

TITLE, PATH = "Run", "/"


def routes(site: Site) -> list[Route]:
    """The page, and what of it moves."""

    def whole(request: Request) -> Response:
        return site.page(request, "page_run.html", **found(site.survey()), **moving(site.survey()))

    def live(request: Request) -> Response:
        if request.query_params.get("seen") == site.version():
            return Response(status_code=204)
        return site.page(request, "live_run.html", **moving(site.survey()))

    return [Route(PATH, whole), Route("/live/run", live)]


def moving(run: Survey) -> dict[str, Any]:
    """What changes while the run works."""
    return {"graph": graph(run.nodes, stage_href), "table": stage_table(run.nodes)}


def found(run: Survey) -> dict[str, Any]:
    """What came out, where a report is sealed."""
    sealed = run.sealed("report")
    if not sealed or sealed[-1].artifact is None:
        return {"findings": [], "reservations": []}
    report = read_json(sealed[-1].artifact.path / REPORT_FILE)
    told = [*(claim_findings(report) or findings(report)), *audit_findings(report)]
    return {"findings": told, "reservations": reservations(report)}
