"""A teacher's signal on disk: a folder of shards, `000000.signal` and on, each whole or absent, and read at random.

A shard, all numbers little-endian, all checksums CRC-32 (as zlib has it):

    8 bytes   "potsig" and two line ends, \\r\\n
    8         length of the header, its checksum: two uint32
    header    JSON, UTF-8: format and version; vocabulary (V), top (K), draws (D), temperature, hidden (layers with
              their number, width, and what their sketch follows from), target_logp; what it was taken from: teacher,
              tokenizer, data; and `codes`, the formulas below
    rows      one after another, in the order of the index; n scored positions each
    index     for each row 16 bytes: n, its bytes, its checksum (uint32 each), the bytes of its id and of its token hash
              (uint16 each); then for each row its id (UTF-8) and its token hash (raw)
    32        offset of the index, its length (uint64 each), number of rows, checksum of index and of this up to here
              (uint32 each), and the first 8 bytes again

A row is, for each hidden layer in the header's order, n x width int8 codes and n float16 scales (a number is code times
its position's scale); then, if the header says target_logp, n float32; then, if K or D is above 0, a stream of bits,
lowest bits first, filled with zeros to a whole byte. The stream's sections, each for all positions of the row:

    entropy     12 bits a position: c stands for ln V (c/4095)^2 nats
    sizes       if D: bitlength(D) bits a position: how many distinct ids m were drawn
    rest        if K: 8 bits a position, as an entry's: what all that is not listed has together
    list        if K: 8 bits an entry, by ascending id in each position: c stands for -20 (c/255)^2 nats
    list low    if K: the low k(K) bits of each id, where k(m) = floor(log2(floor(V/m)))
    drawn low   if D: the low k(m) bits of each drawn id, by ascending id in each position
    list high   if K: of each id >> k(K), how much it is above the one before in its position (the first: above 0), in
                unary: as many zeros, then a one
    drawn high  if D: likewise
    magnitudes  if D: of each drawn id's count, bitlength - 1 in unary
    counts      if D: each count's bits below its highest

Low bits and unary high bits are the code of Elias (1974) and Fano (1971), two bits an id from the least possible;
magnitudes and counts are Elias' gamma code (1975).
"""

import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from potstill.artifact import storage_errors, sync
from potstill.errors import DataError, StorageError, reading
from potstill.signals.bits import Ints
from potstill.signals.packing import decode, encode
from potstill.signals.rows import Header, HiddenLayer, RowSignal

Key = tuple[str, str]
"""A row's id, and the hash of its tokens in hexadecimal digits."""

FORMAT = "potstill signal"
VERSION = 2
SUFFIX = ".signal"
MAGIC = b"potsig\r\n"  # line ends that a transfer as text would change

_START = struct.Struct("<8sII")
_ROW = np.dtype([("positions", "<u4"), ("bytes", "<u4"), ("checksum", "<u4"), ("id", "<u2"), ("hash", "<u2")])
_END = struct.Struct("<QQI")
_CLOSE = struct.Struct("<I8s")

_CODES = {
    "entropy": "ln(vocabulary) * (code / 4095) ** 2",
    "top": "-20 * (code / 255) ** 2",
    "hidden": "int8 code * float16 scale of its position",
}


class Torn(StorageError):
    """A shard that ends early, or whose bytes are not those that were written."""


def _torn(path: Path, what: str) -> Torn:
    return Torn(str(path), what, "Remove the folder that was sealed with it, and run again: it is captured anew")


def _header_bytes(header: Header) -> bytes:
    body = {"format": FORMAT, "version": VERSION, **asdict(header), "codes": _CODES}
    return json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _header_of(path: Path, text: bytes) -> Header:
    try:
        body = json.loads(text)
        kind, version = body["format"], body["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise _torn(path, "its header is not one of a potstill signal") from error
    if (kind, version) != (FORMAT, VERSION):
        what = f"this is {kind!r} of version {version}; this potstill reads {FORMAT!r} of version {VERSION}"
        raise StorageError(str(path), what, "Capture the signal anew, or read it with the potstill that wrote it")
    try:
        hidden = tuple(HiddenLayer(**layer) for layer in body["hidden"])
        return Header(**{field.name: body[field.name] for field in fields(Header)} | {"hidden": hidden})
    except (LookupError, TypeError) as error:
        raise _torn(path, "its header does not say all that it has to") from error


def short(value: object) -> str:
    """As a person would compare it: long hashes by their first digits, layers by number and width."""
    if isinstance(value, tuple):
        return ", ".join(f"{layer.layer} ({layer.width} wide)" for layer in value) or "none"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}..."


