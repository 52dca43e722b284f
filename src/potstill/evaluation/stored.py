"""Rows of files that others stored results in: each typed as it is read, or refused with its line."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from potstill.artifact import storage_errors
from potstill.errors import DataError
from potstill.reading.files import WRITTEN_NUMBER, Line, quote
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, kind_of, string

T = TypeVar("T")

REMEDY = "Mend or remove the row"
SHOWN = 8
"""How many columns of an unknown row are named."""

_RUN = re.compile(r"(?:^| )run \d+$")


def read_typed(lines: Iterable[Line], where: str, make: Callable[[Columns], T]) -> list[T]:
    """Every row as what `make` makes of it. DataError at the first that cannot be read, or that it refuses."""
    rows = []
    for line in lines:
        place = f"{line.file or where}:{line.number}"
        if line.error:
            raise DataError(place, line.error, "Fetch or write the file again" if line.ends else REMEDY)
        if not isinstance(line.value, Mapping):
            raise DataError(place, f"the row is {kind_of(line.value)}; expected an object", REMEDY)
        try:
            rows.append(make(line.value))
        except ShapeError as error:
            raise DataError(place, str(error), REMEDY) from error
    return rows


def unlike(row: Any, known: Mapping[str, Set[str]], what: str) -> str:
    """Why a row is of none of the known kinds, each told by its columns: which it lacks of the one that it is like, or
    which it has. `what`: what a row of them is."""
    if not isinstance(row, Mapping):
        return f"no {what} has {kind_of(row)}"
    kind, columns = max(known.items(), key=lambda one: len(one[1] & row.keys()) / len(one[1]))
    missing = sorted(columns - row.keys())
    if 2 * len(missing) < len(columns):
        return f"it is like {kind}, but lacks {', '.join(missing)}"
    names = sorted(str(name) for name in row if name != "")  # an index has no name in a table
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"no {what} has columns {', '.join(quote(name) for name in names[:SHOWN])}{rest}"


def text_or_none(row: Columns, column: str) -> str | None:
    """The text in a column, or None where it holds nothing."""
    return None if row.get(column) is None else string(row, column)


def number_or_none(row: Columns, column: str, expected: str) -> float | None:
    """The number in a column, also one as text; None where there is none, or one that is not finite."""
    value = row.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, str) and WRITTEN_NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        said = f"{quote(value)!r}" if isinstance(value, str) else kind_of(value)
        raise ShapeError(f"{column!r} is {said}; expected {expected}")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError as error:
        raise ShapeError(f"{column!r} is a number too large; expected {expected}") from error


def without(row: Columns, named: Iterable[str]) -> dict[str, Any]:
    """The columns that nothing here reads, kept for whoever writes the row again."""
    names = set(named)
    return {name: value for name, value in row.items() if name not in names}


def numbered(part: str, run: int) -> str:
    """The part of a question that is scored for the `run`th time: the first is the part itself."""
    return part if run == 1 else f"{part} run {run}".strip()


def is_repeat(part: str) -> bool:
    """Whether a part is one that was scored before, in the same file under the same names."""
    return _RUN.search(part) is not None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, append: bool = False) -> None:
    """Rows as JSON lines; `append` goes on behind what stands there."""
    with storage_errors(path), path.open("a" if append else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as one JSON list."""
    with storage_errors(path):
        path.write_text(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
