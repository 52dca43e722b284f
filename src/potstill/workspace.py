"""A run's folder: who holds it, what lies in it, and how long things took.

artifacts/<stage>-<key>/  sealed           work/     unsealed, removed at the next start
<stage>                   link to the latest logs/     what training processes said
journal.sqlite            paid replies      lock      the process that runs
run.json                  the last recipe   times.json, hashes.json
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifact import Artifact, digest, find, hash_file, read_json, storage_errors, write_json
from potstill.document import read_document
from potstill.errors import BusyError, DataError, StorageError, reason
from potstill.recipe import locate

HALF_WRITTEN = re.compile(r"\..+\.\d+")
"""What `artifact.write_json` and the like write to before they rename it: .times.json.4711."""

ORPHAN_SECONDS = 20.0
"""How long to wait for the children of a run that was killed: they notice and end by themselves."""


class Workspace:
    """The folder of a run. Only `hold` writes anything before a stage runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.artifacts = path / "artifacts"
        self.work = path / "work"
        self.logs = path / "logs"
        self._lock = path / "lock"
        self._times = path / "times.json"
        self._run = path / "run.json"
        self.lock_descriptor = -1

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder alone and clear it of what an earlier run left unfinished.

        The lock is inherited by training processes, so the folder stays held until the last of them has ended.
        BusyError where another run holds it; StorageError where the folder cannot be written.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor)
            with storage_errors(self.path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                for folder in (self.artifacts, self.work, self.logs):
                    folder.mkdir(exist_ok=True)
                self._clear()
            self.lock_descriptor = descriptor
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
                self.lock_descriptor = -1
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + ORPHAN_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pid = self._written_pid()
                if _alive(pid) or time.monotonic() > deadline:
                    raise BusyError(
                        str(self.path),
                        f"another run (process {pid}) works in this folder" if pid else "another run works in it",
                        "Wait for it, stop it, or choose another folder with --out",
                    ) from None
                time.sleep(0.05)

    def _written_pid(self) -> int:
        try:
            return int(self._lock.read_text() or 0)
        except (OSError, ValueError):
            return 0

    def holder(self) -> int:
        """The process that holds the folder, or 0."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except OSError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._written_pid()
        finally:
            os.close(descriptor)
        return 0

    def _clear(self) -> None:
        """Remove what no run will finish: drafts, and files that were being written when a run was killed."""
        halves = [path for path in self.path.iterdir() if HALF_WRITTEN.fullmatch(path.name)]
        for leftover in (*self.work.iterdir(), *halves):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def link(self, stage: str, target: Path) -> None:
        """Make `<stage>` lead to its latest artifact."""
        link, aside = self.path / stage, self.work / f"{stage}.link"
        with storage_errors(link):
            if link.is_symlink() and link.readlink() == target.relative_to(self.path):
                return
            if link.exists() and not link.is_symlink():
                raise StorageError(str(link), "something stands where the link to this stage goes", "Move it away")
            aside.unlink(missing_ok=True)
            aside.symlink_to(target.relative_to(self.path))
            aside.replace(link)

    def latest(self, stage: str) -> Artifact | None:
        """The artifact that `<stage>` leads to."""
        link = self.path / stage
        return find(link.resolve()) if link.is_symlink() else None

    def times(self) -> dict[str, Any]:
        """By artifact key: {"stage", "seconds", "sealed_at"}."""
        times: dict[str, Any] = read_json(self._times) if self._times.is_file() else {}
        return times

    def note_time(self, key: str, stage: str, seconds: float) -> None:
        """Keep how long a stage took, outside what is sealed."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(self._times, {**self.times(), key: {"stage": stage, "seconds": round(seconds, 3), "sealed_at": now}})

    def describe(self) -> dict[str, Any] | None:
        """What the last run was asked for: {"recipe", "source", "overrides", "stages"}; None before any."""
        described: dict[str, Any] | None = read_json(self._run) if self._run.is_file() else None
        return described

    def note_run(self, description: Mapping[str, Any]) -> None:
        """Keep what this run is asked for."""
        if self.describe() != description:
            write_json(self._run, description)


class Hashes:
    """Content hashes of files outside the run, remembered by path, size, time and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = json.loads(path.read_text()) if path.is_file() else {}
        self._changed = False

    def file(self, path: Path) -> str:
        """SHA-256 of a file's bytes. DataError where it cannot be read."""
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            known = self._known.get(str(path))
            if known is None or known[:3] != stamp:
                known = self._known[str(path)] = [*stamp, hash_file(path)]
                self._changed = True
        except OSError as error:
            raise DataError(str(path), f"the file cannot be read: {reason(error)}", "Mend its permissions") from error
        return str(known[3])

    def folder(self, path: Path) -> str:
        """One hash of every file's name and bytes, hidden ones left out."""
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        names = {file.relative_to(path).as_posix(): file for file in files}
        return digest(
            {name: self.file(file) for name, file in names.items() if not any(p[0] == "." for p in name.split("/"))}
        )

    def save(self) -> None:
        """Remember for the next run."""
        if self._changed:
            write_json(self._path, dict(sorted(self._known.items())))


def open_run(name: str) -> Workspace:
    """The folder of a run, named itself or by its recipe. StorageError where nothing has run there."""
    folder = Path(name)
    if not folder.is_dir():
        document = read_document(locate(name))
        recipe_name = document.value.get("name") if isinstance(document.value, dict) else None
        folder = Path("runs") / str(recipe_name)
    workspace = Workspace(folder)
    if workspace.describe() is None:
        raise StorageError(str(folder), "nothing has run here", f"Run it first: potstill run {name}")
    return workspace


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
