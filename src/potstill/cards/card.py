"""The README.md of a dataset: what it holds, how it was made, by which models, what was left out, and what to check.

Names and texts of others stand in it; none of them can end the front matter, a table's cell or a line.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill import __version__
from potstill.artifact import Artifact
from potstill.cards.card_parts import (
    dropped_part,
    escape,
    files_part,
    front_matter,
    licence_front,
    models_part,
    one_line,
    stages_part,
    table,
)
from potstill.lineage import models

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
ABOUT = {
    "texts": "plain texts (`text`)",
    "prompts": "prompts (`prompt`, a list of messages)",
    "chats": "conversations (`messages`), for supervised fine-tuning",
    "answers": "prompts with the answers of several models (`candidates`)",
    "ratings": "prompts with the answers of several models (`candidates`) and their ratings",
    "pairs": "preferences (`prompt`, `chosen`, `rejected`), for DPO and its kin",
    "feedback": "labelled answers (`prompt`, `completion`, `label`), for KTO",
}
TAGS = {"chats": "sft", "pairs": "dpo", "feedback": "kto", "answers": "preference", "ratings": "preference"}


@dataclass(frozen=True)
class Card:
    """What a card says that is not in the lineage."""

    title: str
    kind: str
    """A name of `records.ROWS`."""
    licence: str
    language: tuple[str, ...]
    notes: str
    rows: Mapping[str, int]
    """By split."""
    features: Sequence[Mapping[str, Any]]
    suffix: str
    """Of the data files."""


def render(card: Card, lineage: Sequence[Artifact]) -> str:
    """The whole file."""
    parts = [_front(card), f"# {escape(card.title)}", _summary(card)]
    if card.notes.strip():
        parts.append("\n".join(f"> {escape(line)}" for line in card.notes.strip().splitlines()))
    parts += [_splits(card), stages_part(lineage), models_part(lineage), files_part(lineage), dropped_part(lineage)]
    parts.append(_licences(card, lineage))
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(card: Card) -> str:
    count = sum(card.rows.values())
    front: dict[str, Any] = {"pretty_name": one_line(card.title), **licence_front(card.licence)}
    if card.language:
        front["language"] = list(card.language)
    front["size_categories"] = [next((name for limit, name in SIZES if count < limit), "n>1M")]
    front["task_categories"] = ["text-generation"]
    front["tags"] = [*([TAGS[card.kind]] if card.kind in TAGS else []), "potstill"]
    paths = [{"split": split, "path": f"data/{split}-*.{card.suffix}"} for split in card.rows]
    front["configs"] = [{"config_name": "default", "data_files": paths}]
    front["dataset_info"] = {"features": list(card.features)}
    return front_matter(front)


def _summary(card: Card) -> str:
    what = f"{sum(card.rows.values()):,} rows of {ABOUT[card.kind]}."
    return f"{what} Made with potstill {__version__}."


def _splits(card: Card) -> str:
    return table(("split", "rows"), [(split, f"{rows:,}") for split, rows in card.rows.items()])


def _licences(card: Card, lineage: Iterable[Artifact]) -> str:
    stated = (
        f"Who made this dataset puts it under this licence: {escape(card.licence)}. Whether it may stand under "
        "it was not checked."
        if card.licence != "other"
        else "Who made this dataset does not say under what licence it stands."
    )
    terms = (
        "that the terms of the models above, as their providers give them, allow the use of what the models wrote "
        "(some forbid to train models that compete with theirs), and "
        if models(lineage)
        else ""
    )
    return (
        f"## Licence\n\n{stated} Who publishes or uses it "
        f"has to see to it {terms}that the licences of the data that was read allow it to be passed on."
    )
