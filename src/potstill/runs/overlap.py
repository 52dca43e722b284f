"""Nothing is scored on what it was trained on: training and evaluation rows that ask the same are refused.

Exact and cheap: a question that is evaluated on overlaps with a training row whose user says the very same words, case
and punctuation aside, in any turn; a dialogue or a pair that is scored does where the user's turns begin with all of
its own. What is only alike is for `curate` to find, which has runs of words for it (decontaminate).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from potstill.artifact import Artifact
from potstill.curation.decontaminate import Words, words
from potstill.errors import DataError, RecipeError
from potstill.recipe.references import Link
from potstill.records import ROWS, Chat, Feedback, Message, Pair, Prompt, Record
from potstill.runs.plan import Plan, Step
from potstill.sources import Data

Turns = tuple[Words, ...]


class Held(NamedTuple):
    """A row that is evaluated on."""

    stage: str
    data: str
    row: str


@dataclass(frozen=True)
class _Source:
    """Rows that a stage reads, and of which type they are."""

    data: Data
    row_type: type[Record]

    def turns(self) -> Iterator[tuple[str, Turns]]:
        """Each row's id and what its user says."""
        for row in self.data.rows(self.row_type):
            yield getattr(row, "id", ""), _turns(row)
            if isinstance(row, Prompt) and row.counterpart:
                yield row.id, (words(row.counterpart),)


def refuse_shared(plan: Plan) -> None:
    """Before anything is run: RecipeError where a stage would be scored on the very rows that it is trained on."""
    produces = {name: step.entry.produces for name, step in plan.steps.items()}
    for scoring in filter(_scores, plan.steps.values()):
        held = dict(_named(scoring, produces))
        for name in _reads(plan, scoring):
            step = plan.steps[name]
            trained = dict(_named(step, produces)) if step.entry.stage.trains else {}
            for rows in trained.keys() & held.keys():
                raise RecipeError(
                    held[rows].place,
                    f"'{scoring.name}' evaluates on '{held[rows].name}', which '{name}' trains on",
                    "Evaluate on rows that are kept apart, such as another part of them in a file of its own",
                )


def refuse_overlap(plan: Plan, step: Step, sealed: Mapping[str, Artifact]) -> None:
    """Before a stage trains or scores: DataError where it would be scored on rows that it was trained on.

    A stage that trains is compared with those evaluation rows of the plan that are at hand by then; a stage that scores
    with all that its models were trained on.
    """
    if step.entry.stage.trains:
        trained = [step]
        scoring = [other for other in plan.steps.values() if _scores(other) and step.name in _reads(plan, other)]
    elif _scores(step):
        trained = [plan.steps[name] for name in _reads(plan, step) if plan.steps[name].entry.stage.trains]
        scoring = [step]
    else:
        return
    held: dict[Turns, Held] = {}
    for one in scoring:
        for source in _sources(one, sealed):
            for name, turns in source.turns():
                if turns and any(turns):
                    held.setdefault(turns, Held(one.name, source.data.name, name))
    if held:
        for one in trained:
            _compare(one, sealed, held)


def _compare(step: Step, sealed: Mapping[str, Artifact], held: Mapping[Turns, Held]) -> None:
    lengths = sorted({len(turns) for turns in held})
    for source in _sources(step, sealed):
        found: tuple[str, Held] | None = None
        count = 0
        for name, turns in source.turns():
            met = next((held[asked] for asked in _asked(turns, lengths) if asked in held), None)
            if met is not None:
                count += 1
                found = found or (name, met)
        if found is not None:
            name, met = found
            raise DataError(
                source.data.name,
                f"'{step.name}' trains on {count} rows that '{met.stage}' evaluates on; the first is '{name}', which "
                f"asks what '{met.row}' of '{met.data}' asks",
                "Curate it with decontaminate: evaluations, or evaluate on other rows",
            )


def _asked(turns: Turns, lengths: Sequence[int]) -> Iterator[Turns]:
    """What of a training row's turns may be a row that is evaluated on: any single one, and how it begins."""
    yield from ((turn,) for turn in turns)
    yield from (turns[:length] for length in lengths if 1 < length <= len(turns))


def _scores(step: Step) -> bool:
    return step.entry.produces == "scores"


def _reads(plan: Plan, step: Step) -> list[str]:
    """Every stage that this one stands on."""
    found: dict[str, None] = {}
    waiting = list(step.entry.reads)
    while waiting:
        name = waiting.pop()
        if name not in found and name in plan.steps:
            found[name] = None
            waiting += plan.steps[name].entry.reads
    return list(found)


def _sources(step: Step, sealed: Mapping[str, Artifact]) -> Iterator[_Source]:
    """The rows that a step names and that are at hand: files, and what is sealed."""
    for link, kind in _spoken(step, {name: artifact.produces for name, artifact in sealed.items()}):
        if link.file is not None:
            yield _Source(Data(link.label, "file", link.file), ROWS[kind])
        else:
            yield _Source(Data(link.stage, kind, sealed[link.stage].path), ROWS[kind])


def _named(step: Step, produces: Mapping[str, str]) -> Iterator[tuple[str, Link]]:
    """The rows that a step names, by the stage that makes them or the file that holds them."""
    for link, _ in _spoken(step, produces):
        yield str(link.file) if link.file is not None else link.stage, link


def _spoken(step: Step, produces: Mapping[str, str]) -> Iterator[tuple[Link, str]]:
    """Every link to rows in which somebody speaks, and their kind; of stages, those whose products are known."""
    accepts = {slot.field: slot.accepts for slot in step.entry.slots}
    for link in step.entry.links:
        kind = produces.get(link.stage)
        if link.file is not None:
            kind = next((kind for kind in accepts[link.field] if kind in ROWS), None)
        if kind is not None and ROWS.get(kind) in (Prompt, Chat, Pair, Feedback):
            yield link, kind


def _turns(row: Record) -> Turns:
    """What the user says, as words."""
    messages: Sequence[Message] = ()
    match row:
        case Prompt() | Chat():
            messages = row.messages
        case Pair() | Feedback():
            messages = row.prompt
    return tuple(words(message.content) for message in messages if message.role == "user")
