"""The JSON Schema of recipes, made from the stages' own configs, so that editors complete and explain every field."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from potstill import stages
from potstill.sources import EndpointModel, LocalModel, MiniatureServer
from potstill.stages.domain import Domain
from potstill.validation import LONGEST_NAME

FAMILY = {
    "type": ["object", "null"],
    "minProperties": 1,
    "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"$ref": "#/$defs/Variable"}]},
    "description": "Makes a family: one stage for each combination of these values of fields; the word seed stands for "
    "the stage's own seed. A stage that reads it becomes a family too, unless the field takes all members.",
}
VARIABLE = {"type": "string", "pattern": r"^\$\{[^{}]+\}$", "description": "A variable of the recipe."}


At = Callable[[type[BaseModel]], dict[str, Any]]
"""Where the schema of a class stands."""


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12. A value that is no text may also be `${variable}`."""
    configs = {kind: stages.stage(kind).config for kind in stages.MODULES}
    classes: list[type[BaseModel]] = [LocalModel, EndpointModel, MiniatureServer, Domain, *configs.values()]
    names, definitions = models_json_schema([(cls, "validation") for cls in classes], ref_template="#/$defs/{model}")
    pieces = {name: _open_to_variables(_tidy(body)) for name, body in definitions["$defs"].items()}

    for config in configs.values():
        name = names[(config, "validation")]["$ref"].rpartition("/")[2]
        pieces[name] = _open_to_families(pieces[name])

    def at(cls: type[BaseModel]) -> dict[str, Any]:
        return {"$ref": names[(cls, "validation")]["$ref"]}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "potstill recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "stages"],
        "properties": _sections(at),
        "$defs": {"Model": _model(at), "Stage": _stage(configs, at), "Variable": VARIABLE, "For": FAMILY, **pieces},
    }


def _model(at: At) -> dict[str, Any]:
    """One model: weights at hand where it has a path, else an endpoint."""
    return {
        "if": {"required": ["path"]},
        "then": at(LocalModel),
        "else": at(EndpointModel),
        "type": "object",
    }


def _stage(configs: Mapping[str, type[BaseModel]], at: At) -> dict[str, Any]:
    """What else a stage has follows from its kind."""
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {
                "anyOf": [{"enum": list(configs)}, {"type": "string", "pattern": r"\.py:[A-Za-z_][A-Za-z0-9_]*$"}],
                "description": "What this stage does; or a function of your own, written mine.py:name.",
            }
        },
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}}, "then": at(config)} for kind, config in configs.items()
        ],
    }


def _sections(at: At) -> dict[str, Any]:
    """What stands at the top of a recipe."""
    word = {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "maxLength": LONGEST_NAME}
    return {
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
            "maxLength": LONGEST_NAME,
            "description": "The recipe's name, and its folder's under runs/.",
        },
        "seed": {"type": "integer", "default": 0, "description": "Every stage's seed is made from this one."},
        "budget_usd": {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}, {"$ref": "#/$defs/Variable"}],
            "description": "What the replies of a run may cost, in US dollars: a hard stop, from which it goes on.",
        },
        "domain": {
            "anyOf": [at(Domain), {"type": "null"}],
            "description": "What the assistant is for: read by the stages that ask for prompts and dialogues.",
        },
        "variables": {
            "type": ["object", "null"],
            "propertyNames": word,
            "description": "Values for ${name}. One that is null has to be given on the command line, name=VALUE.",
        },
        "servers": {
            "type": ["object", "null"],
            "propertyNames": word,
            "additionalProperties": at(MiniatureServer),
            "description": "Servers that live as long as the run.",
        },
        "models": {
            "type": ["object", "null"],
            "propertyNames": word,
            "additionalProperties": {
                "if": {"type": "array"},
                "then": {"items": {"$ref": "#/$defs/Model"}, "minItems": 1},
                "else": {"$ref": "#/$defs/Model"},
            },
            "description": "Models by name: weights at hand, an endpoint, or a list of them as a pool.",
        },
        "stages": {
            "type": "object",
            "propertyNames": word,
            "minProperties": 1,
            "additionalProperties": {"$ref": "#/$defs/Stage"},
            "description": "Stages by name. What a stage reads, it names; nothing else orders them.",
        },
    }


def _tidy(value: Any) -> Any:
    """Without the titles that only repeat names, and with the line breaks of docstrings as spaces."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key != "title" or not isinstance(item, str)}
    return {
        key: " ".join(item.split()) if key == "description" and isinstance(item, str) else _tidy(item)
        for key, item in kept.items()
    }


def _open_to_variables(body: dict[str, Any]) -> dict[str, Any]:
    """Every property that no text fits may also be `${variable}`."""
    if "properties" not in body:
        return body
    properties = {
        name: piece if "const" in piece else _or_variable(piece) for name, piece in body["properties"].items()
    }
    return {**body, "properties": properties}


def _open_to_families(body: dict[str, Any]) -> dict[str, Any]:
    """A stage's config with `for`, which may hold what is needed."""
    rest = {key: value for key, value in body.items() if key != "required"}
    properties = {
        **body["properties"],
        "for": {"$ref": "#/$defs/For", "description": "Values of fields: a stage each."},
    }
    needed = {"anyOf": [{"required": body["required"]}, {"required": ["for"]}]} if "required" in body else {}
    return {**rest, "properties": properties, **needed}


def _or_variable(piece: dict[str, Any]) -> dict[str, Any]:
    if piece.get("type") == "string" and "enum" not in piece:
        return piece
    outer: dict[str, Any] = {key: piece[key] for key in ("description", "default") if key in piece}
    inner = {key: item for key, item in piece.items() if key not in outer}
    if "items" in inner and isinstance(inner["items"], dict):
        inner["items"] = _or_variable(inner["items"])
    if "prefixItems" in inner:
        inner["prefixItems"] = [_or_variable(item) for item in inner["prefixItems"]]
    return {**outer, "anyOf": [*inner.get("anyOf", [inner]), {"$ref": "#/$defs/Variable"}]}
