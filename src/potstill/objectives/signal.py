"""What a teacher says to each scored position: a whole distribution, or a few entries of one.

Where it comes from, a teacher that runs beside the student or a file that was captured before, an objective cannot see.
Suffixes: C positions, V vocabulary, K entries. Log-probabilities and entropies are in nats.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever only looks at a signal need not wait for it
    from torch import Tensor

NO_ENTRY = -1
"""Stands among the ids where a position has fewer entries than others beside it."""


@dataclass(frozen=True)
class Dense:
    """The whole distribution at each of C positions."""

    logits_CV: "Tensor"
    """As the teacher's head gives them, before any temperature; float32 or float64. -inf: never said."""


@dataclass(frozen=True)
class Sparse:
    """Some entries of the distribution at each of C positions, which must have been taken at the lesson's temperature.

    Of two kinds. *Listed*: the largest entries with their probabilities, and what all others have together in `rest_C`.
    *Drawn*: an unbiased estimate of the distribution, whose `mass_CK` sums to 1 and whose `rest_C` is 0; some entries
    may be exact there and the others drawn in proportion to what is left.
    """

    ids_CK: "Tensor"
    """int64; each at most once a position, then `NO_ENTRY`."""
    mass_CK: "Tensor"
    """The probability of each entry, or its estimate; float32 or float64, 0 where there is no entry."""
    rest_C: "Tensor"
    """The probability of everything that is not listed."""
    entropy_C: "Tensor"
    """Of the whole distribution: so that a divergence from it is 0 at a match."""
    drawn: bool
    """Which of the two kinds it is."""


Part = Dense | Sparse
"""A signal for the positions of one chunk."""
