"""Aspect scores of one model's answers: each turn rated 1 to 5 on one aspect, alone, with the dialogue before it.

A text is rated alone, not beside those of the other models, so that a model's score does not depend on whom it is
compared with. A turn to which the judge finds an aspect not applicable is not counted as asked; it is counted in facts.
"""

from dataclasses import replace

from potstill.evaluation.sheets import Ask, Read, Sheet, Turn
from potstill.teachers.aspects import Aspect, parse_aspect_reply, render_aspect_prompt
from potstill.teachers.base import Request, request_seed
from potstill.teachers.ratings import is_not_applicable


def ask_judge(aspect: Aspect, max_tokens: int, seed: int) -> Ask:
    """How a judge is asked to rate a turn on that aspect."""

    def ask(sheet: Sheet, turn: int) -> Request:
        messages = render_aspect_prompt(aspect, sheet.conversation(turn), [sheet.turns[turn].assistant or ""])
        return Request(messages, max_tokens, seed=request_seed(seed, sheet.prompt.id, aspect, turn + 1))

    return ask


def read_rating(aspect: Aspect) -> Read:
    """How the judge's reply is read."""

    def read(turn: Turn, reply: str) -> Turn:
        (rating,) = parse_aspect_reply(aspect, reply, 1)
        if is_not_applicable(rating):
            return replace(turn, judgment=reply, applies=False)
        reason = "" if rating.score is not None else rating.rationale
        return replace(turn, judgment=reply, score=rating.score, reason=reason)

    return read
