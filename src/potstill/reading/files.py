"""From bytes to rows: .jsonl, .json, .csv, .tsv, .txt, .parquet and .arrow, plain or compressed, one file or many.

Nothing is held but what one row needs; Parquet comes by row groups. What rows mean is no matter here: see `formats`.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from potstill.artifact import MANIFEST, ROWS_FILE
from potstill.errors import DataError

PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
ZIPPED = (".gz", ".bz2", ".xz", ".zst")
TABLES = (".parquet", ".arrow", ".feather")
SUFFIXES = (*PLAIN, *TABLES)
NO_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", MANIFEST}
"""Files beside a dataset's shards that hold no rows of it."""
SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])", re.IGNORECASE)
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b")
"""A file of a dataset as the Hub and `export` name them, by the split that it belongs to."""

# How JSON spells a half of a character that lies outside the first 65,536; only both together mean something.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"\s*")
_PIECE = 1 << 18
WORDS = 80
# The one thing in whole JSON that Python refuses, with a plain ValueError.
TOO_LONG = f"a number of more than {sys.get_int_max_str_digits()} digits; expected shorter ones"
NEEDS_ARROW = "pip install 'potstill[hub]'"
SMALL = 16_000_000
"""Bytes of a file whose rows are counted by reading it."""

# Cells of a table of text that hold more than text.
STRUCTURED = {
    *("messages", "conversations", "conversation", "tools", "functions", "completions", "candidates", "instances"),
    *("turns", "data", "choices", "answers", "generations", "generation_models", "ratings", "rationales", "follow_ups"),
    *("references", "reference", "conversation_a", "conversation_b", "body", "response_body"),
}
TRUE_OR_FALSE = {"label", "desirable"}
NUMBER = re.compile(r"(?:.*[_-])?(?:scores?|ratings?)(?:[_-].*)?|annotator\d+|labels|preference|score_[AB]|helpfulness")
WRITTEN_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
"""A number as text: neither 1,5 nor 1_0, nor inf."""


@dataclass(frozen=True)
class Line:
    """One row of a file before its shape is known, or why it could not be read."""

    number: int
    """The line it begins on, from 1; in Parquet, Arrow and on the Hub, the row."""
    value: Any = None
    error: str = ""
    file: Path | None = None
    """Which file, where several are read as one."""
    ends: bool = False
    """Nothing behind the error can be read, for nobody knows where the next row begins."""


def shards(path: Path) -> list[Path]:
    """The files that a path means: itself; all files of rows in a folder; all that a pattern such as a-*.jsonl fits.

    Of what a stage of another run has sealed, its rows alone: neither what it dropped nor what it counted.

    DataError where there is none, or where a folder holds the splits of a dataset side by side.
    """
    if _is_pattern(path):
        found = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        if not found:
            raise DataError(str(path), "no file fits this pattern", "Check the path")
        return found
    if not path.is_dir():
        return [path]
    if (path / MANIFEST).is_file() and (path / ROWS_FILE).is_file():
        return [path / ROWS_FILE]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if _is_kind(file.name) and file.is_file() and file.name not in NO_ROWS
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError(str(path), "the folder holds no file of rows", "Name another")
    splits = sorted({split for file in found if (split := _split(file.relative_to(path)))})
    if len(splits) > 1:
        raise DataError(
            str(path),
            f"the folder holds several splits: {', '.join(splits)}; expected the files of one",
            f"Name those of one, such as {path.name}/{splits[0]}* or {path.name}/data/{splits[0]}-*.parquet",
        )
    return found


def _is_pattern(path: Path) -> bool:
    return any(sign in path.name for sign in "*?[") and not path.exists()


def _is_kind(name: str) -> bool:
    return _kind(name)[0] in SUFFIXES


def _kind(name: str) -> tuple[str, str]:
    """(what the file holds, how it is compressed) by its endings."""
    path = Path(name)
    zipped = path.suffix.lower() if path.suffix.lower() in ZIPPED else ""
    kind = (Path(path.stem).suffix if zipped else path.suffix).lower()
    return ("" if zipped and kind in TABLES else kind), zipped


def _split(inside: Path) -> str:
    """The split that a file's name or a folder above it tells; a shard's own name where that is no known one."""
    for part in reversed(inside.parts):
        if found := SPLIT.search(part):
            return found[1].lower()
    shard = SHARD.match(inside.name)
    return shard[1] if shard else ""


def read_lines(path: Path) -> Iterator[Line]:
    """What a file, a folder or a pattern holds, row by row.

    DataError where there is no such file, nothing in it, or a kind unknown here.
    """
    files = shards(path)
    if files == [path]:
        yield from _read_one(path)
        return
    for file in files:
        for line in _read_one(file):
            yield replace(line, file=file)


