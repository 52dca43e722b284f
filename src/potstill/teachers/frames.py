"""The marks that frame a text in a judge's prompt, and how a text is kept from closing its own frame."""

import re

_MARK = re.compile(r"([<\[])(?=/?(?:user|assistant|reference|text \d+|conversation|end of conversation)[>\]])", re.I)


def guard(text: str) -> str:
    """The text with a space put into whatever looks like one of our marks, so that it stays inside its frame."""
    return _MARK.sub(r"\1 ", text)
