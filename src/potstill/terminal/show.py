"""What `show` prints: an artifact's manifest, and what lies in it, as a person reads it."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from potstill.artifact import DROPPED_FILE, ROWS_FILE, Artifact, find, read_json, read_rows
from potstill.errors import StorageError
from potstill.evaluation.failures import failed_judgments, told_failures
from potstill.evaluation.judge_trial import TRIAL_FILE
from potstill.members import families, pools, read_member
from potstill.reading.files import quote
from potstill.records import ROWS, Answers, Candidate, Chat, Dropped, Feedback, Message, Pair, Prompt, Rating, Record
from potstill.records import Text as TextRecord
from potstill.reporting.audits import MARKS, danger_tables
from potstill.reporting.findings import noted, reservations
from potstill.reporting.judges import judge_table
from potstill.reporting.tables import score_table
from potstill.runs.workspace import Asked, Workspace
from potstill.stages.evaluate import ANSWERS_FILE
from potstill.stages.kept import ALIGNMENT_FILE
from potstill.teachers.ratings import INCONSISTENT, NOT_APPLICABLE, UNREAD, is_inconsistent, is_unread
from potstill.terminal.console import clean, facts_line, number
from potstill.terminal.signal_view import show_signals
from potstill.units import size
from potstill.validation import nearest

LONGEST_TEXT = 1500
EXAMPLES = 2
"""Rows shown of each reason for which rows were left out."""
STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
BARS = "▁▂▃▄▅▆▇█"


def show(console: Console, workspace: Workspace, stage: str, rows: int, dropped: bool) -> None:
    """Print a stage's artifact, or what there is of a family.

    StorageError where it is not sealed, or its bytes are not those that were sealed.
    """
    stages = workspace.describe().stages
    members = families(stages).get(stage, []) if stage not in stages else []
    if members:
        console.print(_family_view(workspace, {name: stages[name] for name in members}))
        console.print(
            f"\nTo see one: potstill show {workspace.path} {shlex.quote(members[0])}", soft_wrap=True, markup=False
        )
        return
    artifact = _artifact(workspace, stage)
    damaged = artifact.damaged()
    console.print(manifest_view(artifact, "every file is as it was sealed" if damaged is None else "do not fit"))
    console.print()
    if damaged:
        raise StorageError(
            damaged, "its bytes are not those that were sealed", f"Remove the folder {artifact.path} and run again"
        )
    if dropped:
        if not (artifact.path / DROPPED_FILE).is_file():
            raise StorageError(str(artifact.path), f"'{stage}' keeps no rows that were left out", "Omit --dropped")
        console.print(dropped_view(artifact.facts, artifact.path / DROPPED_FILE))
        console.print()
        there = sum(artifact.facts.get("dropped", {}).values())
        _print_rows(console, artifact.path / DROPPED_FILE, Dropped, rows, there)
    elif artifact.produces in ROWS:
        there = int(artifact.facts.get("rows", 0))
        _print_rows(console, artifact.path / ROWS_FILE, ROWS[artifact.produces], rows, there)
    elif artifact.produces == "model":
        console.print(model_view(artifact.path))
        _print_alignment(console, artifact.path / ALIGNMENT_FILE)
    elif artifact.produces == "signals":
        show_signals(console, artifact.path, rows)
    elif artifact.produces == "scores":
        console.print(score_table(scores_summary(artifact), console.width))
        _print_failed(console, artifact.path, stage)
        bar = read_json(artifact.path / "scores.json").get("bar")
        for sentence in reservations({"bars": {stage: bar}} if bar else {}):
            console.print(Text(sentence), soft_wrap=True)
    elif artifact.produces == "trial":
        console.print(_trial(artifact.path, stage))
    elif artifact.produces == "audit":
        console.print(audit_view(artifact.path))
    elif artifact.produces == "dataset":
        folder = artifact.path.resolve()
        console.print(f"To load it: datasets.load_dataset({str(folder)!r})", soft_wrap=True, markup=False)
        console.print(f"To publish it: hf upload --repo-type dataset NAME {folder}", soft_wrap=True, markup=False)
    else:
        console.print(f"To read it: {workspace.path / 'report.html'}", soft_wrap=True)


def _artifact(workspace: Workspace, stage: str) -> Artifact:
    stages = workspace.describe().stages
    if stage not in stages:
        known = families(stages)
        raise StorageError(
            str(workspace.path),
            f"this run has no stage '{stage}'{nearest(stage, [*known, *stages])}",
            f"It has: {', '.join(known)}",
        )
    artifact = find(workspace.artifacts / stages[stage].folder)
    if artifact is None:
        raise StorageError(
            str(workspace.path), f"'{stage}' is not sealed yet", f"See: potstill status {workspace.path}"
        )
    return artifact


def _family_view(workspace: Workspace, members: Mapping[str, Asked]) -> RenderableType:
    """Each member with what was counted when it was made."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, asked in members.items():
        artifact = find(workspace.artifacts / asked.folder)
        table.add_row(Text(name, "bold" if artifact else "dim"), Text(facts_line(artifact) if artifact else "not yet"))
    return table


