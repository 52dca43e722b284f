"""A recipe while it is being made of another tool's config, and as text with a comment on each line that came over."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.validation import LONGEST_NAME

LAST_COLUMN = 110
"""Where comments that would end further right stand on a line of their own."""


@dataclass(frozen=True)
class Line:
    """One field with its value, and why it is what it is."""

    name: str
    value: Any
    why: str = ""


@dataclass
class Part:
    """A model or a stage: its fields in order."""

    name: str
    lines: list[Line] = field(default_factory=list)
    above: str = ""
    """A comment on the whole."""

    def add(self, name: str, value: Any, why: str = "") -> None:
        """One more field."""
        self.lines.append(Line(name, value, why))


@dataclass
class Draft:
    """The recipe."""

    name: str
    seed: Line
    head: list[str] = field(default_factory=list)
    """What the comment at its top says."""
    models: list[Part] = field(default_factory=list)
    stages: list[Part] = field(default_factory=list)

    def text(self, tail: Sequence[str]) -> str:
        """As YAML; `tail` is the comment at its end."""
        lines = [*_comments(self.head), f"name: {_plain(self.name)}", *_fields([self.seed], "")]
        for title, parts in (("models", self.models), ("stages", self.stages)):
            lines += ["", f"{title}:"]
            for part in parts:
                lines += _comments([part.above] if part.above else [], "  ")
                lines += [f"  {part.name}:", *_fields(part.lines, "    ")]
        return "\n".join([*lines, "", *_comments(tail)]) + "\n"


def _comments(texts: Sequence[str], indent: str = "") -> list[str]:
    return [f"{indent}# {line}".rstrip() for text in texts for line in text.splitlines() or [""]]


def _fields(lines: Sequence[Line], indent: str) -> Iterator[str]:
    for line in lines:
        written = f"{indent}{line.name}: {_value(line.value)}"
        if line.why and len(written) + len(line.why) + 4 > LAST_COLUMN:
            yield f"{indent}# {line.why}"
            yield written
        else:
            yield f"{written}{f'  # {line.why}' if line.why else ''}"


def _value(value: Any) -> str:
    """In YAML that fits on a line: what JSON writes is YAML too. `${` would be read as a variable."""
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return re.sub(r"^(\d+)e", r"\1.0e", f"{value:g}" if float(f"{value:g}") == value else repr(value))
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value)


def _plain(text: str) -> str:
    """A word as it is; anything else in quotes."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in ("true", "false", "null"):
        return text
    return json.dumps(text, ensure_ascii=False).replace("${", "$${")


def plain_name(text: str) -> str:
    """A recipe's or a stage's name made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:LONGEST_NAME] or "converted"
