"""How long a stage's rows are in tokens: counted on some where they are here, else assumed, and said so."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from potstill.errors import PotstillError
from potstill.records import ROWS, Chat, Feedback, Message, Pair, Text
from potstill.runs.plan import Plan, Step
from potstill.sources import Data
from potstill.training.batch import Item
from potstill.training.data import chat_items, pair_items, text_items

SAMPLE = 256
"""Rows that are read."""
CHARACTERS = 4
"""Of a token of plain English, where there is no tokenizer to count with."""
PASS_ON = ("import", "curate", "label")
"""Stages whose rows are nearly those that they read."""
GUESSES: dict[str, tuple[int, int, int]] = {"chats": (200, 300, 0), "pairs": (175, 275, 275), "texts": (0, 200, 0)}
"""Tokens of a prompt and of one or two answers."""


@dataclass(frozen=True)
class Sample:
    """Some rows as training would have them."""

    items: tuple[Item, ...]
    said: str
    """Where their lengths come from, where they were not counted."""
    share: float = 1.0
    """Of the rows read, how many training keeps, or how many items a text makes."""

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return float(np.mean([item.tokens for item in self.items]))

    @property
    def scored(self) -> float:
        """Of these the scored ones."""
        return float(np.mean([item.scored for item in self.items]))

    def batch(self, tokens: float) -> list[Item]:
        """Rows of all lengths, of about so many tokens together; the longest of the sample if it alone has more."""
        by_length = sorted(self.items, key=lambda item: item.tokens)
        count = max(1, round(tokens / self.mean))
        places = np.linspace(0, len(by_length) - 1, count).round().astype(int) if count > 1 else [len(by_length) // 2]
        return [renamed(by_length[place], f"row{number}") for number, place in enumerate(places)]


def renamed(item: Item, row: str) -> Item:
    """The same row under another name: no two of a batch may have one."""
    return Item(row, item.prompt_ids, item.answers, item.signals)


def sample(plan: Plan, step: Step, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> Sample:
    """Some rows of a stage's `data`; made up where there are none."""
    config: Any = step.entry.config
    limit = getattr(config, "max_length", None) or getattr(config, "block_length", None) or config.context
    row_type = _row_type(step)
    rows = _rows(plan, step, row_type)
    if rows and tokenizer is not None:
        try:
            items = _encoded(tokenizer, rows, config, limit)
            return Sample(tuple(items), "", len(items) / len(rows))
        except PotstillError:
            pass
    if rows:
        items = [made for row in rows if (made := _spelled(row, limit, vocabulary))]
        if items:
            return Sample(
                tuple(items), f"{step.name}'s rows by {CHARACTERS} characters a token", len(items) / len(rows)
            )
    kind = "pairs" if row_type in (Pair, Feedback) else "texts" if row_type is Text else "chats"
    said = _said(plan, step)
    longer = said / sum(GUESSES[kind]) if said else 1.0
    parts = _shortened(GUESSES[kind], longer, limit)
    why = "as the stage that imports them says" if said else "since none is here yet"
    return Sample((_made_up(parts, vocabulary),), f"{step.name}'s rows of {sum(parts):,} tokens each, {why}")


def _said(plan: Plan, step: Step) -> int | None:
    """How long rows of its data are said to be."""
    made = [plan.steps[link.stage] for link in step.entry.links if link.field == "data" and link.stage]
    return max((one.expected.tokens_per_row or 0 for one in made), default=0) or None


def _shortened(parts: tuple[int, int, int], longer: float, limit: int) -> tuple[int, int, int]:
    """So many times as long, with prompt and longest answer within the limit."""
    whole = parts[0] + max(parts[1:])
    share = min(longer, limit / whole)
    return (int(parts[0] * share), max(2, int(parts[1] * share)), int(parts[2] * share))


def _row_type(step: Step) -> Any:
    accepts = next(slot.accepts for slot in step.entry.slots if slot.field == "data")
    if getattr(step.entry.config, "loss", "") == "kto":
        return Pair
    return ROWS[next(kind for kind in accepts if kind in ROWS)]


def _rows(plan: Plan, step: Step, row_type: Any) -> list[Any]:
    """Some of them, of the first source that is here."""
    for data in _sources(plan, step):
        try:
            if rows := list(islice(data.rows(row_type), SAMPLE)):
                return rows
        except (PotstillError, AssertionError, OSError):  # of another kind, or damaged: the run will say so
            continue
    return []


def _sources(plan: Plan, step: Step, depth: int = 0) -> list[Data]:
    found = []
    for link in step.entry.links:
        if link.field not in ("data", "path") or depth > 8:
            continue
        if link.file is not None:
            found.append(Data(link.label, "file", link.file))
        elif link.stage:
            made = plan.steps[link.stage]
            if made.artifact is not None and made.entry.produces in ROWS:
                found.append(Data(made.name, made.entry.produces, made.artifact.path))
            elif made.head["kind"] in PASS_ON:
                found += _sources(plan, made, depth + 1)
    return found


def _encoded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], config: Any, limit: int) -> list[Item]:
    """As the stage would read them."""
    named = [(f"row{number}", row) for number, row in enumerate(rows)]
    shared: dict[str, Any] = {"held_out": 0, "seed": 0, "where": "data"}
    if isinstance(rows[0], Text):
        return text_items(tokenizer, named, block_length=limit, **shared).train
    if isinstance(rows[0], Pair):
        return pair_items(tokenizer, named, max_length=limit, **shared).train
    return chat_items(
        tokenizer, named, max_length=limit, on_long=config.on_long, learn=config.learn, **shared
    ).train  # fmt: skip


def _spelled(row: Any, limit: int, vocabulary: int) -> Item | None:
    """By its characters; None where it would be left out."""
    match row:
        case Pair():
            parts = (_length(row.prompt), _length(row.chosen), _length(row.rejected))
        case Chat():
            said = [message for message in row.messages if message.role == "assistant"]
            parts = (_length(row.messages) - _length(said), _length(said), 0)
        case Text():
            parts = (0, min(limit, len(row.text) // CHARACTERS + 2), 0)
        case _:
            return None
    if parts[0] + max(parts[1:]) > limit or parts[1] < 2:
        return None
    return _made_up(parts, vocabulary)


def _length(messages: Sequence[Message]) -> int:
    """Four tokens for what a template writes around each."""
    return sum(len(message.content) // CHARACTERS + 4 for message in messages)


def _made_up(parts: tuple[int, int, int], vocabulary: int) -> Item:
    """A row of so many tokens: a prompt and two answers, or one sequence whose end is learnt."""
    prompt, first, second = parts
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, vocabulary, size, dtype=np.int32) for size in parts]
    every = [np.ones(len(one), dtype=np.bool_) for one in ids]
    if second:
        return Item("row", ids[0], ((ids[1], every[1]), (ids[2], every[2])))
    whole = np.concatenate([ids[0], ids[1]])
    learn = np.concatenate([np.zeros(prompt, dtype=np.bool_), every[1]])
    learn[0] = False
    assert first > 1, "there is something to learn"
    return Item("row", whole[:0], ((whole, learn),))
