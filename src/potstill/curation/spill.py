"""Records that are too many for memory: parted over files by a number, and read again part by part.

What is held is one buffer while they are written and one part while they are read, whatever their number.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

Record = npt.NDArray[np.void]

BUFFER_BYTES = 1 << 22


class Spill:
    """Structured records in part files below `folder`. Within a part they keep the order in which they came."""

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike) -> None:
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._dtype = np.dtype(dtype)
        self._waiting: list[tuple[npt.NDArray[np.int64], Record]] = []
        self._bytes = 0
        self._last = -1

    def add(self, parts: npt.NDArray[np.int64], records: Record) -> None:
        """Records and the part that each belongs to."""
        if not len(records):
            return
        self._waiting.append((parts, records))
        self._bytes += records.nbytes
        if self._bytes >= BUFFER_BYTES:
            self._flush()

    def parts(self) -> Iterator[tuple[int, Record]]:
        """(number, records) of every part up to the last that got any, in the order of their numbers."""
        self._flush()
        for number in range(self._last + 1):
            path = self._folder / str(number)
            found = np.fromfile(path, dtype=self._dtype) if path.is_file() else np.empty(0, self._dtype)
            path.unlink(missing_ok=True)
            yield number, found

    def _flush(self) -> None:
        if not self._waiting:
            return
        parts = np.concatenate([parts for parts, _ in self._waiting])
        records = np.concatenate([records for _, records in self._waiting])
        self._waiting, self._bytes = [], 0
        order = np.argsort(parts, kind="stable")
        parts, records = parts[order], records[order]
        starts = np.flatnonzero(np.diff(parts, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
            with (self._folder / str(parts[start])).open("ab") as file:
                records[start:end].tofile(file)
        self._last = max(self._last, int(parts[-1]))
