"""A row's signal as bytes and back: quantised, its ids by Elias and Fano's code, its counts by Elias' gamma code.

Suffixes: R rows, C positions, K listed entries of a position, M entries of all positions, V vocabulary, H hidden units.
Log-probabilities and entropies are in nats. The bytes are described in `files`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError
from potstill.signals.bits import PADDING, Ints, Runs, Walk, bit_length, pack, unpack
from potstill.signals.rows import Header, Hidden, RowSignal

FLOOR = -20.0
"""The least log-probability that is kept, in nats: 2e-9. What is less is kept as this."""

LOGP_CODES = 255
ENTROPY_BITS = 12
ENTROPY_CODES = (1 << ENTROPY_BITS) - 1

CHUNK = 1 << 13
"""Positions that are packed at once: their numbers stay in a processor's cache."""


def logp_of(codes: NDArray[Any]) -> NDArray[np.float32]:
    """Codes 0-255 as log-probabilities: -20 (c/255)^2 nats.

    The nearest code is off by less than 0.0005 of a probability near 1, 0.9% at 0.8, 1.8% at 1/e, 5% at 0.001 and
    8.2% at worst, at 2e-9.
    """
    logp: NDArray[np.float32] = _LOGP[codes]
    return logp


_LOGP = (FLOOR * (np.arange(LOGP_CODES + 1) / LOGP_CODES) ** 2).astype(np.float32)
_MASS = np.exp(_LOGP.astype(np.float64))


