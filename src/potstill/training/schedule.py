"""Learning rates and the order of rows: both pure functions of a step, so that any step can be taken up again."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

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


def global_batches(sizes: Sequence[int], capacity: int, epochs: float, seed: int) -> list[list[int]]:
    """The rows of every optimizer step: each epoch a new seeded order, cut where `capacity` is reached.

    With sizes of 1 the capacity is a number of rows; with tokens it is a number of tokens. No batch crosses an epoch;
    the last of an epoch may be smaller. A part of an epoch is that part of its batches, and never none.
    """
    batches: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = np.random.default_rng([seed, epoch]).permutation(len(sizes)).tolist()
        of_epoch = list(_cut(order, sizes, capacity))
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
