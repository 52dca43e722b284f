"""What a typed config finds wrong with a recipe, said in one line with its place."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from potstill.document import Document, Steps, dotted
from potstill.errors import PotstillError, RecipeError

LONGEST_NAME = 64
"""Of a recipe or a part of it: each becomes the name of a folder, and a file system bounds those."""
PLAIN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
"""What becomes the name of a file or a folder: a recipe, a suite, recorded answers."""
PlainName = Annotated[str, Field(pattern=f"^{PLAIN.pattern}$")]


def nearest(name: object, names: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where one of the names is near, or nothing."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_utf8(path: str, place: str) -> None:
    """RecipeError where a path has bytes that are no UTF-8: no JSON, and so no manifest, could name it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode(errors="backslashreplace").decode()
        what = f"the path {shown} is not UTF-8"
        raise RecipeError(place, what, "Rename what is not, with letters that are") from error


def complain(
    error: ValidationError, spec: type[BaseModel], value: Any, document: Document, steps: Steps
) -> RecipeError:
    """The first thing that a user should mend. `steps` lead to `value` in the document; `spec` refused it."""
    details = error.errors(include_url=False)
    # Of a union's arms the one that fits deepest is meant.
    deepest = max(details, key=lambda detail: len(tuple(_way(detail, value))) + (detail["type"] == "missing"))
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), deepest)
    way = tuple(_way(first, value))
    place, label = document.place((*steps, *way)), dotted((*steps, *way)[1:])
    if first["type"] == "extra_forbidden":
        known = sorted(set(_fields(spec, way[:-1], value)))
        return RecipeError(
            place, f"unknown key '{label}'{nearest(way[-1], known)}", f"The keys here are: {', '.join(known)}"
        )
    if first["type"] == "missing":
        missing = ".".join((label, str(first["loc"][-1]))) if label else str(first["loc"][-1])
        return RecipeError(place, f"'{missing}' is missing", "Give it a value")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, PotstillError):
        return RecipeError(place, f"{label}: {cause.what}", cause.remedy)
    if first["type"] in ("model_type", "dict_type", "dataclass_type"):
        names = list(_fields(spec, way, value))
        what = f"expected a mapping{f', such as {{{names[0]}: ...}}' if names else ''}"
        remedy = f"The keys here are: {', '.join(sorted(set(names)))}" if names else "Mend the value"
        return RecipeError(place, f"'{label}' is {_shown(first['input'])}; {what}", remedy)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    given = first["input"]
    if isinstance(given, dict) and first["type"] == "value_error":  # what it says is of several of its fields
        return RecipeError(place, f"'{label}': {message}", "Mend one of them")
    if isinstance(given, list) and first["type"] == "string_type":
        return RecipeError(place, f"'{label}' is a list; expected one name or text", "Write one, without brackets")
    return RecipeError(place, f"'{label}' is {_shown(given)}: {message}", "Mend the value")


def true_as_number(given: Any, taken: Any, steps: Steps = ()) -> Iterator[Steps]:
    """Where true or false was given, and pydantic took it as 1 or 0."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        yield steps
    elif isinstance(given, dict):
        # YAML's keys are text, and may be taken as numbers, "01" as 1; they keep their order.
        for (key, item), value in zip(given.items(), _in_order(given, taken), strict=True):
            yield from true_as_number(item, value, (*steps, key))
    elif isinstance(given, list) and isinstance(taken, list | tuple):  # a list of words may be short for a mapping
        for position, item in enumerate(given):
            yield from true_as_number(item, taken[position], (*steps, position))


def _in_order(given: dict[Any, Any], taken: dict[Any, Any]) -> Iterator[Any]:
    """What each key of `given` was taken as."""
    named = {str(key): item for key, item in taken.items()}
    others = iter([item for key, item in taken.items() if str(key) not in {str(one) for one in given}])
    for key in given:
        yield named[str(key)] if str(key) in named else next(others, None)


def _shown(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else _short(value)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _way(detail: ErrorDetails, value: Any) -> Iterator[str | int]:
    """The steps of pydantic's location that stand in the recipe: names of a union's arms do not."""
    for step in detail["loc"]:
        inside = (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if inside:
            yield step
            value = value[step]


def _fields(annotation: Any, way: Steps, value: Any) -> Iterator[str]:
    """The names that the mapping in `value` at the end of the way may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if _is_another(annotation, value):
            return
        if not way:
            yield from (field.alias or name for name, field in annotation.model_fields.items())
        elif way[0] in annotation.model_fields:
            yield from _fields(annotation.model_fields[str(way[0])].annotation, way[1:], value[way[0]])
        return
    arguments = get_args(annotation)
    container = getattr(annotation, "__origin__", None) in (list, tuple, dict)
    for argument in arguments:
        if container and not way:
            continue
        yield from _fields(argument, way[1:] if container else way, value[way[0]] if container else value)


def _is_another(spec: type[BaseModel], value: Any) -> bool:
    """Whether a mapping calls itself by a word, its kind or protocol, that is none of this one's."""
    if not isinstance(value, dict):
        return False
    words = {name: field.annotation for name, field in spec.model_fields.items() if name in value}
    return any(get_origin(words[name]) is Literal and value[name] not in get_args(words[name]) for name in words)
