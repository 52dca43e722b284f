"""Global batches in which the student answers, made when they are asked for; GKD, Agarwal et al. 2024, Algorithm 1.

Which rows those are, and what is drawn for them, depends on the seed, the step and the row; what the answers are, also
on the weights as they stand when the round begins. So a run that was stopped goes on to the same answers: behind a
round's beginning they are kept on disk, because those weights are gone.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from potstill.artifact import storage_errors, sync
from potstill.errors import StorageError
from potstill.training.batch import Item
from potstill.training.checkpoint import standing
from potstill.training.sampling import Prompt, Sampling, Speaker, answered, openings

FOLDER = "own_answers"
"""Of rounds, beside the checkpoints."""

MOST_CUT = 0.2
"""The share of answers from which on it is said that they are cut: so many teach nobody to end."""
ENOUGH = 32
"""Answers, before a share of them says something."""

Place = tuple[int, int]
"""A step, from 0 on, and a row of its global batch."""


@dataclass(frozen=True)
class Plan:
    """Which rows the student answers, and how."""

    share: float
    """The share of rows, 0 to 1; GKD's lambda, drawn a row and not a batch, so that every step has of both kinds."""
    reuse: int
    """How many steps one round of sampling serves. 1 is on-policy strictly; more fills larger batches, which is faster,
    with answers of weights that are up to `reuse - 1` steps old."""
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Counts:
    """Of all answers since the first step."""

    rows: int = 0
    tokens: int = 0
    cut: int = 0
    """Not ended after `max_tokens`."""
    empty: int = 0
    """Ended at once: the end token alone."""

    def add(self, items: Sequence[Item], speaker: Speaker) -> "Counts":
        """These as well."""
        cut = [speaker.is_cut(item) for item in items]
        empty = [item.scored == 1 and not is_cut for item, is_cut in zip(items, cut, strict=True)]
        tokens = sum(item.scored for item in items)
        return Counts(self.rows + len(items), self.tokens + tokens, self.cut + sum(cut), self.empty + sum(empty))

    def facts(self) -> dict[str, int]:
        """For the manifest."""
        return {"rows": self.rows, "tokens": self.tokens, "cut": self.cut, "empty": self.empty}


