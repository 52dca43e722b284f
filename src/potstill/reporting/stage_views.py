"""Stages as pages show them: the graph, the table of what each took, and one with all that its manifest says."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from markupsafe import Markup

from potstill.artifact import DROPPED_FILE, ROWS_FILE, Artifact
from potstill.reporting import charts
from potstill.reporting import graph as drawing
from potstill.reporting.curves import read_curves
from potstill.reporting.numbers import flat
from potstill.reporting.shown import Row, first_rows, row_type

EXAMPLES = 2
"""Rows shown of each reason for which rows were left out."""
EXAMINED = 20_000
"""Dropped rows that are looked at for them."""


class Stage(Protocol):
    """What is known of a stage, or of a family of stages; see `survey.StageView`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def produces(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def artifact(self) -> Artifact | None: ...
    @property
    def seconds(self) -> float | None: ...


def graph(nodes: Mapping[str, Any], href: Callable[[str], str]) -> Markup:
    """The graph of all stages, families folded."""
    drawn = {name: drawing.node_of(stage) for name, stage in nodes.items()}
    return drawing.draw(drawn, {name: stage.reads for name, stage in nodes.items()}, href)


def stage_table(nodes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a stage, with a bar for its share of the longest."""
    longest = max((stage.seconds or 0.0 for stage in nodes.values()), default=0.0) or 1.0
    return [
        {
            "stage": stage,
            "glyph": drawing.GLYPHS[stage.state],
            "word": drawing.WORDS[stage.state],
            "bar": charts.bar((stage.seconds or 0.0) / longest),
        }
        for stage in nodes.values()
    ]


def stage_view(stage: Stage, rows: int) -> dict[str, Any]:
    """All that a sealed stage's folder says in a page's words: config, facts, files, drop reasons, its first rows."""
    artifact = stage.artifact
    if artifact is None:
        return {"sealed": False}
    manifest = artifact.manifest
    inputs = manifest["inputs"]
    config = {name: value for name, value in manifest["config"].items() if name not in ("kind", *inputs)}
    facts = {name: value for name, value in artifact.facts.items() if name not in ("examples", "dropped")}
    kind = row_type(artifact.produces, ROWS_FILE)
    return {
        "sealed": True,
        "config": list(flat(config)),
        "facts": list(flat(facts)),
        "files": [(name, stamp["bytes"]) for name, stamp in manifest["files"].items()],
        "rows_files": [
            name for name in manifest["files"] if name.endswith(".jsonl") and manifest["files"][name]["bytes"]
        ],
        "inputs": {field: [source["name"] for source in group] for field, group in inputs.items()},
        "key": artifact.key,
        "dropped": drop_reasons(artifact),
        "rows": list(first_rows(artifact.path / ROWS_FILE, kind, rows)) if kind else [],
        "there": int(artifact.facts.get("rows", 0)) if kind else 0,
        "curves": read_curves(artifact.path / "curves.jsonl"),
    }


def drop_reasons(artifact: Artifact) -> list[dict[str, Any]]:
    """Why rows were left out: how many for which reason, a bar each, and examples."""
    counts = {str(k): n for k, n in (artifact.facts.get("dropped") or {}).items() if isinstance(n, int) and n}
    if not counts:
        return []
    examples = _examples(artifact, list(counts))
    most = max(counts.values())
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"reason": reason, "count": count, "bar": charts.bar(count / most), "examples": examples.get(reason, [])}
        for reason, count in order
    ]


def _examples(artifact: Artifact, reasons: Sequence[str]) -> dict[str, list[Row]]:
    """The first rows that were left out for each reason."""
    found: dict[str, list[Row]] = {reason: [] for reason in reasons}
    file = artifact.path / DROPPED_FILE
    if not file.is_file():
        return found
    kind = row_type(artifact.produces, DROPPED_FILE)
    for row in islice(first_rows(file, kind, EXAMINED), EXAMINED):
        reason = dict(row.tags).get("", "")
        if reason in found and len(found[reason]) < EXAMPLES:
            found[reason].append(row)
        if all(len(rows) == EXAMPLES for rows in found.values()):
            break
    return found
