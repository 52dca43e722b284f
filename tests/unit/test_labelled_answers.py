"""Hedges and refusals in answers that people and models really gave, against what a reader says of each.

`labelled_answers.tsv` holds what was read, not the text: part, file, place in the file, first digits of the text's
SHA-256, label. A hedge: the answer, in its own voice, talks of being a machine, or of lacking opinions, feelings,
experiences, a body or live data. A refusal: it declines what was asked, in whole or for the most part, softly too.
Neither: stories, quotations, letters and code that hold such phrases, lectures, an honest "I do not know", a question
for what is missing. 469 were drawn by loose keywords from every file, 45 at random, none by a verdict. The patterns
were written with an eye on the tuned part; the held-out part only measures.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from data_stages import assistant

from potstill.curation.filters import find_hedge, find_refusal
from potstill.records import Message

DATA = Path(__file__).parents[3] / "shared" / "data"
LABELS = Path(__file__).with_name("labelled_answers.tsv")
FINDERS: dict[str, Callable[[Sequence[Message]], str | None]] = {"hedge": find_hedge, "refusal": find_refusal}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the real rows, is not here")


@cache
def rows(name: str) -> Any:
    raw = (DATA / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    return list(map(json.loads, text.splitlines())) if "jsonl" in name else json.loads(text)


def text_at(name: str, place: str) -> str:
    """The answer at a place such as 12/choices/0/turns/1; 12/chosen/3 is the fourth of a dialogue in one text."""
    value: Any = rows(name)
    parts = place.split("/")
    if name.startswith("hh_rlhf/"):
        turns = re.split(r"\n\n(Human|Assistant): ?", value[int(parts[0])][parts[1]])
        answers = [turns[i + 1].strip() for i in range(1, len(turns) - 1, 2) if turns[i] == "Assistant"]
        return answers[-1 if parts[2] == "last" else int(parts[2])]
    for part in parts:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return str(value)


@cache
def labelled(part: str) -> tuple[tuple[str, frozenset[str]], ...]:
    found = []
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        where, name, place, digest, label = line.split("\t")
        if where == part:
            text = text_at(name, place)
            assert hashlib.sha256(text.encode()).hexdigest().startswith(digest), f"{name}:{place} is another text"
            found.append((text, frozenset(label.split(",")) - {"-"}))
    return tuple(found)


# What was measured on the held-out part: hedges 0.97 and 0.97 of 35, refusals 0.92 and 0.88 of 26.
@pytest.mark.parametrize(
    ("part", "label", "precision", "recall"),
    [
        ("tuned", "hedge", 0.97, 0.95),
        ("tuned", "refusal", 0.93, 0.90),
        ("held_out", "hedge", 0.94, 0.94),
        ("held_out", "refusal", 0.90, 0.85),
    ],
)
def test_hedges_and_refusals_are_told_from_near_misses(part: str, label: str, precision: float, recall: float) -> None:
    verdicts = [(label in labels, FINDERS[label](assistant(text)) is not None) for text, labels in labelled(part)]
    both = sum(meant and found for meant, found in verdicts)
    meant, found = sum(meant for meant, _ in verdicts), sum(found for _, found in verdicts)
    told = f"{part} {label}: {len(verdicts)} rows, {meant} meant, {found} found, {both} both"
    print(f"{told}: precision {both / found:.3f}, recall {both / meant:.3f}")  # noqa: T201
    assert both >= precision * found, told
    assert both >= recall * meant, told


def test_both_parts_hold_enough_of_each() -> None:
    for part, least in (("tuned", 300), ("held_out", 190)):
        found = labelled(part)
        assert len(found) >= least
        for label in FINDERS:
            assert sum(label in labels for _, labels in found) >= 25
