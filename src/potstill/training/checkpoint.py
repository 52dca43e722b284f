"""What a training run leaves on disk while it goes: the last few checkpoints, the best weights, the curve so far.

A checkpoint is a folder that is written aside and renamed when it is whole, so there is never half of one. What a disk
or a hand spoils later is noticed before it is gone on from: then the one before serves.
"""

import re
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import read_json, storage_errors, sync, write_json
from potstill.training.team import Team

NOTES_FILE = "notes.json"
WHOLE = re.compile(r"step-(\d{8})")
BEST = re.compile(r"best-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    path: Path
    step: int

    @property
    def notes(self) -> dict[str, Any]:
        """What the loop knew beside weights: see `loop`."""
        notes: dict[str, Any] = read_json(self.path / NOTES_FILE)["notes"]
        return notes


def spoilt(path: Path) -> str | None:
    """What is wrong with such a folder, in words; None where it is as it was written. Files of torch hold sums over
    their content; of others, which are shards, the size has to do."""
    try:
        sizes = read_json(path / NOTES_FILE)["sizes"]
        for name, size in sizes.items():
            if (found := (path / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes of {size:,}"
            if name.endswith(".pt"):
                with zipfile.ZipFile(path / name) as archive:
                    if archive.testzip() is not None:
                        return f"{name} has other content than was written"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        return f"{path.name} cannot be read: {error!r}"[:200]
    return None


def _nobody(text: str) -> None:
    pass


def standing(folder: Path) -> list[int]:
    """The steps behind which a run in this folder may go on, lowest first."""
    return [step for step, _ in _named(folder, WHOLE)]


def _named(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """The folders of such a name with their steps, lowest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = ((pattern.fullmatch(path.name), path) for path in paths if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


class Checkpoints:
    """The checkpoints of one training run, in a folder that outlives it until its stage is sealed."""

    def __init__(self, folder: Path, team: Team, every_seconds: float, every_steps: int | None, kept: int = 2) -> None:
        self.folder, self._team = folder, team
        self._seconds, self._steps, self._kept = every_seconds, every_steps, kept
        self._since = time.monotonic()

    def all(self) -> list[Checkpoint]:
        """The whole ones, oldest first."""
        return [Checkpoint(path, step) for step, path in _named(self.folder, WHOLE)]

    def latest(self, warn: Callable[[str], None] = _nobody) -> Checkpoint | None:
        """The one to go on from. What is spoilt is set aside, and `warn` hears of it."""
        for checkpoint in reversed(self.all()):
            fault = spoilt(checkpoint.path)
            best = checkpoint.notes["best_step"] if fault is None else None
            if fault is None and (best is None or (fault := spoilt(self.best(best))) is None):
                return checkpoint
            aside = self.folder / f"spoilt-{checkpoint.path.name}"
            with storage_errors(self.folder):
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.path.rename(aside)
            warn(f"the checkpoint of step {checkpoint.step} is spoilt ({fault}); the one before serves, or the start")
        return None

    def due(self, step: int) -> bool:
        """Whether it is time for one; all members of a team say the same."""
        by_step = self._steps is not None and step % self._steps == 0
        return self._team.any(by_step or time.monotonic() - self._since >= self._seconds)

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write one whole, then forget the oldest. StorageError where the disk is full; what was there before stays."""
        self._write(f"step-{step:08d}", self._team.save, notes)
        self._since = time.monotonic()
        self._forget()

    def save_best(self, step: int) -> None:
        """Write the weights alone, as the best so far. The best that a checkpoint speaks of stays."""
        self._write(f"best-{step:08d}", self._team.save_weights, {})
        self._forget(step)

    def best(self, step: int) -> Path:
        """Where the best weights, those of that step, stand."""
        return self.folder / f"best-{step:08d}"

    def _forget(self, *best: int) -> None:
        """All but the last few checkpoints, and the best that neither they nor these steps need."""
        if self._team.rank > 0:
            return
        checkpoints = self.all()
        needed = {*best, *(checkpoint.notes["best_step"] for checkpoint in checkpoints[-self._kept :])}
        bests = [path for step, path in _named(self.folder, BEST) if step not in needed]
        for path in [*(checkpoint.path for checkpoint in checkpoints[: -self._kept]), *bests]:
            shutil.rmtree(path)  # half of one harms nobody: newer ones are there, and it is forgotten again

    def _write(self, name: str, write: Callable[[Path], None], notes: dict[str, Any]) -> None:
        """All members of a team write into one draft; the first then makes it whole and puts it into its place."""
        draft, target = self.folder / f".{name}", self.folder / name
        first = self._team.rank == 0
        with storage_errors(self.folder):
            if first:
                for left in self.folder.glob(".*"):  # by a run that was killed: they are as large as checkpoints
                    shutil.rmtree(left, ignore_errors=True)
                draft.mkdir(parents=True)
            self._team.wait()
            write(draft)
            self._team.wait()
            if first:
                sizes = {str(f.relative_to(draft)): f.stat().st_size for f in draft.rglob("*") if f.is_file()}
                write_json(draft / NOTES_FILE, {"notes": notes, "sizes": sizes})
                for file in draft.rglob("*"):
                    sync(file)
                if target.exists():
                    target.rename(self.folder / f".old-{name}")
                draft.rename(target)
                sync(self.folder)
            self._team.wait()
