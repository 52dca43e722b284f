"""Is a text new against all that were kept? ROUGE-L F, exact, and never asked where it cannot be reached.

ROUGE-L F of two texts of m and n words whose longest common subsequence has l is 2 l / (m + n) (Lin 2004, with equal
weights). A text is refused when that is over a threshold t against any that was kept. Then l > t (m + n) / 2, so the
two share at least a = floor(t (m + n) / 2) + 1 words. With the words of every text in one fixed order, rare ones first,
two texts that share a words must meet among the first m - a + 1 of one and the first n - a + 1 of the other (prefix
filtering, Chaudhuri et al. 2006; by length and position as in PPJoin, Xiao et al. 2008). So kept texts are found by
(word, length, place in that order), and few are compared. A word that a text says again counts as another word.

Words are numbers, and what is known of the kept texts lies in a few sorted arrays: those of new texts are merged into
those of older ones as they grow to their size. The order is that of how often words were said when there were half as
many texts or fewer; a word that was not known then is rarer than all that were.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+")

FRESH = 128
"""Kept texts that are not yet in a sorted array."""
WIDENING = 1.06
"""Lengths of texts are told apart up to this ratio."""
_PLACE_BITS = 20
LONGEST = (1 << _PLACE_BITS) - 1
"""Words that are looked at in a longer text."""

Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation."""
    return _WORD.findall(text.lower())


