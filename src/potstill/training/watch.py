"""Who follows a training run: a file that grows as it goes, trackers, and a guard against over-optimisation."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.stages.base import Work
from potstill.training.batch import Item
from potstill.training.curves import Follower, Row

COLLAPSE_NATS = 0.5
"""A token: the chosen answers' perplexity has grown by two thirds when their log-probability fell by this much."""
DRIFT_SHARE = 0.15
"""How far the share of pairs moved towards the longer answer may pass the share of longer chosen answers."""
RECENT_STEPS = 32
"""Training steps that stand for one evaluation where no pairs are held out."""


def everyone(followers: Sequence[Follower]) -> Follower:
    """One follower that tells them all."""

    def tell(row: Row) -> None:
        for follower in followers:
            follower(row)

    return tell


@contextmanager
def live_file(path: Path) -> Iterator[Follower]:
    """Every row as a line of JSON, at once; times included, which is why it is no part of what is sealed.

    A run that goes on writes it anew: the last lines of one that was killed may be of steps that are done again.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    with file:
        yield _line_writer(file)


def _line_writer(file: TextIO) -> Follower:
    def follow(row: Row) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    return follow


@contextmanager
def trackers(names: Sequence[str], work: Work, config: dict[str, Any]) -> Iterator[Follower]:
    """Accelerate's trackers of these names: tensorboard, trackio, wandb. ModelError where one is not installed.

    A row's split leads its figures' names: train/loss, held_out/accuracy. What an earlier run wrote gives way to this.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    PartialState()
    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    with ExitStack() as stack:
        started: list[Any] = []
        for name in names:
            if name not in there:
                raise ModelError(f"track: {name}", "it is not installed", f"Run pip install {name}, or leave it out")
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            named: dict[str, Any] = {"logging_dir": str(work.logs)} if kind.requires_logging_directory else {}
            if name == "tensorboard":
                named["purge_step"] = 0
            tracker = kind(work.name, **named)
            tracker.start()
            stack.callback(tracker.finish)
            tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})
            started.append(tracker)

        def follow(row: Row) -> None:
            figures = {f"{row['split']}/{name}": v for name, v in row.items() if name not in ("step", "split")}
            for tracker in started:
                tracker.log(figures, step=row["step"])

        yield follow


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | str | float | int) else str(value)


class Guard:
    """Watches pairs for signs that DPO goes too far: the held-out ones, or where there are none the latest trained on.

    Rafailov et al. 2024 ("Scaling laws for reward model overoptimization in direct alignment algorithms") show both.
    """

    def __init__(self, items: Sequence[Item], split: str, warn: Callable[[str], None]) -> None:
        """`items` are the pairs of that split; `warn` is told of each sign once."""
        sizes = [[int(learn_L.sum()) for _, learn_L in item.answers] for item in items]
        self._split, self._tell = split, warn
        self._tokens = sum(chosen for chosen, _ in sizes) / len(sizes)
        self._longer = sum((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in sizes) / len(sizes)
        self._recent: deque[Row] = deque(maxlen=1 if split == "held_out" else RECENT_STEPS)
        self.warnings: dict[str, str] = {}
        """By name, each with the step at which it was first seen."""

    def __call__(self, row: Row) -> None:
        """A follower."""
        if row["split"] != self._split or "chosen_log_ratio" not in row or row["step"] == 0:
            return  # at first nothing has moved anywhere
        self._recent.append(row)
        if len(self._recent) < (self._recent.maxlen or 1):
            return
        fallen, longer = -self._mean("chosen_log_ratio") / self._tokens, self._mean("longer")
        if fallen > COLLAPSE_NATS:
            self._warn("chosen_collapse", row, f"chosen answers lost {fallen:.2g} nats a token against the reference")
        if longer - self._longer > DRIFT_SHARE:
            what = f"{longer:.0%} of the pairs moved towards their longer answer, which is the chosen one in"
            self._warn("length_drift", row, f"{what} {self._longer:.0%}")

    def _mean(self, name: str) -> float:
        return float(sum(row[name] for row in self._recent) / len(self._recent))

    def _warn(self, name: str, row: Row, text: str) -> None:
        if name not in self.warnings:
            self.warnings[name] = f"step {row['step']}: {text}"
            self._tell(f"{name.replace('_', ' ')} at {self.warnings[name]}")
