"""A teacher's signal for one row of a dataset, and what the header of a cache of them says. numpy only.

Suffixes: C positions, K listed entries of a position, M drawn entries of all positions, H hidden units.
Log-probabilities and entropies are in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HiddenLayer:
    """What is kept of one layer: 8 bits a number."""

    layer: int
    """Its number: the output of the so-manieth decoder block, from 1 on."""
    width: int
    """Numbers a position: of the layer, or of its projection."""
    of: int = 0
    """How many decoder blocks the teacher has; 0: it is not known."""
    whole: int = 0
    """The teacher's own width; 0: it is not known."""
    seed: int = 0
    """What the projection follows from, with the layer and both widths; see `states.sketch`."""


@dataclass(frozen=True)
class Header:
    """What a cache holds and of what: everything that a reader has to know. All of a cache's files have the same."""

    vocabulary: int
    """How many tokens the teacher's distribution has: every id is below."""
    top: int
    """Entries listed a position, the likeliest first; 0: none."""
    draws: int
    """Draws a position, by which each id comes `draws` times its probability on average; 0: none. Beside a list they
    are from what it leaves out, by the probabilities there."""
    temperature: float
    """At which list and draws were taken; of `target_logp` too."""
    hidden: tuple[HiddenLayer, ...]
    """By their numbers."""
    target_logp: bool
    """Whether the log-probability of each true next token is kept."""
    teacher: str
    """Hash of the teacher's weights, or how an endpoint is named."""
    tokenizer: str
    """Hash of the tokenizer that the ids are of."""
    data: str
    """Key of the sealed dataset that the rows are of."""

    @property
    def distribution(self) -> bool:
        """Whether something is kept of the distribution, and so its entropy."""
        return self.top > 0 or self.draws > 0


@dataclass(frozen=True)
class Hidden:
    """A layer's output at C positions, quantised: codes times their position's scale."""

    codes_CH: NDArray[np.int8]
    scale_C: NDArray[np.float16]


@dataclass(frozen=True)
class RowSignal:
    """What the teacher says at each scored position of one row. What a cache does not keep is None or empty."""

    top_ids: NDArray[np.int32] | None = None
    """(C, K): the largest entries of each position, the likeliest first."""
    top_logp: NDArray[np.float32] | None = None
    """(C, K): their log-probabilities. As read their probabilities never sum to more than 1."""
    rest_logp: NDArray[np.float32] | None = None
    """(C,), beside a list: of all others together. Where that is little, 1 less the list would be rounding alone."""
    drawn_ids: NDArray[np.int32] | None = None
    """(M,): the distinct ids that were drawn at position 0, then at position 1, ...; as read ascending in each."""
    drawn_counts: NDArray[np.int32] | None = None
    """(M,): how often each was drawn."""
    drawn_sizes: NDArray[np.int32] | None = None
    """(C,): how many distinct ids each position has, summing to M. 0 where a list left nothing to draw from."""
    entropy: NDArray[np.float32] | None = None
    """(C,): of the whole distribution."""
    target_logp: NDArray[np.float32] | None = None
    """(C,): the log-probability of the true next token."""
    hidden: Mapping[int, Hidden] = field(default_factory=dict)
    """By the number of the layer."""

    @property
    def positions(self) -> int:
        """C."""
        for column in (self.entropy, self.target_logp):
            if column is not None:
                return len(column)
        return len(next(iter(self.hidden.values())).scale_C)