def manifest_view(artifact: Artifact, hashes: str) -> RenderableType:
    """The manifest, and what its hashes say of the files."""
    manifest = artifact.manifest
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("stage", Text(f"{manifest['stage']} ({manifest['kind']}, makes {manifest['produces']})", "bold"))
    table.add_row("folder", Text(str(artifact.path)))
    table.add_row("key", Text(artifact.key))
    for field, inputs in manifest["inputs"].items():
        table.add_row(field, Text(", ".join(f"{source['name']} ({source['key'][:12]})" for source in inputs)))
    config = {name: value for name, value in manifest["config"].items() if name not in ("kind", *manifest["inputs"])}
    table.add_row("config", Text(_words(config)))
    facts = {name: value for name, value in artifact.facts.items() if name != "examples"}  # with --dropped
    table.add_row("facts", Text(_words(facts)))
    for name, stamp in manifest["files"].items():
        table.add_row("file", Text(f"{name}, {size(stamp['bytes'])}"))
    table.add_row("hashes", hashes)
    return table


def dropped_view(facts: Mapping[str, Any], path: Path) -> RenderableType:
    """How many rows were left out for which reason, with examples: those that the stage noted, or the first rows."""
    counts, examples = facts.get("dropped", {}), facts.get("examples") or _examples(path)
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("reason", style="yellow")
    table.add_column("rows", justify="right")
    table.add_column("such as", overflow="fold")
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        lines = []
        for row in examples.get(reason, ()):
            lines.append(Text(clean(f"{row['id']}: {row['detail']}" if row["detail"] else row["id"])))
            if "says" in row:
                lines.append(Text(clean(f"  {row['says']}"), "dim"))
        table.add_row(clean(reason), f"{count:,}", Group(*lines))
    return table


