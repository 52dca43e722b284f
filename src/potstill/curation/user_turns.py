"""What a simulated user says: read from a model's reply, and what is wrong with it as a user's turn.

Models that play a user fall out of the part in a few known ways: they answer instead of asking, say the same again, or
recite what they were told to do.
"""

import re
from collections.abc import Collection, Sequence

from potstill.curation.filters import find_hedge
from potstill.curation.novelty import rouge_l, words
from potstill.records import Message

END_SIGN = "[END]"
"""What a simulated user writes who has nothing more to say."""
SAME = 0.9
"""A turn whose ROUGE-L F against an earlier one is over this says the same again."""
LEAK_WORDS = 8
"""A run of so many words of the instructions is no chance."""

_ASSISTANT = re.compile(
    r"""\A\W*(?:
        (?:sure|certainly|of\ course|absolutely)\b[,!.]?\s+ (?:here\b|i\ can\b|i['’]d\b|let\ me\b)
        | here(?:['’]s|\ is|\ are)\ (?:a|an|the|your|some)\ .{0,60}:
        | (?:i['’]m|i\ am)\ (?:happy|glad|here)\ to\ (?:help|assist)
        | (?:is\ there\ )?anything\ else\ (?:i\ can|you['’]?d?\ )
        | how\ (?:can|may)\ i\ (?:help|assist)\ you
        | (?:please\ )?(?:feel\ free\ to|let\ me\ know\ if\ you)\b
        | you(?:['’]re|\ are)\ (?:very\ |most\ )?welcome\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def read_user_turn(text: str) -> str:
    """What the simulated user says, without a label before it or the answer that some models go on to write."""
    text = re.sub(r"\A\s*\**user\**\s*:\**\s*", "", text, flags=re.IGNORECASE)
    return re.split(r"^[^\S\n]*+\**+(?:assistant|user)\**+\s*+:", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[
        0
    ].strip()


def says_end(turn: str) -> bool:
    """Whether the turn holds the sign that nothing more will be said."""
    return END_SIGN in turn.upper()


def runs(text: str, size: int = LEAK_WORDS) -> frozenset[tuple[str, ...]]:
    """Every run of `size` words of a text."""
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(len(found) - size + 1))


def turn_fault(turn: str, earlier: Sequence[str], told: Collection[tuple[str, ...]]) -> str:
    """Why this is no turn of a user: "unread", "assistant", "repeats", "leaks"; empty where nothing is wrong.

    `earlier`: what the user said before; `told`: the runs of words of the instructions.
    """
    if not turn:
        return "unread"
    if _ASSISTANT.match(turn) or find_hedge([Message(role="assistant", content=turn)]):
        return "assistant"
    said = words(turn)
    if any(said == (before := words(text)) or rouge_l(said, before) > SAME for text in earlier):
        return "repeats"
    return "leaks" if any(run in told for run in runs(turn)) else ""
