"""The prompt files, by name: what potstill says to teachers and judges. Jinja2 text, no markup, no escaping."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import PackageLoader, StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from potstill.errors import DataError

# What marks the parts of a judge's prompt. A text under judgment must not be able to close its own frame, nor an answer
# to look like the next speaker's turn.
_MARK = re.compile(r"([<\[])(?=/?(?:user|assistant|reference|text \d+|conversation|end of conversation)[>\]])", re.I)
# A line that looks like one of a judge's own: where the judge quotes it, it must not be read as the judge's word.
_REPLY = re.compile(
    r"^(?=[\s#*_<\[-]*(?:text\s+\d+[\s*_>\].:]*$|(?:rating|score|verdict|rationale|critique|better|label)[\s*_]*:))",
    re.I | re.M,
)
_SPEAKER = re.compile(r"^(?=(?:system|user|assistant|tool):)", re.I | re.M)


def render_prompt(name: str, **values: Any) -> str:
    """The file `name`.txt with its blanks filled; an unknown blank is an error."""
    return _template(name).render(values)


def guard(text: str) -> str:
    """The text with a space put into whatever looks like one of our frame marks, so that it stays inside its frame.

    A line that looks like a judge's reply gets a "> ", as a quotation has.
    """
    return _REPLY.sub("> ", _SPEAKER.sub(" ", _MARK.sub(r"\1 ", text)))


def compile_prompt(text: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """A user's own prompt, ready to be filled. DataError, naming the file, where it is no template or says nothing."""
    if not text.strip():
        raise DataError(name, "this prompt is empty; expected words", "Write it, or start from potstill's own")
    try:
        template = _environment().from_string(text)
    except RecursionError as error:
        raise DataError(name, "its brackets are nested too deeply", "Mend it, or start from potstill's own") from error
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{name}:{line}" if line else name
        raise DataError(where, f"this is no Jinja2 text: {error}", "Mend it, or start from potstill's own") from error

    def fill(values: Mapping[str, Any]) -> str:
        try:
            return template.render(values)
        except Exception as error:  # whatever a user's expression may raise
            known = ", ".join(sorted(values))
            raise DataError(name, f"the prompt cannot be filled: {error}", f"It may use: {known}") from error

    return fill


@cache
def _template(name: str) -> Template:
    return _environment().get_template(f"{name}.txt")


@cache
def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(
        loader=PackageLoader("potstill", "prompts"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["guard"] = guard
    return environment
