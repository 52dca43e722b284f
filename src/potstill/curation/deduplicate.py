"""Duplicates among any number of texts, in bounded memory: exact ones by a hash of 128 bits, near ones by MinHash.

Definition, whatever order the work is done in: a text that equals an earlier one is a duplicate of the first such text;
of the others, in the order of the data, one is a near duplicate if its exact Jaccard similarity with an earlier text
that stays is at least the threshold, and of the first such text. MinHash only says which texts are worth comparing.

What has to be remembered lies in files: hashes are parted by their value, so that equal ones meet within a part that
fits into memory; what was found is parted by rows and read in their order. A bucket holds the texts that share a band.
"""

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from potstill.curation.minhash import Hashes, jaccard, shingles
from potstill.curation.spill import Record, Spill

PARTS = np.uint64(256)
ROWS_A_PART = 1 << 14
REMEMBERED = 512
"""Texts whose shingles are kept at hand while others are compared with them."""

_EXACT = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
_BAND = np.dtype([("key", "<u8"), ("row", "<i8")])
_COPY = np.dtype([("row", "<i8"), ("first", "<i8")])
_MEMBER = np.dtype([("row", "<i8"), ("bucket", "<i8"), ("size", "<i8")])


def fingerprints(texts: Sequence[str]) -> Hashes:
    """128 bits of each text that case and blanks do not change, [D, 2]."""
    sums = b"".join(
        blake2b(" ".join(text.lower().split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    )
    return np.frombuffer(sums, dtype="<u8").reshape(-1, 2)


@dataclass(frozen=True)
class Duplicate:
    """A row to leave out, and the row that stays for it. Similarity None: it is an exact copy."""

    row: int
    of: int
    similarity: float | None


_SAVED = struct.Struct("<qqd")


def save(path: Path, found: Iterable[Duplicate]) -> None:
    """Write duplicates to a file, so that they can be read more than once."""
    with path.open("wb") as file:
        for one in found:
            file.write(_SAVED.pack(one.row, one.of, math.nan if one.similarity is None else one.similarity))


def saved(path: Path) -> Iterator[Duplicate]:
    """What `save` wrote."""
    with path.open("rb") as file:
        while packed := file.read(_SAVED.size):
            row, of, similarity = _SAVED.unpack(packed)
            yield Duplicate(row, of, None if math.isnan(similarity) else similarity)


class Deduplicator:
    """Rows are added in order, then `duplicates` says which to leave out. Threshold None: exact copies alone.

    Its files lie in `folder`, which must not hold any of another's; they go as they are read.
    """

    def __init__(self, folder: Path, threshold: float | None) -> None:
        self.threshold = threshold
        self.rows = 0
        self._folder = folder
        self._exact = Spill(folder, "exact", _EXACT)
        self._bands = Spill(folder, "bands", _BAND)

    def add(self, fingerprints_D2: Hashes, bands_DB: Hashes | None) -> None:
        """The next rows: their fingerprints and, where near duplicates are looked for, their bands."""
        count = len(fingerprints_D2)
        rows = np.arange(self.rows, self.rows + count)
        self.rows += count
        exact = np.empty(count, _EXACT)
        exact["high"], exact["low"], exact["row"] = fingerprints_D2[:, 0], fingerprints_D2[:, 1], rows
        self._exact.add((exact["high"] % PARTS).astype(np.int64), exact)
        if bands_DB is not None:
            found = np.empty(bands_DB.size, _BAND)
            found["key"], found["row"] = bands_DB.ravel(), np.repeat(rows, bands_DB.shape[1])
            self._bands.add((found["key"] % PARTS).astype(np.int64), found)

    def duplicates(self, text_of: Callable[[int], str]) -> Iterator[Duplicate]:
        """Every row to leave out, in order. `text_of` reads the text of a row again."""
        copies = Spill(self._folder, "copies", _COPY)
        for _, records in self._exact.parts():
            _find_copies(records, copies)
        members = Spill(self._folder, "members", _MEMBER)
        with _Buckets(self._folder / "buckets") as buckets:
            for _, records in self._bands.parts():
                buckets.gather(records, members)
            compare = _Comparison(self.threshold or 1.0, text_of, buckets)
            near = members.parts()
            exact = copies.parts()
            for part in range(-(-self.rows // ROWS_A_PART)):
                copied = {int(row): int(first) for row, first in next(exact, (part, ()))[1]}
                found = compare.part(next(near, (part, np.empty(0, _MEMBER)))[1], copied)
                merged = [Duplicate(row, first, None) for row, first in copied.items()] + found
                yield from sorted(merged, key=lambda duplicate: duplicate.row)


def _groups(changes: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Start and length of each run of equal records; `changes`: where one differs from that before it."""
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    return starts, np.diff(starts, append=len(changes) + 1)


def _find_copies(records: Record, copies: Spill) -> None:
    """Within a part: every row whose fingerprint an earlier one has."""
    if len(records) < 2:
        return
    records = records[np.lexsort((records["row"], records["low"], records["high"]))]
    changes = (np.diff(records["high"]) != 0) | (np.diff(records["low"]) != 0)
    starts, sizes = _groups(changes)
    later = np.ones(len(records), dtype=bool)
    later[starts] = False
    found = np.empty(int(later.sum()), _COPY)
    found["row"], found["first"] = records["row"][later], np.repeat(records["row"][starts], sizes)[later]
    found = found[np.argsort(found["row"], kind="stable")]
    copies.add(found["row"] // ROWS_A_PART, found)


class _Buckets:
    """In a file, for every bucket of two texts or more, room for its members; those that stay are written into it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._path = path
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)
        self._path.unlink()

    def gather(self, records: Record, members: Spill) -> None:
        """Within a part of the bands: make a bucket of each key that several rows have, and note its members."""
        if len(records) < 2:
            return
        records = records[np.argsort(records["key"], kind="stable")]  # rows stay in order within a key
        starts, sizes = _groups(np.diff(records["key"]) != 0)
        shared = sizes > 1
        starts, sizes = starts[shared], sizes[shared]
        found = np.empty(int(sizes.sum()), _MEMBER)
        firsts = np.cumsum(sizes) - sizes
        inside = np.arange(len(found)) - np.repeat(firsts, sizes)
        found["row"] = records["row"][np.repeat(starts, sizes) + inside]
        found["bucket"] = self._size + np.repeat(firsts, sizes)
        found["size"] = np.repeat(sizes, sizes)
        self._size += len(found)
        os.ftruncate(self._file, 8 * self._size)
        members.add(found["row"] // ROWS_A_PART, found)

    def kept(self, bucket: int, size: int) -> npt.NDArray[np.int64]:
        """The rows of a bucket that stay so far, in order."""
        reach = min(size, 16)
        found = self._read(bucket, reach)
        while len(found) == reach and reach < size:
            reach = min(size, 8 * reach)
            found = self._read(bucket, reach)
        return found

    def keep(self, bucket: int, size: int, row: int) -> None:
        """Write a row that stays behind those before it. Rows are written plus one: 0 is room."""
        place = bucket + len(self.kept(bucket, size))
        os.pwrite(self._file, (row + 1).to_bytes(8, "little"), 8 * place)

    def _read(self, bucket: int, count: int) -> npt.NDArray[np.int64]:
        found = np.frombuffer(os.pread(self._file, 8 * count, 8 * bucket), dtype="<i8")
        end = int(np.argmin(found)) if len(found) and not found.all() else len(found)
        return found[:end] - 1


class _Comparison:
    """Candidates against their exact similarity, in the order of the rows."""

    def __init__(self, threshold: float, text_of: Callable[[int], str], buckets: _Buckets) -> None:
        self._threshold, self._buckets = threshold, buckets
        self._shingles = lru_cache(REMEMBERED)(lambda row: shingles(text_of(row)))

    def part(self, members: Record, copied: dict[int, int]) -> list[Duplicate]:
        """The near duplicates among the rows of one part; exact copies are out already."""
        members = members[np.lexsort((members["bucket"], members["row"]))]
        found = []
        starts, sizes = _groups(np.diff(members["row"]) != 0) if len(members) else (np.empty(0, np.int64),) * 2
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            row = int(members["row"][start])
            if row in copied:
                continue
            mine = members[start : start + size]
            near = self._near(row, mine)
            if near is None:
                for bucket, room in zip(mine["bucket"].tolist(), mine["size"].tolist(), strict=True):
                    self._buckets.keep(bucket, room, row)
            else:
                found.append(near)
        return found

    def _near(self, row: int, mine: Record) -> Duplicate | None:
        """The first row that stays and is as near as the threshold."""
        buckets = zip(mine["bucket"].tolist(), mine["size"].tolist(), strict=True)
        candidates = [self._buckets.kept(bucket, size) for bucket, size in buckets]
        for other in np.unique(np.concatenate(candidates)).tolist():
            similarity = jaccard(self._shingles(row), self._shingles(other))
            if similarity >= self._threshold:
                return Duplicate(row, other, similarity)
        return None