def _read_one(path: Path) -> Iterator[Line]:
    if not path.is_file():
        what = "this link leads nowhere" if path.is_symlink() else "there is no such file"
        raise DataError(str(path), "this is no regular file" if path.exists() else what, "Check the path")
    if path.stat().st_size == 0:
        raise empty(path)
    kind, zipped = _kind(path.name)
    if kind not in SUFFIXES:
        expected = f"{', '.join(SUFFIXES)}; all but the last three also as {', '.join(ZIPPED)}"
        raise DataError(str(path), f"a file of an unknown kind; expected one of {expected}", "Convert or rename it")
    lines = _parquet(path) if kind == ".parquet" else _arrow(path) if kind in TABLES else _text_file(path, kind, zipped)
    nothing = True
    for line in lines:
        nothing = False
        yield line
    if nothing:
        raise empty(path)


def empty(path: Path) -> DataError:
    """For a file without rows."""
    return DataError(str(path), "the file is empty; expected one row or more", "Name another file")


def count_rows(path: Path) -> int:
    """How many rows a path holds, where that is cheap to know: 0 for what is large and has to be parsed."""
    return sum(_count_one(file) for file in shards(path))


def _count_one(path: Path) -> int:
    kind, zipped = _kind(path.name)
    if kind == ".parquet":
        return int(_arrow_library(path)[1].read_metadata(path).num_rows)
    if kind in (".jsonl", ".ndjson", ".txt") and not zipped:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return sum(1 for _ in _read_one(path)) if path.stat().st_size <= SMALL else 0


def _text_file(path: Path, kind: str, zipped: str) -> Iterator[Line]:
    try:
        with _open(path, zipped) as source:
            if kind == ".txt":
                yield from _plain_lines(source)
            elif kind in (".csv", ".tsv"):
                yield from _table(source, "," if kind == ".csv" else "\t")
            elif kind == ".json" and _first_byte(source) == b"[":
                yield from _json_array(source)
            else:
                yield from _json_lines(source)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if zipped and error.errno is None:
            raise _damaged(path, error) from error
        raise DataError(str(path), f"cannot be read: {error.strerror or error}", "Mend its permissions") from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(str(path), f"the compressed file is damaged: {error}", "Fetch it again")


def _open(path: Path, zipped: str) -> BinaryIO:
    if zipped == ".zst":
        arrow, _ = _arrow_library(path)
        return cast(BinaryIO, io.BufferedReader(_Zstandard(arrow.input_stream(str(path), compression="zstd"))))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, "": Path.open}[zipped]
    return cast(BinaryIO, opener(path, "rb"))


class _Zstandard(io.RawIOBase):
    """Arrow's stream as Python reads files. It goes back to its beginning by opening again."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _first_byte(source: BinaryIO) -> bytes:
    """The first that is neither blank nor of a byte order mark. Nothing is taken from the source."""
    peek = getattr(source, "peek", None)
    start = peek(64) if peek else b""
    return start.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:1]


def _plain_lines(source: BinaryIO) -> Iterator[Line]:
    """Each line that is not blank is a document."""
    for number, raw in enumerate(source, start=1):
        text, error = _decode(raw)
        if error:
            yield Line(number, error=error)
        elif text.strip():
            yield Line(number, {"text": text.strip()})


def _table(source: BinaryIO, delimiter: str) -> Iterator[Line]:
    """Comma or tab separated values, the columns' names first (RFC 4180). A cell is text but where its column's name
    says that it holds JSON, a number, or true or false; an empty cell is none."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if twice := _twice(names):
            yield Line(1, error=twice, ends=True)
            return
        begins = rows.line_num + 1
        for cells in rows:
            line, begins = begins, rows.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(names):
                yield Line(line, error=f"{len(cells)} cells under {len(names)} columns; expected one a column")
            elif any("\udc80" <= sign <= "\udcff" for cell in cells for sign in cell):
                yield Line(line, error="not UTF-8; expected UTF-8 text")
            else:
                yield Line(line, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell})
    except csv.Error as error:
        yield Line(rows.line_num, error=f"not a table ({error}); expected quoted cells to end", ends=True)
    finally:
        text.detach()  # whoever opened the source closes it


def _twice(names: list[str]) -> str:
    """What is wrong where two columns have one name; one of them would be lost."""
    name = next((name for at, name in enumerate(names) if name in names[:at]), None)
    return "" if name is None else f"two columns are called {name!r}; expected a name of its own for each"


def _cell(name: str, cell: str) -> Any:
    """What a cell holds; as it stands, where it is not what its column's name says."""
    if name in TRUE_OR_FALSE:
        return {"true": True, "false": False}.get(cell.lower(), cell)
    begins = cell.lstrip()[:1]
    try:
        if NUMBER.fullmatch(name) and begins != "[":
            return (int(cell) if cell.isdecimal() else float(cell)) if WRITTEN_NUMBER.fullmatch(cell) else cell
        if name in STRUCTURED and begins in ("[", "{"):
            return json.loads(cell)
        if name in ("prompt", "chosen", "rejected", "completion", "answer") and begins in ("[", "{"):
            value = json.loads(cell)
            turns = value if isinstance(value, list) else [value]
            return value if turns and all(isinstance(turn, dict) and "role" in turn for turn in turns) else cell
    except (ValueError, RecursionError):
        return cell
    return cell


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


