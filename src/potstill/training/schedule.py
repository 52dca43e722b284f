"""Learning rates and the order of rows: both pure functions of a step, so that any step can be taken up again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScheduleName = Literal["cosine", "linear", "constant"]


def rate(step: int, total: int, schedule: ScheduleName, warmup: float) -> float:
    """The share of the peak learning rate at a step, counted from 0. `warmup` is a share of all steps.

    It rises in a line and is 1 at the first step behind the warm-up; cosine and linear fall to 0 behind the last.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


@dataclass(frozen=True)
class Part:
    """Neighbouring rows that come from one source of a mixture."""

    name: str
    rows: int
    weight: float

    @property
    def drawn(self) -> int:
        """How many rows an epoch takes: all of them as often as the weight says whole, and of the rest a share, which
        is never none."""
        whole = math.floor(self.weight)
        some = self.weight - whole
        return whole * self.rows + (max(1, round(some * self.rows)) if some and self.rows else 0)

    def draw(self, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
        """Which of its rows an epoch takes; the share is drawn anew each epoch, without replacement.

        `number` is the part's place in the mixture.
        """
        whole = math.floor(self.weight)
        share = np.random.default_rng([seed, epoch, 1 + number]).permutation(self.rows)
        return np.concatenate([np.tile(np.arange(self.rows), whole), share[: self.drawn - whole * self.rows]])


def epoch_order(parts: Sequence[Part], seed: int, epoch: int) -> list[int]:
    """The rows of one epoch in their seeded order. Depends on nothing but its arguments."""
    starts = np.cumsum([0, *(part.rows for part in parts)])
    drawn = [part.draw(seed, epoch, number) + starts[number] for number, part in enumerate(parts)]
    rows = np.concatenate(drawn)
    order: list[int] = rows[np.random.default_rng([seed, epoch]).permutation(len(rows))].tolist()
    return order


def global_batches(
    sizes: Sequence[int], capacity: int, epochs: float, seed: int, parts: Sequence[Part] = ()
) -> list[list[int]]:
    """The rows of every optimizer step: each epoch a new seeded order, cut where `capacity` is reached.

    With sizes of 1 the capacity is a number of rows; with tokens it is a number of tokens. No batch crosses an epoch;
    the last of an epoch may be smaller. A part of an epoch is that part of its batches, and never none. Without
    `parts`, all rows are one of weight 1; with several a row may stand in an epoch more than once, or not at all.
    """
    parts = parts or [Part("", len(sizes), 1.0)]
    assert sum(part.rows for part in parts) == len(sizes), "every row belongs to one part"
    batches: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        of_epoch = list(_cut(epoch_order(parts, seed, epoch), sizes, capacity))
        share = min(1.0, epochs - epoch)
        batches += of_epoch[: max(1, round(share * len(of_epoch)))]
    return batches


def _cut(order: Sequence[int], sizes: Sequence[int], capacity: int) -> Iterator[list[int]]:
    batch: list[int] = []
    filled = 0
    for row in order:
        if batch and filled + sizes[row] > capacity:
            yield batch
            batch, filled = [], 0
        batch.append(row)
        filled += sizes[row]
    if batch:
        yield batch
