"""What a run says, as data: an event for each thing that happens. Printed as JSON, worded as lines, kept in its log.

An event is a JSON object: `time` (ISO 8601, with its offset), `level` (info, warning, error), `event` (planned, found,
started, doing, progress, warned, sealed, failed, finished), `stage` (null where it is about the whole run), and what
else belongs to it; docs/command-line.md lists that.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.artifact import Artifact
from potstill.errors import PotstillError
from potstill.runs.plan import Plan, Step
from potstill.runs.workspace import Workspace

Event = dict[str, Any]

LOG_FILE = "run.jsonl"
"""In the run's logs/; what came before its newest part stands in run.1.jsonl."""
MOST_BYTES = 4_000_000
"""Of one log file: some twenty thousand events. Two are kept."""
SECONDS_BETWEEN_KEPT = 2.0
"""Of progress, in the log."""
SECONDS_BETWEEN_SAID = 10.0
"""Of progress, on standard output."""
SECONDS_BETWEEN_LOOKS = 0.2
_LEVELS = {"warned": "warning", "failed": "error"}


class Pace:
    """How fast a stage goes, since it last changed what it counts."""

    def __init__(self) -> None:
        self.unit, self.done, self.total = "", 0, 0
        self.figures: Mapping[str, float] = {}
        self._began, self._first = time.monotonic(), 0

    def update(self, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """Take in a report of progress."""
        if unit != self.unit or done < self.done:
            self._began, self._first = time.monotonic(), done
        self.unit, self.done, self.total, self.figures = unit, done, total, figures

    @property
    def rate(self) -> float:
        """Units a second; 0 while that is unknown."""
        seconds = time.monotonic() - self._began
        return (self.done - self._first) / seconds if seconds > 0.5 else 0.0

    def fields(self) -> dict[str, Any]:
        """As an event has it."""
        rate = self.rate
        left = (self.total - self.done) / rate if rate > 0 and self.total > self.done else None
        return {
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "per_second": round(rate, 3),
            "seconds_left": left if left is None else round(left, 1),
            "figures": dict(self.figures),
        }


class Events:
    """A listener that makes an event of what it hears, and hands it on."""

    def __init__(self, hear: Callable[[Event], None], seconds_between: float) -> None:
        """`seconds_between`: of two events of progress of one stage."""
        self._hear, self._seconds = hear, seconds_between
        self._places: dict[str, int] = {}
        self._pace, self._last = Pace(), 0.0

    def planned(self, plan: Plan, workspace: Workspace) -> None:
        self._places = {name: place for place, name in enumerate(plan.steps, 1)}
        asked = {"recipe": plan.recipe.name, "folder": str(workspace.path)}
        counts = {"stages": len(plan.steps), "to_run": [step.name for step in plan.to_run]}
        self._tell("planned", None, **asked, **counts, process=os.getpid(), version=__version__)

    def found(self, step: Step, artifact: Artifact) -> None:
        self._tell("found", step, **_made(artifact))

    def started(self, step: Step) -> None:
        self._pace, self._last = Pace(), time.monotonic()
        self._tell("started", step, kind=step.head["kind"], why=step.why)

    def doing(self, step: Step, what: str) -> None:
        self._tell("doing", step, what=what)

    def progress(self, step: Step, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        self._pace.update(done, total, unit, figures)
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._tell("progress", step, **self._pace.fields())

    def warned(self, step: Step, text: str) -> None:
        self._tell("warned", step, text=text)

    def sealed(self, step: Step, artifact: Artifact, seconds: float) -> None:
        self._tell("sealed", step, seconds=round(seconds, 3), **_made(artifact))

    def failed(self, step: Step, error: BaseException) -> None:
        self._tell("failed", step, error=_why(error))

    def finished(self, plan: Plan, workspace: Workspace, summary: Mapping[str, Any] | None) -> None:
        models = [step.name for step in plan.steps.values() if step.entry.produces == "model"]
        told = {"headline": list(summary.get("headline", ()))} if summary is not None else {}
        self._tell("finished", None, recipe=plan.recipe.name, folder=str(workspace.path), models=models, **told)

    def _tell(self, event: str, step: Step | None, **fields: Any) -> None:
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        head = {"time": now, "level": _LEVELS.get(event, "info"), "event": event, "stage": step.name if step else None}
        place = {"place": self._places[step.name], "of": len(self._places)} if step else {}
        self._hear({**head, **place, **fields})


def _made(artifact: Artifact) -> dict[str, Any]:
    return {"key": artifact.key, "produces": artifact.produces, "facts": dict(artifact.facts)}


def _why(error: BaseException) -> str:
    """What ended a stage, in one line."""
    if isinstance(error, PotstillError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "it was asked to stop"
    return " ".join(f"{type(error).__name__}: {error}".split())


def json_line(event: Event) -> str:
    """An event as one line; figures that are no numbers as null, which JSON has."""
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(event), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


class LogFile:
    """Where a run's events are kept, each as soon as it is told. A run is worth more than its log: where the disk takes
    no more of it, the run goes on."""

    def __init__(self, logs: Path) -> None:
        self._path, self._older = log_files(logs)

    def __call__(self, event: Event) -> None:
        line = f"{json_line(event)}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size + len(line) > MOST_BYTES:
                self._path.replace(self._older)
            with self._path.open("ab", buffering=0) as file:  # one write, so that nobody reads half a line
                file.write(line)


def log_files(logs: Path) -> tuple[Path, Path]:
    """The newest part of a run's log, and what came before it."""
    newest = logs / LOG_FILE
    return newest, newest.with_suffix(".1.jsonl")


def kept_events(workspace: Workspace, *, earlier: bool = False) -> Iterator[Event]:
    """What the last run in this folder has said so far, from the oldest on; `earlier`: and what runs before it said."""
    told: list[Event] = []
    for path in reversed(log_files(workspace.logs)):
        if path.is_file():
            with path.open("rb") as file:
                told += [event for line in file if (event := _parsed(line))]
    starts = [place for place, event in enumerate(told) if event["event"] == "planned"]
    yield from told[starts[-1] if starts and not earlier else 0 :]


def follow(workspace: Workspace) -> Iterator[Event]:
    """What the last run has said, and what it says from now on, until nobody holds the folder any more."""
    count, before = 0, None
    while True:
        holder = workspace.holder()  # asked before reading, so that the last words are not missed
        stamp = [(path.stat().st_ino, path.stat().st_size) for path in log_files(workspace.logs) if path.exists()]
        if stamp != before:
            told = list(kept_events(workspace))
            count = 0 if len(told) < count else count  # another run has begun
            yield from told[count:]
            count, before = len(told), stamp
        if not holder:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _parsed(line: bytes) -> Event:
    """An event; nothing where a line was cut when a machine went down."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}
