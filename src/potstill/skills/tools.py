"""Tools: what a model may call, as JSON Schemas made from typed Python functions, and calls that are really executed.

A call that cannot be made (no such tool, arguments that are no JSON or do not fit, a tool that raises or takes too
long) is answered with an error in words, for the model to read; it never ends the dialogue by itself.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from potstill.records import ToolCall, whole_text
from potstill.teachers.tool_calls import unreadable

LONGEST_RESULT = 4000
"""Characters of a result that the model is shown."""

_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (NoneType,),
}


_CHECKED = ("type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items")
_REMARKS = ("title", "description", "default", "examples", "$schema", "$comment")


class ToolError(Exception):
    """A call that came to nothing, in words for the model."""


class Runner(Protocol):
    """Makes the calls of one tool: its result, or ToolError."""

    def __call__(self, arguments: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Tool:
    """One thing that a model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """The JSON Schema of its arguments."""
    run: Runner

    @property
    def schema(self) -> str:
        """As chat templates and servers take it, as text."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


@dataclass(frozen=True)
class Outcome:
    """What came of a call."""

    text: str
    failed: bool = False


class Toolbox:
    """The tools of one dialogue."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self.tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self.tools:
                raise ValueError(f"two tools are named '{tool.name}'")
            self.tools[tool.name] = tool

    @property
    def schemas(self) -> tuple[str, ...]:
        """What the model is told of them."""
        return tuple(tool.schema for tool in self.tools.values())

    def call(self, wish: ToolCall) -> Outcome:
        """Make a call; whatever goes wrong is said in the outcome."""
        try:
            return Outcome(whole_text(self._made(wish)))
        except ToolError as error:
            return Outcome(whole_text(f"error: {error}"), failed=True)

    def _made(self, wish: ToolCall) -> str:
        raw = unreadable(wish)
        if raw is not None:
            raise ToolError(f"the call is not a JSON object with a name and arguments: {raw[:200]}")
        tool = self.tools.get(wish.name)
        if tool is None:
            raise ToolError(f"there is no tool '{wish.name}'; there is {', '.join(self.tools)}")
        arguments = json.loads(wish.arguments)
        if fault := find_fault(arguments, tool.parameters, "arguments"):
            raise ToolError(fault)
        return shown(tool.run(as_declared(arguments, tool.parameters)))


def shown(result: Any) -> str:
    """A result as the model reads it: a text as it is, all else as JSON. ToolError where it is no JSON."""
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"the tool returned what is no JSON ({error})") from error
    return text if len(text) <= LONGEST_RESULT else f"{text[:LONGEST_RESULT]}... ({len(text)} characters)"


def describe(function: Callable[..., Any]) -> tuple[str, str, dict[str, Any]]:
    """(name, description, JSON Schema of its arguments) of a typed function with a docstring.

    The docstring's first paragraph describes it; lines "name: words" (or "name (type): words") further down describe
    its arguments. ValueError where an argument has no type, or one that JSON does not have.
    """
    name = function.__name__
    paragraphs = (inspect.getdoc(function) or "").split("\n\n", 1)
    if not paragraphs[0].strip():
        raise ValueError(f"the tool '{name}' has no docstring, so no model would know what it is for")
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ValueError(f"the tool '{name}' takes '{parameter}'; expected arguments with names of their own")
        if parameter.name not in hints:
            raise ValueError(f"the argument '{parameter.name}' of the tool '{name}' has no type")
        properties[parameter.name] = _schema(hints[parameter.name], f"'{parameter.name}' of the tool '{name}'")
        about = re.search(rf"^\s*{parameter.name}\s*(?:\([^)]*\))?\s*:\s*(.+)$", "\n\n".join(paragraphs[1:]), re.M)
        if about:
            properties[parameter.name]["description"] = about[1].strip()
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return name, " ".join(paragraphs[0].split()), schema


