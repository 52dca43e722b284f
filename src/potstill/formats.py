"""Reading files of anyone's making: .jsonl, .json, .txt and .parquet, in whatever shape of row they hold.

Here is the way from bytes to rows, each with its line; `shapes` knows what the rows' columns mean. A bad row is one
DataError that says which line, what is wrong there and what was expected.
"""

import codecs
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

from potstill.errors import DataError
from potstill.found import ShapeError
from potstill.records import Record
from potstill.shapes import SHAPES, Shape, recognise

R = TypeVar("R", bound=Record)

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz", ".parquet")
# How JSON spells a half of a character that lies outside the first 65,536; only both together mean something.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")

REMEDY = "Mend or remove the row, or set on_bad_row: skip in an import stage"
WORDS = 80
# The one thing in whole JSON that Python refuses, with a plain ValueError.
TOO_LONG = f"a number of more than {sys.get_int_max_str_digits()} digits; expected shorter ones"


@dataclass(frozen=True)
class Line:
    """One row of a file before its shape is known, or why it could not be read."""

    number: int
    """The line it begins on, from 1; in Parquet and on the Hub, the row."""
    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Row(Generic[R]):
    """One row as a record, or the error that stands in its place."""

    number: int
    record: R | None
    error: DataError | None = None


def read_file(path: Path, row_type: type[R]) -> Iterator[R]:
    """The rows of a file as records of one type; DataError at the first that cannot be one."""
    for row in examine(path, row_type):
        if row.error is not None:
            raise row.error
        assert row.record is not None
        yield row.record


def sniff(path: Path) -> str:
    """The name of the shape that a file's rows have, judged by the first."""
    for line in read_lines(path):
        if not line.error:
            return _shape_of(line.value, f"{path}:{line.number}").name
    raise _empty(path)


def examine(path: Path, row_type: type[R], shape: str = "auto") -> Iterator[Row[R]]:
    """Every row of a file as a record or an error. DataError where the file as a whole cannot be read."""
    return interpret(read_lines(path), row_type, str(path), _stem(path), shape)


def interpret(lines: Iterable[Line], row_type: type[R], where: str, stem: str, shape: str = "auto") -> Iterator[Row[R]]:
    """Lines as records. Rows that name no id of their own are called `stem`-0, `stem`-1 and so on."""
    known = None if shape == "auto" else SHAPES[shape]
    for index, line in enumerate(lines):
        place = f"{where}:{line.number}"
        if line.error:
            yield Row(line.number, None, DataError(place, line.error, REMEDY))
            continue
        if known is None:
            known = _shape_of(line.value, place)
        try:
            yield Row(line.number, known.read(line.value, row_type, f"{stem}-{index}"))
        except ShapeError as error:
            yield Row(line.number, None, DataError(place, str(error), REMEDY))


def _shape_of(value: Any, place: str) -> Shape:
    found = recognise(value)
    if found is not None:
        return found
    what = f"columns {', '.join(sorted(map(str, value)))}" if isinstance(value, Mapping) else _quote(repr(value))
    raise DataError(
        place,
        f"no known shape of row has {what}; expected one of {', '.join(SHAPES)}",
        "Rename the columns, or name the shape in an import stage's format",
    )


def read_lines(path: Path) -> Iterator[Line]:
    """What a file holds, row by row. DataError where there is no such file, nothing in it, or a kind unknown here."""
    if path.is_dir():
        raise DataError(str(path), "this is a folder; expected a file of rows", "Name a file in it")
    if not path.is_file():
        raise DataError(str(path), "there is no such file", "Check the path")
    if path.stat().st_size == 0:
        raise _empty(path)
    if path.suffix == ".parquet":
        lines = _parquet(path)
    elif not path.name.endswith(SUFFIXES):
        raise DataError(
            str(path), f"a file of an unknown kind; expected one of {', '.join(SUFFIXES)}", "Convert or rename it"
        )
    else:
        lines = _text_file(path)
    empty = True
    for line in lines:
        empty = False
        yield line
    if empty:
        raise _empty(path)


