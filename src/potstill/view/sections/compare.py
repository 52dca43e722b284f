"""Two models of any suite, question by question."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.artifact import read_json
from potstill.reporting.differences import difference_of, verdict_of
from potstill.reporting.questions import (
    ANSWERS_FILE,
    ORDERS,
    Question,
    counted,
    ordered,
    reach_of,
    read_questions,
    sides_of,
    signed,
    strip_of,
    suites_with_answers,
)  # fmt: skip
from potstill.reporting.told import Form, told_difference
from potstill.runs.survey import StageView
from potstill.view.site import Site

TITLE, PATH = "Compare", "/compare"
PAGE = 15
"""Questions on a page."""


def routes(site: Site) -> list[Route]:
    """One page."""

    def whole(request: Request) -> Response:
        return site.page(request, "page_compare.html", **compared(site, request.query_params))

    return [Route(PATH, whole)]


def compared(site: Site, asked: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows: the choices, and the questions of the suite that was chosen."""
    known: dict[str, tuple[StageView, str, list[str]]] = {}
    evaluations = site.survey().sealed("scores")
    for stage in evaluations:
        assert stage.artifact is not None
        for suite, models in suites_with_answers(stage.artifact.path / ANSWERS_FILE).items():
            label = suite if len(evaluations) == 1 else f"{stage.name}: {suite}"
            known[label] = (stage, suite, models)
    if not known:
        return {"choices": {}, "questions": [], "asked": {}}
    label = asked.get("suite", "") if asked.get("suite", "") in known else next(iter(known))
    stage, suite, models = known[label]
    later = asked.get("a", "") if asked.get("a", "") in models else models[-1]
    earlier = asked.get("b", "") if asked.get("b", "") in models else models[max(0, len(models) - 2)]
    order = asked.get("order", "") if asked.get("order", "") in ORDERS else ORDERS[0]
    assert stage.artifact is not None
    every = read_questions(stage.artifact.path / ANSWERS_FILE, suite)
    wanted = [one for one in every if not asked.get("category") or one.category == asked["category"]]
    found = ordered(wanted, later, earlier, order)
    far = reach_of(found, later, earlier)
    start = int(asked["start"]) if asked.get("start", "").isdecimal() and len(asked["start"]) < 10 else 0
    shown = {"suite": label, "a": later, "b": earlier, "order": order, "category": asked.get("category", "")}
    return {
        "choices": {name: models for name, (_, _, models) in known.items()},
        "models": models,
        "orders": ORDERS,
        "categories": list(dict.fromkeys(one.category for one in every if one.category)),
        "asked": shown,
        "counted": counted(found, later, earlier),
        "whole": _whole(stage, suite, later, earlier),
        "questions": [_row(one, later, earlier, far) for one in found[start : start + PAGE]],
        "start": start,
        "page": PAGE,
        "there": len(found),
    }


def _whole(stage: StageView, suite: str, later: str, earlier: str) -> dict[str, Any] | None:
    """The difference over all questions, with its interval and verdict."""
    assert stage.artifact is not None
    found = read_json(stage.artifact.path / "scores.json")["suites"].get(suite)
    paired = difference_of(found, later, earlier) if found and later != earlier else None
    if paired is None:
        return None
    verdict = verdict_of(paired, found["higher_is_better"])
    return {"told": str(told_difference(paired, Form.of(found))), "verdict": verdict}


def _row(question: Question, later: str, earlier: str, far: float) -> dict[str, Any]:
    sides: Sequence[str] = [later, earlier] if later != earlier else [later]
    return {
        "question": question,
        "difference": signed(question.difference(later, earlier)),
        "strip": strip_of(question, later, earlier, far),
        "sides": sides_of(question, sides),
    }
