"""Documents that a benchmark makes itself: words by Zipf's law, and among them copies with some words replaced."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 50_000
COPY_EVERY = 10
REACH = 500
"""A copy is of one of so many documents before it that are none themselves."""


@dataclass(frozen=True)
class Document:
    """A text, and the number of the earlier one that it was copied from, or -1."""

    number: int
    text: str
    of: int = -1


def documents(seed: int, count: int, shortest: int = 60, longest: int = 100) -> Iterator[Document]:
    """Every tenth is a copy; up to a sixth of its words, wherever they stand, are replaced by others."""
    chance = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    ladder = np.cumsum(shares / shares.sum())
    recent: list[tuple[int, np.ndarray]] = []
    for number in range(count):
        if number % COPY_EVERY == COPY_EVERY - 1:
            of, words = recent[-int(chance.integers(1, min(REACH, len(recent)) + 1))]
            words = words.copy()
            replaced = chance.choice(len(words), int(chance.integers(0, len(words) // 6 + 1)), replace=False)
            words[replaced] = chance.integers(0, VOCABULARY, len(replaced))
        else:
            of, words = -1, np.searchsorted(ladder, chance.random(int(chance.integers(shortest, longest + 1))))
            recent = [*recent[-REACH + 1 :], (number, words)]
        yield Document(number, " ".join(f"w{word}" for word in words), of)


def write(path: Path, made: Iterator[Document]) -> None:
    """As lines {"id", "text"}."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": str(one.number), "text": one.text}) + "\n" for one in made)


def similarity(a: str, b: str, run: int = 3) -> float:
    """Jaccard similarity of the sets of runs of three words, said plainly."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + run]) for i in range(max(1, len(words) - run + 1))}

    first, second = runs(a), runs(b)
    return len(first & second) / len(first | second)