class _Window:
    """The part of a long text that is being looked at; more of it comes when asked for."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._decoder = source, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.place, self.line = "", 0, 1
        self.ended = False
        self.error = ""
        self._size, self._read = _PIECE, 0

    def more(self) -> bool:
        """Take in another piece, each larger while one row needs several; False where there is no more."""
        if self.ended:
            return False
        raw = self._source.read(self._size)
        self._size *= 2
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            at = self._read - (len(error.object) - len(raw)) + error.start
            self.error = f"not UTF-8 (byte {error.object[error.start]:#04x} at position {at}); expected UTF-8 text"
            self.ended = True
            return False
        self._read += len(raw)
        self.ended = not raw
        self.text += text
        return True

    def go(self, place: int) -> None:
        """Go on to a place further on, and count the lines between."""
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def forget(self) -> None:
        """Let go of what was looked at, once that is much."""
        if self.place >= _PIECE // 2:
            self.text, self.place = self.text[self.place :], 0
        self._size = _PIECE

    def skip_blank(self) -> str:
        """Go on to the next sign that is not blank; returns it, or nothing at the end."""
        while True:
            self.go(cast("re.Match[str]", _BLANK.match(self.text, self.place)).end())
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]


def _json_array(source: BinaryIO) -> Iterator[Line]:
    """The elements of one big array, each with the line that it begins on. Damage ends the reading with its line."""
    window, decoder = _Window(source), json.JSONDecoder()
    window.skip_blank()
    window.go(window.place + 1)  # the bracket
    expected, sign = "", window.skip_blank()
    while sign != "]":
        window.forget()
        try:
            value, end = _element(window, decoder)
        except (json.JSONDecodeError, RecursionError):
            expected = "expected a list of whole JSON objects"
            break
        except ValueError:
            yield Line(window.line, error=TOO_LONG, ends=True)
            return
        yield _whole(Line(window.line, value), window.text[window.place : end])
        window.go(end)
        sign = window.skip_blank()
        if sign == ",":
            window.go(window.place + 1)
            window.skip_blank()
        elif sign != "]":
            expected = "expected a comma and the next element, or the end of the list"
            break
    else:
        window.go(window.place + 1)
        if window.skip_blank() or window.error:
            expected = "expected nothing behind the list"
    if expected:
        rest = window.text[window.place :]
        found = f"not JSON at {quote(rest)!r}" if rest else "the list is cut short"
        yield Line(window.line, error=window.error or f"{found}; {expected}", ends=True)


def _element(window: _Window, decoder: json.JSONDecoder) -> tuple[Any, int]:
    """The value that begins here, and where it ends. What ends with the window may go on behind it."""
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.place)
            if end < len(window.text) or not window.more():
                return value, end
        except json.JSONDecodeError:
            if not window.more():
                raise


def _arrow_library(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(str(path), f"reading {path.suffix} needs pyarrow", NEEDS_ARROW) from error
    return pyarrow, parquet


def _parquet(path: Path) -> Iterator[Line]:
    pyarrow, parquet = _arrow_library(path)
    try:
        with parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names)
            yield from _numbered(file.iter_batches(batch_size=1000))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # OSError: a damaged page
        raise DataError(str(path), f"not a Parquet file that can be read: {error}", "Fetch it again") from error


def _arrow(path: Path) -> Iterator[Line]:
    """Arrow's files, and its streams, which `datasets` saves to disk."""
    pyarrow, _ = _arrow_library(path)
    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
            else:
                source.seek(0)
                reader = pyarrow.ipc.open_stream(source)
                batches = iter(reader)
            _refuse_twice(path, reader.schema.names)
            yield from _numbered(batches)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"not an Arrow file that can be read: {error}", "Fetch it again") from error


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := _twice(names):
        raise DataError(str(path), twice, "Rename one of them")


def _numbered(batches: Iterator[Any]) -> Iterator[Line]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1000):
            for value in batch.slice(start, 1000).to_pylist():
                number += 1
                yield Line(number, value)


def _decode(raw: bytes) -> tuple[str, str]:
    """(text, what is wrong)."""
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 (byte {raw[error.start]:#04x} at position {error.start}); expected UTF-8 text"


def escaped(text: str) -> str:
    """A text on one line: line breaks and tabs as Python writes them."""
    return text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def quote(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text[: 2 * WORDS].split())
    return text if len(text) <= WORDS else text[:WORDS] + "..."
