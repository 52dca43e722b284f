"""The prompts that teachers and judges are given: text files beside this one, with jinja2's placeholders."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string((files(__name__) / f"{name}.txt").read_text(encoding="utf-8"))


def render(name: str, **values: Any) -> str:
    """The prompt file `name`.txt with its placeholders filled, without white space at its ends."""
    return _template(name).render(**values).strip()
