"""What every page is rendered with: templates that escape whatever they are given."""

import re

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined

from potstill.reporting.audits import MARKS, SIGNS
from potstill.units import amount, duration, memory, size

# Characters that end a file or turn the direction of what follows; a model may write them, a page must not obey them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def make_environment(*more: BaseLoader) -> Environment:
    """The report's own templates, and those of `more` loaders before them."""
    environment = Environment(
        loader=ChoiceLoader([*more, PackageLoader("potstill.reporting", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "size": size, "memory": memory, "amount": amount}
    environment.globals |= {"signs": SIGNS, "marks": MARKS}
    return environment


def harmless(page: str) -> str:
    """A rendered page with every character replaced that would do something to it."""
    return _CONTROL.sub("\ufffd", page)