class OnPolicySteps(Sequence[Sequence[Item]]):
    """The global batches of `offline`, a share of whose rows has the student's own answer to the row's prompt.

    To be asked for step by step: a batch holds what the student says when its round is asked for first. A row keeps its
    name. Of a conversation with several learnt turns one is answered, drawn by seed, behind the turns before it.
    """

    def __init__(
        self,
        offline: Sequence[Sequence[Item]],
        speaker: Speaker,
        plan: Plan,
        state: Path,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`state` is the folder of the run's checkpoints; `warn` is told once where many answers are cut."""
        self._offline, self._speaker, self._plan = offline, speaker, plan
        self._warn, self._warned = warn, False
        self._state, self._folder = state, state / FOLDER
        self._first: int | None = None
        """The round that is held, by its first step."""
        self._answers: dict[Place, Item] = {}
        self._counts = Counts()

    def __len__(self) -> int:
        return len(self._offline)

    @overload
    def __getitem__(self, index: int) -> list[Item]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sequence[Item]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            raise TypeError("steps are asked for one by one")
        step = range(len(self))[index]
        first = step - step % self._plan.reuse
        if first != self._first:
            self._begin(first, step)
        return [self._answers.get((step, place), item) for place, item in enumerate(self._offline[step])]

    def own(self, step: int) -> list[bool]:
        """Of each row of a step, from 0 on, whether the student answers it."""
        share, seed = self._plan.share, self._plan.seed
        return [_number(seed, "share", step, place, item.row) < share for place, item in enumerate(self._offline[step])]

    def facts(self, steps: int) -> dict[str, int]:
        """Of all answers up to that number of steps."""
        if not steps:
            return Counts().facts()
        first = (steps - 1) - (steps - 1) % self._plan.reuse
        counts = self._counts if first == self._first else self._read(first)[1]
        return counts.facts()

    def _begin(self, first: int, step: int) -> None:
        """Hold the round that begins with that step: sampled now, or where it is under way already, as it was then."""
        if step == first:
            before = Counts() if first == 0 else self._counts_before(first)
            prompts = self._prompts(first)
            items = self._speaker.answer(list(prompts.values()), self._plan.sampling) if prompts else []
            self._counts = before.add(items, self._speaker)
            self._answers = dict(zip(prompts, items, strict=True))
            self._keep(first)
            self._look(first)
        else:
            self._answers, self._counts = self._read(first)
        self._first = first

    def _look(self, first: int) -> None:
        """Say it while somebody can still stop the run; of a short one, at its last round."""
        counts, over = self._counts, first + self._plan.reuse >= len(self)
        if not self._warned and counts.cut > MOST_CUT * counts.rows and (counts.rows >= ENOUGH or over):
            cut = f"{counts.cut:,} of {counts.rows:,} were cut after {self._plan.sampling.max_tokens} tokens"
            self._warn(f"own answers at step {first + 1}: {cut} and teach nobody to end; raise max_tokens")
            self._warned = True

    def _counts_before(self, first: int) -> Counts:
        before = first - self._plan.reuse
        return self._counts if before == self._first else self._read(before)[1]

    def _prompts(self, first: int) -> dict[Place, Prompt]:
        """All that is answered in a round."""
        found = {}
        for step in range(first, min(first + self._plan.reuse, len(self))):
            for place, is_own in enumerate(self.own(step)):
                if is_own:
                    found[step, place] = self._prompt(step, place)
        return found

    def _prompt(self, step: int, place: int) -> Prompt:
        item, seed = self._offline[step][place], self._plan.seed
        turns = openings(item)
        turn = int(_number(seed, "turn", step, place, item.row) * len(turns))
        return Prompt(item.row, turns[turn], int(_number(seed, "answer", step, place, item.row) * 2**53))

    def _file(self, first: int) -> Path:
        return self._folder / f"{first:08d}.npz"

    def _keep(self, first: int) -> None:
        """Write the round down, and forget those that no checkpoint goes on from."""
        answers = [item.answers[0][0] for item in self._answers.values()]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            asked=np.array(_digest(self._prompts(first))),
            sizes=np.array([len(ids_L) for ids_L in answers], dtype=np.int64),
            tokens=np.concatenate([np.zeros(0, dtype=np.int32), *answers]),
            counts=np.array(list(self._counts.facts().values()), dtype=np.int64),
        )
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            aside = self._folder / f".{first:08d}.{os.getpid()}"
            aside.write_bytes(buffer.getvalue())
            sync(aside)
            aside.replace(self._file(first))
            sync(self._folder)
            last = [step - 1 for step in standing(self._state)]
            needed = {self._file(step - step % self._plan.reuse) for step in (first, *last)}
            for path in self._folder.iterdir():
                if path not in needed:
                    path.unlink()

    def _read(self, first: int) -> tuple[dict[Place, Item], Counts]:
        """A round as it was written. StorageError where it is not there as it was."""
        prompts = self._prompts(first)
        try:
            with self._file(first).open("rb") as file, np.load(file) as kept:
                asked, sizes, tokens = str(kept["asked"]), kept["sizes"], kept["tokens"]
                counts = Counts(*kept["counts"].tolist())
            whole = asked == _digest(prompts) and len(sizes) == len(prompts) and sizes.sum() == len(tokens)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            whole = False
        if not whole:
            raise StorageError(
                str(self._file(first)),
                f"what the student answered at step {first + 1}, which a checkpoint goes on with, is gone or damaged",
                "Remove the folder above it to start the stage anew",
            )
        parts = np.split(tokens, np.cumsum(sizes)[:-1]) if prompts else []
        return {place: answered(prompts[place], ids_L) for place, ids_L in zip(prompts, parts, strict=True)}, counts


def _digest(prompts: dict[Place, Prompt]) -> str:
    whole = hashlib.sha256()
    for place, prompt in prompts.items():
        whole.update(f"{place} {prompt.row} {prompt.seed} {len(prompt.ids)} ".encode())
        whole.update(np.ascontiguousarray(prompt.ids).tobytes())
    return whole.hexdigest()


def _number(seed: int, *parts: str | int) -> float:
    """A number in [0, 1) that depends on these alone."""
    text = "/".join(str(part) for part in (seed, *parts))
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53
