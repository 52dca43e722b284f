"""Novelty at scale decides as ROUGE-L against everything that was kept does, through every merge and new order."""

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as holds
from hypothesis import settings
from hypothesis import strategies as st

from potstill.curation import novelty
from potstill.curation.novelty import Novelty, rouge_l, words

ROOT = Path(__file__).parents[2]


def decided_by_all(texts: list[list[str]], threshold: float) -> list[int | None]:
    """What each text is too near to: the first kept one over the threshold."""
    kept: list[list[str]] = []
    decisions = []
    for text in texts:
        near = next((row for row, other in enumerate(kept) if rouge_l(other, text) > threshold), None)
        decisions.append(near)
        if near is None:
            kept.append(text)
    return decisions


def decided(texts: list[list[str]], threshold: float) -> list[int | None]:
    known = Novelty(threshold)
    decisions = []
    for text in texts:
        near = known.nearest(" ".join(text))
        decisions.append(near)
        if near is None:
            known.add(" ".join(text))
    assert len(known) == decisions.count(None)
    return decisions


@settings(max_examples=80, deadline=None)
@holds(
    st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=14), max_size=60),
    st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95, 1.0]),
    st.sampled_from([1, 3, 128]),
)
def test_levels_and_orders_change_no_decision(texts: list[list[str]], threshold: float, fresh: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "FRESH", fresh)
        assert decided(texts, threshold) == decided_by_all(texts, threshold)


@pytest.mark.parametrize("threshold", [0.4, 0.7])
def test_changed_copies_among_many_texts(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "FRESH", 16)
    chance = random.Random(0)
    vocabulary = [f"w{int(chance.paretovariate(0.6)) % 4000}" for _ in range(3000)]
    texts: list[list[str]] = []
    for number in range(900):
        text = chance.choices(vocabulary, k=chance.randint(1, 40))
        if number % 3 == 2:
            text = list(chance.choice(texts))
            for _ in range(chance.randint(0, len(text) // 3)):
                text[chance.randrange(len(text))] = chance.choice(vocabulary)
            if chance.random() < 0.3:
                text = text[len(text) // 4 :] or text
        texts.append(text)
    expected = decided_by_all(texts, threshold)
    assert decided(texts, threshold) == expected
    assert min(len(texts) - expected.count(None), expected.count(None)) > 50


def test_long_texts_are_told_apart_by_wider_lengths() -> None:
    chance = random.Random(1)
    long = [f"w{chance.randrange(5000)}" for _ in range(1500)]
    near, far = long[:1100], long[:700]
    assert rouge_l(long, near) > 0.8 > rouge_l(long, far)
    known = Novelty(0.8)
    known.add(" ".join(long))
    assert known.nearest(" ".join(near)) == 0
    assert known.nearest(" ".join(far)) is None
    assert known.nearest(" ".join(words("nothing of this was said"))) is None


@pytest.fixture
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("novelty")
    sys.path.remove(str(ROOT / "bench"))
    sys.modules.pop("novelty", None)


def same_as_brute_force(bench: Any, count: int) -> int:
    """How many of `count` instructions are refused, by both."""
    known, plain = Novelty(0.7), bench.BruteForce(0.7, count)
    refused = 0
    for said in bench.instructions(0, count):
        text = " ".join(f"w{word}" for word in said)
        near = known.nearest(text)
        assert near == plain.nearest(said)
        refused += near is not None
        if near is None:
            known.add(text)
            plain.add(said)
    return refused


def test_the_benchmarks_brute_force_is_rouge_l(bench: Any) -> None:
    texts = [[str(word) for word in said] for said in bench.instructions(3, 150)]
    plain = bench.BruteForce(0.7, 150)
    decisions = []
    for said in bench.instructions(3, 150):
        decisions.append(near := plain.nearest(said))
        if near is None:
            plain.add(said)
    assert decisions == decided_by_all(texts, 0.7)
    assert same_as_brute_force(bench, 1500) > 100


@pytest.mark.slow
def test_20000_instructions_are_decided_as_brute_force_decides_them(bench: Any) -> None:
    assert same_as_brute_force(bench, 20_000) > 2000
