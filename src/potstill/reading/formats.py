"""Reading files of anyone's making as records: what rows a file holds is told by its first ones, or by its user.

`files` knows the way from bytes to rows, each with its line; `shapes` knows what their columns mean. A bad row is one
DataError that says which line, what is wrong there and what was expected.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from potstill.errors import DataError
from potstill.reading.files import Line, quote, read_lines
from potstill.reading.found import BAD_ROW, ShapeError
from potstill.reading.shapes import SHAPES, Shape, recognise
from potstill.records import ROWS, Prompt, Record

R = TypeVar("R", bound=Record)

REMEDY = "Mend or remove the row, or set on_bad_row: skip in an import stage"
ENDS = "Mend the file: nobody can tell where the next row begins, so this cannot be skipped"
SNIFFED = 20
"""How many rows at the beginning tell the shape of all."""


@dataclass(frozen=True)
class Reading:
    """How rows are to be read."""

    shape: str = "auto"
    """A name of `shapes.SHAPES`, or "auto": by the first rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Where the file's columns stand that the shape knows under other names: {"prompt": "body.question"}."""
    questions: Mapping[str, Prompt] | None = None
    """By their ids, for rows that only name theirs."""


AUTO = Reading()


@dataclass(frozen=True)
class Row(Generic[R]):
    """One row as a record, or the error that stands in its place."""

    number: int
    record: R | None
    error: DataError | None = None
    reason: str = ""
    """Where there is no record: "bad_row", or why a row that is well holds none of what was asked for."""
    name: str = ""
    """Of the row itself: "line-7"."""


def read_file(path: Path, row_type: type[R]) -> Iterator[R]:
    """The rows of a file as records of one type; DataError at the first that cannot be one."""
    for row in examine(path, row_type):
        if row.error is not None:
            raise row.error
        assert row.record is not None
        yield row.record


def sniff(first: Sequence[Line], where: str, reading: Reading = AUTO) -> str:
    """The name of the shape that rows have, judged by the first. DataError where none is known, or none can be read."""
    if all(line.error for line in first):
        line = first[0]
        raise DataError(f"{line.file or where}:{line.number}", line.error, ENDS if line.ends else REMEDY)
    return _shape(reading, first, where).name


def glance(path: Path, row_types: Iterable[type[Record]], reading: Reading = AUTO) -> None:
    """DataError, the first row's, where none of a file's first rows can be any of these."""
    errors: list[DataError] = []
    for row_type in row_types:
        for row in islice(examine(path, row_type, reading), SNIFFED):
            if row.error is None or row.reason != BAD_ROW:
                return
            errors.append(row.error)
    if errors:
        raise errors[0]


def examine(path: Path, row_type: type[R], reading: Reading = AUTO) -> Iterator[Row[R]]:
    """Every row of a file as a record or an error. DataError where the file as a whole, or its rest, cannot be read."""
    return interpret(read_lines(path), row_type, str(path), stem(path), reading)


def interpret(
    lines: Iterable[Line], row_type: type[R], where: str, stem: str, reading: Reading = AUTO
) -> Iterator[Row[R]]:
    """Lines as records. Rows that name no id of their own are called `stem`-0, `stem`-1 and so on."""
    lines = iter(lines)
    first = list(islice(lines, SNIFFED))
    known = _shape(reading, first, where) if any(not line.error for line in first) else None
    for index, line in enumerate(chain(first, lines)):
        place = f"{line.file or where}:{line.number}"
        name = f"{line.file.name}:{line.number}" if line.file else f"line-{line.number}"
        if line.ends:
            raise DataError(place, line.error, ENDS)
        if line.error:
            yield Row(line.number, None, DataError(place, line.error, REMEDY), BAD_ROW, name)
            continue
        known = known or _shape(reading, [line], where)
        fits = any(ROWS[kind] is row_type for kind in known.makes)
        remedy = (
            REMEDY if fits else f"Rows of this shape can be {', '.join(known.makes)}; name that kind, or another file"
        )
        try:
            value = renamed(line.value, reading.columns)
            record = known.read(value, row_type, f"{stem}-{index}", reading.questions)
            yield Row(line.number, record, name=name)
        except ShapeError as error:
            yield Row(line.number, None, DataError(place, str(error), remedy), error.reason, name)


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with its columns under the names that shapes know. ShapeError where one is missing."""
    if not columns or not isinstance(row, Mapping):
        return row
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    for name, source in columns.items():
        value: Any = row
        for step in [source] if source in row else source.split("."):
            if not isinstance(value, Mapping) or step not in value:
                there = ", ".join(sorted(map(str, row)))
                raise ShapeError(f"there is no column {source!r}, which is to be {name!r}; the row has {there}")
            value = value[step]
        kept[name] = value
    return kept


def _shape(reading: Reading, lines: Iterable[Line], where: str) -> Shape:
    """The shape that is asked for, or the one that most of the first rows have."""
    if reading.shape != "auto":
        return SHAPES[reading.shape]
    rows = []
    for line in lines:
        if line.error:
            continue
        try:
            rows.append((line, renamed(line.value, reading.columns)))
        except ShapeError as error:
            rows.append((line, error))
    found = recognise(value for _, value in rows)
    if found is not None:
        return found
    line, value = rows[0]
    place = f"{line.file or where}:{line.number}"
    if isinstance(value, ShapeError):
        raise DataError(place, str(value), "Mend the import stage's columns")
    what = f"columns {', '.join(sorted(map(str, value)))}" if isinstance(value, Mapping) else quote(repr(value))
    raise DataError(
        place,
        f"no known shape of row has {what}; expected such as messages, conversations, instruction, text, or "
        "prompt with chosen and rejected",
        "Say what stands where in an import stage's columns, such as {prompt: question_text}, or name its format",
    )


def stem(path: Path) -> str:
    """What rows without an id are called by: the file's name, or the folder's where several files are read as one."""
    several = path.is_dir() or not path.exists()
    return (path.name if path.is_dir() else path.parent.name) if several else path.name.split(".")[0]