def _examples(path: Path) -> dict[str, list[dict[str, str]]]:
    """The first rows that were left out for each reason, shortened."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(path, Dropped):
        shown = found.setdefault(row.reason, [])
        if len(shown) < EXAMPLES:
            shown.append({"id": quote(row.id), "detail": quote(row.detail)})
    return found


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())


def _print_rows(console: Console, path: Path, row_type: type[Record], count: int, there: int) -> None:
    """Print the first rows of those that are there."""
    shown = 0
    for row in islice(read_rows(path, row_type), min(count, sys.maxsize)):
        console.print(row_view(row))
        shown += 1
    if count and not shown:
        console.print("There are no rows.")
    elif shown < there:
        console.print(Text(f"{shown:,} of {there:,} rows; --rows {there} shows them all", "dim"))


def row_view(row: Record) -> RenderableType:
    """One row, readable."""
    title = getattr(row, "id", "")
    category = getattr(row, "category", "") or getattr(getattr(row, "prompt", None), "category", "")
    head = Rule(Text(clean(f"{title}  {category}".strip())), align="left", style="dim")
    return Group(head, *_body(row), Text())


def _body(row: Record) -> Iterator[RenderableType]:
    match row:
        case TextRecord():
            yield _text(row.text)
        case Chat():
            yield from _turns(row.messages)
        case Prompt():
            yield from _turns(row.messages)
            yield from _labelled("then", row.follow_ups, "cyan")
            yield from _labelled("reference", row.references, "yellow")
        case Answers():
            yield from _turns(row.prompt.messages)
            for candidate in row.candidates:
                yield from _candidate(candidate)
        case Pair():
            yield from _turns(row.prompt)
            yield _side_by_side(row)
        case Feedback():
            yield from _turns(row.prompt)
            yield Text("desirable", "green") if row.desirable else Text("not desirable", "red")
            yield from _turns(row.answer)
        case Dropped():
            yield Text.assemble((row.reason, "yellow"), f"  {clean(row.detail)}")
            yield from _turns(row.chat.messages if row.chat else ())


def _turns(messages: Sequence[Message]) -> Iterator[RenderableType]:
    for message in messages:
        label = message.role if message.train else f"{message.role} (not learnt)"
        yield Text(label, STYLES[message.role])
        yield _text(message.content)
        yield from _labelled("calls", [f"{call.name}({call.arguments})" for call in message.tool_calls], "yellow")


def _labelled(label: str, texts: Sequence[str], style: str) -> Iterator[RenderableType]:
    for text in texts:
        yield Text(label, style)
        yield _text(text)


def _candidate(candidate: Candidate) -> Iterator[RenderableType]:
    ended = "" if candidate.finish == "stop" else f"  {candidate.finish}: {candidate.reason}"
    yield Text.assemble((clean(candidate.model), "bold green"), (clean(ended), "red"))
    yield _text(candidate.text)
    for rating in candidate.ratings:
        score = _without_score(rating) if rating.score is None else number(rating.score)
        who = f" by {clean(rating.judge)}" if rating.judge else ""
        why = rating.rationale.removeprefix(f"{score}:").lstrip() if rating.score is None else rating.rationale
        line = Text.assemble((f"{rating.aspect} {score}{who}", "yellow"), (f"  {clean(why)}", "dim"))
        yield Padding(line, (0, 0, 0, 4))


def _without_score(rating: Rating) -> str:
    """What stands in place of a score: the judge said that none applies, was not understood, or contradicted itself."""
    return UNREAD if is_unread(rating) else INCONSISTENT if is_inconsistent(rating) else NOT_APPLICABLE


def _side_by_side(pair: Pair) -> RenderableType:
    table = Table(box=None, padding=(0, 2), pad_edge=False, expand=True)
    for label, score, style in (
        ("chosen", pair.chosen_score, "green"),
        ("rejected", pair.rejected_score, "red"),
    ):
        table.add_column(Text(label if score is None else f"{label}, {number(score)}", style), ratio=1, overflow="fold")
    sides = zip(pair.chosen, pair.rejected, strict=False)
    for chosen, rejected in sides:
        table.add_row(_cut(chosen.content), _cut(rejected.content))
    return table


def _text(text: str) -> RenderableType:
    return Padding(_cut(text), (0, 0, 0, 2))


def _cut(text: str) -> Text:
    """A text as far as a screen bears it."""
    more = len(text) - LONGEST_TEXT
    return Text.assemble(clean(text[:LONGEST_TEXT]), (f" … {more:,} characters more" if more > 0 else "", "dim"))


def _print_alignment(console: Console, path: Path) -> None:
    """Of a student taught across tokenizers: which tokens of a row, its own and its teacher's, are the same bytes."""
    if path.exists():
        console.print()
        console.print(Rule(Text("which tokens of the first row are the same text"), align="left", style="dim"))
        console.print(Text("\n".join(clean(line) for line in path.read_text(encoding="utf-8").splitlines())))


