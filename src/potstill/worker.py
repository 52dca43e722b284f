"""The process that one training stage runs in: `python -m potstill.worker JOB.json`, started by the pipeline.

It says on standard output, as lines of JSON, how far it is, and last {"facts": ...} or {"error": [class, where, what,
remedy]}. Whatever else is printed goes to standard error, which is the stage's log.
"""

import importlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from potstill.artifact import read_json, storage_errors
from potstill.errors import PotstillError, Stopped
from potstill.sources import Inputs
from potstill.stages.base import Stage, Work

SECONDS_BETWEEN_REPORTS = 0.1


def main() -> None:
    """Run the job and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pipeline decides what follows
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    speaker = _Speaker()
    job = read_json(Path(sys.argv[1]))
    try:
        with storage_errors(Path(job["path"])):
            speaker.say({"facts": _run(job, speaker, stop)})
    except PotstillError as error:
        speaker.say({"error": [type(error).__name__, error.where, error.what, error.remedy]})


def _run(job: dict[str, Any], speaker: "_Speaker", stop: "_Stop") -> dict[str, Any]:
    stage = importlib.import_module(job["module"]).STAGE
    assert isinstance(stage, Stage)
    config = stage.config.model_validate(job["config"])
    work = Work(Path(job["path"]), Path(job["workspace"]), job["seed"], speaker.progress, job["name"], stop.awaited)
    return stage.run(config, Inputs.from_json(job["inputs"]), work)


class _Stop:
    """SIGTERM: a request while somebody awaits it, the end at once otherwise."""

    def __init__(self) -> None:
        self._asked = self._awaited = False

    def ask(self, *signal_and_frame: object) -> None:
        if not self._awaited:
            os._exit(Stopped.exit_code)
        self._asked = True

    @contextmanager
    def awaited(self) -> Iterator[Callable[[], bool]]:
        self._awaited = True
        try:
            yield lambda: self._asked
        finally:
            self._awaited = False
            if self._asked and sys.exc_info()[0] is None:
                os._exit(Stopped.exit_code)


class _Speaker:
    """Holds the real standard output, and leads everyone else's to standard error."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # so that a log ends with what came last
        self._last = 0.0

    def say(self, value: dict[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            self.say({"progress": [done, total, unit, {name: float(value) for name, value in figures.items()}]})


def _end_with_parent() -> None:
    """Standard input ends when the pipeline does, even where that was killed; then nothing here goes on writing."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
