"""One stage as a recipe of its own: rows in memory become files beside it, models by path or endpoint its models."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from potstill import stages
from potstill.errors import DataError
from potstill.own import is_own
from potstill.recipe import Recipe, recipe_of
from potstill.records import ROWS, Record
from potstill.stages.base import Reference

WHERE = "potstill.stage"
"""What messages call the recipe."""


class Scratch:
    """The folder that a stage works in: one that stays, or one that goes with this object."""

    def __init__(self, out: Path | None) -> None:
        if out is None:
            made = tempfile.mkdtemp(prefix="potstill-")
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        self.run = Path(made) / "run" if out is None else out
        self.inputs = Path(made) if out is None else out / "inputs"
        """Where rows lie that were given in memory."""


def one_stage(kind: str, fields: Mapping[str, Any], inputs: Path) -> tuple[str, Recipe]:
    """The name of the stage, and a recipe of it alone. RecipeError or DataError, as of any recipe."""
    own = is_own(kind)
    accepts = {} if own else _references(kind)
    models: dict[str, Any] = {}
    config: dict[str, Any] = {"kind": kind}
    for field, value in fields.items():
        taken = accepts.get(field, frozenset(ROWS) if own else frozenset())
        if taken & ROWS.keys() and not isinstance(value, str | Path | Mapping):
            config[field] = _rows(value, field, inputs)
        elif "model" in taken:
            config[field] = _models(value, f"{field}_model" if field == kind else field, models)
        else:
            config[field] = value
    name = "own" if own or not kind.isidentifier() else kind
    whole = {"name": name, "models": models, "stages": {name: config}}
    return name, recipe_of(whole, f"{WHERE}({kind!r})", Path.cwd())


def _references(kind: str) -> dict[str, frozenset[str]]:
    """What each field of a stage's config may name; nothing where there is no such kind, which the recipe says."""
    if kind not in stages.MODULES:
        return {}
    fields = stages.stage(kind).config.model_fields
    return {name: frozenset(_accepted([field.annotation, *field.metadata])) for name, field in fields.items()}


def _accepted(annotations: Iterable[Any]) -> Iterator[str]:
    for annotation in annotations:
        if isinstance(annotation, Reference):
            yield from annotation.accepts
        else:
            yield from _accepted([*get_args(annotation), *getattr(annotation, "__metadata__", ())])


def _rows(value: Any, field: str, inputs: Path) -> Any:
    """Rows as a file; a list of names or shares stays one."""
    if isinstance(value, Sequence) and value and all(_is_name(item) for item in value):
        return [str(item) if isinstance(item, Path) else item for item in value]
    inputs.mkdir(parents=True, exist_ok=True)
    path = inputs / f"{field}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(value, 1):
            file.write(_line(row, f"{field}, row {number}"))
    if not path.stat().st_size:
        raise DataError(field, "there are no rows", "Give one at least")
    return str(path.resolve())


def _is_name(item: Any) -> bool:
    return isinstance(item, str | Path) or (isinstance(item, Mapping) and "from" in item)


def _line(row: Any, where: str) -> str:
    if isinstance(row, Record):
        return row.to_line()
    if isinstance(row, Mapping):
        try:
            return json.dumps(dict(row), ensure_ascii=False) + "\n"
        except (TypeError, ValueError) as error:
            raise DataError(where, f"it cannot be written as JSON: {error}", "Give texts, numbers and lists") from error
    raise DataError(where, f"this is {type(row).__name__}; expected a record or a dict", "Make it one")


def _models(value: Any, name: str, models: dict[str, Any]) -> Any:
    """A model, or several, declared under names of their own, which are no stage's."""
    if isinstance(value, list | tuple):
        return [_declared(one, f"{name}_{place}", models) for place, one in enumerate(value, 1)]
    return value if value is None else _declared(value, name, models)


def _declared(value: Any, name: str, models: dict[str, Any]) -> str:
    models[name] = dict(value) if isinstance(value, Mapping) else {"path": str(getattr(value, "path", value))}
    return name
