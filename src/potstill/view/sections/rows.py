"""Rows of any artifact: searched, filtered and paged by addresses that can be shared; and a page a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potstill.artifact import ROWS_FILE, Artifact
from potstill.records import ROWS
from potstill.reporting.shown import row_type, shown
from potstill.view.lines import FACETS, Hits, Lines, Query, search
from potstill.view.site import Missing, Site, rows_href

TITLE, PATH = "", "/rows/"
PAGE = 20
"""Rows on a page."""
FILTERS = (*FACETS, "rating")
LONGEST_ASKED = 500


@dataclass(frozen=True)
class Asked:
    """What an address asks for."""

    stage: str
    file: str
    text: str
    filters: Mapping[str, str]

    @property
    def query(self) -> Query:
        return Query.of(self.text, self.filters)

    def parts(self, **more: object) -> dict[str, object]:
        """For another address that asks for the same rows."""
        return {"q": self.text, **self.filters, **more}


def routes(site: Site) -> list[Route]:
    """The list and the single row."""

    def listed(request: Request) -> Response:
        return rows_page(site, request)

    def single(request: Request) -> Response:
        return row_page(site, request)

    return [Route("/rows/{name:path}", listed), Route("/row/{number:int}/{name:path}", single)]


def read_asked(request: Request, artifact: Artifact) -> Asked:
    """What the address asks for; what it asks for wrongly is left out."""
    given = request.query_params
    filters = {name: given[name][:LONGEST_ASKED] for name in FILTERS if given.get(name)}
    try:
        float(filters.get("rating", "1"))
    except ValueError:
        del filters["rating"]
    first = ROWS_FILE if artifact.produces in ROWS else next(iter(row_files(artifact)), "")
    return Asked(
        request.path_params["name"], given.get("file") or first, given.get("q", "").strip()[:LONGEST_ASKED], filters
    )


def row_files(artifact: Artifact) -> list[str]:
    """The files of an artifact that hold rows."""
    files = artifact.manifest["files"]
    return [name for name in files if name.endswith(".jsonl") and (files[name]["bytes"] or name == ROWS_FILE)]


def rows_page(site: Site, request: Request) -> Response:
    """Some of the rows, those that match."""
    artifact = site.artifact(request.path_params["name"])
    asked = read_asked(request, artifact)
    if not asked.file:
        raise Missing(asked.stage, "it holds no rows", "Its page says what it holds")
    lines = site.lines(artifact, asked.file)
    before = _number(request, "before")
    start = _number(request, "start") or 0
    hits = _hits(lines, asked.query, start, before)
    kind = row_type(artifact.produces, asked.file)
    return site.page(
        request, "page_rows.html",
        stage=site.stage(asked.stage), files=row_files(artifact), asked=asked, total=len(lines),
        rows=[(number, shown(lines.line(number), kind)) for number in hits.numbers],
        hits=hits, choices=lines.choices, **_around(asked, hits, start, before),
    )  # fmt: skip


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return min(int(text), 1 << 40) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _hits(lines: Lines, query: Query, start: int, before: int | None) -> Hits:
    if query:
        return search(lines, query, start if before is None else before, PAGE, backwards=before is not None)
    first = start if before is None else max(0, min(before, len(lines)) - PAGE)
    last = min(first + PAGE, len(lines))
    return Hits(range(first, last), last if last < len(lines) else None)


def _around(asked: Asked, hits: Hits, start: int, before: int | None) -> dict[str, Any]:
    """Addresses of the pages before and behind this one."""
    first = hits.numbers[0] if hits.numbers else None
    if before is None:
        behind = hits.more
        ahead = first if first else (start or None)
        if asked.query and not start:
            ahead = None
    else:
        behind = hits.numbers[-1] + 1 if hits.numbers else before
        ahead = hits.more if asked.query else (first or None)
    return {
        "next_page": None if behind is None else rows_href(asked.stage, asked.file, **asked.parts(start=behind)),
        "previous_page": None if not ahead else rows_href(asked.stage, asked.file, **asked.parts(before=ahead)),
        "searched_to": hits.more,
    }


def row_page(site: Site, request: Request) -> Response:
    """Everything of one row, and the ways to its neighbours among those that match."""
    artifact = site.artifact(request.path_params["name"])
    asked, number = read_asked(request, artifact), int(request.path_params["number"])
    lines = site.lines(artifact, asked.file)
    if number >= len(lines):
        raise Missing(asked.stage, f"it has no row {number:,}", f"It has {len(lines):,}")
    query = asked.query
    if query:
        after = search(lines, query, number + 1, 1).numbers
        prior = search(lines, query, number, 1, backwards=True).numbers
    else:
        after, prior = range(number + 1, min(number + 2, len(lines))), range(max(0, number - 1), number)
    return site.page(
        request, "page_row.html",
        stage=site.stage(asked.stage), asked=asked, number=number, total=len(lines),
        row=shown(lines.line(number), row_type(artifact.produces, asked.file)),
        after=after[0] if after else None, prior=prior[-1] if prior else None,
        back=rows_href(asked.stage, asked.file, **asked.parts(start=number - number % PAGE if not query else number)),
    )  # fmt: skip
