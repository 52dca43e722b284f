"""Stage `import`: rows from a file or from the Hugging Face Hub, in any published shape, as potstill's own records."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from potstill.artifact import ROWS_FILE
from potstill.curation.decontaminate import keeping_out
from potstill.errors import DataError
from potstill.formats import Line, Row, examine, interpret
from potstill.records import ROWS, Answers, Chat, Dropped, Feedback, Message, Pair, Prompt, Record, Text
from potstill.shapes import SHAPES
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Reference, Stage, StageConfig, Work

Shape = Literal[
    "auto",
    "answers",
    "pairs",
    "ultrafeedback",
    "messages",
    "sharegpt",
    "seed_tasks",
    "alpaca",
    "mt_bench",
    "problems",
    "feedback",
    "prompts",
    "ultrachat",
    "texts",
]


class Import(StageConfig):
    """Read rows that others made."""

    kind: Literal["import"]
    path: Annotated[str | None, Reference(tuple(ROWS))] = None
    """A file (.jsonl, .json, .txt, .parquet; all but the last also as .gz), or a stage whose rows become others."""
    hub: str | None = None
    """A dataset on the Hugging Face Hub, instead of a path. Needs potstill[hub]."""
    revision: str | None = None
    """The Hub dataset's commit, so that it cannot change under a recipe."""
    subset: str | None = None
    """The Hub dataset's configuration, where it has several."""
    split: str = "train"
    """The Hub dataset's split."""
    rows: Literal["texts", "prompts", "chats", "answers", "ratings", "pairs", "feedback"]
    """What to make of them. A chat also makes a prompt (its first turn) or a text; feedback is one
    answer with a label that is true or false (KTO)."""
    format: Shape = "auto"
    """The shape of the rows; auto tells it from the first row's columns."""
    shuffle: int | None = None
    """Shuffle with this seed, before skip and limit: two stages with the same seed can cut apart the same file."""
    skip: int = Field(default=0, ge=0, le=1_000_000_000_000)
    """Leave out this many rows at the beginning."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000_000)
    """Take no more than this many rows."""
    decontaminate: Annotated[str | tuple[str, ...], Reference(("prompts", "chats", "pairs"))] = ()
    """Rows held out for evaluation: a row in which the user says one of their prompts again is left out, before skip
    and limit. So a second stage takes from the same file what the first did not."""
    overlap_words: int = Field(default=13, ge=5)
    """How many words in a row, shared with a prompt held out, count as repeating it."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """skip keeps a bad row's place and reason among the dropped ones, and goes on."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either a path or a hub dataset")
        if self.hub is None and (self.revision or self.subset):
            raise ValueError("revision and subset belong to a hub dataset")
        if self.decontaminate and self.rows == "texts":
            raise ValueError("texts have no user turns to decontaminate; do it where the chats are imported")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        left = max(0, rows.get("path", self.limit or 0) - self.skip)
        return Expected(rows=left if self.limit is None else min(left, self.limit))


def run(config: Import, inputs: Inputs, work: Work) -> Facts:
    """Read, shuffle, cut, and keep aside what cannot be used."""
    dropped: list[Dropped] = []
    records = _good(config, inputs, dropped)
    if config.shuffle is not None:
        order = list(records)
        random.Random(config.shuffle).shuffle(order)
        records = iter(order)
    end = None if config.limit is None else config.skip + config.limit
    count = work.keep(_counted(islice(records, config.skip, end), work))
    work.drop(dropped)
    if count == 0:
        where = config.hub or inputs.one("path").name
        raise DataError(where, f"no row is left to make {config.rows} of", "See to the file, or to skip and limit")
    return {"rows": count, "dropped": dict(sorted(Counter(row.reason for row in dropped).items()))}


def _good(config: Import, inputs: Inputs, dropped: list[Dropped]) -> Iterator[Record]:
    """The rows that can be used; the others go to `dropped`."""
    held_out = keeping_out(config.overlap_words, inputs.data.get("decontaminate", ()))
    for row in _read(config, inputs):
        if row.record is None:
            assert row.error is not None
            if config.on_bad_row == "refuse":
                raise row.error
            dropped.append(Dropped(id=f"line-{row.number}", reason="bad_row", detail=row.error.what))
        elif overlap := held_out.find(_messages(row.record)):
            dropped.append(Dropped(id=row.record.id, reason="contaminated", detail=f"{overlap[0]}: {overlap[1]}"))
        else:
            yield row.record


def _messages(row: Text | Prompt | Chat | Answers | Pair | Feedback) -> tuple[Message, ...]:
    """Where its user speaks."""
    if isinstance(row, Text):
        return ()
    if isinstance(row, Answers):
        return row.prompt.messages
    return row.prompt if isinstance(row, Pair | Feedback) else row.messages


def _read(config: Import, inputs: Inputs) -> Iterator[Row[Any]]:
    row_type = ROWS[config.rows]
    if config.hub is not None:
        return interpret(_hub(config), row_type, config.hub, config.hub.split("/")[-1], config.format)
    data = inputs.one("path")
    return examine(data.path if data.kind == "file" else data.path / ROWS_FILE, row_type, config.format)


def _hub(config: Import) -> Iterator[Line]:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            str(config.hub), "reading from the Hub needs datasets", "pip install 'potstill[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(config.hub, config.subset, split=config.split, revision=config.revision)
    except Exception as error:  # the library raises dozens of kinds: no such name, no network, no access, a bad script
        remedy = "Check the name, subset, split, revision, and the network"
        raise DataError(str(config.hub), f"the dataset cannot be loaded: {error}", remedy) from error
    for number, value in enumerate(rows, start=1):
        yield Line(number, value)


def _counted(rows: Iterator[Record], work: Work) -> Iterator[Record]:
    for done, row in enumerate(rows, start=1):
        yield row
        work.progress(done, 0, "rows")


assert set(SHAPES) | {"auto"} == set(Shape.__args__), "every shape can be named"  # type: ignore[attr-defined]
STAGE = Stage(config=Import, produces=lambda config: str(config.rows), run=run)
