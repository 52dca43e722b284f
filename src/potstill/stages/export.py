"""Stage `export`: rows as a folder that `datasets.load_dataset` reads and the Hub shows, with a card of how they came.

The columns are those that everybody's libraries take: messages; prompt, chosen and rejected; prompt, completion and
label; prompt; text. The card is drawn from the manifests of all stages before it.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from potstill.artifact import storage_errors
from potstill.cards.card import Card, render
from potstill.errors import DataError
from potstill.layouts import Layout, Used, arrow_schema, columns_of, features, fit, layout_of, to_line
from potstill.lineage import ancestry
from potstill.reading.files import NEEDS_ARROW
from potstill.records import ROWS
from potstill.sources import Data, Inputs
from potstill.stages.base import Facts, Reference, Stage, StageConfig, Work

ROW_GROUP = 1000


class Export(StageConfig):
    """Write rows as a dataset for others."""

    kind: Literal["export"]
    splits: dict[str, Annotated[str, Reference(tuple(ROWS))]] = Field(min_length=1)
    """What to write: {train: curated, test: held_out}. Stages that make one kind of rows."""
    title: str = Field(default="Dataset", min_length=1, max_length=200)
    """The dataset's name on its card."""
    licence: str = Field(default="other", min_length=1, max_length=100)
    """Its licence, as the Hub abbreviates it: apache-2.0, cc-by-4.0. What the card says is what you say here."""
    language: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")], ...] = ()
    """The languages in it, by their codes: [en, de]."""
    notes: str = Field(default="", max_length=10_000)
    """What else its readers should know."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """Parquet is what the Hub shows best, and needs pyarrow, which potstill[hub] brings."""
    rows_per_file: int = Field(default=100_000, ge=1)
    """Where a split is cut into files."""

    @field_validator("splits")
    @classmethod
    def _plain_names(cls, splits: dict[str, str]) -> dict[str, str]:
        for name in splits:
            if not (name.isidentifier() and name.isascii()) or name == "all":
                raise ValueError(f"the split '{name}' has no plain name; expected one such as train or test")
        return splits

    def glance(self, field: str, accepts: Any, path: Path) -> None:
        raise DataError(path.name, "it is a file; expected a stage", "Name an import stage that reads it")


def run(config: Export, inputs: Inputs, work: Work) -> Facts:
    """Look which columns are needed, write the splits, and the card."""
    splits = {name: inputs.one(f"splits.{name}") for name in config.splits}
    kinds = {data.kind for data in splits.values()}
    if len({ROWS[kind] for kind in kinds}) > 1:
        told = ", ".join(f"{name} holds {data.kind}" for name, data in splits.items())
        raise DataError("splits", f"{told}; expected one kind of rows", "Export each kind in a stage of its own")
    kind = sorted(kinds)[-1]  # ratings are answers too
    used = Used(layout_of(ROWS[kind]))
    counts = dict.fromkeys(splits, 0)
    for name, data in splits.items():
        for row in _columns(data):
            used.look(row)
            counts[name] += 1
    layout, total, done = used.layout(), sum(counts.values()), 0
    (work.path / "data").mkdir()
    for name, data in splits.items():
        rows = (fit(row, layout) for row in _columns(data))
        shards = max(1, -(-counts[name] // config.rows_per_file))
        for shard in range(shards):
            path = work.path / "data" / f"{name}-{shard:05}-of-{shards:05}.{config.format}"
            with storage_errors(path):
                done += _write(path, islice(rows, config.rows_per_file), layout)
            work.progress(done, total, "rows")
    card = Card(
        config.title, kind, config.licence, config.language, config.notes, counts, features(layout), config.format
    )
    text = render(card, ancestry(data.path for data in splits.values()))
    with storage_errors(work.path):
        (work.path / "README.md").write_text(text, encoding="utf-8")
    return {"rows": total, "splits": counts, "columns": list(layout), "holds": kind}


def _columns(data: Data) -> Iterator[dict[str, Any]]:
    return (columns_of(row) for row in data.rows(ROWS[data.kind]))


def _write(path: Path, rows: Iterator[dict[str, Any]], layout: dict[str, Layout]) -> int:
    """Returns how many."""
    count = 0
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(to_line(row))
                count += 1
        return count
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("format", "writing Parquet needs pyarrow", f"{NEEDS_ARROW}, or choose jsonl") from error
    schema = arrow_schema(layout, pyarrow)
    with parquet.ParquetWriter(path, schema) as out:
        while group := list(islice(rows, ROW_GROUP)):
            out.write_table(pyarrow.Table.from_pylist(group, schema))
            count += len(group)
    return count


STAGE = Stage(config=Export, produces="dataset", run=run)
