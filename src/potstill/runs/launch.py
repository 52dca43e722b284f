"""Training processes: started, alone or by a launcher, listened to, and seen to their end.

A launcher (`potstill run --launch "torchrun --nproc-per-node 2"`, or `--launch "srun --ntasks 16 python"`) stands where
`python` would: `<launcher> -m potstill.runs.worker JOB` is to start every worker. It has to hand its standard input and
output on to them, as those two do. Where workers are on several nodes, the run's folder lies on a file system that all
of them share: there are the job, what earlier stages made, checkpoints and what becomes sealed.

A worker's standard input is its lifeline: it ends when this process does, however that ends. A line on it asks to stop.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from potstill import errors
from potstill.artifact import write_json
from potstill.environment import time_limit_unheard
from potstill.errors import PotstillError
from potstill.runs.workspace import Workspace
from potstill.stages.base import Facts, Work

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""glibc gives blocks of this size back to the system at once and gets them anew, page by page, which takes some percent
of training on a CPU. Told so, it keeps all but the largest."""

GRACE_SECONDS = 300.0
"""How long a training process may take to write its checkpoint when it is asked to end."""


def check_launcher(launcher: Sequence[str]) -> None:
    """PotstillError where there is no such program."""
    if shutil.which(launcher[0], path=child_environment(launcher)["PATH"]) is None:
        raise PotstillError(f"--launch {launcher[0]}", "there is no such program", "Give torchrun, srun or a path")


def run_job(
    job: dict[str, Any], path: Path, log: Path, workspace: Workspace, work: Work, launcher: Sequence[str]
) -> Facts:
    """Run a stage in a process of its own, whose memory goes when it ends, or in those of a launcher.

    It inherits the workspace's lock, so nobody else takes the folder before it is gone. Raises what a worker raised, as
    itself; PotstillError where one ended without a word.
    """
    write_json(path, {**job, "launched": bool(launcher)})
    with log.open("wb") as file:
        child = _start(path, file, workspace, launcher)
        try:
            workspace.lend(child.pid)
            facts = _Ear(child, file, log).listen(work)
            code = child.wait()
        except PotstillError:
            _cut(child)
            raise
        finally:
            _end(child)
    if facts is None or code:
        raise _crash(code, log, launcher)
    return facts


def _start(path: Path, file: IO[bytes], workspace: Workspace, launcher: Sequence[str]) -> "subprocess.Popen[bytes]":
    with time_limit_unheard():
        return subprocess.Popen(
            [*(launcher or [sys.executable]), "-m", "potstill.runs.worker", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=child_environment(launcher),
            pass_fds=[workspace.lock_descriptor],
            start_new_session=bool(launcher),  # Ctrl-C is for this process: a launcher would kill its workers
        )


def child_environment(launcher: Sequence[str]) -> dict[str, str]:
    """This environment, as a training process has it. A process alone takes every core for the numerics, unless the
    user says otherwise; how many cores a worker has is the launcher's to say."""
    if not launcher:
        cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        return {"OMP_NUM_THREADS": cores, **ALLOCATOR, **os.environ}
    return {
        **ALLOCATOR,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(GRACE_SECONDS)),  # torchrun, where it gets a SIGTERM itself
        "SLURM_KILL_BAD_EXIT": "1",  # srun: where one worker ends, all do
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


class _Ear:
    """Hears what workers say on standard output; what else stands there goes to the log."""

    def __init__(self, child: "subprocess.Popen[bytes]", file: IO[bytes], log: Path) -> None:
        self._child, self._file, self._log = child, file, log

    def listen(self, work: Work) -> Facts | None:
        """Until the last of them is silent; the facts that the first ended with, or None. Raises a PotstillError as
        itself, from whichever worker it is."""
        assert self._child.stdout is not None
        facts: Facts | None = None
        crash = ""
        for line in self._child.stdout:
            said = _parsed(line)
            if "progress" in said:
                done, total, unit, figures = said["progress"]
                work.progress(done, total, unit, **figures)
            elif "doing" in said:
                work.doing(said["doing"])
            elif "warning" in said:
                work.warn(said["warning"])
            elif "error" in said:
                kind = getattr(errors, said["error"][0])
                raise kind(*said["error"][1:])
            elif "crash" in said:  # the others would wait for this one; one of them may know better why it ended
                crash = crash or said["crash"]
                _cut(self._child)
            elif "facts" in said:
                facts = said["facts"]
            else:
                self._file.write(line)
                self._file.flush()
        if crash:
            raise PotstillError(str(self._log), crash, "Read this log; then run again")
        return facts


def _parsed(line: bytes) -> dict[str, Any]:
    """What a worker said; nothing where it is a launcher's own line."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _cut(child: "subprocess.Popen[bytes]") -> None:
    """The lifeline: every worker ends at once."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()


def _end(child: "subprocess.Popen[bytes]") -> None:
    """See a child to its end. Where it still works, it is asked first, so that it writes down where it stands; who
    presses Ctrl-C a second time does not wait for that."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if child.poll() is None:
            if not child.stdin.closed:
                with contextlib.suppress(OSError):
                    child.stdin.write(b"stop\n")
                    child.stdin.flush()
            child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _cut(child)
        child.kill()
        child.wait()
        child.stdout.close()


def _crash(code: int, log: Path, launcher: Sequence[str]) -> PotstillError:
    """What to say of a child that ended without a word."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    how = f"with exit code {code}"
    if code < 0:
        how = f"by {signal.Signals(-code).name}"
        how += ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
    last = f"; its last line: {lines[-1][:300]}" if lines else ""
    who = f"what --launch {launcher[0]} started" if launcher else "the training process"
    return PotstillError(
        str(log), f"{who} was ended {how} before the stage was done{last}", "Read this log; then run again"
    )
