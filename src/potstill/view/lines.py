"""Lines of a large sealed file: where each begins, and which of them a search finds. Nothing is read that is not asked.

The offsets are found by one pass over the mapped bytes and kept in the run's cache folder under the artifact's key, so
that a file of a gigabyte opens at once the second time. A search looks for bytes first and parses only what may match.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SCANNED = 1 << 24
"""Bytes looked at in one go for line ends."""
SEARCHED = 1 << 22
"""Bytes looked through in one go by a search."""
SECONDS_A_SEARCH = 1.0
"""After so long a page shows what was found, and where to go on."""
CACHE = "view"


class Lines:
    """The lines of a file that does not change."""

    def __init__(self, path: Path, kept: Path | None = None) -> None:
        """`kept`: where the offsets are remembered; a place that cannot be written costs only time."""
        self.path, self._kept = path, kept
        self.size = path.stat().st_size
        self._lock = threading.Lock()
        self._offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def _read(self, start: int, end: int) -> bytes:
        """What lies there. The file is not mapped: one that somebody cuts would end this process (SIGBUS)."""
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)

    @property
    def offsets(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Where each line begins, and at last where the file ends."""
        with self._lock:
            if self._offsets is None:
                found = self._remembered()
                self._offsets = found if found is not None else self._find()
            return self._offsets

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """See `facets`."""
        return facets(self)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _remembered(self) -> "np.ndarray[Any, np.dtype[np.int64]] | None":
        if self._kept is None:
            return None
        try:
            found: np.ndarray[Any, np.dtype[np.int64]] = np.load(self._kept, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = found.ndim == 1 and found.dtype == np.int64 and len(found) > 0 and int(found[-1]) == self.size
        return found if fits else None

    def _find(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        ends = []
        for start in range(0, self.size, SCANNED):
            part = np.frombuffer(self._read(start, min(start + SCANNED, self.size)), np.uint8)
            ends.append(np.flatnonzero(part == 10) + (start + 1))
        inside = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        last = [self.size] if self.size and (not len(inside) or inside[-1] != self.size) else []
        offsets = np.concatenate([[0], inside, last]).astype(np.int64)
        self._remember(offsets)
        return offsets

    def _remember(self, offsets: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        if self._kept is None or len(offsets) < 10_000:
            return
        aside = self._kept.with_name(f".{self._kept.name}.{threading.get_ident()}.npy")
        with suppress(OSError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(aside, offsets)
            aside.replace(self._kept)

    def line(self, number: int) -> bytes:
        """One line, from 0, without its end."""
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        return self._read(start, end).rstrip(b"\n")

    def blocks(self, first: int, last: int, *, backwards: bool) -> Iterator[tuple[int, int, bytes]]:
        """(first line, line behind the last, their bytes in small letters), about SEARCHED bytes each."""
        offsets = self.offsets
        while first < last:
            if backwards:
                begin = int(np.searchsorted(offsets, offsets[last] - SEARCHED))
                a, b = min(max(first, begin), last - 1), last
                last = a
            else:
                end = int(np.searchsorted(offsets, offsets[first] + SEARCHED))
                a, b = first, max(min(last, end), first + 1)
                first = b
            yield a, b, self._read(int(offsets[a]), int(offsets[b])).lower()


@dataclass(frozen=True)
class Query:
    """What rows have to hold: all the words, and all that the filters name."""

    words: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    """category, reason, model, finish, suite: that value; rating: at most so much."""

    @staticmethod
    def of(text: str, filters: Mapping[str, str]) -> "Query":
        """Words apart, or "several words" in quotes."""
        words = [quoted or word for quoted, word in re.findall(r'"([^"]+)"|(\S+)', text)]
        return Query(tuple(words), {name: value for name, value in filters.items() if value})

    def __bool__(self) -> bool:
        return bool(self.words or self.filters)

    @cached_property
    def needles(self) -> tuple[bytes, ...]:
        """Bytes that a line in small letters holds where it matches: any of the first that can be told; () for none."""
        if self.words:
            return _spellings(max(self.words, key=len))
        for name in ("reason", "category", "model", "suite", "finish"):
            value = self.filters.get(name)
            if value is not None and not (name == "finish" and value == "stop"):  # a default is not written
                return _spellings(value)
        return ()

    def matches(self, line: bytes) -> bool:
        """Whether a line holds all of it, in its texts and not in the names of its fields."""
        row = _parsed(line)
        if row is None:
            text = line.decode("utf-8", "replace").casefold()
            return not self.filters and all(word.casefold() in text for word in self.words)
        if not all(_holds(row, name, value) for name, value in self.filters.items()):
            return False
        if not self.words:
            return True
        text = "\n".join(_texts(row)).casefold()
        return all(word.casefold() in text for word in self.words)


def _parsed(line: bytes) -> Any:
    """What a line holds; None where it is damaged."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _spellings(text: str) -> tuple[bytes, ...]:
    """How JSON may write it, in small letters as far as bytes have them."""
    spelt = (json.dumps(one, ensure_ascii=plain)[1:-1] for one in {text, text.lower(), text.upper(), text.capitalize()}
             for plain in (False, True))  # fmt: skip
    return tuple(dict.fromkeys(one.encode("utf-8", "replace").lower() for one in spelt))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _holds(row: Any, name: str, value: str) -> bool:
    if not isinstance(row, dict):
        return False
    if name == "rating":
        return any(score <= float(value) for score in _ratings(row))
    if name in ("reason", "suite"):
        return bool(row.get(name) == value)
    if name == "category":
        inner = row.get("prompt")
        return value in (row.get("category"), inner.get("category") if isinstance(inner, dict) else None)
    return any(one == value for one in _of_candidates(row, name))


def _ratings(row: Mapping[str, Any]) -> Iterator[float]:
    for candidate in _dicts(row.get("candidates")):
        yield from (rating["score"] for rating in _dicts(candidate.get("ratings")) if _is_number(rating.get("score")))
    yield from (row[name] for name in ("chosen_score", "rejected_score") if _is_number(row.get(name)))


def _of_candidates(row: Mapping[str, Any], name: str) -> Iterator[str]:
    if name == "model" and isinstance(row.get("model"), str):
        yield row["model"]
    for candidate in _dicts(row.get("candidates")):
        yield str(candidate.get(name, "stop" if name == "finish" else ""))


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """A list's objects; nothing of what is no such list, as in a row that was changed after it was sealed."""
    yield from (one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FACETS = ("category", "reason", "model", "finish", "suite")
FACET_ROWS = 4_000
"""Rows that are looked at for the values of filters: all of a small file, evenly drawn ones of a large one."""


def facets(lines: Lines) -> dict[str, list[str]]:
    """The values that rows can be filtered by, of each kind that these rows have."""
    found: dict[str, dict[str, None]] = {name: {} for name in FACETS}
    rated = False
    for number in range(0, len(lines), max(1, len(lines) // FACET_ROWS)):
        row = _parsed(lines.line(number))
        if not isinstance(row, dict):
            continue
        inner = row.get("prompt")
        inside = inner.get("category") if isinstance(inner, dict) else None
        for name, values in (
            ("category", [row.get("category"), inside]),
            ("reason", [row.get("reason")]),
            ("suite", [row.get("suite")]),
            ("model", _of_candidates(row, "model")),
            ("finish", _of_candidates(row, "finish")),
        ):
            found[name].update(dict.fromkeys(value for value in values if isinstance(value, str) and value))
        rated = rated or any(True for _ in _ratings(row))
    known = {name: sorted(values) for name, values in found.items() if len(values) > 1 or (name == "reason" and values)}
    return {**known, **({"rating": ["1", "2", "3", "4", "5"]} if rated else {})}


@dataclass(frozen=True)
class Hits:
    """What a search found, in the order of the file."""

    numbers: Sequence[int]
    more: int | None
    """Where to go on: the line behind the last that was looked at; None where all were."""
    timed_out: bool = False
    """It went on so long that the page shows what there is."""


def search(lines: Lines, query: Query, start: int, count: int, *, backwards: bool = False) -> Hits:
    """The first `count` matching lines from `start` on; backwards, the last ones before it."""
    until = time.monotonic() + SECONDS_A_SEARCH
    found: list[int] = []
    first, last = (0, min(start, len(lines))) if backwards else (max(0, start), len(lines))
    for a, b, data in lines.blocks(first, last, backwards=backwards):
        numbers = _candidates(lines, query.needles, a, b, data)
        for number in reversed(list(numbers)) if backwards else numbers:
            if query.matches(lines.line(number)):
                found.append(number)
                if len(found) == count:
                    rest = number > 0 if backwards else number + 1 < len(lines)
                    return Hits(sorted(found), (number if backwards else number + 1) if rest else None)
            if time.monotonic() > until:
                return Hits(sorted(found), number if backwards else number + 1, timed_out=True)
        if time.monotonic() > until:
            edge = a if backwards else b
            return Hits(sorted(found), edge if 0 < edge < len(lines) else None, timed_out=0 < edge < len(lines))
    return Hits(sorted(found), None)


def _candidates(lines: Lines, needles: Sequence[bytes], a: int, b: int, data: bytes) -> Iterator[int]:
    """The lines from a to b, whose bytes these are, that hold one of the needles; all where there is none."""
    if not needles:
        yield from range(a, b)
        return
    offsets, base = lines.offsets, int(lines.offsets[a])
    at = {needle: data.find(needle) for needle in needles}
    while True:
        there = [place for place in at.values() if place >= 0]
        if not there:
            return
        number = int(np.searchsorted(offsets, base + min(there), side="right")) - 1
        yield number
        if number + 1 >= b:
            return
        behind = int(offsets[number + 1]) - base
        at = {n: (data.find(n, behind) if 0 <= place < behind else place) for n, place in at.items()}
