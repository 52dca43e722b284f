"""The README.md of a dataset: what it holds, how it was made, by which models, what was left out, and what to check.

Names and texts of others stand in it; none of them can end the front matter, a table's cell or a line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from potstill import __version__
from potstill.artifact import Artifact
from potstill.lineage import files, models

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
PLAIN_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
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
    parts += [_splits(card), _stages(lineage), _models(lineage), _files(lineage), _dropped(lineage)]
    parts.append(_licences(card, lineage))
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """A text on one line, no sign of which Markdown or HTML would take for its own."""
    return SIGNS.sub(r"\\\1", CONTROL.sub(" ", text)).replace("\\<", "&lt;").replace("\\>", "&gt;").strip()


def _front(card: Card) -> str:
    count = sum(card.rows.values())
    plain = PLAIN_LICENCE.fullmatch(card.licence)
    front: dict[str, Any] = {"pretty_name": CONTROL.sub(" ", card.title)}
    front |= (
        {"license": card.licence} if plain else {"license": "other", "license_name": CONTROL.sub(" ", card.licence)}
    )
    if card.language:
        front["language"] = list(card.language)
    front["size_categories"] = [next((name for limit, name in SIZES if count < limit), "n>1M")]
    front["task_categories"] = ["text-generation"]
    front["tags"] = [*([TAGS[card.kind]] if card.kind in TAGS else []), "potstill"]
    paths = [{"split": split, "path": f"data/{split}-*.{card.suffix}"} for split in card.rows]
    front["configs"] = [{"config_name": "default", "data_files": paths}]
    front["dataset_info"] = {"features": list(card.features)}
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return f"---\n{text}---"


def _summary(card: Card) -> str:
    what = f"{sum(card.rows.values()):,} rows of {ABOUT[card.kind]}."
    return f"{what} Made with potstill {__version__}."


def _splits(card: Card) -> str:
    return _table(("split", "rows"), [(split, f"{rows:,}") for split, rows in card.rows.items()])


def _stages(lineage: Iterable[Artifact]) -> str:
    rows = []
    for artifact in lineage:
        manifest, facts = artifact.manifest, artifact.facts
        made = f"{facts['rows']:,} {manifest['produces']}" if "rows" in facts else str(manifest["produces"])
        read = ", ".join(source["name"] for group in manifest["inputs"].values() for source in group)
        rows.append((manifest["stage"], manifest["kind"], read, made, str(manifest["seed"]), manifest["key"][:12]))
    return "## How it was made\n\n" + _table(("stage", "kind", "reads", "made", "seed", "key"), rows)


def _models(lineage: Iterable[Artifact]) -> str:
    found = models(lineage)
    if not found:
        return ""
    rows = [
        (
            model.name,
            str(model.spec.get("name", "")),
            str(model.spec.get("revision", "")) or "not stated",
            "an endpoint" if model.spec.get("endpoint") else "weights at hand",
            ", ".join(model.stages),
        )
        for model in found
    ]
    table = _table(("in the recipe", "model", "revision", "asked through", "by the stages"), rows)
    return f"## Models\n\n{table}"


def _files(lineage: Sequence[Artifact]) -> str:
    found = files(lineage)
    licences = {str(a.manifest["stage"]): str(a.manifest["config"].get("licence") or "") for a in lineage}
    rows = []
    for stage, field, name, key in found:
        what = "prompt" if field.startswith("prompt_files") else "function" if ".py:" in name else "data"
        licence = (licences[stage] or "not stated") if what == "data" else ""
        rows.append((name, what, stage, licence, key[:12]))
    for artifact in lineage:
        if hub := artifact.manifest["config"].get("hub"):
            stage = str(artifact.manifest["stage"])
            revision = str(artifact.manifest["config"].get("revision") or "not stated")
            rows.append((str(hub), f"Hub dataset, revision {revision}", stage, licences[stage] or "not stated", ""))
    if not rows:
        return ""
    return "## What was read\n\n" + _table(("file", "what", "stage", "licence", "SHA-256"), rows)


def _dropped(lineage: Iterable[Artifact]) -> str:
    rows = [
        (str(artifact.manifest["stage"]), reason, f"{count:,}")
        for artifact in lineage
        for reason, count in (artifact.facts.get("dropped") or {}).items()
        if isinstance(count, int)
    ]
    if not rows:
        return ""
    return "## What was left out\n\n" + _table(("stage", "reason", "rows"), rows)


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(escape(str(cell)) for cell in row)} |" for row in rows)])