def _schema(hint: Any, whose: str) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if hint is NoneType:
        return {"type": "null"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(argument, whose) for argument in arguments]}
    if (origin or hint) is list:
        return {"type": "array"} | ({"items": _schema(arguments[0], whose)} if arguments else {})
    if (origin or hint) is dict:
        return {"type": "object"} | ({"additionalProperties": _schema(arguments[1], whose)} if arguments else {})
    raise ValueError(
        f"the type of {whose} is none that JSON has; expected str, int, float, bool, list, dict or Literal"
    )


def find_unchecked(schema: Any, where: str) -> str:
    """What of a JSON Schema `find_fault` would not hold a value against, or nothing."""
    if not isinstance(schema, Mapping):
        return f"{where} is {json.dumps(schema)[:80]}; expected a schema"
    for key in schema:
        if key not in (*_CHECKED, *_REMARKS):
            return f"{where} has '{key}', which is not checked; expected {', '.join(_CHECKED)}"
    kinds = schema.get("type", ())
    for kind in (kinds,) if isinstance(kinds, str) else kinds if isinstance(kinds, list) else (kinds,) if kinds else ():
        if not isinstance(kind, str) or kind not in _TYPES:
            return f"{where} has the type {json.dumps(kind)}; expected one of {', '.join(_TYPES)}"
    for key, form in (("enum", list), ("anyOf", list), ("required", list), ("properties", Mapping)):
        if key in schema and not isinstance(schema[key], form):
            return (
                f"{where}.{key} is {json.dumps(schema[key])[:80]}; expected {'a list' if form is list else 'an object'}"
            )
    below = {f"{where}.properties.{name}": part for name, part in schema.get("properties", {}).items()}
    below |= {f"{where}.anyOf[{place}]": part for place, part in enumerate(schema.get("anyOf", ()))}
    below |= {f"{where}.items": schema["items"]} if "items" in schema else {}
    if not isinstance(schema.get("additionalProperties", True), bool):
        below[f"{where}.additionalProperties"] = schema["additionalProperties"]
    return next(filter(None, (find_unchecked(part, name) for name, part in below.items())), "")


def find_fault(value: Any, schema: Mapping[str, Any], where: str) -> str:
    """What of a value does not fit its JSON Schema, or nothing.

    It reads type, enum, const, anyOf, properties, required, additionalProperties and items, and nothing else.
    """
    if "anyOf" in schema and all(find_fault(value, arm, where) for arm in schema["anyOf"]):
        return f"{where} fits none of {json.dumps(schema['anyOf'])}"
    for allowed in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
        if allowed is not None and not any(value == one and type(value) is type(one) for one in allowed):
            return f"{where} is {json.dumps(value)}; expected one of {json.dumps(allowed)}"
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{where} is {json.dumps(value)[:80]}; expected {' or '.join(kinds)}"
    if isinstance(value, dict):
        return _fault_of_object(value, schema, where)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        faults = (find_fault(item, schema["items"], f"{where}[{place}]") for place, item in enumerate(value))
        return next(filter(None, faults), "")
    return ""


def as_declared(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value that fits its schema with 3.0 as 3 wherever the schema says integer, and no number is allowed beside."""
    if "anyOf" in schema:
        arms = [arm for arm in schema["anyOf"] if not find_fault(value, arm, "")]
        return value if not arms or any(arm.get("type") == "number" for arm in arms) else as_declared(value, arms[0])
    if schema.get("type") == "integer" and isinstance(value, float):
        return int(value)
    if isinstance(value, dict):
        named, more = schema.get("properties", {}), schema.get("additionalProperties")
        other = more if isinstance(more, Mapping) else {}
        return {name: as_declared(item, named.get(name, other)) for name, item in value.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [as_declared(item, schema["items"]) for item in value]
    return value


def _fault_of_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} lack '{name}'" if where == "arguments" else f"{where} lacks '{name}'"
    for name, item in value.items():
        if name in properties:
            fault = find_fault(item, properties[name], f"{where}.{name}")
        elif more is False:
            fault = f"{where} may not hold '{name}'; expected {', '.join(properties) or 'nothing'}"
        else:
            fault = find_fault(item, more, f"{where}.{name}") if isinstance(more, Mapping) else ""
        if fault:
            return fault
    return ""


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(kind, (object,)))
