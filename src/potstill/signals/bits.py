"""Numbers of any width, end to end in bytes: packed and unpacked many at a time, without a loop over them.

Bit `o` of a stream is bit `o % 8` (the lowest is 0) of byte `o // 8`; a number's lowest bit comes first. Suffixes: R
rows, each with a stream of its own; M numbers of all rows, a row's beside each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MOST_BITS = 32
"""Of one number."""

PADDING = 8
"""Zero bytes that `unpack` wants after a stream's end."""


class Walk:
    """Where numbers lie that follow each other, section by section, in the streams of several rows."""

    def __init__(self, starts_R: Ints) -> None:
        self.bits_R = starts_R
        """The bit at which each row's next section begins."""

    def section(self, counts_R: Ints, widths: int | Ints) -> Ints:
        """Step over a section; returns each number's offset. `widths` in bits: one for all, or one a number."""
        total = int(counts_R.sum())
        if isinstance(widths, int):
            ends = widths * np.arange(total + 1, dtype=np.int64)
        else:
            ends = np.concatenate([[0], np.cumsum(widths)])
        last_R = np.cumsum(counts_R)
        begin_R = ends[last_R - counts_R]
        offsets_M: Ints = ends[:-1] + np.repeat(self.bits_R - begin_R, counts_R)
        self.bits_R = self.bits_R + ends[last_R] - begin_R
        return offsets_M


def pack(values: Sequence[NDArray[Any]], offsets: Sequence[Ints], size: int) -> NDArray[np.uint8]:
    """A stream of `size` bytes with these numbers, each of at most 32 bits, at these bits. They must not overlap."""
    offsets_M = np.concatenate(offsets)
    word_M = offsets_M >> 5
    whole_M = np.concatenate(values).astype(np.uint64) << (offsets_M & 31).astype(np.uint64)
    words = size // 4 + 2
    # Numbers share no bit, so their sum is their union; no word reaches 2^32, and float64 holds that exactly.
    total = np.bincount(word_M, whole_M & np.uint64(0xFFFFFFFF), words)
    total[1:] += np.bincount(word_M, whole_M >> np.uint64(32), words)[:-1]
    stream: NDArray[np.uint8] = total.astype("<u4").view(np.uint8)[:size]
    return stream


def unpack(stream: NDArray[np.uint8], offsets_M: Ints, widths: int | Ints) -> Ints:
    """The numbers at these bits of a stream, after whose end stand `PADDING` zero bytes."""
    windows = np.ndarray((len(stream) - PADDING + 1,), "<u8", stream, strides=(1,))  # eight bytes from every byte on
    moved_M = windows[offsets_M >> 3] >> (offsets_M & 7).astype(np.uint64)
    ones: Any = np.uint64((1 << widths) - 1) if isinstance(widths, int) else _MASKS[widths]
    numbers_M: Ints = (moved_M & ones).view(np.int64)
    return numbers_M


_MASKS = np.array([(1 << width) - 1 for width in range(MOST_BITS + 1)], dtype=np.uint64)


def bit_length(values: NDArray[Any]) -> Ints:
    """Of whole numbers below 2^53: how many bits each takes, 0 for 0."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


class Runs:
    """Reads numbers written in unary: as many zeros, then a one. Section by section, like `Walk`."""

    def __init__(self, stream: NDArray[np.uint8], starts_R: Ints) -> None:
        self._ones = np.flatnonzero(np.unpackbits(stream, bitorder="little").view(bool))
        self._starts_R = starts_R
        self._first_R = self._next_R = np.searchsorted(self._ones, starts_R)

    def section(self, counts_R: Ints) -> Ints:
        """The next numbers of each row."""
        last_R = np.cumsum(counts_R)
        index_M = np.arange(int(counts_R.sum())) + np.repeat(self._next_R - (last_R - counts_R), counts_R)
        runs_M: Ints = self._ones[index_M] - self._ones[index_M - 1] - 1
        opening_R = (self._next_R == self._first_R) & (counts_R > 0)  # what stands before these is no number in unary
        at = (last_R - counts_R)[opening_R]
        runs_M[at] = self._ones[index_M[at]] - self._starts_R[opening_R]
        self._next_R = self._next_R + counts_R
        return runs_M

    @property
    def ends_R(self) -> Ints:
        """The bit behind each row's last number that was read."""
        read_R = self._next_R > self._first_R
        ends_R = self._starts_R.copy()
        ends_R[read_R] = self._ones[self._next_R[read_R] - 1] + 1
        return ends_R