def model_view(path: Path) -> RenderableType:
    """A model's shape, its size, and where its curves ended."""
    config = read_json(path / "config.json")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("architecture", ", ".join(config.get("architectures") or ["?"]))
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        if name in config:
            table.add_row(name.removeprefix("num_").replace("_", " "), number(config[name]))
    table.add_row("parameters", f"{parameters(path):,}")
    for split, points in _curves(path).items():
        last = {name: value for name, value in points[-1].items() if name not in ("step", "split")}
        figures = ", ".join(f"{name.replace('_', ' ')} {number(float(value))}" for name, value in last.items())
        losses = [float(point["loss"]) for point in points if "loss" in point]
        table.add_row(split.replace("_", " "), f"{sparkline(losses)}  at step {points[-1]['step']}: {figures}")
    return table


def parameters(path: Path) -> int:
    """How many numbers a model's safetensors files hold, read from their headers alone."""
    count = 0
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        count += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count


def _curves(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The points of curves.jsonl by split."""
    splits: dict[str, list[dict[str, Any]]] = {}
    file = path / "curves.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        point = json.loads(line)
        splits.setdefault(point["split"], []).append(point)
    return splits


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve in one line of text."""
    if not values:
        return ""
    picked = (
        [values[i * (len(values) - 1) // max(width - 1, 1)] for i in range(width)] if len(values) > width else values
    )
    low, high = min(picked), max(picked)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in picked)


def _trial(path: Path, stage: str) -> RenderableType:
    found = judge_table(stage, read_json(path / TRIAL_FILE))
    table = Table(box=None, padding=(0, 2), pad_edge=False, caption=found.note, caption_justify="left")
    for head in ("", *found.judges):
        table.add_column(Text(clean(head), "bold"), justify="left" if not head else "right")
    for label, cells in found.rows:
        table.add_row(label, *(Text.assemble(mean, (f"  {span}" if span else "", "dim")) for mean, span in cells))
    return table


def audit_view(path: Path) -> RenderableType:
    """Each danger: the verdicts, the sentence, and the table."""
    parts: list[RenderableType] = []
    for found in danger_tables(read_json(path / "audit.json")):
        verdicts = Text("  ".join(f"{MARKS[word]} {clean(model)}: {word}" for model, word in found.verdicts))
        parts += [Rule(Text(found.title, "bold"), align="left", style="dim"), verdicts, Text(clean(found.sentence))]
        if found.rows:
            table = Table(box=None, padding=(0, 2), pad_edge=False)
            for head in found.columns:
                table.add_column(Text(clean(head), "bold"), overflow="fold")
            for row in found.rows:
                table.add_row(*(Text.assemble(clean(mean), (f"  {ends}" if ends else "", "dim")) for mean, ends in row))
            parts.append(table)
        parts += [*(Text(clean(note), "dim") for note in found.notes), Text()]
    return Group(*parts)


def _print_failed(console: Console, path: Path, stage: str) -> None:
    """The judgments that could not be read: how many, the first of them, and how they are asked for once more."""
    with (path / ANSWERS_FILE).open(encoding="utf-8") as file:
        found = failed_judgments(json.loads(line) for line in file)
    if not found["failed"]:
        return
    console.print()
    console.print(Text(f"{told_failures(found)}.", "yellow"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for head in ("suite", "model", "question", "turn", "why", "the judge said"):
        table.add_column(head, overflow="fold")
    for one in found["examples"]:
        said = " ".join(one["judgment"].split())
        cells = (one["suite"], one["model"], one["id"], str(one["turn"]), one["reason"], said or "nothing")
        table.add_row(*(Text(clean(cell)) for cell in cells))
    console.print(table)
    name = read_member(stage).family
    line = f"To ask for these once more, and for nothing else: potstill run RECIPE {name}.ask_again=1"
    console.print(Text(line, "dim"), soft_wrap=True)


def scores_summary(artifact: Artifact) -> dict[str, Any]:
    """What a stage that evaluates measured, in the form of a report's summary."""
    scores = read_json(artifact.path / "scores.json")
    notes = artifact.facts.get("notes", {})
    suites = {
        name: noted({**suite, **suite.get("pooled", {})}, name, notes) for name, suite in scores["suites"].items()
    }
    return {
        "models": list(pools(scores["models"])),
        "measures": suites,
        "scores": {name: suite["models"] for name, suite in suites.items()},
        "paired": {name: suite["paired"] for name, suite in suites.items()},
    }
