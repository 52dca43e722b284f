"""Running a data stage in a test: its config, what it reads, and the folder that it leaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import DROPPED_FILE, ROWS_FILE, read_rows, write_rows
from potstill.records import ROWS, Dropped, Message, Record
from potstill.sources import Data, EndpointModel, Function, Inputs, Model
from potstill.stages import stage
from potstill.stages.base import Facts, Work


@dataclass
class Made:
    """What a stage left."""

    facts: Facts
    path: Path
    produces: str

    @property
    def rows(self) -> list[Any]:
        return list(read_rows(self.path / ROWS_FILE, ROWS[self.produces]))

    @property
    def dropped(self) -> list[Dropped]:
        return list(read_rows(self.path / DROPPED_FILE, Dropped))

    @property
    def data(self) -> Data:
        return Data(self.path.name, self.produces, self.path)

    @property
    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(self.path.iterdir())}


def given(folder: Path, kind: str, rows: Iterable[Record], name: str = "given") -> Data:
    """Rows as if a stage had made them."""
    path = folder / name
    path.mkdir(parents=True)
    write_rows(path / ROWS_FILE, rows)
    return Data(name, kind, path)


def endpoint(url: str, name: str = "m", **fields: Any) -> Model:
    return Model(name, EndpointModel(endpoint="declared", name=name, **fields), url)


def make(
    folder: Path,
    config: Mapping[str, Any],
    data: Mapping[str, Data | list[Data]] | None = None,
    models: Mapping[str, Model | list[Model]] | None = None,
    seed: int = 1,
    functions: Mapping[str, tuple[Function, ...]] | None = None,
) -> Made:
    """Run the stage that `config` names; the workspace is `folder`, the artifact a folder in it."""
    kind = stage(config["kind"])
    typed = kind.config.model_validate(config)
    path = folder / f"{config['kind']}-{len(list(folder.iterdir()))}"
    path.mkdir()

    def many(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, list) else (value,)

    inputs = Inputs(
        {field: many(value) for field, value in (data or {}).items()},
        {field: many(value) for field, value in (models or {}).items()},
        {},
        functions or {},
    )
    return Made(kind.run(typed, inputs, Work(path, folder, seed)), path, kind.output(typed))


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def assistant(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)
