"""Stage `import`: rows from a file or from the Hugging Face Hub, in any published shape, as potstill's own records."""

import difflib
import random
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from potstill.artifact import ROWS_FILE
from potstill.curation.decontaminate import keeping_out
from potstill.errors import DataError
from potstill.reading.files import Line, read_lines
from potstill.reading.formats import SNIFFED, Reading, Row, glance, interpret, sniff, stem
from potstill.reading.found import BAD_ROW
from potstill.reading.shapes import COLUMNS, SHAPES
from potstill.records import ROWS, Answers, Chat, Dropped, Feedback, Message, Pair, Prompt, Record, Text
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Harvest, Reference, Stage, StageConfig, Trial, Work

Shape = Literal[
    "auto",
    "answers",
    "openai_preference",
    "pairs",
    "ultrafeedback",
    "pandalm",
    "alpaca_eval_annotations",
    "arena",
    "shp",
    "xlam",
    "ranked",
    "generations",
    "oasst",
    "mt_bench_judgments",
    "mt_bench_answers",
    "openai_batch",
    "messages",
    "sharegpt",
    "seed_tasks",
    "alpaca_eval",
    "alpaca",
    "mt_bench",
    "paired",
    "problems",
    "feedback",
    "helpsteer",
    "prompts",
    "ultrachat",
    "texts",
]


