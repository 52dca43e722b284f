"""Rating texts as UltraFeedback does (Cui et al. 2023): on one aspect at a time, or as a whole with a critique."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from potstill.prompts import render_prompt
from potstill.records import Message, Rating
from potstill.teachers.ratings import FIVE, TEN, Form, read_ratings

Aspect = Literal["instruction_following", "truthfulness", "honesty", "helpfulness"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
LOWEST, HIGHEST = float(FIVE.low), float(FIVE.high)
OVERALL = "overall"
"""The name under which a rating of a text as a whole is kept."""

Render = Callable[..., str]
"""Fills a prompt's blanks: potstill's own wording, or a user's."""


def aspect_form(aspect: str, count: int, *, verdicts: bool = False, structured: bool = False) -> Form:
    """What the judge of an aspect is to say."""
    return Form(aspect, count, FIVE, verdicts, structured=structured)


def overall_form(*, structured: bool = False) -> Form:
    """What the reviewer of one text is to say: a critique, a word and a number, which have to fit each other."""
    return Form(OVERALL, 1, TEN, verdicts=True, optional=False, structured=structured)


def render_aspect_prompt(
    aspect: Aspect,
    conversation: Sequence[Message],
    texts: Sequence[str],
    *,
    verdicts: bool = False,
    structured: bool = False,
    render: Render = render_prompt,
) -> tuple[Message, ...]:
    """What the judge is asked: to rate each of `texts`, answers to one conversation, on one aspect."""
    user = render(
        "aspect_user",
        title=aspect.replace("_", " ").capitalize(),
        rubric=render(f"aspect_{aspect}"),
        conversation=conversation,
        texts=texts,
    )
    system = render("aspect_system", verdicts=verdicts, structured=structured)
    return (Message(role="system", content=system), Message(role="user", content=user))


def render_overall_prompt(
    conversation: Sequence[Message], text: str, *, structured: bool = False, render: Render = render_prompt
) -> tuple[Message, ...]:
    """What the reviewer is asked: a critique of one text, a word for it, and a number from 1 to 10."""
    return (
        Message(role="system", content=render("overall_system", structured=structured)),
        Message(role="user", content=render("overall_user", conversation=conversation, text=text)),
    )


def parse_aspect_reply(aspect: str, reply: str, count: int, quoted: Sequence[str] = ()) -> list[Rating]:
    """One rating a text, in order. A text that the reply does not rate once, clearly and within 1 to 5 has no score."""
    return read_ratings(aspect_form(aspect, count), reply, quoted)
