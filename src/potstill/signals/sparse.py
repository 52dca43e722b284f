"""Rows of a cache as one sparse signal: ids, their probabilities, and what all others have together.

Suffixes: C positions of all rows, K entries of a position, M drawn entries of all positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.objectives.signal import NO_ENTRY
from potstill.signals.rows import Header, RowSignal


@dataclass(frozen=True)
class SparseArrays:
    """What `objectives.signal.Sparse` holds, as numpy arrays."""

    ids_CK: NDArray[np.int64]
    mass_CK: NDArray[np.float32]
    rest_C: NDArray[np.float32]
    entropy_C: NDArray[np.float32]
    drawn: bool


def to_sparse(signals: Sequence[RowSignal], header: Header) -> SparseArrays:
    """The rows' positions one after another; masses and rest of each sum to 1, to float32's rounding.

    Listed entries have their probability, and all others the rest, which is never 0 for being rounded. Drawn entries
    share 1 by how often they came, or beside a list the rest; then nothing rests. Where nothing was drawn beside a
    list, the list has all.
    """
    entropy_C = _joined(signals, "entropy")
    ids_CK = np.full((len(entropy_C), header.top), NO_ENTRY, dtype=np.int64)
    mass_CK = np.zeros((len(entropy_C), header.top))
    rest_C = np.ones(len(entropy_C))
    if header.top:
        ids_CK[:] = _joined(signals, "top_ids")
        mass_CK[:] = np.exp(_joined(signals, "top_logp").astype(np.float64))
        rest_C[:] = np.exp(_joined(signals, "rest_logp").astype(np.float64))
        total_C = mass_CK.sum(axis=1) + rest_C
        mass_CK /= total_C[:, None]
        rest_C /= total_C
    if header.draws:
        sizes_C = _joined(signals, "drawn_sizes").astype(np.int64)
        none_C = sizes_C == 0
        mass_CK[none_C] /= np.maximum(mass_CK[none_C].sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        drawn_ids, drawn_mass = _drawn(signals, sizes_C, header.draws)
        ids_CK = np.concatenate([ids_CK, drawn_ids], axis=1)
        mass_CK = np.concatenate([mass_CK, drawn_mass * rest_C[:, None]], axis=1)
        rest_C = np.zeros_like(rest_C)
    return SparseArrays(
        ids_CK, mass_CK.astype(np.float32), rest_C.astype(np.float32), entropy_C.astype(np.float32), header.draws > 0
    )


def _drawn(
    signals: Sequence[RowSignal], sizes_C: NDArray[np.int64], draws: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and shares of the draws, a position a line."""
    wide = (len(sizes_C), int(sizes_C.max(initial=0)))
    ids_CK, share_CK = np.full(wide, NO_ENTRY, dtype=np.int64), np.zeros(wide)
    held_CK = np.arange(wide[1]) < sizes_C[:, None]
    ids_CK[held_CK] = _joined(signals, "drawn_ids")
    share_CK[held_CK] = _joined(signals, "drawn_counts") / draws
    return ids_CK, share_CK


def _joined(signals: Sequence[RowSignal], part: str) -> NDArray[Any]:
    return np.concatenate([getattr(signal, part) for signal in signals])