def _empty(path: Path) -> DataError:
    return DataError(str(path), "the file is empty; expected one row or more", "Name another file")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _text_file(path: Path) -> Iterator[Line]:
    zipped = path.suffix == ".gz"
    kind = Path(path.stem).suffix if zipped else path.suffix
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            source = cast(BinaryIO, file)
            if kind == ".txt":
                yield from _plain_lines(source)
            elif kind == ".json" and _first_byte(source) == b"[":
                yield from _json_array(source)
            else:
                yield from _json_lines(source)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(str(path), f"the compressed file is damaged: {error}", "Fetch it again") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}", "Mend its permissions") from error


def _first_byte(source: BinaryIO) -> bytes:
    """The first that is neither blank nor of a byte order mark."""
    while (byte := source.read(1)) and (byte.isspace() or byte in codecs.BOM_UTF8):
        pass
    source.seek(0)
    return byte


def _plain_lines(source: BinaryIO) -> Iterator[Line]:
    """Each line that is not blank is a document."""
    for number, raw in enumerate(source, start=1):
        text, error = _decode(raw)
        if error:
            yield Line(number, error=error)
        elif text.strip():
            yield Line(number, {"text": text.strip()})


def _json_lines(source: BinaryIO) -> Iterator[Line]:
    for number, raw in enumerate(source, start=1):
        text, error = _decode(raw)
        if error:
            yield Line(number, error=error)
        elif text.strip():
            yield _loads(number, text)


def _loads(number: int, text: str) -> Line:
    try:
        return _whole(Line(number, json.loads(text)), text)
    except json.JSONDecodeError as error:
        what = f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        return Line(number, error=f"{what}; expected one whole JSON object on the line")
    except RecursionError:
        return Line(number, error="JSON that is nested too deeply; expected one JSON object on the line")
    except ValueError:
        return Line(number, error=TOO_LONG)


def _whole(line: Line, source: str) -> Line:
    """The line, or what is wrong with it where its text holds half a character, which no UTF-8 file can hold."""
    if _HALF.search(source):
        try:
            json.dumps(line.value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"{ord(error.object[error.start]):04x}"
            what = f"it holds half a character (the lone surrogate \\u{half}); expected whole ones"
            return Line(line.number, error=what)
    return line


def _json_array(source: BinaryIO) -> Iterator[Line]:
    """The elements of one big array, each with the line that it begins on. Damage ends the reading with its line."""
    text, error = _decode(source.read())
    if error:
        yield Line(1, error=error)
        return
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    place = text.index("[") + 1
    number = 1 + text.count("\n", 0, place)
    while True:
        start = cast("re.Match[str]", blank.match(text, place)).end()
        number += text.count("\n", place, start)
        if text[start : start + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            found = f"not JSON at {_quote(text[start:])!r}" if text[start:] else "the list is cut short"
            yield Line(number, error=f"{found}; expected a list of whole JSON objects")
            return
        except ValueError:
            yield Line(number, error=TOO_LONG)
            return
        yield _whole(Line(number, value), text[start:end])
        number += text.count("\n", start, end)
        place = cast("re.Match[str]", blank.match(text, end)).end()
        number += text.count("\n", end, place)
        place += text[place : place + 1] == ","


def _parquet(path: Path) -> Iterator[Line]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(str(path), "reading Parquet needs pyarrow", "pip install 'potstill[hub]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield Line(number, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # OSError: a damaged page
        raise DataError(str(path), f"not a Parquet file that can be read: {error}", "Fetch it again") from error


def _decode(raw: bytes) -> tuple[str, str]:
    """(text, what is wrong)."""
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {raw[error.start]:#04x} at position {error.start}); expected UTF-8 text"


def _quote(text: str) -> str:
    text = " ".join(text[: 2 * WORDS].split())
    return text if len(text) <= WORDS else text[:WORDS] + "..."
