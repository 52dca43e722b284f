"""A stage: its manifest in words, what it reads and who reads it, what was left out and why, curves, scores."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill import stages
from potstill.reporting.curves import curve_charts, read_curves
from potstill.reporting.stage_views import stage_table, stage_view
from potstill.runs.survey import StageView
from potstill.view.sections.findings import audit_of, trial_of
from potstill.view.sections.scores import suites_of
from potstill.view.site import Site

TITLE, PATH = "", "/stage/"
FIRST_ROWS = 3


def routes(site: Site) -> list[Route]:
    """The page, and what of it moves."""

    def whole(request: Request) -> Response:
        stage = site.stage(request.path_params["name"])
        if stage.members:
            return site.page(request, "page_family.html", **family(site, stage))
        return site.page(request, "page_stage.html", **whole_stage(site, stage), **moving(site, stage))

    def live(request: Request) -> Response:
        if request.query_params.get("seen") == site.version():
            return Response(status_code=204)
        stage = site.stage(request.path_params["name"])
        return site.page(request, "live_stage.html", stage=stage, **moving(site, stage))

    return [Route("/stage/{name:path}", whole), Route("/live/stage/{name:path}", live)]


def family(site: Site, stage: StageView) -> dict[str, Any]:
    """Its members, one by one."""
    run = site.survey()
    return {"stage": stage, "table": stage_table({name: run.stages[name] for name in stage.members})}


def moving(site: Site, stage: StageView) -> dict[str, Any]:
    """What changes while the stage works: how far it is, its curves."""
    if stage.artifact is not None:
        curves = read_curves(stage.artifact.path / "curves.jsonl")
    else:
        folder = site.survey().described.stages[stage.name].folder
        curves = read_curves(site.workspace.logs / f"{folder}.curves.jsonl")
    metrics = ("margin", "kl", "reward_accuracy", "learning_rate", "tokens_per_second")
    drawn = curve_charts({stage.name: curves}, {stage.name: "c7"}, metrics) if curves else []
    (row,) = stage_table({stage.name: stage})
    return {"curves": drawn, "colours": {stage.name: "c7"}, "row": row}


def whole_stage(site: Site, stage: StageView) -> dict[str, Any]:
    """What the stage's page says."""
    run = site.survey()
    found: dict[str, Any] = {"suites": [], "aspects": [], "audits": [], "trials": [], "failed": [], "members": {}}
    if stage.artifact is not None and stage.produces == "scores":
        found |= suites_of([stage])
    elif stage.artifact is not None and stage.produces == "audit":
        found["audits"] = audit_of([stage])
    elif stage.artifact is not None and stage.produces == "trial":
        found["trials"] = trial_of([stage])
    known = [name for name in stage.reads if name in run.stages]
    scored = found.pop("colours", {})
    return {
        "stage": stage, "about": about(stage.kind), "reads": known, "readers": run.readers(stage.name),
        "view": stage_view(stage, FIRST_ROWS), "of_scores": scored, **found,
    }  # fmt: skip


def about(kind: str) -> str:
    """What a kind of stage does, in the words of its config; nothing of a user's own."""
    if kind not in stages.MODULES:
        return ""
    text = (stages.stage(kind).config.__doc__ or "").strip()
    return text.split("\n\n")[0].replace("\n", " ")
