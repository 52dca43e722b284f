"""A run's folder: who holds it, what lies in it, and how long things took.

artifacts/<stage>-<key>/  sealed           work/     unsealed, removed at the next start
<stage>                   link to the latest logs/     what the run and its processes said
journal.sqlite            paid replies      lock      the process that runs
run.json                  the last recipe   times.json, speed.json, hashes.json, trials.json
progress.json             how far it is
unfinished/<stage>-<key>/ checkpoints and local models' answers, until it is sealed
cache/                    tokens, references' log-probabilities
arena.jsonl               votes between models, made by `chat --arena` and pages
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from potstill.artifact import Artifact, digest, find, hash_file, read_json, storage_errors, write_json
from potstill.document import read_document
from potstill.errors import BusyError, DataError, RecipeError, StorageError, reason
from potstill.recipe import locate
from potstill.stages.base import UNFINISHED, Trial
from potstill.validation import PLAIN

T = TypeVar("T")

HALF_WRITTEN = re.compile(r"\..+\.\d+")
"""What `artifact.write_json` and the like write to before they rename it: .times.json.4711."""

ORPHAN_SECONDS = 20.0
"""How long to wait for the children of a run that was killed: they notice and end by themselves."""


class Took(BaseModel):
    """When a stage was sealed, and how long it took."""

    stage: str
    seconds: float
    sealed_at: str
    whole: bool = True
    """In one go: what went on where an earlier run was stopped took longer than this says."""


class Asked(BaseModel):
    """A stage that a run was asked for. Its artifact is `folder`, under artifacts/."""

    kind: str
    produces: str
    folder: str
    reads: list[str] = []
    """The stages that it reads."""


class Description(BaseModel):
    """What a run was asked for, for `status`, `show` and `chat`."""

    recipe: str
    source: str
    overrides: list[str]
    stages: dict[str, Asked]
    until: str | None = None
    launch: list[str] = []
    budget_usd: float | None = None


Stamp = tuple[int, int, int, str]
"""A file's size, time, inode and SHA-256."""

_TIMES = TypeAdapter(dict[str, Took])
_HASHES = TypeAdapter(dict[str, Stamp])
_RUN = TypeAdapter(Description)
_TRIALS = TypeAdapter(dict[str, Trial])


