"""The process that a training stage runs in: `python -m potstill.runs.worker JOB.json`; or one of those that share it.

It says on standard output, as lines of JSON, what it does, how far it is and what it warns of, and last {"facts": ...}
or {"error": [class, where, what, remedy]}. Of several workers only the first says how far they are, and writes what is
sealed; whichever fails says so, be it {"crash": what}. Whatever else is printed goes to standard error, which is the
stage's log.
"""

import importlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from potstill import errors
from potstill.artifact import read_json, storage_errors
from potstill.errors import PotstillError, Stopped
from potstill.sources import Inputs
from potstill.stages.base import Stage, Work, no_progress, no_warning

SECONDS_BETWEEN_REPORTS = 0.1


def main() -> None:
    """Run the job and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pipeline decides what follows
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    threading.Thread(target=_follow_parent, args=[stop], daemon=True).start()
    speaker = _Speaker()
    job = read_json(Path(sys.argv[1]))
    if job["launched"]:
        _work_together(job, speaker, stop)
    try:
        with storage_errors(Path(job["path"])):
            speaker.say({"facts": _run(job, speaker, stop)})
    except PotstillError as error:
        speaker.fail(error)


def _work_together(job: dict[str, Any], speaker: "_Speaker", stop: "_Stop") -> NoReturn:
    """As one of several. It ends at once when its work is done: who waits for the others' libraries may wait long."""
    try:
        rank = take_place(os.environ)
        if rank > 0:  # what would be sealed is written by the first; these write the same beside it, to be removed
            job["path"] = f"{job['path']}-{rank}"
            Path(job["path"]).mkdir(exist_ok=True)
        with storage_errors(Path(job["path"])):
            facts = _run(job, None if rank else speaker, stop)
        if rank == 0:
            speaker.say({"facts": facts})
    except PotstillError as error:
        speaker.fail(error)
        code = 1
    except BaseException as error:
        traceback.print_exc()
        speaker.say({"crash": crash(os.environ.get("RANK", "?"), error)})
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def crash(rank: str, error: BaseException) -> str:
    """In one line. What a collective says of it is that another worker is gone, in many words."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    if re.search(
        r"gloo.*(closed|reset|Read error|Broken pipe|timed out)|NCCL.*(remote process|abort|timeout)", line, re.I
    ):
        return f"worker {rank} lost another, which was killed, perhaps because memory ran out; the log says which"
    return f"worker {rank} ended with {line[:400]}"


def take_place(environment: MutableMapping[str, str]) -> int:
    """Which of the workers this is. What Slurm says is said once more as torch expects it; PotstillError where nobody
    says anything."""
    if "RANK" in environment:
        return int(environment["RANK"])
    if "SLURM_PROCID" not in environment:
        what = "it started a process that cannot know which of the workers it is: RANK is not in its environment"
        raise PotstillError("--launch", what, "Give torchrun, or srun in front of python")
    step = int(environment["SLURM_JOB_ID"]) * 32 + int(environment.get("SLURM_STEP_ID", "0"))
    told = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(20000 + step % 20000),
    }
    environment.update({name: environment.get(name, value) for name, value in told.items()})
    return int(environment["RANK"])


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: gpu[003-007,12],login1 is gpu003."""
    found = re.match(r"([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _run(job: dict[str, Any], speaker: "_Speaker | None", stop: "_Stop") -> dict[str, Any]:
    stage = importlib.import_module(job["module"]).STAGE
    assert isinstance(stage, Stage)
    config = stage.config.model_validate(job["config"])
    path, workspace = Path(job["path"]), Path(job["workspace"])
    progress, warn = (speaker.progress, speaker.warn) if speaker else (no_progress, no_warning)
    doing = speaker.doing if speaker else no_warning
    work = Work(
        path, workspace, job["seed"], progress, warn, job["name"], doing=doing, launched=job["launched"],
        stoppable=stop.awaited,
    )  # fmt: skip
    doing("loading the libraries that train")
    return stage.run(config, Inputs.from_json(job["inputs"]), work)


class _Stop:
    """SIGTERM, or the pipeline's word: a request while somebody awaits it, the end at once otherwise."""

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
        self._out.write(json.dumps(value) + "\n")  # in one piece, where several workers share the pipe
        self._out.flush()

    def fail(self, error: PotstillError) -> None:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)  # all that others know
        self.say({"error": [kind.__name__, error.where, error.what, error.remedy]})

    def warn(self, text: str) -> None:
        self.say({"warning": text})
        sys.stderr.write(f"warning: {text}\n")

    def doing(self, what: str) -> None:
        self.say({"doing": what})

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            self.say({"progress": [done, total, unit, {name: float(value) for name, value in figures.items()}]})


def _follow_parent(stop: _Stop) -> None:
    """Standard input ends when the pipeline does, even where that was killed; then nothing here goes on writing."""
    while os.read(0, 1024):
        stop.ask()
    os._exit(1)


if __name__ == "__main__":
    main()
