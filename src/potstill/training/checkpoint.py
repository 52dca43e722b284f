"""What a training run leaves on disk while it goes: the last few checkpoints, the best weights, the curve so far.

A checkpoint is a folder that is written aside and renamed when it is whole, so there is never half of one.
"""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import read_json, storage_errors, sync, write_json
from potstill.training.team import Team

NOTES_FILE = "notes.json"
WHOLE = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    path: Path
    step: int

    @property
    def notes(self) -> dict[str, Any]:
        """What the loop knew beside weights: see `loop`."""
        notes: dict[str, Any] = read_json(self.path / NOTES_FILE)
        return notes


class Checkpoints:
    """The checkpoints of one training run, in a folder that outlives it until its stage is sealed."""

    def __init__(self, folder: Path, team: Team, every_seconds: float, every_steps: int | None, kept: int = 2) -> None:
        self.folder, self._team = folder, team
        self._seconds, self._steps, self._kept = every_seconds, every_steps, kept
        self._since = time.monotonic()

    def all(self) -> list[Checkpoint]:
        """The whole ones, oldest first."""
        if not self.folder.is_dir():
            return []
        found = ((WHOLE.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((Checkpoint(path, int(match[1])) for match, path in found if match), key=lambda c: c.step)

    def latest(self) -> Checkpoint | None:
        """The one to go on from."""
        return next(reversed(self.all()), None)

    def due(self, step: int) -> bool:
        """Whether it is time for one; all members of a team say the same."""
        by_step = self._steps is not None and step % self._steps == 0
        return self._team.any(by_step or time.monotonic() - self._since >= self._seconds)

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write one whole, then forget the oldest. StorageError where the disk is full; what was there before stays."""
        self._write(f"step-{step:08d}", self._team.save, notes)
        self._since = time.monotonic()
        if self._team.rank == 0:
            for old in self.all()[: -self._kept]:
                shutil.rmtree(old.path)

    def save_best(self, step: int) -> None:
        """Write the weights alone, as the best so far. The best that a checkpoint speaks of stays."""
        self._write(f"best-{step:08d}", self._team.save_weights, {})
        if self._team.rank == 0:
            needed = {step} | {checkpoint.notes["best_step"] for checkpoint in self.all()}
            for path in self.folder.glob("best-*"):
                if int(path.name[5:]) not in needed:
                    shutil.rmtree(path)

    def best(self, step: int) -> Path:
        """Where the best weights, those of that step, stand."""
        return self.folder / f"best-{step:08d}"

    def _write(self, name: str, write: Callable[[Path], None], notes: dict[str, Any]) -> None:
        """All members of a team write into one draft; the first then makes it whole and puts it into its place."""
        draft, target = self.folder / f".{name}", self.folder / name
        first = self._team.rank == 0
        with storage_errors(self.folder):
            if first:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            self._team.wait()
            write(draft)
            self._team.wait()
            if first:
                write_json(draft / NOTES_FILE, notes)
                for file in draft.rglob("*"):
                    sync(file)
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
                sync(self.folder)
            self._team.wait()
