"""Parts of the cards of datasets and models: front matter, tables, and what the manifests of a lineage say.

Names and texts of others stand in them; none of them can end the front matter, a table's cell or a line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from potstill.artifact import Artifact
from potstill.lineage import files, models

PLAIN_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str) -> str:
    """A text without line breaks and control characters."""
    return CONTROL.sub(" ", text)


def front_matter(front: Mapping[str, Any]) -> str:
    """What the Hub reads of a card, between its two lines."""
    text = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return f"---\n{text}---"


def licence_front(licence: str) -> dict[str, str]:
    """A licence as front matter names it; one that is no plain name stands under `other`."""
    if PLAIN_LICENCE.fullmatch(licence):
        return {"license": licence}
    return {"license": "other", "license_name": one_line(licence)}


def escape(text: str) -> str:
    """A text on one line, no sign of which Markdown or HTML would take for its own."""
    return SIGNS.sub(r"\\\1", CONTROL.sub(" ", text)).replace("\\<", "&lt;").replace("\\>", "&gt;").strip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of Markdown; a cell of any text stays one cell."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(escape(str(cell)) for cell in row)} |" for row in rows)])


def stages_part(lineage: Iterable[Artifact]) -> str:
    """Each stage, what it read and how much it made."""
    rows = []
    for artifact in lineage:
        manifest, facts = artifact.manifest, artifact.facts
        made = str(manifest["produces"])
        if "rows" in facts:
            made = f"{made}, of {facts['rows']:,} rows" if made == "model" else f"{facts['rows']:,} {made}"
        read = ", ".join(source["name"] for group in manifest["inputs"].values() for source in group)
        rows.append((manifest["stage"], manifest["kind"], read, made, str(manifest["seed"]), manifest["key"][:12]))
    return "## How it was made\n\n" + table(("stage", "kind", "reads", "made", "seed", "key"), rows)


def models_part(lineage: Iterable[Artifact], terms: Mapping[str, str] | None = None) -> str:
    """Each model that was asked or begun with. `terms`: its licence or terms by its name in the recipe, where cards
    tell them."""
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
            *(() if terms is None else (terms.get(model.name) or "unknown",)),
        )
        for model in found
    ]
    head = ("in the recipe", "model", "revision", "asked through", "by the stages")
    found_table = table(head if terms is None else (*head, "licence or terms"), rows)
    return f"## Models\n\n{found_table}"


def files_part(lineage: Sequence[Artifact]) -> str:
    """Each file and dataset that was read, with its licence as its stage says it."""
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
    return "## What was read\n\n" + table(("file", "what", "stage", "licence", "SHA-256"), rows)


def dropped_part(lineage: Iterable[Artifact]) -> str:
    """How many rows each stage left out, and why."""
    rows = [
        (str(artifact.manifest["stage"]), reason, f"{count:,}")
        for artifact in lineage
        for reason, count in (artifact.facts.get("dropped") or {}).items()
        if isinstance(count, int)
    ]
    if not rows:
        return ""
    return "## What was left out\n\n" + table(("stage", "reason", "rows"), rows)
