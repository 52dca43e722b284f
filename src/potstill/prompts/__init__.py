"""The prompt files, by name: what potstill says to teachers and judges. Jinja2 text, no markup, no escaping."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

# What marks the parts of a judge's prompt. A text under judgment must not be able to close its own frame, nor an answer
# to look like the next speaker's turn.
_MARK = re.compile(r"([<\[])(?=/?(?:user|assistant|reference|text \d+|conversation|end of conversation)[>\]])", re.I)
_SPEAKER = re.compile(r"^(?=(?:system|user|assistant|tool):)", re.I | re.M)


def render_prompt(name: str, **values: Any) -> str:
    """The file `name`.txt with its blanks filled; an unknown blank is an error."""
    return _template(name).render(values)


def guard(text: str) -> str:
    """The text with a space put into whatever looks like one of our frame marks, so that it stays inside its frame."""
    return _SPEAKER.sub(" ", _MARK.sub(r"\1 ", text))


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("potstill", "prompts"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["guard"] = guard
    return environment.get_template(f"{name}.txt")
