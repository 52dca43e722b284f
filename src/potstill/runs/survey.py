"""A run at a glance: every stage with its state, what it made, took and cost. For pages; `status` prints its own."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from potstill.artifact import Artifact, find
from potstill.errors import PotstillError
from potstill.members import families, spoken
from potstill.runs.progress import Progress, read_progress
from potstill.runs.workspace import Asked, Description, Took, Workspace
from potstill.teachers.journal import JOURNAL, Journal

State = Literal["sealed", "running", "waiting", "failed", "damaged", "stopped"]
STATES: tuple[State, ...] = ("running", "failed", "damaged", "stopped", "waiting", "sealed")
"""The first that a member of a family is in is the family's."""


@dataclass(frozen=True)
class Spent:
    """What replies came to."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True)
class StageView:
    """One stage, or a family of stages as one."""

    name: str
    kind: str
    produces: str
    state: State
    reads: tuple[str, ...]
    """Of these, as the view that holds it names them."""
    why: str = ""
    """What is wrong, where something is."""
    artifact: Artifact | None = None
    rows: int | None = None
    dropped: int = 0
    seconds: float | None = None
    spent: Spent = field(default_factory=Spent)
    members: tuple[str, ...] = ()
    """Of a family: its stages."""
    differ: str = ""
    """Of a family: what they differ in."""
    sealed_members: int = 0
    progress: Progress | None = None
    """Of the stage that runs."""


@dataclass(frozen=True)
class Survey:
    """A run. `stages` in the order they run in; `nodes` the same with families folded."""

    path: Path
    described: Description
    stages: Mapping[str, StageView]
    nodes: Mapping[str, StageView]
    holder: int
    """The process that works in the folder, or 0."""
    progress: Progress | None
    spent: Spent
    notes: tuple[str, ...]
    """What of the run could not be read."""

    @property
    def running(self) -> StageView | None:
        """The stage that runs now."""
        return next((one for one in self.stages.values() if one.state == "running"), None)

    @property
    def seconds(self) -> float:
        """Of all stages that are sealed."""
        return sum(one.seconds or 0.0 for one in self.stages.values())

    def readers(self, stage: str) -> list[str]:
        """The stages that read this one."""
        return [name for name, one in self.stages.items() if stage in one.reads]

    def sealed(self, produces: str) -> list[StageView]:
        """The stages that made such a thing."""
        return [one for one in self.stages.values() if one.artifact is not None and one.produces == produces]


def survey(workspace: Workspace) -> Survey:
    """Look at a run. StorageError where its description cannot be read; what else is damaged is told of its stage."""
    described, times, holder = workspace.describe(), workspace.times(), workspace.holder()
    progress, notes = read_progress(workspace.path), list[str]()
    spent = _spent(workspace.path / JOURNAL, notes)
    stages: dict[str, StageView] = {}
    for name, asked in described.stages.items():
        stages[name] = _stage(name, asked, workspace, times, holder, progress)
    by_family = families(stages)
    nodes = {
        family: _node(family, [stages[name] for name in names], by_family, spent) for family, names in by_family.items()
    }
    stages = {name: _with_spent(one, spent.get(name)) for name, one in stages.items()}
    whole = Spent(*(sum(getattr(one, part) for one in spent.values()) for part in ("calls", "tokens", "usd")))
    return Survey(workspace.path, described, stages, nodes, holder, progress, whole, tuple(notes))


def _stage(
    name: str, asked: Asked, workspace: Workspace, times: Mapping[str, Took], holder: int, progress: Progress | None
) -> StageView:
    artifact, why = None, ""
    try:
        artifact = find(workspace.artifacts / asked.folder)
    except PotstillError as error:
        why = str(error)
    here = progress if progress is not None and progress.stage == name else None
    runs = bool(holder) and here is not None and here.state == "running"
    state: State = "sealed" if artifact else "damaged" if why else "running" if runs else _unsealed(here)
    facts = artifact.facts if artifact else {}
    took = times.get(artifact.key) if artifact else None
    reads = tuple(asked.reads) or tuple(_read_by_manifest(artifact, name))
    return StageView(
        name, asked.kind, asked.produces, state, reads,
        why=why, artifact=artifact, rows=_count(facts.get("rows")), dropped=_dropped(facts),
        seconds=took.seconds if took else None, progress=here if runs else None,
    )  # fmt: skip


def _unsealed(here: Progress | None) -> State:
    if here is None:
        return "waiting"
    return "failed" if here.state == "failed" else "stopped"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _dropped(facts: Mapping[str, object]) -> int:
    counts = facts.get("dropped")
    return sum(n for n in counts.values() if isinstance(n, int)) if isinstance(counts, dict) else 0


def _read_by_manifest(artifact: Artifact | None, name: str) -> Iterator[str]:
    """What an artifact was made from, for runs whose description does not say it."""
    inputs = artifact.manifest["inputs"] if artifact else {}
    yield from dict.fromkeys(source["name"] for group in inputs.values() for source in group if source["name"] != name)


def _node(
    family: str, members: list[StageView], known: Mapping[str, list[str]], spent: Mapping[str, Spent]
) -> StageView:
    """A family as one; a plain stage as it is, what it reads by families."""
    home = {name: node for node, names in known.items() for name in names}
    reads = tuple(dict.fromkeys(home.get(name, name) for one in members for name in one.reads if name in home))
    first, names = members[0], tuple(one.name for one in members)
    if names == (family,):
        return _with_spent(StageView(**{**vars(first), "reads": reads}), spent.get(family))
    rows = [one.rows for one in members if one.rows is not None]
    took = [one.seconds for one in members if one.seconds is not None]
    return StageView(
        family, first.kind, first.produces, min((one.state for one in members), key=STATES.index), reads,
        why=next((one.why for one in members if one.why), ""), rows=sum(rows) if rows else None,
        dropped=sum(one.dropped for one in members), seconds=sum(took) if took else None,
        spent=spent.get(family, Spent()), members=names, differ=spoken(names),
        sealed_members=sum(one.state == "sealed" for one in members),
        progress=next((one.progress for one in members if one.progress), None),
    )  # fmt: skip


def _with_spent(one: StageView, spent: Spent | None) -> StageView:
    return one if spent is None else StageView(**{**vars(one), "spent": spent})


def _spent(path: Path, notes: list[str]) -> dict[str, Spent]:
    """By family."""
    found: dict[str, Spent] = {}
    if not path.exists():
        return found
    try:
        with contextlib.closing(Journal(path, read_only=True)) as journal:
            totals = journal.totals()
    except PotstillError as error:
        notes.append(str(error))
        return found
    for total in totals:
        before = found.get(total.stage, Spent())
        tokens = total.prompt_tokens + total.completion_tokens
        found[total.stage] = Spent(before.calls + total.calls, before.tokens + tokens, before.usd + total.usd)
    return found