def difference(header: Header, other: Header) -> str | None:
    """The first field in which two headers differ, with both values, or None."""
    for name in ("data", "tokenizer", "vocabulary", "teacher", *(field.name for field in fields(Header))):
        mine, yours = getattr(header, name), getattr(other, name)
        if mine != yours:
            return f"{name} {short(mine)}, not {short(yours)}"
    return None


@dataclass(frozen=True)
class _Shard:
    """A whole file: its header, its index, and where each row lies.

    It is opened anew for each reading. Mapped into memory it would cost a descriptor for as long as it is known, and a
    file that is cut short meanwhile would end the process instead of raising.
    """

    path: Path
    size: int
    header: Header
    keys: list[Key]
    positions: Ints
    lengths: Ints
    starts: Ints
    checksums: Ints

    def rows(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The bytes of these rows, each verified."""
        with reading(), self.path.open("rb", buffering=0) as file:
            for number in numbers:
                found = os.pread(file.fileno(), int(self.lengths[number]), int(self.starts[number]))
                if zlib.crc32(found) != self.checksums[number]:
                    what = f"the bytes of row {self.keys[number][0]} are not those that were written"
                    raise _torn(self.path, what)
                yield found


@reading()
def _open(path: Path) -> _Shard:
    """A shard's header and index, verified; its rows are when they are read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = size - _END.size - _CLOSE.size
        if end < _START.size:
            raise _torn(path, f"it is cut short: {size} bytes")
        magic, length, checksum = _START.unpack(file.read(_START.size))
        if magic != MAGIC:
            what = "this is no potstill signal: its first bytes are others"
            raise StorageError(str(path), what, "Remove it from this folder, which holds captured signals alone")
        text = file.read(min(length, size))
        if zlib.crc32(text) != checksum:
            raise _torn(path, "its header's bytes are not those that were written")
        header = _header_of(path, text)
        begin = file.tell()
        file.seek(end)
        offset, length, rows = _END.unpack(file.read(_END.size))
        checksum, magic = _CLOSE.unpack(file.read(_CLOSE.size))
        if magic != MAGIC or offset < begin or offset + length != end:
            raise _torn(path, "it is cut short: the index that stands last is not there")
        file.seek(offset)
        index = file.read(length + _END.size)
    if zlib.crc32(index) != checksum:
        raise _torn(path, "its index's bytes are not those that were written")
    table = np.frombuffer(index, dtype=_ROW, count=rows)
    lengths = table["bytes"].astype(np.int64)
    starts = begin + np.cumsum(lengths) - lengths
    keys = _keys(index[table.nbytes : length], table)
    return _Shard(path, size, header, keys, table["positions"].astype(np.int64), lengths, starts, table["checksum"])


def _keys(names: bytes, table: np.ndarray[Any, Any]) -> list[Key]:
    lengths = np.stack([table["id"], table["hash"]], axis=1).astype(np.int64)
    cuts = np.concatenate([[0], np.cumsum(lengths.ravel())]).tolist()
    ids = [names[cuts[at] : cuts[at + 1]].decode() for at in range(0, len(cuts) - 1, 2)]
    hashes = [names[cuts[at] : cuts[at + 1]].hex() for at in range(1, len(cuts) - 1, 2)]
    return list(zip(ids, hashes, strict=True))


def _shard_bytes(rows: Mapping[Key, RowSignal], header: Header) -> bytes:
    names = [row for row, _ in rows]
    signals = list(rows.values())
    blobs = encode(signals, names, header)
    table = np.zeros(len(rows), dtype=_ROW)
    raw = [(row.encode(), bytes.fromhex(tokens)) for row, tokens in rows]
    table["positions"] = [signal.positions for signal in signals]
    table["bytes"] = [len(blob) for blob in blobs]
    table["checksum"] = [zlib.crc32(blob) for blob in blobs]
    table["id"], table["hash"] = [len(row) for row, _ in raw], [len(tokens) for _, tokens in raw]
    text = _header_bytes(header)
    body = b"".join([_START.pack(MAGIC, len(text), zlib.crc32(text)), text, *blobs])
    index = table.tobytes() + b"".join(part for pair in raw for part in pair)
    index += _END.pack(len(body), len(index), len(rows))
    return body + index + _CLOSE.pack(zlib.crc32(index), MAGIC)


class Writer:
    """Adds shards to a folder, one at a time, each durable before the next: a crash loses one shard at most."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Looks what is there. What a killed writer left aside and shards of ours that are torn are removed.

        A whole shard of another header or version, or a file that is no signal, is refused: it is somebody's work.
        """
        self.folder, self.header = folder, header
        self._done: set[Key] = set()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for aside in folder.glob(f".*{SUFFIX}.*"):
                aside.unlink()
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                self._meet(path)

    def _meet(self, path: Path) -> None:
        try:
            shard = _open(path)
            other = difference(shard.header, self.header)
            if other is None:
                deque(shard.rows(range(len(shard.keys))), maxlen=0)
        except Torn:
            path.unlink()
            return
        if other is not None:
            remedy = "Remove that file: each capture has a folder of its own"
            raise DataError(str(path), f"this shard is of another capture: {other}", remedy)
        self._done.update(shard.keys)

    def done(self) -> set[Key]:
        """The rows that whole shards hold."""
        return set(self._done)

    def add(self, rows: Mapping[Key, RowSignal]) -> None:
        """Keep these rows, durably, as one shard."""
        twice = self._done.intersection(rows)
        assert not twice, f"rows are kept already: {sorted(twice)[:3]}"
        if not rows:
            return
        with storage_errors(self.folder):
            content = _shard_bytes(rows, self.header)
            path = self._next()
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            aside.write_bytes(content)
            sync(aside)
            aside.rename(path)
            sync(self.folder)
        self._done.update(rows)

    def _next(self) -> Path:
        """The first name that is free: where a torn shard was removed, its rows come to stand there again."""
        taken = {path.name for path in self.folder.glob(f"*{SUFFIX}")}
        number = next(number for number in range(len(taken) + 1) if f"{number:06d}{SUFFIX}" not in taken)
        return self.folder / f"{number:06d}{SUFFIX}"


class Reader:
    """A folder of shards, read row by row in any order."""

    def __init__(self, folder: Path) -> None:
        """Opens all shards: headers and indices are verified here, every row each time that it is read."""
        self.folder = folder
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        if not paths:
            remedy = "Name the folder of a finished capture"
            raise StorageError(str(folder), "no captured signal is in this folder", remedy)
        self._shards = [_open(path) for path in paths]
        self.header = self._shards[0].header
        for shard in self._shards[1:]:
            other = difference(shard.header, self.header)
            if other is not None:
                what = f"this shard is of another capture than {paths[0].name}: {other}"
                raise DataError(str(shard.path), what, "Remove that file: each capture has a folder of its own")
        self._places: dict[Key, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            self._places |= {key: (number, place) for place, key in enumerate(shard.keys)}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def keys(self) -> list[Key]:
        """Of all rows, as they were added."""
        return list(self._places)

    def read(self, keys: Sequence[Key]) -> list[RowSignal]:
        """The signals of these rows, in this order, each verified against its checksum."""
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for turn, key in enumerate(keys):
            place = self._places.get(key)
            if place is None:
                raise self._missing(key)
            by_shard.setdefault(place[0], []).append((turn, place[1]))
        blobs, counts = [b""] * len(keys), [0] * len(keys)
        for number, wanted in by_shard.items():
            shard = self._shards[number]
            for (turn, row), blob in zip(wanted, shard.rows(row for _, row in wanted), strict=True):
                blobs[turn], counts[turn] = blob, int(shard.positions[row])
        return decode(blobs, counts, self.header)

    def _missing(self, key: Key) -> DataError:
        row, tokens = key
        found = [other for name, other in self._places if name == row]
        if found:
            what = f"the tokens of row {row} are not those that were captured: {short(tokens)}, not {short(found[0])}"
            remedy = "Train with the template, the lengths and the masks of the capture, or capture anew"
            return DataError(str(self.folder), what, remedy)
        return DataError(str(self.folder), f"row {row} was not captured", "Capture the signal of this very dataset")

    def bytes_per_token(self) -> float:
        """Of all files, headers and indices included, by scored position."""
        size = sum(shard.size for shard in self._shards)
        return size / max(sum(int(shard.positions.sum()) for shard in self._shards), 1)
