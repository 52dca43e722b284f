"""The arena's pages, to be mounted in another application: plain forms, which htmx makes one page where it is there.

Nothing that is sent before a vote depends on which model stands where: both answers come in one reply, under names of
places, and the battle's id is drawn at random.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast, get_args
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from potstill.arena.battles import Arena
from potstill.arena.terminal import user
from potstill.arena.votes import Vote
from potstill.errors import PotstillError
from potstill.reporting.told import Form, told

MOST_BODY_BYTES = 1_000_000
LONGEST_NAME = 80

Frame = Callable[[str, Markup], str]
"""A whole page from its title and what stands in it."""

_TEMPLATES = Environment(loader=PackageLoader("potstill.arena"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def arena_style() -> str:
    """What the arena's parts want of CSS besides the report's."""
    return _TEMPLATES.get_template("arena.css").render()


def bare_frame(title: str, body: Markup) -> str:
    """A page of its own, in the style of the report, where no other application gives one."""
    report = Environment(loader=PackageLoader("potstill.reporting"), autoescape=False).get_template("style.css")
    style = Markup(report.render() + arena_style())
    return _TEMPLATES.get_template("frame.html").render(title=title, body=body, style=style)


def arena_routes(arena: Arena, frame: Frame = bare_frame) -> list[Route]:
    """What to mount under a place that ends in a slash: the page, battles, votes, standings."""
    pages = _Pages(arena, frame)
    return [
        Route("/", pages.show, methods=["GET"]),
        Route("/battle", pages.battle, methods=["POST"]),
        Route("/vote", pages.vote, methods=["POST"]),
        Route("/standings", pages.standings, methods=["GET"]),
    ]


class _Pages:
    def __init__(self, arena: Arena, frame: Frame) -> None:
        self._arena, self._frame = arena, frame

    async def show(self, request: Request) -> Response:
        """The question's form, and how many votes there are; the standings are a click away."""
        return self._page(request, "ask.html")

    async def battle(self, request: Request) -> Response:
        """Both answers, once both are there."""
        form = await _form(request)
        if isinstance(form, Response):
            return form
        question = form.get("question", "").strip()
        if not question:
            return self._page(request, "ask.html", problem="Ask something first.", status=400)
        try:
            battle = await asyncio.to_thread(self._arena.begin, question)
        except PotstillError as error:
            return self._page(request, "ask.html", problem=str(error), question=question, status=400)
        return self._page(request, "battle.html", battle=battle, voter=_voter(form))

    async def vote(self, request: Request) -> Response:
        """The names, once the vote is on the disk."""
        form = await _form(request)
        if isinstance(form, Response):
            return form
        vote = form.get("vote", "")
        if vote not in get_args(Vote):
            return self._page(request, "ask.html", problem="That is no vote.", status=400)
        try:
            kept = self._arena.vote
            battle = await asyncio.to_thread(kept, form.get("battle", ""), cast(Vote, vote), _voter(form))
        except PotstillError as error:
            return self._page(request, "ask.html", problem=str(error), status=409)
        return self._page(request, "result.html", battle=battle, vote=vote, voter=_voter(form))

    async def standings(self, request: Request) -> Response:
        """How the models stand."""
        form = Form(1, percent=True)
        found = await asyncio.to_thread(self._arena.standings)
        rows = [(standing, told(standing.share.to_json(), form)) for standing in found]
        return self._page(request, "standings.html", rows=rows)

    def _page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A part of the page where htmx asks for it, else all of it."""
        names, voter = self._arena.names, values.pop("voter", "") or user()
        base = request.scope.get("root_path", "").rstrip("/") + "/"
        count = len(self._arena.votes())
        body = Markup(
            _TEMPLATES.get_template(template).render(names=names, voter=voter, base=base, votes=count, **values)
        )
        headers = {"cache-control": "no-store"}
        if request.headers.get("hx-request") == "true":
            return HTMLResponse(body, 200 if status < 500 else status, headers)  # htmx shows no page of another status
        return HTMLResponse(self._frame("Arena", body), status, headers)


def _voter(form: dict[str, str]) -> str:
    """Who votes, by their own word."""
    return form.get("voter", "").strip()[:LONGEST_NAME] or user()


async def _form(request: Request) -> dict[str, str] | Response:
    """The fields of a form of this page; a refusal where another site sends it, or it is too long."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return PlainTextResponse("This form was sent by another page.", 403)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BODY_BYTES:
            return PlainTextResponse("This is too long.", 413)
        parts.append(part)
    fields = parse_qs(b"".join(parts).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}
