"""The prompt files, by name: what potstill says to teachers and judges. Jinja2 text, no markup, no escaping."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import PackageLoader, StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from potstill.errors import DataError

# Whatever looks like a blank: Unicode's, and signs without width. Those that end a line, for some readers at least.
_ENDS = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_BLANK = " \t\x1f\xa0\xad\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff"
_ANY = f"[{_BLANK}{_ENDS}]"
_START = f"(?:^|(?<=[{_ENDS}]))"
_END = f"(?=[{_ENDS}]|\\Z)"
# What marks the parts of a judge's prompt. A text under judgment must not be able to close its own frame, nor an answer
# to look like the next speaker's turn. Runs are possessive, so that none is read more than once from one place.
_MARK = re.compile(
    rf"([<\[])(?={_ANY}*+(?:/{_ANY}*+)?(?:user|assistant|reference|text{_ANY}*+\d++"
    rf"|(?:(?:two|end{_ANY}++of){_ANY}++)?conversations?+(?:{_ANY}++[ab])?){_ANY}*+[>\]])",
    re.I,
)
# A line that looks like one of a judge's own: where the judge quotes it, it must not be read as the judge's word.
_REPLY = re.compile(
    rf"{_START}(?=[{_BLANK}#*_<\[-]*+(?:text[{_BLANK}]++\d++[{_BLANK}*_>\].:]*+{_END}"
    rf"|(?:rating|score|verdict|rationale|critique|better|label)[{_BLANK}*_]*+:))",
    re.I,
)
_SPEAKER = re.compile(rf"{_START}(?=(?:system|user|assistant|tool)[{_BLANK}]*+:)", re.I)


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
