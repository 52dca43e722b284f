"""The arena: two models answer one question, and somebody who does not know which is which says whose answer is better.

Nothing that is sent before a vote depends on which model stands where: both answers come in one page, under names of
places, and the ids are drawn at random. No model is loaded before somebody asks something.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from potstill.arena.battles import Arena, Stable, load_near, needed_bytes
from potstill.arena.rounds import Round, Rounds
from potstill.arena.terminal import user
from potstill.arena.votes import Vote
from potstill.errors import PotstillError
from potstill.reporting.told import Form, told
from potstill.runs.survey import Survey
from potstill.terminal.chat import Options
from potstill.view.site import Missing, Site

TITLE, PATH = "Arena", "/arena"
MOST_BODY_BYTES = 1_000_000
LONGEST_NAME = 80
SEE_OTHER = 303
"""What a form is answered with, so that reloading the page sends nothing again."""

Fields = Mapping[str, str]


def models_of(run: Survey) -> dict[str, Path]:
    """The sealed models."""
    return {stage.name: stage.artifact.path for stage in run.sealed("model") if stage.artifact is not None}


def shown(run: Survey) -> bool:
    """Whether there are two to choose from."""
    return len(models_of(run)) >= 2


def routes(site: Site) -> list[Route]:
    """The question, its round, the standings, and giving memory back."""
    pages = _Pages(site)
    return [
        Route(PATH, pages.show, methods=["GET"]),
        Route(PATH, _with_fields(pages.ask), methods=["POST"]),
        Route(f"{PATH}/round/{{id}}", pages.round, methods=["GET"]),
        Route(f"{PATH}/round/{{id}}", _with_fields(pages.vote), methods=["POST"]),
        Route(f"{PATH}/standings", pages.standings, methods=["GET"]),
        Route(f"{PATH}/rest", _with_fields(pages.rest), methods=["POST"]),
    ]


class _Pages:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._rounds: Rounds | None = None
        self._agreed = 0
        """The process in the run's folder beside which models may be loaded: somebody said so."""

    def _open(self) -> Rounds:
        """With the models that are sealed by now. DataError where they are fewer than two."""
        models = models_of(self._site.survey())
        with self._lock:
            if self._rounds is None:
                self._rounds = Rounds(Arena(self._site.workspace.path, models, Options(), Stable(load_near)))
            else:
                self._rounds.arena.offer(models)
            return self._rounds

    def show(self, request: Request) -> Response:
        """The question's form."""
        return self._asking(request)

    def ask(self, request: Request, fields: Fields) -> Response:
        """A question: its round begins. Beside a run that works, only once somebody agreed to the memory it takes."""
        question, voter = fields.get("question", "").strip(), _voter(fields)
        holder = self._site.survey().holder
        if fields.get("agreed"):
            self._agreed = holder
        given = {"question": question, "voter": voter}
        if not question:
            return self._asking(request, 400, problem="Ask something first.", **given)
        if self._needs_word(holder):
            return self._asking(request, 409, problem="A run works in this folder: agree to the memory first.", **given)
        try:
            one = self._open().ask(question, voter)
        except PotstillError as error:
            return self._asking(request, 409, problem=str(error), **given)
        return RedirectResponse(f"{PATH}/round/{one.id}", SEE_OTHER)

    def round(self, request: Request) -> Response:
        """What became of a question: it waits, or both answers are there, or the names; or why there are none."""
        one = self._round(request)
        arena = self._open().arena
        doing = arena.doing if one.waits else ""
        if request.headers.get("hx-request") == "true" and not doing:
            return Response(headers={"HX-Refresh": "true"})
        if doing and request.query_params.get("seen") == doing:
            return Response(status_code=204)
        if one.error:
            return self._asking(request, problem=one.error, question=one.question, voter=one.voter)
        return self._site.page(request, "page_round.html", round=one, doing=doing, **self._said(one.voter))

    def vote(self, request: Request, fields: Fields) -> Response:
        """A vote: the names come once it is on the disk."""
        one, vote = self._round(request), fields.get("vote", "")
        if vote not in get_args(Vote):
            return self._asking(request, 400, problem="That is no vote.", voter=one.voter)
        try:
            self._open().vote(one, cast(Vote, vote))
        except PotstillError as error:
            return self._asking(request, 409, problem=str(error), voter=one.voter)
        return RedirectResponse(f"{PATH}/round/{one.id}", SEE_OTHER)

    def standings(self, request: Request) -> Response:
        """How the models stand."""
        form = Form(1, percent=True)
        rows = [(one, told(one.share.to_json(), form)) for one in self._open().arena.standings()]
        return self._site.page(request, "page_standings.html", rows=rows)

    def rest(self, request: Request, fields: Fields) -> Response:
        """Give back what the models take in memory."""
        self._open().arena.close()
        return RedirectResponse(PATH, SEE_OTHER)

    def _round(self, request: Request) -> Round:
        found = self._open().get(request.path_params["id"])
        if found is None:
            raise Missing("the arena", "this question was asked before these pages were served", "Ask it again")
        return found

    def _needs_word(self, holder: int) -> bool:
        return bool(holder) and holder != self._agreed

    def _asking(self, request: Request, status: int = 200, **given: Any) -> Response:
        """The page with the form."""
        known = {**self._said(given.pop("voter", "") or user()), "question": "", "problem": "", **given}
        return self._site.page(request, "page_arena.html", status, **known)

    def _said(self, voter: str) -> dict[str, Any]:
        """What the form and what stands below it take."""
        arena, run = self._open().arena, self._site.survey()
        sizes = sorted(needed_bytes(path) for path in models_of(run).values())
        return {
            "names": arena.names,
            "votes": len(arena.votes()),
            "voter": voter,
            "broken": list(arena.broken.values()),
            "loaded": arena.loaded,
            "takes": sum(sizes[-2:]),
            "beside": run.holder if self._needs_word(run.holder) else 0,
        }


def _voter(fields: Fields) -> str:
    """Who votes, by their own word."""
    return fields.get("voter", "").strip()[:LONGEST_NAME] or user()


def _with_fields(handle: Callable[[Request, Fields], Response]) -> Callable[[Request], Any]:
    """A handler of a form, in a thread as the others are; a refusal where the form is too long."""

    async def read(request: Request) -> Response:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BODY_BYTES:
                return PlainTextResponse("This is too long.", 413)
            parts.append(part)
        fields = parse_qs(b"".join(parts).decode("utf-8", "replace"), keep_blank_values=True)
        return await asyncio.to_thread(handle, request, {name: values[0] for name, values in fields.items()})

    return read
