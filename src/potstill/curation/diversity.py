"""How diverse dialogues are, as figures of a seeded sample, so that a million of them cost what a thousand do.

Of all words of the sampled dialogues, in lower case: `distinct_1` and `distinct_2`, the share of different words and
pairs of neighbours among the first `words` of them (Li et al. 2016, "A Diversity-Promoting Objective Function", section
5; the share falls as a text grows, so two samples are compared over the same number of words); and `alike`, the mean
ROUGE-L F between random pairs of the sample (Lin 2004), cut to their first 256 words: 1 where all say the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from potstill.curation.examine import text_of
from potstill.curation.novelty import rouge_l, words
from potstill.records import Chat

SAMPLE = 1000
PAIRS = 1000
LONGEST = 256


@dataclass(frozen=True)
class Sample:
    """Dialogues drawn from a file, as words."""

    texts: Sequence[Sequence[str]]

    @property
    def words(self) -> int:
        """Of all of them together."""
        return sum(map(len, self.texts))


def draw(path: Path, rows: int, seed: int) -> Sample:
    """`SAMPLE` dialogues of a file of as many rows, or all; the same ones for the same seed."""
    chosen = set(random.Random(seed).sample(range(rows), min(SAMPLE, rows)))
    with path.open("rb") as file:
        lines = (line for number, line in enumerate(file) if number in chosen)
        return Sample([words(text_of(Chat.model_validate_json(line))) for line in lines])


def diversity(sample: Sample, most_words: int, seed: int) -> dict[str, float]:
    """The figures of a sample; distinct words are counted among its first `most_words`."""
    chance = random.Random(seed)
    said = [word for text in sample.texts for word in text][:most_words]
    neighbours = list(pairwise(said))
    count = len(sample.texts)
    pairs = [chance.sample(range(count), 2) for _ in range(PAIRS)] if count > 1 else []
    alike = [rouge_l(sample.texts[a][:LONGEST], sample.texts[b][:LONGEST]) for a, b in pairs]
    return {
        "dialogues": count,
        "words": len(said),
        "distinct_1": _share(len(set(said)), len(said)),
        "distinct_2": _share(len(set(neighbours)), len(neighbours)),
        "alike": round(sum(alike) / len(alike), 4) if alike else 0.0,
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def before_and_after(before: Sample, after: Sample, seed: int) -> dict[str, dict[str, float]]:
    """Both samples' figures, over the same number of words."""
    most = min(before.words, after.words)
    return {"before": diversity(before, most, seed), "after": diversity(after, most, seed)}
