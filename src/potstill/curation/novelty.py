"""Is a text new against all that were kept? ROUGE-L F, exact, and never asked where it cannot be reached.

ROUGE-L F of two texts of m and n words whose longest common subsequence has l is 2 l / (m + n) (Lin 2004, with equal
weights). A text is refused when that is over a threshold t against any that was kept. Then l > t (m + n) / 2, and since
n >= l, also l > t m / (2 - t): the two share at least that many words. So it is enough to look at kept texts that hold
one of the rarest words of the new one, leaving out as many of its common words as it could spare.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import floor

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation."""
    return _WORD.findall(text.lower())


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, 64 cells at a time in Python's integers (Hyyrö 2004)."""
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    full = (1 << len(a)) - 1
    column = full
    for word in b:
        met = column & places.get(word, 0)
        column = ((column + met) | (column - met)) & full
    return len(a) - column.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F of two lists of words; 0 where either is empty."""
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if a and b else 0.0


class Novelty:
    """The texts that were kept, and whether another is new against them. Threshold: refuse over this ROUGE-L F."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept: list[list[str]] = []
        self._bags: list[Counter[str]] = []
        self._holders: dict[tuple[str, int], list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, text: str) -> None:
        """Keep a text."""
        new = words(text)
        for token in _numbered(new):
            self._holders[token].append(len(self._kept))
        self._kept.append(new)
        self._bags.append(Counter(new))

    def nearest(self, text: str) -> int | None:
        """The first kept text (by when it was added) that is too near, or None where the text is new."""
        new = words(text)
        bag = Counter(new)
        for index in sorted(self._candidates(new)):
            kept = self._kept[index]
            total = len(new) + len(kept)
            if not self._too_near(min(len(new), len(kept)), total):
                continue
            if not self._too_near((bag & self._bags[index]).total(), total):
                continue
            if self._too_near(common_subsequence(kept, new), total):
                return index
        return None

    def _too_near(self, shared: int, total: int) -> bool:
        return 2 * shared / total > self.threshold

    def _candidates(self, new: list[str]) -> set[int]:
        """Kept texts that could be too near: those that hold one of enough of the rarest words."""
        tokens = sorted(_numbered(new), key=lambda token: len(self._holders.get(token, ())))
        # One less than the bound, against rounding; looking at a word too many costs time only.
        needed = max(1, floor(self.threshold * len(new) / (2 - self.threshold)))
        found: set[int] = set()
        for token in tokens[: len(tokens) - needed + 1]:
            found.update(self._holders.get(token, ()))
        return found


def _numbered(tokens: list[str]) -> list[tuple[str, int]]:
    """Words with the how-manieth of its kind each is, so that a bag of words becomes a set."""
    seen: Counter[str] = Counter()
    numbered = []
    for token in tokens:
        numbered.append((token, seen[token]))
        seen[token] += 1
    return numbered
