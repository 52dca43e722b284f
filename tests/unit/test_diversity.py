"""Diversity figures: by hand, by seed, and that copies make them fall."""

from pathlib import Path

import pytest
from data_stages import given
from test_curation import chat, corpus

from potstill.curation.diversity import PAIRS, SAMPLE, Sample, before_and_after, diversity, draw


def test_figures_by_hand() -> None:
    sample = Sample([["a", "b", "a", "b"], ["a", "c", "a", "c"]])
    assert diversity(sample, 8, 0) == {
        "dialogues": 2,
        "words": 8,
        "distinct_1": pytest.approx(3 / 8),
        "distinct_2": pytest.approx(4 / 7, abs=1e-4),  # ab ba ab ba ac ca ac: ab, ba, ac, ca
        "alike": 0.5,  # a . a . is what both have in common: 2 of 4
    }
    assert diversity(sample, 4, 0)["distinct_1"] == 0.5
    assert diversity(Sample([["a"]]), 1, 0)["alike"] == 0
    assert diversity(Sample([[]]), 0, 0)["distinct_2"] == 0


def test_two_samples_are_compared_over_as_many_words() -> None:
    few, many = Sample([["a", "b"]]), Sample([["a", "b", "c", "d"]])
    figures = before_and_after(many, few, 0)
    assert figures["before"]["words"] == figures["after"]["words"] == 2


def test_copies_make_dialogues_less_diverse(tmp_path: Path) -> None:
    texts = [f"{text} Number {number}." for number, text in enumerate(corpus(200))]
    rich = given(tmp_path, "chats", [chat(str(i), "Q?", text) for i, text in enumerate(texts)], "rich")
    poor = given(tmp_path, "chats", [chat(str(i), "Q?", texts[i % 5]) for i in range(200)], "poor")
    samples = [draw(data.path / "rows.jsonl", 200, 7) for data in (rich, poor)]
    figures = before_and_after(*samples, 7)
    assert figures["after"]["distinct_2"] < 0.5 * figures["before"]["distinct_2"]
    assert figures["after"]["alike"] > figures["before"]["alike"]


def test_a_sample_is_of_bounded_size_and_seeded(tmp_path: Path) -> None:
    rows = [chat(str(i), "Q?", f"answer number {i}") for i in range(SAMPLE + 500)]
    path = given(tmp_path, "chats", rows).path / "rows.jsonl"
    one, same, other = (draw(path, len(rows), seed) for seed in (1, 1, 2))
    assert len(one.texts) == SAMPLE
    assert one == same
    assert one != other
    assert PAIRS <= 1000
