"""What every objective returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A sum and what to divide it by, kept apart so that micro-batches add up to exactly the whole batch.

    `count` is a tensor of shape () where it is known to the device alone: reading it would make everyone wait.
    `figures` are further sums over the same count, for curves; they carry no gradient.
    """

    sum: Tensor
    count: float | Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)