def _remembered(path: Path, shape: TypeAdapter[T]) -> T | None:
    """What a note or a cache holds; None where it cannot be read, for then it is written anew."""
    try:
        return shape.validate_python(read_json(path))
    except (OSError, ValueError):
        return None


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
        self._trials = path / "trials.json"
        self.lock_descriptor = -1

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder alone and clear it of what an earlier run left unfinished.

        The lock is inherited by training processes, so the folder stays held until the last of them has ended.
        BusyError where another run holds it; StorageError where the folder cannot be written.
        """
        with storage_errors(self.path):
            self._make()
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor)
            with storage_errors(self.path):
                self._sign(descriptor, os.getpid())
                for folder in (self.artifacts, self.work, self.logs):
                    folder.mkdir(exist_ok=True)
                self._check_disk()
                self._clear()
            self.lock_descriptor = descriptor
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
                self.lock_descriptor = -1
        finally:
            os.close(descriptor)

    def trials(self) -> dict[str, Trial]:
        """How stages came out on a few rows, by name."""
        return _remembered(self._trials, _TRIALS) or {}

    def note_trials(self, trials: Mapping[str, Trial]) -> None:
        """Keep how they came out, for plans to come."""
        write_json(self._trials, {name: trial.model_dump(mode="json") for name, trial in trials.items()})

    def _make(self) -> None:
        """StorageError where the folder cannot be, or libraries could not be told its name."""
        try:
            str(self.path.resolve()).encode()
            self.path.mkdir(parents=True, exist_ok=True)
        except UnicodeEncodeError as error:
            raise StorageError(error.object, "this path is not UTF-8", "Choose another folder with --out") from error
        except FileNotFoundError as error:  # in /proc, or below a working directory that was removed
            raise StorageError(
                str(self.path), "no folder can be made there", "Choose another with --out, or go to another directory"
            ) from error

    def _check_disk(self) -> None:
        """StorageError where what is made in work/ could not be moved into its place whole."""
        for folder in (self.artifacts, self.work):
            if folder.stat().st_dev != self.path.stat().st_dev:
                raise StorageError(
                    str(folder),
                    "it lies on another file system than the run's folder; expected all of a run on one",
                    "Choose a folder there with --out, or move this one back",
                )

    def lend(self, pid: int) -> None:
        """Note a child that inherited the lock: where this process is killed, that one holds the folder."""
        self._sign(self.lock_descriptor, os.getpid(), pid)

    def _sign(self, descriptor: int, *pids: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, "".join(f"{pid}\n" for pid in pids).encode(), 0)

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + ORPHAN_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pids = self._signed()
                if is_alive(pids[0]) or time.monotonic() > deadline:
                    pid = _living(pids)
                    raise BusyError(
                        str(self.path),
                        f"another run (process {pid}) works in this folder" if pid else "another run works in it",
                        "Wait for it, stop it, or choose another folder with --out",
                    ) from None
                time.sleep(0.05)

    def _signed(self) -> list[int]:
        """Who wrote that they hold the folder: the run, then the child that it lent the lock to; [0]: nobody yet."""
        try:
            return [int(pid) for pid in self._lock.read_text().split()] or [0]
        except (OSError, ValueError):
            return [0]

    def holder(self) -> int:
        """The process that holds the folder, or 0."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except OSError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _living(self._signed())
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

    def forget_unfinished(self, stage: str, but: Collection[str] = ()) -> None:
        """Remove what earlier runs of a stage or a family kept and nobody will finish; `but`: what is still wanted."""
        for folder in (self.path / UNFINISHED).glob(f"{stage}-*"):
            if folder.name not in but and folder.name[len(stage) + 1 :].isalnum():
                shutil.rmtree(folder, ignore_errors=True)

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

    def sealed(self) -> dict[str, Artifact | None]:
        """What each stage that the last run was asked for has sealed, in their order; None: not yet.

        Where the recipe has changed, `latest` may still be what the stage made before.
        """
        asked = self.describe().stages
        return {name: find(self.artifacts / one.folder) for name, one in asked.items()}

    def times(self) -> dict[str, Took]:
        """By artifact key."""
        return _remembered(self._times, _TIMES) or {}

    def note_time(self, key: str, stage: str, seconds: float, *, whole: bool = True) -> None:
        """Keep how long a stage took, outside what is sealed; `whole`: see `Took`."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        took = Took(stage=stage, seconds=round(seconds, 3), sealed_at=now, whole=whole)
        write_json(self._times, _TIMES.dump_python({**self.times(), key: took}))

    def has_run(self) -> bool:
        """Whether anything was asked for here."""
        return self._run.is_file()

    def describe(self) -> Description:
        """What the last run was asked for. StorageError where that is not what stands there."""
        try:
            return _RUN.validate_python(read_json(self._run))
        except ValueError as error:
            raise StorageError(
                str(self._run),
                "this is not a run's description as potstill writes them",
                "Run the recipe again, which writes it anew; what is sealed stays",
            ) from error

    def note_run(self, description: Description) -> None:
        """Keep what this run is asked for."""
        if _remembered(self._run, _RUN) != description:
            write_json(self._run, description.model_dump())


class Hashes:
    """Content hashes of files outside the run, remembered by path, size, time and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _remembered(path, _HASHES) or {}
        self._changed = False

    def file(self, path: Path) -> str:
        """SHA-256 of a file's bytes. DataError where it cannot be read."""
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            known = self._known.get(str(path))
            if known is None or known[:3] != stamp:
                known = self._known[str(path)] = (*stamp, hash_file(path))
                self._changed = True
        except OSError as error:
            raise DataError(str(path), f"the file cannot be read: {reason(error)}", "Mend its permissions") from error
        return known[3]

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
    """The folder of a run, named itself, by its recipe or by its name. StorageError where nothing has run there."""
    itself, named = Workspace(Path(name)), Workspace(Path("runs") / name)
    if itself.path.is_dir():
        if not itself.has_run():
            raise StorageError(name, "this is not the folder of a run", "Name one, or a recipe that has run")
        return itself
    if PLAIN.fullmatch(name) and not itself.path.is_file() and named.has_run():
        return named
    workspace = Workspace(Path("runs") / _name_in(locate(name, meant="run")))
    if not workspace.has_run():
        raise StorageError(str(workspace.path), "nothing has run here", f"Run it first: potstill run {name}")
    return workspace


def _name_in(path: Path) -> str:
    """The name that a recipe gives itself. RecipeError where it has none; whatever else it holds is not looked at."""
    document = read_document(path)
    name = document.value.get("name") if isinstance(document.value, dict) else None
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise RecipeError(str(path), "this recipe has no name that a run could be found by", "Name the run's folder")
    return name


def _living(pids: list[int]) -> int:
    """The first of them that lives; the first, where none does."""
    return next((pid for pid in pids if is_alive(pid)), pids[0])


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
