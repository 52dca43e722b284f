"""Reasoning traces: what a model thinks before it answers, told apart from the answer, kept or taken away."""

import re
from dataclasses import dataclass
from typing import Literal

from potstill.teachers.base import Reply

Trace = Literal["keep", "strip", "only-answer"]

_OPEN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_CLOSE = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


@dataclass(frozen=True)
class Thought:
    """A reply taken apart."""

    thinking: str
    answer: str


def take_apart(reply: Reply) -> Thought | None:
    """What was thought, and the answer. None where the tags do not pair: a trace that never ends has no answer.

    A server may tell the two apart (Reply.reasoning), or the text holds <think>...</think>; templates that open the
    thought for the model leave only the closing tag in its text.
    """
    opened, closed = _OPEN.findall(reply.text), _CLOSE.findall(reply.text)
    if not opened and not closed:
        return Thought(reply.reasoning.strip(), reply.text.strip())
    close = _CLOSE.search(reply.text)
    if close is None or len(closed) != 1 or len(opened) > 1:
        return None
    open_ = _OPEN.search(reply.text, 0, close.start())
    if opened and (open_ is None or reply.text[: open_.start()].strip()):
        return None
    inside = reply.text[open_.end() if open_ else 0 : close.start()]
    thinking = [part for part in (reply.reasoning.strip(), inside.strip()) if part]
    return Thought("\n".join(thinking), reply.text[close.end() :].strip())


def written(thought: Thought, trace: Trace, final: str) -> str:
    """The assistant turn to learn. `final` is the final answer alone."""
    if trace == "only-answer":
        return final
    if trace == "keep" and thought.thinking:
        return f"<think>\n{thought.thinking}\n</think>\n\n{thought.answer}"
    return thought.answer


def same_trace(thought: Thought) -> str:
    """What makes two traces one: their words, whatever the case, the blanks and the signs between them."""
    return " ".join(re.findall(r"\w+|[-+*/=<>]", f"{thought.thinking} {thought.answer}".lower()))
