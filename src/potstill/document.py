"""A YAML file as plain values that remember where they stand, so that every later complaint can name file and line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import RecipeError, reason

Steps = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists."""

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50

# `${name}` stands in private characters while YAML is parsed, because braces end a plain scalar inside `{...}`.
_OPEN, _CLOSE = "\ue000", "\ue001"
_VARIABLE = re.compile(r"(?<!\$)\$\{([^{}\n]*)\}")
_MARKED = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


class _Loader(yaml.SafeLoader):
    """Plain scalars as YAML 1.2 reads them: `5e-7` is a number; `no`, `on`, `1:30` and dates are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


@dataclass
class Document:
    """Values and the place of each. Overrides are written into it; after that it is only read."""

    name: str
    """What to call it in a message."""
    value: Any
    places: dict[Steps, str]

    def place(self, steps: Steps) -> str:
        """Where a value stands, or where the nearest thing around it does."""
        while steps not in self.places and steps:
            steps = steps[:-1]
        return self.places.get(steps, self.name)

    def places_in(self, steps: Steps) -> dict[str, str]:
        """Where everything inside a value stands, by its dotted name there."""
        inside = {old[len(steps) :]: place for old, place in self.places.items() if old[: len(steps)] == steps}
        return {dotted(rest): place for rest, place in inside.items() if rest}

    def get(self, steps: Steps) -> Any:
        """The value there."""
        value = self.value
        for step in steps:
            value = value[step]
        return value

    def set(self, steps: Steps, part: "Document") -> None:
        """Put another document in the place of a value. RecipeError where the way there leads through no mapping.

        Steps are words, as they stand in an override; inside a list they become positions.
        """
        holder = self.value
        for position, word in enumerate(steps):
            known: dict[Any, Any] = {str(at): at for at in range(len(holder))} if isinstance(holder, list) else {}
            if not isinstance(holder, dict) and word not in known:
                raise RecipeError(
                    part.name,
                    f"'{dotted(steps[:position])}' holds nothing named '{word}'",
                    "Write the path as the recipe nests it, such as stage.field=value",
                )
            step = known.get(word, word)
            steps = (*steps[:position], step, *steps[position + 1 :])
            if position < len(steps) - 1:
                if isinstance(holder, dict) and holder.get(step) is None:
                    holder[step] = {}
                    self.places[steps[: position + 1]] = part.name
                holder = holder[step]
        holder[steps[-1]] = part.value
        self.places = {old: place for old, place in self.places.items() if old[: len(steps)] != steps}
        self.places |= {steps + inner: place for inner, place in part.places.items()}

    def alias(self, old: Steps, new: Steps) -> None:
        """Let the place of what stands at `old` be that of `new` too, for parts that are made of those written."""
        self.places |= {
            new + steps[len(old) :]: place for steps, place in self.places.items() if steps[: len(old)] == old
        }


def dotted(steps: Steps) -> str:
    """A way as a person writes it: stages.dpo.beta."""
    return ".".join(str(step) for step in steps)


def read_document(path: Path) -> Document:
    """The YAML in a file. RecipeError, with its line, where it cannot be read as text or as YAML."""
    try:
        raw = path.read_bytes()
    except IsADirectoryError as error:
        raise RecipeError(str(path), "this is a folder, not a recipe", "Name the YAML file itself") from error
    except OSError as error:
        raise RecipeError(str(path), f"the recipe cannot be read: {reason(error)}", "Mend its permissions") from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(str(path), f"{len(raw):,} bytes are too many for a recipe", "Name the recipe, not its data")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}", "not valid UTF-8", "Save the recipe as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, name: str, *, lines: bool = True) -> Document:
    """YAML text as a document. `lines=False`: a value on the command line, whose place is its name alone."""

    def place(mark: Any) -> str:
        return f"{name}:{mark.line + 1}" if lines and mark is not None else name

    loader = None
    try:
        loader = _Loader(_VARIABLE.sub(f"{_OPEN}\\1{_CLOSE}", text))
        node = loader.get_single_node()
        reader = _Reader(place)
        value = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.context, error.problem) if part)
        remedy = "Mend this line" if lines else "Mend the value, and put quotes around it where the shell needs them"
        raise RecipeError(place(error.problem_mark), f"not valid YAML: {_restore(what)}", remedy) from error
    except yaml.YAMLError as error:
        raise RecipeError(name, f"not valid YAML: {error}", "Mend the file") from error
    except RecursionError as error:
        raise RecipeError(name, "values are nested too deeply", "Write it flatter") from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(name, value, {(): name, **reader.places})


class _Reader:
    """Turns YAML's nodes into values, noting the place of each."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self.places: dict[Steps, str] = {}

    def value(self, node: yaml.Node, steps: Steps) -> Any:
        """The value of a node; `steps` lead to it."""
        if len(self.places) > MAX_VALUES or len(steps) > MAX_DEPTH:
            raise RecipeError(self._place(node.start_mark), "values are nested too deeply", "Write it flatter")
        self.places.setdefault(steps, self._place(node.start_mark))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, steps)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*steps, position)) for position, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, steps: Steps) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(place, "a key that is itself a list or a mapping", "Use a plain word as the key")
            key = _restore(self._text(key_node))
            if key in values:
                raise RecipeError(place, f"the key '{key}' stands here twice", "Keep one of them")
            self.places[(*steps, key)] = place
            values[key] = self.value(value_node, (*steps, key))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), self._text(node)
        try:
            match kind:
                case "str" | "!":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    number = int(text.replace("_", ""), 0)
                    if number.bit_length() > 64:
                        raise ValueError
                    return number
                case "float":
                    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        except (ValueError, KeyError) as error:
            what = f"'{text[:40]}' is no {'int of up to 64 bits' if kind == 'int' else kind}"
            raise RecipeError(self._place(node.start_mark), what, "Mend the value") from error
        raise RecipeError(self._place(node.start_mark), f"the YAML tag '{node.tag}'", "Write a plain value instead")

    def _text(self, node: yaml.ScalarNode) -> str:
        r"""What stands there. A character that is spelt in two halves, as JSON does ("\ud83d\ude00"), is made whole."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            what = "it holds half a character (a lone surrogate); expected whole ones"
            raise RecipeError(self._place(node.start_mark), what, "Write the character itself") from error


def _restore(text: str) -> str:
    return _MARKED.sub(r"${\1}", text)


def plain(value: Any) -> Any:
    """A document's value with its `${name}` written as they were."""
    if isinstance(value, str):
        return _restore(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def interpolate(document: Document, steps: Steps, variables: Mapping[str, Any]) -> Any:
    """The value there with every `${name}` replaced; a text that is nothing else takes the variable's type.

    `$${name}` is left as the text `${name}`. RecipeError where a name is not declared.
    """

    def find(name: str, at: Steps) -> Any:
        if name in variables:
            return variables[name]
        raise RecipeError(
            document.place(at),
            f"'${{{name}}}' names no variable; there are {', '.join(variables)}",
            f"Declare it under 'variables', or write $${{{name}}} for the text itself",
        )

    def replace(value: Any, at: Steps) -> Any:
        if isinstance(value, dict):
            return {key: replace(item, (*at, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [replace(item, (*at, position)) for position, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        whole = _MARKED.fullmatch(value)
        if whole:
            return find(whole[1].strip(), at)
        return _MARKED.sub(lambda match: str(find(match[1].strip(), at)), value).replace("$${", "${")

    return replace(document.get(steps), steps)
