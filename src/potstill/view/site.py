"""What all pages of a run share: the run as it stands now, its rows, and how a page is rendered."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import PackageLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from potstill import __version__
from potstill.artifact import Artifact
from potstill.errors import PotstillError, StorageError
from potstill.reporting import charts
from potstill.reporting.environment import harmless, make_environment
from potstill.runs.progress import PROGRESS_FILE
from potstill.runs.survey import StageView, Survey, survey
from potstill.runs.workspace import Workspace
from potstill.teachers.journal import JOURNAL
from potstill.validation import nearest
from potstill.view.lines import CACHE, Lines

POLL_SECONDS, IDLE_POLL_SECONDS = 2, 15
"""How often an open page asks whether anything is new: while a run works, and otherwise."""


def stage_href(name: str) -> str:
    """Where a stage, or a family, has its page."""
    return f"/stage/{quote(name)}"


def rows_href(stage: str, file: str = "", **asked: object) -> str:
    """Where the rows of a file of a stage are, those that are asked for."""
    given = {"file": file, **asked}
    return f"/rows/{quote(stage)}{_asked(given)}"


def row_href(stage: str, number: int, file: str = "", **asked: object) -> str:
    """Where one row has its page."""
    return f"/row/{number}/{quote(stage)}{_asked({'file': file, **asked})}"


def _asked(given: Mapping[str, object]) -> str:
    text = urlencode({name: str(value) for name, value in given.items() if value not in ("", None)})
    return f"?{text}" if text else ""


class Site:
    """A run's pages. Safe to be asked by several threads at once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._seen: tuple[str, Survey] | None = None
        self._lines: dict[Path, Lines] = {}
        self.sections: list[tuple[str, str, Callable[[Survey], bool]]] = []
        """(title, address, whether a run has it), for the head of every page."""
        self._environment = make_environment(PackageLoader("potstill.view", "templates"))
        self._environment.globals |= {
            "stage_href": stage_href,
            "rows_href": rows_href,
            "row_href": row_href,
            "version": __version__,
            "live": True,
        }

    def version(self) -> str:
        """Changes when anything about the run does that a page shows. Cheap: no file is opened."""
        path = self.workspace.path
        files = [path / name for name in ("run.json", PROGRESS_FILE, "times.json", JOURNAL, f"{JOURNAL}-wal")]
        stamps = [_stamp(file) for file in (*files, *sorted(self.workspace.logs.glob("*.curves.jsonl")))]
        text = repr((stamps, self.workspace.holder()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def survey(self) -> Survey:
        """The run as it stands."""
        version = self.version()
        with self._lock:
            if self._seen is None or self._seen[0] != version or self._damaged(self._seen[1]):
                self._seen = (version, survey(self.workspace))
            return self._seen[1]

    @staticmethod
    def _damaged(seen: Survey) -> bool:
        """What is damaged may be mended meanwhile."""
        return any(stage.state == "damaged" for stage in seen.stages.values())

    def stage(self, name: str) -> StageView:
        """StorageError where the run has none of that name."""
        seen = self.survey()
        found = seen.stages.get(name) or seen.nodes.get(name)
        if found is None:
            what = f"this run has no stage '{name}'{nearest(name, [*seen.nodes, *seen.stages])}"
            raise Missing(str(self.workspace.path), what, f"It has: {', '.join(seen.nodes)}")
        return found

    def artifact(self, name: str) -> Artifact:
        """What a stage made. StorageError where it is not sealed."""
        found = self.stage(name)
        if found.artifact is None:
            raise Missing(found.name, found.why or "it is not sealed yet", "Its page says how far it is")
        return found.artifact

    def lines(self, artifact: Artifact, file: str) -> Lines:
        """The lines of one of its files. StorageError where it has none of that name, or the file is not there."""
        if file not in artifact.manifest["files"] or not file.endswith(".jsonl"):
            raise Missing(str(artifact.path), f"it holds no rows named '{file}'", "Its page lists its files")
        path = artifact.path / file
        with self._lock:
            if path not in self._lines:
                kept = self.workspace.path / "cache" / CACHE / f"{artifact.key}-{file.replace('/', '-')}.npy"
                try:
                    self._lines[path] = Lines(path, kept)
                except OSError as error:
                    raise StorageError(str(path), "this sealed file cannot be read", "Run its stage again") from error
            return self._lines[path]

    def colours(self, models: list[str]) -> dict[str, str]:
        """A colour a model, as in the report."""
        return charts.colour_classes(models)

    def page(self, request: Request, template: str, status: int = 200, **given: Any) -> Response:
        """A whole page."""
        seen = self.survey()
        text = self._environment.get_template(template).render(
            run=seen,
            run_name=self.workspace.path.resolve().name,
            sections=[(title, path) for title, path, shown in self.sections if shown(seen)],
            here=request.url.path,
            seen=self.version(),
            poll=POLL_SECONDS if seen.holder else IDLE_POLL_SECONDS,
            **given,
        )
        return HTMLResponse(harmless(text), status, headers={"Cache-Control": "no-store"})

    def error(self, request: Request, error: PotstillError) -> Response:
        """A page that says what is wrong, in one line."""
        status = 404 if isinstance(error, Missing) else 409
        try:
            return self.page(request, "page_error.html", status, error=str(error))
        except PotstillError as worse:  # the run's own description cannot be read
            text = self._environment.get_template("bare_error.html").render(error=str(worse))
            return HTMLResponse(harmless(text), 409, headers={"Cache-Control": "no-store"})


class Missing(StorageError):
    """Nothing of that name is there."""


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
