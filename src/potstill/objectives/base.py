"""What every objective returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A sum and what to divide it by, kept apart so that micro-batches add up to exactly the whole batch.

    `figures` are further sums over the same count, for curves; they carry no gradient.
    """

    sum: Tensor
    count: float
    figures: Mapping[str, Tensor] = field(default_factory=dict)
