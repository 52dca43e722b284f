"""Duplicates: exactly those of the definition, whatever batches they come in, in files that stay small in memory."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as holds
from hypothesis import settings
from hypothesis import strategies as st

from potstill.curation import deduplicate
from potstill.curation.deduplicate import Deduplicator, Duplicate, fingerprints
from potstill.curation.minhash import band_keys, bands, jaccard, rows_per_band, shingles
from potstill.curation.spill import Spill

VOCABULARY = [f"w{i}" for i in range(2000)]


def planted(count: int, seed: int = 0, words: int = 100) -> list[str]:
    """Texts of which every fourth is an earlier one with some words changed, or none, or only its capitals."""
    chance = random.Random(seed)
    texts: list[list[str]] = []
    for number in range(count):
        if number % 4 < 3 or not texts:
            texts.append(chance.choices(VOCABULARY, k=words))
            continue
        changed = chance.choice(texts[-40:]).copy()
        for place in chance.sample(range(len(changed)), chance.randint(0, words // 8)):
            changed[place] = chance.choice(VOCABULARY)
        texts.append([word.upper() for word in changed] if chance.random() < 0.2 else changed)
    return [" ".join(text) for text in texts]


def by_definition(texts: list[str], threshold: float | None) -> list[Duplicate]:
    """Every text against every earlier one."""
    known: dict[str, int] = {}
    stay: list[int] = []
    found = []
    sets = [shingles(text) for text in texts]
    for row, text in enumerate(texts):
        first = known.setdefault(" ".join(text.lower().split()), row)
        if first != row:
            found.append(Duplicate(row, first, None))
            continue
        near = ((other, jaccard(sets[row], sets[other])) for other in stay if threshold is not None)
        alike = next(((other, value) for other, value in near if value >= threshold), None)  # type: ignore[operator]
        if alike:
            found.append(Duplicate(row, *alike))
        else:
            stay.append(row)
    return found


def run(folder: Path, texts: list[str], threshold: float | None, batch: int = 100) -> list[Duplicate]:
    known = Deduplicator(folder, threshold)
    for start in range(0, len(texts), batch):
        piece = texts[start : start + batch]
        known.add(fingerprints(piece), None if threshold is None else band_keys(piece, threshold))
    return list(known.duplicates(texts.__getitem__))


@pytest.mark.parametrize("threshold", [None, 0.6, 0.7, 0.9, 1.0])
def test_duplicates_are_exactly_those_of_the_definition(tmp_path: Path, threshold: float | None) -> None:
    texts = planted(600)
    found = run(tmp_path, texts, threshold)
    assert found == by_definition(texts, threshold)
    assert sum(duplicate.similarity is None for duplicate in found) > 5
    assert threshold in (None, 1.0) or sum(duplicate.similarity is not None for duplicate in found) > 10


def test_batches_and_parts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = planted(400)
    expected = run(tmp_path / "a", texts, 0.7)
    monkeypatch.setattr(deduplicate, "ROWS_A_PART", 7)
    monkeypatch.setattr(deduplicate, "PARTS", np.uint64(3))
    assert run(tmp_path / "b", texts, 0.7, batch=13) == expected
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()], "files go as they are read"


def test_one_that_is_near_to_a_dropped_one_alone_stays(tmp_path: Path) -> None:
    """a ~ b and b ~ c, but not a ~ c: b goes, and c is compared with what stays."""
    words = random.Random(3).choices(VOCABULARY, k=100)
    a, b, c = words, words[6:] + VOCABULARY[:6], words[14:] + VOCABULARY[:14]
    texts = [" ".join(text) for text in (a, b, c)]
    values = [jaccard(shingles(texts[i]), shingles(texts[j])) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert values[0] >= 0.8
    assert values[1] >= 0.8 > values[2]
    assert run(tmp_path, texts, 0.8) == [Duplicate(1, 0, values[0])]


def test_many_copies_of_one_template_are_compared_with_those_that_stay_alone(tmp_path: Path) -> None:
    words = random.Random(4).choices(VOCABULARY, k=200)
    texts = [" ".join([*words, f"name{number}"]) for number in range(3000)]
    found = run(tmp_path, texts, 0.7, batch=1000)
    assert [(duplicate.row, duplicate.of) for duplicate in found] == [(row, 0) for row in range(1, 3000)]


@holds(st.lists(st.text(alphabet="ab c\nß日", max_size=30), max_size=12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_short_and_empty_texts_too(tmp_path_factory: pytest.TempPathFactory, texts: list[str], batch: int) -> None:
    folder = tmp_path_factory.mktemp("texts")
    assert run(folder, texts, 1.0, batch) == by_definition(texts, 1.0)


def test_bands_are_enough_for_what_is_promised() -> None:
    for threshold in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        rows, count = rows_per_band(threshold), bands(threshold)
        assert 1 - (1 - threshold**rows) ** count >= 0.999
        assert rows * count <= 128


def test_equal_minima_are_as_frequent_as_the_sets_are_alike() -> None:
    """Broder 1997: the chance that two sets share the least of a random order is their Jaccard similarity."""
    chance = random.Random(5)
    words = chance.choices(VOCABULARY, k=200)
    other = words[:150] + chance.choices(VOCABULARY, k=50)
    texts = [" ".join(words), " ".join(other)]
    similarity = jaccard(shingles(texts[0]), shingles(texts[1]))
    shared = expected = 0.0
    for trial in range(60):
        pair = [f"{text} trial{trial}" for text in texts]
        keys = band_keys(pair, 0.3)
        shared += float((keys[0] == keys[1]).mean())
        expected += jaccard(shingles(pair[0]), shingles(pair[1])) ** rows_per_band(0.3)
    assert shared / 60 == pytest.approx(expected / 60, abs=0.03)
    assert 0.4 < similarity < 0.8


def test_spilled_records_come_back_by_part_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.curation.spill.BUFFER_BYTES", 100)
    spill = Spill(tmp_path, "numbers", [("n", "<i8")])
    numbers = np.arange(1000)
    for start in range(0, 1000, 30):
        piece = numbers[start : start + 30]
        spill.add(piece % 7, piece.astype([("n", "<i8")]))
    parts = {part: records["n"].tolist() for part, records in spill.parts()}
    assert parts == {part: list(range(part, 1000, 7)) for part in range(7)}