def logp_codes(logp: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest codes."""
    share = np.clip(logp, FLOOR, 0) * np.float32(1 / FLOOR)
    codes: NDArray[np.uint8] = np.rint(np.sqrt(share) * np.float32(LOGP_CODES)).astype(np.uint8)
    return codes


def entropy_of(codes: Ints, vocabulary: int) -> NDArray[np.float32]:
    """Codes 0-4095 as entropies: ln V (c/4095)^2, so that 2 nats of ln 128,256 are off by 0.0012 at most."""
    entropy: NDArray[np.float32] = (np.log(vocabulary) * (codes / ENTROPY_CODES) ** 2).astype(np.float32)
    return entropy


def entropy_codes(entropy_C: NDArray[Any], vocabulary: int) -> Ints:
    """The nearest codes."""
    most = np.log(vocabulary) or 1.0
    codes: Ints = np.rint(np.sqrt(np.clip(entropy_C / most, 0, 1)) * ENTROPY_CODES).astype(np.int64)
    return codes


def low_bits(vocabulary: int, most: int) -> Ints:
    """How many low bits of an id are kept as they are, where a position has 0, 1, ... `most` ids."""
    return np.array([0] + [(vocabulary // size).bit_length() - 1 for size in range(1, most + 1)], dtype=np.int64)


def size_bits(draws: int) -> int:
    """Bits of how many distinct ids a position has: 0 to `draws`."""
    return draws.bit_length()


class _Streams:
    """Sections of numbers, one stream a row, as they are gathered to be packed."""

    def __init__(self, rows: int) -> None:
        self.walk = Walk(np.zeros(rows, dtype=np.int64))
        self._parts: list[tuple[NDArray[Any], Ints, Ints]] = []

    def numbers(self, counts_R: Ints, values: NDArray[Any], widths: int | Ints) -> None:
        """A section of numbers of fixed or given widths in bits."""
        self._parts.append((values, self.walk.section(counts_R, widths), counts_R))

    def runs(self, counts_R: Ints, values: Ints) -> None:
        """A section of numbers in unary."""
        ones_M = self.walk.section(counts_R, values + 1) + values
        self._parts.append((np.ones(len(values), dtype=np.uint8), ones_M, counts_R))

    def packed(self) -> list[NDArray[np.uint8]]:
        """A stream a row, each ending with a whole byte."""
        bytes_R = (self.walk.bits_R + 7) >> 3
        ends_R = np.cumsum(bytes_R)
        starts_R = (ends_R - bytes_R) * 8
        offsets = [offsets + np.repeat(starts_R, counts_R) for _, offsets, counts_R in self._parts]
        stream = pack([values for values, _, _ in self._parts], offsets, int(ends_R[-1]))
        return np.split(stream, ends_R[:-1])


def encode(rows: Sequence[RowSignal], names: Sequence[str], header: Header) -> list[bytes]:
    """The bytes of each row. Rows have names for what is said of a bad one."""
    found: list[bytes] = []
    for part in _chunks([row.positions for row in rows]):
        chunk = rows[part]
        for name, row in zip(names[part], chunk, strict=True):
            _check(name, row, header)
        streams: Sequence[Any] = [b""] * len(chunk)
        if header.distribution:
            streams = _distributions(_Rows(names[part], chunk, header))
        for row, stream in zip(chunk, streams, strict=True):
            parts: list[Any] = []
            for layer in header.hidden:
                kept = row.hidden[layer.layer]
                parts += [kept.codes_CH.astype(np.int8), kept.scale_C.astype("<f2")]
            if header.target_logp and row.target_logp is not None:
                parts.append(row.target_logp.astype("<f4"))
            found.append(b"".join([*(part.tobytes() for part in parts), bytes(stream)]))
    return found


def _chunks(sizes: Sequence[int]) -> Iterator[slice]:
    """Rows that are packed or read at once."""
    begin = held = 0
    for place, size in enumerate(sizes):
        if place > begin and held + size > CHUNK:
            yield slice(begin, place)
            begin, held = place, 0
        held += size
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def _check(name: str, row: RowSignal, header: Header) -> None:
    """That a row has the parts which the header names, each of the right shape: anything else is a bug of ours."""
    positions = row.positions
    listed = row.top_ids is not None and row.top_logp is not None and row.rest_logp is not None
    drawn = row.drawn_ids is not None and row.drawn_counts is not None and row.drawn_sizes is not None
    assert listed == (header.top > 0), f"{name}: listed entries"
    assert drawn == (header.draws > 0), f"{name}: drawn entries"
    assert (row.entropy is not None) == header.distribution, f"{name}: entropy"
    assert (row.target_logp is not None) == header.target_logp, f"{name}: target_logp"
    assert {layer.layer for layer in header.hidden} == set(row.hidden), f"{name}: hidden layers"
    if row.top_ids is not None and row.top_logp is not None:
        assert row.top_ids.shape == row.top_logp.shape == (positions, header.top), f"{name}: shape of the list"
    if row.drawn_ids is not None and row.drawn_counts is not None and row.drawn_sizes is not None:
        assert len(row.drawn_sizes) == positions, f"{name}: sizes"
        assert len(row.drawn_ids) == len(row.drawn_counts) == int(row.drawn_sizes.sum()), f"{name}: drawn entries"
    for layer in header.hidden:
        kept = row.hidden[layer.layer]
        assert kept.codes_CH.shape == (positions, layer.width), f"{name}: layer {layer.layer}"
        assert kept.scale_C.shape == (positions,), f"{name}: layer {layer.layer}"
    if row.rest_logp is not None:
        assert row.rest_logp.shape == (positions,), f"{name}: shape of the rest"
    for column in (
        row.entropy,
        row.target_logp,
        row.top_logp,
        row.rest_logp,
        *(kept.scale_C for kept in row.hidden.values()),
    ):
        if column is not None and not np.isfinite(column).all():
            raise _bad(name, "a number of the teacher's signal is not finite", "Look what the teacher computes there")


def _bad(where: str, what: str, remedy: str) -> DataError:
    return DataError(f"signal of row {where}", what, remedy)


@dataclass(frozen=True)
class _Rows:
    """Rows that are packed at once, and which of them an entry is of."""

    names: Sequence[str]
    rows: Sequence[RowSignal]
    header: Header

    @property
    def counts_R(self) -> Ints:
        return np.array([row.positions for row in self.rows], dtype=np.int64)

    def column(self, part: str) -> NDArray[Any]:
        """One part of all rows."""
        return np.concatenate([getattr(row, part) for row in self.rows])

    def bad(self, bad_C: NDArray[np.bool_], what: str, remedy: str) -> DataError:
        """The error that names the row of the first position that is bad."""
        place = np.searchsorted(np.cumsum(self.counts_R), np.flatnonzero(bad_C)[0], side="right")
        return _bad(self.names[int(place)], what, remedy)

    def inside(self, ids_M: Ints, position_M: Ints) -> None:
        """Refuse an id that the vocabulary does not have."""
        outside_M = (ids_M < 0) | (ids_M >= self.header.vocabulary)
        if outside_M.any():
            what = f"token id {ids_M[outside_M][0]} is not below the vocabulary's {self.header.vocabulary:,}"
            bad_C = np.bincount(position_M[outside_M]) > 0
            raise self.bad(bad_C, what, "Capture with the teacher's whole vocabulary, padding included")

    def distinct(self, keys_M: Ints, what: str, remedy: str) -> None:
        """Refuse two equal ones among sorted keys."""
        twice_M = keys_M[1:] == keys_M[:-1]
        if twice_M.any():
            raise self.bad(np.bincount(keys_M[1:][twice_M] // self.header.vocabulary) > 0, what, remedy)


def _distributions(chunk: _Rows) -> list[NDArray[np.uint8]]:
    """The stream of each row: entropies, sizes, rests, codes, low bits, then what is unary, then counts."""
    header, counts_R = chunk.header, chunk.counts_R
    streams = _Streams(len(chunk.rows))
    streams.numbers(counts_R, entropy_codes(chunk.column("entropy"), header.vocabulary), ENTROPY_BITS)
    runs: list[tuple[Ints, Ints]] = []
    keys: list[Ints] = []
    counts = None
    if header.draws:
        sizes_C = chunk.column("drawn_sizes").astype(np.int64)
        streams.numbers(counts_R, sizes_C, size_bits(header.draws))
    if header.top:
        streams.numbers(counts_R, logp_codes(chunk.column("rest_logp")), 8)
        listed_R = counts_R * header.top
        keys_M, codes_M = _sorted_list(chunk)
        ids_M = keys_M % header.vocabulary
        low = int(low_bits(header.vocabulary, header.top)[-1])
        streams.numbers(listed_R, codes_M, 8)
        streams.numbers(listed_R, ids_M & ((1 << low) - 1), low)
        runs.append((listed_R, _gaps(ids_M >> low, np.full(int(counts_R.sum()), header.top))))
        keys.append(keys_M)
    if header.draws:
        drawn_R = np.array([int(row.drawn_sizes.sum()) for row in chunk.rows if row.drawn_sizes is not None])
        keys_M, times_M = _sorted_draws(chunk, sizes_C)
        ids_M = keys_M % header.vocabulary
        low_M = np.repeat(low_bits(header.vocabulary, min(header.draws, header.vocabulary))[sizes_C], sizes_C)
        streams.numbers(drawn_R, ids_M & ((1 << low_M) - 1), low_M)
        below_M = bit_length(times_M) - 1
        runs += [(drawn_R, _gaps(ids_M >> low_M, sizes_C)), (drawn_R, below_M)]
        counts = (drawn_R, times_M & ((1 << below_M) - 1), below_M)
        keys.append(keys_M)
    if len(keys) == 2:
        both_M = np.sort(np.concatenate(keys))
        chunk.distinct(both_M, "an id was drawn that is listed too", "Draw from what the list leaves out")
    for run in runs:
        streams.runs(*run)
    if counts is not None:
        streams.numbers(*counts)
    return streams.packed()


def _gaps(high_M: Ints, sizes_C: Ints) -> Ints:
    """How much each number is above the one before it in its position, the first above 0."""
    gaps_M = np.diff(high_M, prepend=0)
    first_C = (np.cumsum(sizes_C) - sizes_C)[sizes_C > 0]
    gaps_M[first_C] = high_M[first_C]
    return gaps_M


def _from_gaps(gaps_M: Ints, sizes_C: Ints) -> Ints:
    """The inverse of `_gaps`."""
    total_M = np.cumsum(gaps_M)
    held_C = sizes_C[sizes_C > 0]
    first_C = np.cumsum(held_C) - held_C
    low_M: Ints = np.repeat(total_M[first_C] - gaps_M[first_C], held_C)
    return total_M - low_M


def _sorted_list(chunk: _Rows) -> tuple[Ints, Ints]:
    """Listed entries by their ids: position * V + id, and the codes of their log-probabilities."""
    ids_CK = chunk.column("top_ids").astype(np.int64)
    position_C = np.arange(len(ids_CK))
    chunk.inside(ids_CK.ravel(), np.repeat(position_C, chunk.header.top))
    both_CK = np.sort(ids_CK << 8 | logp_codes(chunk.column("top_logp")), axis=1)
    keys_M = ((both_CK >> 8) + position_C[:, None] * chunk.header.vocabulary).ravel()
    chunk.distinct(keys_M, "an id is listed twice at one position", "List each id once")
    return keys_M, both_CK.ravel() & 255


def _sorted_draws(chunk: _Rows, sizes_C: Ints) -> tuple[Ints, Ints]:
    """Drawn entries by their ids: position * V + id, and how often each was drawn."""
    draws = chunk.header.draws
    position_M = np.repeat(np.arange(len(sizes_C)), sizes_C)
    ids_M = chunk.column("drawn_ids").astype(np.int64)
    times_M = chunk.column("drawn_counts").astype(np.int64)
    chunk.inside(ids_M, position_M)
    total_C = np.bincount(position_M, times_M, len(sizes_C))
    wrong_C = (total_C != draws) & ((sizes_C > 0) | (chunk.header.top == 0))
    wrong_C[position_M[times_M < 1]] = True
    if wrong_C.any():
        what = f"a position's counts sum to {int(total_C[wrong_C][0])} draws, not {draws}, or one is below 1"
        raise chunk.bad(wrong_C, what, "Count every draw once")
    keys_M = position_M * chunk.header.vocabulary + ids_M
    if not (keys_M[1:] > keys_M[:-1]).all():
        keys_M, times_M = np.divmod(np.sort(keys_M * (draws + 1) + times_M), draws + 1)  # far quicker than an argsort
        chunk.distinct(keys_M, "an id stands twice among the draws of one position", "Name each id once, with a count")
    return keys_M, times_M


def decode(blobs: Sequence[bytes], counts: Sequence[int], header: Header) -> list[RowSignal]:
    """What `encode` was given, from the bytes of rows of so many positions."""
    found: list[RowSignal] = []
    for part in _chunks(counts):
        found += _decode(blobs[part], np.array(counts[part], dtype=np.int64), header)
    return found


def raw_bytes(header: Header) -> int:
    """Bytes a position of what stands before a row's stream: hidden states and log-probabilities of targets."""
    return sum(layer.width + 2 for layer in header.hidden) + 4 * header.target_logp


def _decode(blobs: Sequence[bytes], counts_R: Ints, header: Header) -> list[RowSignal]:
    heads = [_raw(blob, int(count), header) for blob, count in zip(blobs, counts_R, strict=True)]
    if not header.distribution:
        return [RowSignal(**head) for head in heads]
    begin = raw_bytes(header)
    tails = [blob[begin * int(count) :] for blob, count in zip(blobs, counts_R, strict=True)]
    stream = np.frombuffer(b"".join([*tails, bytes(PADDING)]), dtype=np.uint8)
    lengths_R = np.array([len(tail) for tail in tails], dtype=np.int64)
    columns = _columns(stream, (np.cumsum(lengths_R) - lengths_R) * 8, counts_R, header)
    rows = []
    for place, head in enumerate(heads):
        rows.append(RowSignal(**head, **{name: parts[place] for name, parts in columns.items()}))
    return rows


def _raw(blob: bytes, count: int, header: Header) -> dict[str, Any]:
    """The parts of a row that are whole numbers of bytes."""
    hidden, at = {}, 0
    for layer in header.hidden:
        codes = np.frombuffer(blob, np.int8, count * layer.width, at).reshape(count, layer.width)
        scale = np.frombuffer(blob, "<f2", count, at + codes.size)
        hidden[layer.layer] = Hidden(codes.copy(), scale.astype(np.float16))
        at += codes.size + 2 * count
    target = np.frombuffer(blob, "<f4", count, at).astype(np.float32) if header.target_logp else None
    return {"hidden": hidden, "target_logp": target}


def _columns(stream: NDArray[np.uint8], starts_R: Ints, counts_R: Ints, header: Header) -> dict[str, list[Any]]:
    """Every part of the distributions, by its name, row by row."""
    walk, cuts = Walk(starts_R), np.cumsum(counts_R)[:-1]
    codes_C = unpack(stream, walk.section(counts_R, ENTROPY_BITS), ENTROPY_BITS)
    found: dict[str, list[Any]] = {"entropy": np.split(entropy_of(codes_C, header.vocabulary), cuts)}
    if header.draws:
        width = size_bits(header.draws)
        sizes_C = unpack(stream, walk.section(counts_R, width), width)
        found["drawn_sizes"] = np.split(sizes_C.astype(np.int32), cuts)
    if header.top:
        rests_C = unpack(stream, walk.section(counts_R, 8), 8)
        found["rest_logp"] = np.split(logp_of(rests_C), cuts)
        listed_R = counts_R * header.top
        low = int(low_bits(header.vocabulary, header.top)[-1])
        logp_M = unpack(stream, walk.section(listed_R, 8), 8)
        top_M = unpack(stream, walk.section(listed_R, low), low)
    if header.draws:
        drawn_R = np.diff(np.concatenate([[0], np.cumsum(sizes_C)])[np.concatenate([[0], np.cumsum(counts_R)])])
        low_M = np.repeat(low_bits(header.vocabulary, min(header.draws, header.vocabulary))[sizes_C], sizes_C)
        ids_M = unpack(stream, walk.section(drawn_R, low_M), low_M)
    runs = Runs(stream, walk.bits_R)
    if header.top:
        high_M = _from_gaps(runs.section(listed_R), np.full(len(codes_C), header.top))
        top_ids, top_logp = _by_likelihood(top_M | high_M << low, logp_M, header.top)
        found |= {"top_ids": np.split(top_ids, cuts), "top_logp": np.split(top_logp, cuts)}
    if header.draws:
        ids_M |= _from_gaps(runs.section(drawn_R), sizes_C) << low_M
        below_M = runs.section(drawn_R)
        walk.bits_R = runs.ends_R
        times_M = unpack(stream, walk.section(drawn_R, below_M), below_M) | 1 << below_M
        ends = np.cumsum(drawn_R)[:-1]
        found |= {"drawn_ids": np.split(ids_M.astype(np.int32), ends)}
        found |= {"drawn_counts": np.split(times_M.astype(np.int32), ends)}
    return found


def _by_likelihood(ids_M: Ints, codes_M: Ints, top: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest first, equals by their ids. Where rounding brought the sum above 1, each gets less by one share."""
    both_CK = np.sort((codes_M << 32 | ids_M).reshape(-1, top), axis=1)
    codes_CK = both_CK >> 32
    logp_CK = logp_of(codes_CK)
    total_C = _MASS[codes_CK].sum(axis=1)
    over_C = total_C > 1
    logp_CK[over_C] -= np.log(total_C[over_C]).astype(np.float32)[:, None]
    return (both_CK & 0xFFFFFFFF).astype(np.int32), logp_CK
