"""Rating texts on one aspect at a time, as UltraFeedback does (Cui et al. 2023): the prompt and its reply."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from potstill.prompts import render_prompt
from potstill.records import Message, Rating

Aspect = Literal["instruction_following", "truthfulness", "honesty", "helpfulness"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
LOWEST, HIGHEST = 1.0, 5.0

NOT_APPLICABLE = "N/A"
"""How the rationale of a rating without a score begins where the judge said that the aspect does not apply."""
UNREAD = "unread"
"""How it begins where the judge's reply could not be read."""

_HEADER = re.compile(r"^[\s#*_<\[]*text\s+(\d+)[\s*_>\].:]*$", re.IGNORECASE | re.MULTILINE)
_RATING = re.compile(r"^[\s*_-]*rating[\s*_]*:[\s*_]*(.*?)[\s*_.]*$", re.IGNORECASE | re.MULTILINE)
_RATIONALE = re.compile(r"^[\s*_-]*rationale[\s*_]*:[\s*_]*(.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
_SCORE = re.compile(r"(\d+(?:\.\d+)?)(?:\s*/\s*5)?")
_NOTHING = re.compile(r"n\s*/?\s*a", re.IGNORECASE)


def render_aspect_prompt(aspect: Aspect, conversation: Sequence[Message], texts: Sequence[str]) -> tuple[Message, ...]:
    """What the judge is asked: to rate each of `texts`, answers to one conversation, on one aspect."""
    user = render_prompt(
        "aspect_user",
        title=aspect.replace("_", " ").capitalize(),
        rubric=render_prompt(f"aspect_{aspect}"),
        conversation=conversation,
        texts=texts,
    )
    return (Message(role="system", content=render_prompt("aspect_system")), Message(role="user", content=user))


def parse_aspect_reply(aspect: str, reply: str, count: int) -> list[Rating]:
    """One rating a text, in order. A text that the reply does not rate once, clearly and within 1 to 5 has no score."""
    blocks = _blocks(reply, count)
    return [_read_block(aspect, number, blocks.get(number, [])) for number in range(1, count + 1)]


def is_not_applicable(rating: Rating) -> bool:
    """The judge was understood, and said that the aspect does not apply."""
    return rating.score is None and rating.rationale.startswith(NOT_APPLICABLE)


def _blocks(reply: str, count: int) -> dict[int, list[str]]:
    """The reply cut at its "Text k" lines. A judge of one text may leave that line out."""
    headers = list(_HEADER.finditer(reply))
    if not headers and count == 1:
        return {1: [reply]}
    blocks: dict[int, list[str]] = {}
    for i, header in enumerate(headers):
        end = headers[i + 1].start() if i + 1 < len(headers) else len(reply)
        blocks.setdefault(int(header[1]), []).append(reply[header.end() : end])
    return blocks


def _read_block(aspect: str, number: int, blocks: list[str]) -> Rating:
    if len(blocks) != 1:
        return _unread(aspect, f"the reply has {len(blocks)} parts for text {number}, expected one")
    found = _RATING.findall(blocks[0])
    if len(found) != 1:
        return _unread(aspect, f"the reply has {len(found)} ratings for text {number}, expected one")
    rationale = _RATIONALE.search(blocks[0])
    words = rationale[1].strip() if rationale else ""
    if _NOTHING.fullmatch(found[0]):
        return Rating(aspect=aspect, score=None, rationale=f"{NOT_APPLICABLE}: {words}")
    score = _SCORE.fullmatch(found[0])
    if score is None or not LOWEST <= float(score[1]) <= HIGHEST:
        return _unread(aspect, f"{found[0][:40]!r} is no rating from 1 to 5")
    return Rating(aspect=aspect, score=float(score[1]), rationale=words)


def _unread(aspect: str, why: str) -> Rating:
    return Rating(aspect=aspect, score=None, rationale=f"{UNREAD}: {why}")
