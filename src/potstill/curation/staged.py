"""Examined rows on disk, between the steps that need one row at a time and those that need all of them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from potstill.artifact import storage_errors
from potstill.curation.examine import Examined, text_of
from potstill.records import Chat

PASSED, LEFT_OUT = b"+", b"-"


class Staged:
    """What became of every row, in their order: a line each, marked; where the lines of those that passed begin."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "staged.jsonl"
        self.passed = 0
        self._offset = 0
        with storage_errors(self.path):
            self._lines = self.path.open("w+b")
            self._places = (folder / "places").open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        self._places.close()

    def add(self, examined: Examined) -> None:
        """The next rows."""
        lengths = np.array([len(line) for line in examined.lines], dtype=np.int64) + 1
        begins = self._offset + np.cumsum(lengths) - lengths
        begins[examined.passed].tofile(self._places)
        marks = (PASSED if passed else LEFT_OUT for passed in examined.passed)
        self._lines.write(b"".join(mark + line for mark, line in zip(marks, examined.lines, strict=True)))
        self._offset += int(lengths.sum())
        self.passed += int(examined.passed.sum())

    def finish(self) -> None:
        """All rows were added: from now on they are read."""
        self._lines.flush()
        self._places.flush()

    def chat(self, row: int) -> Chat:
        """A row that passed, counted among those."""
        self._places.seek(8 * row)
        self._lines.seek(int.from_bytes(self._places.read(8), "little"))
        return Chat.model_validate_json(self._lines.readline()[1:])

    def text(self, row: int) -> str:
        """What its duplicates are judged by."""
        return text_of(self.chat(row))

    def lines(self) -> Iterator[tuple[int | None, bytes]]:
        """Every row in order: its number among those that passed, or None where it was left out; and its line."""
        number = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.startswith(PASSED):
                    yield number, line[1:]
                    number += 1
                else:
                    yield None, line[1:]

    def texts(self, but: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Number and text of every row that passed, but for some, whose numbers come in order."""
        others = iter(but)
        next_other = next(others, None)
        for number, line in self.lines():
            if number is not None and number == next_other:
                next_other = next(others, None)
            elif number is not None:
                yield number, text_of(Chat.model_validate_json(line))
