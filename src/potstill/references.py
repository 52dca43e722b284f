"""Which fields of a config name other parts of the recipe, and which names stand in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from potstill.document import Steps, dotted
from potstill.stages.base import Reference


@dataclass(frozen=True)
class Slot:
    """A field that may hold references, and those that it holds."""

    field: str
    """As `Inputs` names it; a field of a nested part is written with dots, such as "suites.chat.questions"."""
    accepts: tuple[str, ...]
    names: tuple[tuple[Steps, str], ...]
    """Where in the config each name stands, and the name."""


def slots(config: BaseModel) -> tuple[Slot, ...]:
    """Every field of a config that may hold references, in the order of its fields."""
    merged: dict[str, Slot] = {}
    for slot in _in_model(config, ()):
        old = merged.get(slot.field)
        merged[slot.field] = slot if old is None else Slot(slot.field, old.accepts, old.names + slot.names)
    return tuple(merged.values())


def _in_model(config: BaseModel, steps: Steps) -> Iterator[Slot]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield from _in_value(field.annotation, tuple(field.metadata), value, (*steps, name), (*steps, name))


def _in_value(annotation: Any, metadata: tuple[Any, ...], value: Any, steps: Steps, field: Steps) -> Iterator[Slot]:
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = (*metadata, *more)
    found = [item for item in metadata if isinstance(item, Reference)]
    if found:
        yield Slot(dotted(field), found[0].accepts, tuple(_names(value, steps)))
    elif isinstance(value, BaseModel):
        yield from _in_model(value, steps)
    elif get_origin(annotation) in (Union, UnionType):
        yield from _in_union(get_args(annotation), value, steps, field)
    elif isinstance(value, Mapping):
        inner = get_args(annotation)[1] if len(get_args(annotation)) == 2 else Any
        for key, item in value.items():
            yield from _in_value(inner, (), item, (*steps, key), (*field, key))
    elif get_origin(annotation) in (list, tuple):
        arguments = get_args(annotation)
        if not value and arguments:  # an empty list still has its slot
            yield from (Slot(slot.field, slot.accepts, ()) for slot in _in_value(arguments[0], (), None, steps, field))
        for position, item in enumerate(value or ()):
            at = (*steps, position)
            yield from _in_value(arguments[0], (), item, at, at if isinstance(item, BaseModel) else field)


def _in_union(arms: tuple[Any, ...], value: Any, steps: Steps, field: Steps) -> Iterator[Slot]:
    """The arm that the value fits. Where it is None, the slots of all arms, empty."""
    for arm in arms:
        plain = get_args(arm)[0] if get_origin(arm) is Annotated else arm
        origin = get_origin(plain) or plain
        if value is None or (isinstance(origin, type) and isinstance(value, origin)):
            inner = list(_in_value(arm, (), value, steps, field))
            yield from inner
            if inner and value is not None:
                return


def _names(value: Any, steps: Steps) -> Iterator[tuple[Steps, str]]:
    """Every text inside a value."""
    if isinstance(value, str):
        yield steps, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _names(item, (*steps, key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _names(item, (*steps, position))


def replaced(dump: Any, replacements: Mapping[Steps, Any], steps: Steps = ()) -> Any:
    """A config's dump with the values at the given steps replaced."""
    if steps in replacements:
        return replacements[steps]
    if isinstance(dump, dict):
        return {key: replaced(item, replacements, (*steps, key)) for key, item in dump.items()}
    if isinstance(dump, list):
        return [replaced(item, replacements, (*steps, position)) for position, item in enumerate(dump)]
    return dump