def common_subsequence(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common subsequence, 64 cells at a time in Python's integers (Hyyrö 2004)."""
    return _common(_places(a), len(a), b)


def _places(words: Sequence[object]) -> dict[object, int]:
    """The places of each word as the bits of a number."""
    places: dict[object, int] = defaultdict(int)
    for i, word in enumerate(words):
        places[word] |= 1 << i
    return places


def _common(places: dict[object, int], length: int, other: Sequence[object]) -> int:
    full = (1 << length) - 1
    column = full
    for word in other:
        met = column & places.get(word, 0)
        column = ((column + met) | (column - met)) & full
    return length - column.bit_count()


def rouge_l(a: Sequence[object], b: Sequence[object]) -> float:
    """ROUGE-L F of two lists of words; 0 where either is empty."""
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if a and b else 0.0


def _edges() -> Numbers:
    """The least length of each width: single lengths at first, then ever wider ones."""
    edges = [0]
    while edges[-1] <= LONGEST:
        edges.append(max(edges[-1] + 1, int(edges[-1] * WIDENING)))
    return np.array(edges)


_EDGES_W = _edges()


class _Growing:
    """An array that numbers are added to at its end."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._room = np.zeros(1024, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """What was added, to be read or written in place; until more is added."""
        return self._room[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add some."""
        size = self._size + len(values)
        if size > len(self._room):
            room = np.zeros(max(size, len(self._room) * 3 // 2), self._room.dtype)
            room[: self._size] = self.values
            self._room = room
        self._room[self._size : size] = values
        self._size = size


@dataclass(frozen=True)
class _Level:
    """Postings of some kept texts: keys in order, and the text of each."""

    keys: Keys
    rows: npt.NDArray[np.uint32]

    @staticmethod
    def of(keys: Sequence[Keys], rows: Sequence[npt.NDArray[np.uint32]]) -> "_Level":
        """Several lists of postings as one. Those that are sorted already are merged quickly (timsort)."""
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        return _Level(joined[order], np.concatenate(rows)[order])

    def between(self, low_Q: Keys, high_Q: Keys) -> npt.NDArray[np.uint32]:
        """The texts whose keys lie in any of the ranges; some twice."""
        if not len(self.keys):
            return self.rows
        starts_Q = np.searchsorted(self.keys, low_Q)
        nearest_Q = self.keys.take(starts_Q, mode="clip")  # behind the last key: the last, which is too small
        met_Q = (nearest_Q >= low_Q) & (nearest_Q < high_Q)
        starts_Q = starts_Q[met_Q]
        if not len(starts_Q):
            return self.rows[:0]
        return self.rows[_ranges(starts_Q, np.searchsorted(self.keys, high_Q[met_Q]) - starts_Q)]


def _ranges(starts: Numbers, sizes: Numbers) -> Numbers:
    """The numbers of all ranges, one after the other."""
    ends = np.cumsum(sizes)
    found: Numbers = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return found


class Novelty:
    """The texts that were kept, and whether another is new against them. Threshold: refuse over this ROUGE-L F."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._numbers: dict[str | tuple[str, int], int] = {}
        """Of a word, and of a word that is said again with how often it was before."""
        self._first = _Growing(np.int32)  # of each number: that of the word itself
        self._said = _Growing(np.int64)  # of each number: how often
        self._ranks = np.empty(0, np.int64)  # the order of the numbers that there were when it was made
        self._own = _Growing(np.uint8)  # of each number: whether the text at hand holds it; all 0 in between
        self._words = _Growing(np.uint32)  # of all kept texts, one after the other
        self._ends = _Growing(np.int64)  # of each kept text, among them
        self._levels: list[_Level] = []
        self._ordered = 0  # kept texts, when the order was made
        self._fresh: dict[int, list[int]] = defaultdict(list)  # who holds a number, of texts that are in no level yet
        self._settled = 0
        self._probed: dict[int, tuple[Numbers, Numbers, Numbers]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, text: str) -> None:
        """Keep a text."""
        numbers = self._learn(words(text)[:LONGEST])
        self._said.values[numbers] += 1  # a text holds no number twice
        for number in self._in_order(numbers)[: self._prefix(len(numbers))].tolist():
            self._fresh[number].append(len(self))
        self._words.extend(numbers)
        self._ends.extend(np.array([len(self._words)]))
        if len(self) - self._settled >= FRESH:
            self._settle()

    def nearest(self, text: str) -> int | None:
        """The first kept text (by when it was added) that is too near, or None where the text is new."""
        said = words(text)[:LONGEST]
        numbers = self._known(_again(said))
        known = numbers[numbers >= 0]
        if not len(known):
            return None
        own = self._known(said).tolist()
        places = _places(own)
        for row in self._near(known, len(numbers), self._candidates(numbers)).tolist():
            kept = self._first.values[self._text(row)].tolist()
            if 2 * _common(places, len(own), kept) / (len(own) + len(kept)) > self.threshold:
                return int(row)
        return None

    def _learn(self, said: Sequence[str]) -> Numbers:
        """A number for each word, another each time that it is said again."""
        numbers, first, known = [], list[int](), self._numbers
        for key in _again(said):
            number = known.get(key)
            if number is None:
                number = known[key] = len(known)
                first.append(number if isinstance(key, str) else known[key[0]])
            numbers.append(number)
        self._first.extend(np.array(first, dtype=np.int32))
        self._said.extend(np.zeros(len(first), np.int64))
        self._own.extend(np.zeros(len(first), np.uint8))
        return np.array(numbers, dtype=np.int64)

    def _known(self, said: Iterable[str | tuple[str, int]]) -> Numbers:
        """The numbers of words; -1 for those that no kept text holds."""
        return np.array([self._numbers.get(word, -1) for word in said], dtype=np.int64)

    def _text(self, row: int) -> npt.NDArray[np.uint32]:
        ends = self._ends.values
        return self._words.values[int(ends[row - 1]) if row else 0 : int(ends[row])]

    def _in_order(self, numbers: Numbers) -> Numbers:
        return numbers[np.argsort(self._rank(numbers))]

    def _rank(self, numbers: Numbers) -> Numbers:
        """Less for a rarer word. Of those that have no rank yet the last to come is the least."""
        ranks = -1 - numbers
        ranked = numbers < len(self._ranks)
        ranks[ranked] = self._ranks[numbers[ranked]]
        return ranks

    def _needed(self, total: Any) -> Any:
        """The least number of shared words at which two texts of so many words together may be too near."""
        return np.maximum(1, np.floor(self.threshold * total / 2 - 1e-9).astype(np.int64) + 1)

    def _prefix(self, length: Any) -> Any:
        """How many of a text's rarest words have to be looked at for the shortest text that may be too near to it."""
        spared = np.floor(self.threshold * length / (2 - self.threshold) - 1e-9).astype(np.int64)
        return length - np.maximum(1, spared) + 1

    def _probes(self, count: int) -> tuple[Numbers, Numbers, Numbers]:
        """For a text of so many words: the widths of texts that may be too near to it, for each how many of its own
        rarest words have to be looked at, and among how many of theirs."""
        if count not in self._probed:
            first_W, last_W = _EDGES_W[:-1], _EDGES_W[1:] - 1
            fit = (self._needed(count + first_W) <= count) & (self._needed(count + last_W) <= last_W)
            probed_W = count - self._needed(count + first_W[fit]) + 1
            reach_W = last_W[fit] - self._needed(count + last_W[fit]) + 1
            self._probed[count] = np.flatnonzero(fit), probed_W, reach_W
        return self._probed[count]

    def _candidates(self, numbers: Numbers) -> Numbers:
        """Kept texts that share a rare word with these at a place and a length that allow them to be too near."""
        widths_W, probed_W, reach_W = self._probes(len(numbers))
        known = numbers >= 0
        ordered = np.concatenate([numbers[~known], self._in_order(numbers[known])])  # unknown ones are the rarest
        asked_Q = ordered[_ranges(np.zeros_like(probed_W), probed_W)]
        base_Q = (asked_Q << np.int64(32)) | np.repeat(widths_W, probed_W) << _PLACE_BITS
        high_Q = base_Q + np.repeat(reach_W, probed_W)
        met = asked_Q >= 0
        low_Q, end_Q = base_Q[met].view(np.uint64), high_Q[met].view(np.uint64)
        found = [level.between(low_Q, end_Q) for level in self._levels]
        most = int(probed_W.max()) if len(probed_W) else 0
        fresh = (self._fresh.get(number) for number in ordered[:most].tolist())
        found += [np.array(rows, dtype=np.uint32) for rows in fresh if rows]
        return np.unique(np.concatenate(found)).astype(np.int64) if found else np.empty(0, np.int64)

    def _near(self, known: Numbers, count: int, rows: Numbers) -> Numbers:
        """Of some kept texts those that share enough words, in whatever order."""
        ends = self._ends.values
        begins = np.where(rows > 0, ends[rows - 1], 0)
        sizes = ends[rows] - begins
        needed = self._needed(count + sizes)
        fit = needed <= np.minimum(count, sizes)
        rows, begins, sizes, needed = rows[fit], begins[fit], sizes[fit], needed[fit]
        if not len(rows):
            return rows
        own = self._own.values
        own[known] = 1
        shared = own[self._words.values[_ranges(begins, sizes)]]
        own[known] = 0
        counts_R = np.add.reduceat(shared, np.cumsum(sizes) - sizes, dtype=np.int64)
        enough: Numbers = rows[counts_R >= needed]
        return enough

    def _settle(self) -> None:
        """Fresh texts get a level; where there are twice as many as when the order was made, it is made anew."""
        if len(self) >= 2 * self._ordered:
            said = self._said.values
            self._ranks = np.empty(len(said), np.int64)
            self._ranks[np.lexsort((-np.arange(len(said)), said))] = np.arange(len(said))
            self._ordered, self._settled, self._levels = len(self), 0, []
        keys, rows = [], []
        for start in range(self._settled, len(self), 1 << 14):
            of = self._postings(start, min(start + (1 << 14), len(self)))
            keys.append(of[0])
            rows.append(of[1])
        self._levels.append(_Level.of(keys, rows))
        while len(self._levels) > 1 and 2 * len(self._levels[-1].keys) > len(self._levels[-2].keys):
            last, before = self._levels.pop(), self._levels.pop()
            self._levels.append(_Level.of([before.keys, last.keys], [before.rows, last.rows]))
        self._fresh.clear()
        self._settled = len(self)

    def _postings(self, start: int, end: int) -> tuple[Keys, npt.NDArray[np.uint32]]:
        """(word, width, place) and text of each word in the prefix of the kept texts from `start` to `end`."""
        ends = self._ends.values[start:end]
        begin = int(self._ends.values[start - 1]) if start else 0
        sizes = np.diff(ends, prepend=begin)
        numbers = self._words.values[begin : int(ends[-1])].astype(np.int64)
        texts = np.repeat(np.arange(len(sizes)), sizes)
        order = np.lexsort((self._rank(numbers), texts))
        places = _ranges(np.zeros_like(sizes), sizes)
        widths = np.repeat(np.searchsorted(_EDGES_W, sizes, side="right") - 1, sizes)
        early = places < np.repeat(self._prefix(sizes), sizes)
        keys = (numbers[order] << np.int64(32)) | (widths << _PLACE_BITS) | places
        return keys[early].view(np.uint64), (texts[early] + start).astype(np.uint32)


def _again(said: Sequence[str]) -> Iterator[str | tuple[str, int]]:
    """Words, each that was said before with how often it was."""
    seen: Counter[str] = Counter()
    for word in said:
        yield (word, seen[word]) if word in seen else word
        seen[word] += 1
