"""How far a run is, where another process can read it: progress.json in the run's folder.

The file is a note, not a record: it is written whole, at most once a second while a stage works, and not made durable.
Whether anybody works at all is the lock's to say (`Workspace.holder`): a run that was killed leaves its last note.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from potstill.artifact import Artifact
from potstill.runs.plan import Plan, Step
from potstill.runs.workspace import Workspace

PROGRESS_FILE = "progress.json"
SECONDS_BETWEEN_NOTES = 1.0
WARNINGS_KEPT = 20


class Warned(BaseModel):
    """What a stage warned of."""

    stage: str
    text: str


class Progress(BaseModel):
    """What stands in the file. Times are seconds since 1970."""

    state: Literal["running", "finished", "failed"]
    stage: str = ""
    """The stage that runs, or the one that did not finish."""
    began: float = 0.0
    """When the stage began."""
    at: float = 0.0
    """When this was noted."""
    doing: str = ""
    """What it does before it counts: "loading the model"."""
    done: int = 0
    total: int = 0
    """Of as many units; 0: nobody knows."""
    unit: str = ""
    since: float = 0.0
    """When counting in this unit began."""
    first: int = 0
    """Where it began."""
    figures: dict[str, float] = {}
    warnings: list[Warned] = []

    @property
    def share(self) -> float | None:
        """Of the stage's units, 0 to 1; None where nobody knows how many there will be."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None where that tells nothing."""
        made, took = self.done - self.first, self.at - self.since
        if not self.total or made <= 0 or took < SECONDS_BETWEEN_NOTES:
            return None
        return max(0.0, (self.total - self.done) * took / made)


def read_progress(run: Path) -> Progress | None:
    """The last note of a run's folder; None where there is none, or none that can be read."""
    try:
        return Progress.model_validate_json((run / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError):
        return None


class ProgressFile:
    """A listener of `pipeline.run` that keeps the file. A disk that refuses it costs the note, never the run."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._note = Progress(state="running")
        self._written = 0.0

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        self._path = workspace.path / PROGRESS_FILE
        self._write()

    def found(self, step: Step, artifact: Artifact) -> None: ...

    def started(self, step: Step) -> None:
        now = time.time()
        kept = self._note.warnings
        self._note = Progress(state="running", stage=step.name, began=now, since=now, warnings=kept)
        self._write()

    def doing(self, step: Step, what: str) -> None:
        self._note.doing = what
        self._write()

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        note = self._note
        if unit != note.unit or done < note.done:
            note.since, note.first = time.time(), done
        note.done, note.total, note.unit, note.doing = done, total, unit, ""
        note.figures = dict(figures)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_NOTES:
            self._write()

    def warned(self, step: Step, text: str) -> None:
        self._note.warnings = [*self._note.warnings, Warned(stage=step.name, text=text)][-WARNINGS_KEPT:]
        self._write()

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        self._note = Progress(state="running", warnings=self._note.warnings)
        self._write()

    def failed(self, step: Step, error: BaseException) -> None:
        self._note.state = "failed"
        self._write()

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        self._note = Progress(state="finished", warnings=self._note.warnings)
        self._write()

    def _write(self) -> None:
        assert self._path is not None
        self._note.at, self._written = time.time(), time.monotonic()
        aside = self._path.with_name(f".{PROGRESS_FILE}.{os.getpid()}")
        with contextlib.suppress(OSError, ValueError):
            aside.write_text(json.dumps(self._note.model_dump()) + "\n", encoding="utf-8", errors="replace")
            aside.replace(self._path)