class Import(StageConfig):
    """Read rows that others made."""

    WHOLE = frozenset({"questions"})
    HOW = frozenset({"expected_rows", "expected_row_tokens"})

    kind: Literal["import"]
    path: Annotated[str | None, Reference(tuple(ROWS))] = None
    """A file, a folder of files or a pattern such as data/train-*.parquet; or a stage whose rows become others. Files
    are .jsonl, .json, .csv, .tsv or .txt, also compressed (.gz, .bz2, .xz, .zst), or .parquet, .arrow or .feather."""
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
    """The shape of the rows; auto tells it from the columns of the first rows, and the facts say which it was."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where the file's columns have other names than a shape knows: {prompt: question_text, chosen: answers.good}."""
    questions: Annotated[str | None, Reference(("prompts",))] = None
    """The prompts that rows name by id only: MT-Bench's questions for its answers, a batch's input for its output."""
    shuffle: int | None = None
    """Shuffle with this seed, before skip and limit: two stages with the same seed can cut apart the same file."""
    skip: int = Field(default=0, ge=0, le=1_000_000_000_000)
    """Leave out this many rows at the beginning."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000_000)
    """Take no more than this many rows."""
    expected_rows: int | None = Field(default=None, ge=1)
    """How many rows the source is known to have, so that a plan can tell what follows where nothing is at hand to
    count, as of a Hub dataset. It changes no result."""
    expected_row_tokens: int | None = Field(default=None, ge=1)
    """How many tokens a row is known to have, prompt and answers together, so that a plan need not guess them either.
    It changes no result."""
    decontaminate: Annotated[str | tuple[str, ...], Reference(("prompts", "chats", "pairs"))] = ()
    """Rows held out for evaluation: a row in which the user says one of their prompts again is left out, before skip
    and limit. So a second stage takes from the same file what the first did not."""
    overlap_words: int = Field(default=13, ge=5)
    """How many words in a row, shared with a prompt held out, count as repeating it."""
    licence: str = ""
    """Under what licence the rows may be used, for whoever publishes what is made of them; see the stage `export`."""
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

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMNS:
                raise ValueError(f"no shape knows a column '{name}'{_near(name)}; expected one of {', '.join(COLUMNS)}")
        return columns

    def extras(self) -> tuple[str, ...]:
        return () if self.hub is None else ("hub",)

    def glance(self, field: str, accepts: Sequence[str], path: Path) -> None:
        if field != "path":
            super().glance(field, accepts, path)
        elif self.questions is None:  # with them, what a row can be is known only once they are read
            glance(path, [ROWS[self.rows]], Reading(self.format, self.columns))

    def extrapolate(self, rows: Mapping[str, int], trial: Trial) -> Expected:
        """What a trial says of it is nothing: it reads the file whole, however few rows are asked for."""
        return self.expect(rows)

    def expect(self, rows: Mapping[str, int]) -> Expected:
        left = max(0, (rows.get("path") or self.expected_rows or self.limit or 0) - self.skip)
        count = left if self.limit is None else min(left, self.limit)
        return Expected(rows=count, tokens_per_row=self.expected_row_tokens)


def run(config: Import, inputs: Inputs, work: Work) -> Facts:
    """Read, shuffle, cut, and keep aside what cannot be used."""
    reader = _Reader(config, inputs)
    with work.harvest() as harvest, tempfile.TemporaryFile(dir=work.path) as spool:
        records = _good(config, inputs, reader, harvest)
        if config.shuffle is not None:
            records = _shuffled(records, config.shuffle, ROWS[config.rows], spool)
        end = None if config.limit is None else config.skip + config.limit
        count = harvest.keep_all(_counted(islice(records, config.skip, end), work))
    if count == 0:
        where = config.hub or inputs.one("path").name
        raise DataError(where, f"no row is left to make {config.rows} of", "See to the file, or to skip and limit")
    return {"rows": count, "dropped": harvest.reasons, "shape": reader.shape}


def _shuffled(records: Iterator[Record], seed: int, row_type: type[Record], spool: IO[bytes]) -> Iterator[Record]:
    """The records in a random order. Only where each begins is held; they wait on the disk."""
    begins = array("Q")
    for record in records:
        begins.append(spool.tell())
        spool.write(record.to_line().encode())
    random.Random(seed).shuffle(begins)
    for begin in begins:
        spool.seek(begin)
        yield row_type.model_validate_json(spool.readline())


def _good(config: Import, inputs: Inputs, reader: "_Reader", harvest: Harvest) -> Iterator[Record]:
    """The rows that can be used; the others are dropped."""
    held_out = keeping_out(config.overlap_words, inputs.data.get("decontaminate", ()))
    for row in reader.rows():
        if row.record is None:
            assert row.error is not None
            if row.reason == BAD_ROW and config.on_bad_row == "refuse":
                raise row.error
            harvest.drop(Dropped(id=row.name, reason=row.reason, detail=row.error.what))
        elif overlap := held_out.find(_messages(row.record)):
            harvest.drop(Dropped(id=row.record.id, reason="contaminated", detail=f"{overlap[0]}: {overlap[1]}"))
        else:
            yield row.record


class _Reader:
    """The rows of the source, and the shape that they were read in."""

    def __init__(self, config: Import, inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        self.shape: str = config.format

    def rows(self) -> Iterator[Row[Any]]:
        """Each as a record, or as what is wrong with it."""
        config, hub = self._config, self._config.hub
        lines: Iterator[Line]
        asked = {row.id: row for data in self._inputs.data.get("questions", ()) for row in data.rows(Prompt)}
        if hub is not None:
            lines, where, name = _hub(config), hub, hub.split("/")[-1]
        else:
            data = self._inputs.one("path")
            path = data.path if data.kind == "file" else data.path / ROWS_FILE
            lines, where, name = read_lines(path), str(path), stem(path)
        if self.shape == "auto":
            first = list(islice(lines, SNIFFED))
            self.shape = sniff(first, where, Reading(columns=config.columns))
            lines = chain(first, lines)
        return interpret(lines, ROWS[config.rows], where, name, Reading(self.shape, config.columns, asked or None))


def _messages(row: Text | Prompt | Chat | Answers | Pair | Feedback) -> tuple[Message, ...]:
    """Where its user speaks."""
    if isinstance(row, Text):
        return ()
    if isinstance(row, Answers):
        return row.prompt.messages
    return row.prompt if isinstance(row, Pair | Feedback) else row.messages


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


def _near(name: str) -> str:
    close = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _counted(rows: Iterator[Record], work: Work) -> Iterator[Record]:
    for done, row in enumerate(rows, start=1):
        yield row
        work.progress(done, 0, "rows")


assert set(SHAPES) | {"auto"} == set(Shape.__args__), "every shape can be named"  # type: ignore[attr-defined]
STAGE = Stage(config=Import, produces=lambda config: str(config.rows), run=run, version=3)
