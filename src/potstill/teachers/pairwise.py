"""Comparing two answers: the prompt, the strict reading of what a judge called better, and what that comes to."""

import json
import re
from collections.abc import Iterable, Sequence

from potstill.prompts import render_prompt
from potstill.records import Message, Rating
from potstill.teachers.aspects import Render
from potstill.teachers.ratings import (
    INCONSISTENT,
    closed_object,
    is_inconsistent,
    is_quotation,
    labelled,
    plain_lines,
    quoted_lines,
    read_object,
    unread,
)

PREFERENCE = "preference"
"""The aspect of a comparison: 1 for the better text, 0 for the other, a half each for a tie."""

_WHY = f"{INCONSISTENT}: contradictory, the other text was called better when the order was reversed"
CONTRADICTORY = Rating(aspect=PREFERENCE, score=None, rationale=_WHY)
"""What is left of a comparison in which the place decided, where such are dropped."""

_LABEL = re.compile(r"^[ \t*_-]*(better|rationale)[ \t*_]*:", re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(r"\[{0,2}(?:text )?(1|2|tie)\]{0,2}", re.IGNORECASE)
_SHARES = {"1": (1.0, 0.0), "2": (0.0, 1.0), "tie": (0.5, 0.5)}

SCHEMA = json.dumps(closed_object({"rationale": {"type": "string"}, "better": {"type": "string", "enum": [*_SHARES]}}))
"""The JSON Schema of a structured comparison."""


def render_pair_prompt(
    conversation: Sequence[Message],
    texts: Sequence[str],
    *,
    structured: bool = False,
    labels: tuple[str, str] | None = None,
    render: Render = render_prompt,
) -> tuple[Message, ...]:
    """What the judge is asked: which of two texts, in the order given, serves better. `labels`: to be said in one."""
    assert len(texts) == 2
    form = (
        render("pairwise_label_system", labels=labels) if labels else render("pairwise_system", structured=structured)
    )
    return (
        Message(role="system", content=form),
        Message(role="user", content=render("pairwise_user", conversation=conversation, texts=texts)),
    )


def read_comparison(reply: str, *, structured: bool = False, quoted: Iterable[str] = ()) -> list[Rating]:
    """The two texts' shares of the win, in the order shown. Without scores where the reply does not say one, once."""
    choice, rationale = _structured(reply) if structured else _lines(reply, quoted)
    if choice not in _SHARES:
        return [unread(PREFERENCE, rationale)] * 2
    return [Rating(aspect=PREFERENCE, score=share, rationale=rationale) for share in _SHARES[choice]]


def _structured(reply: str) -> tuple[str, str]:
    """The choice and the rationale; without a choice, why there is none."""
    value = read_object(reply)
    if isinstance(value, str):
        return "", value
    choice, rationale = value.get("better"), value.get("rationale", "")
    if not isinstance(choice, str) or choice not in _SHARES or not isinstance(rationale, str):
        return "", f"'better' is {json.dumps(choice)[:40]}, expected one of {', '.join(_SHARES)}"
    return choice, rationale


def _lines(reply: str, quoted: Iterable[str]) -> tuple[str, str]:
    reply = plain_lines(reply)
    said = labelled(reply, _LABEL)
    choices = said.get("better", [])
    if len(choices) != 1:
        return "", f"the reply says {len(choices)} times which is better, expected once"
    if is_quotation(reply, choices[0].line, quoted_lines(quoted)):
        return "", "what is said to be better may be a quotation of what was compared"
    found = _CHOICE.fullmatch(choices[0].first)
    if found is None:
        return "", f"{choices[0].first[:40]!r} is none of {', '.join(_SHARES)}"
    return found[1].lower(), "\n".join(part.text for part in said.get("rationale", []))


def over_comparisons(name: str, score: float | None, ratings: Sequence[Rating]) -> Rating:
    """A text's score, with how many of its comparisons it rests on; without any, why there is none."""
    met = sum(rating.score is not None for rating in ratings)
    turned = sum(is_inconsistent(rating) for rating in ratings)
    told = f"{met} of {len(ratings)} comparisons could be read"
    if turned:
        told = f"{met} of {len(ratings)} comparisons could be used, {turned} contradictory"
    if met:
        return Rating(aspect=name, score=score, rationale=told)
    if turned == len(ratings):
        return Rating(aspect=name, score=None, rationale=f"{INCONSISTENT}: {told}")
    return unread(name, told)
