"""What is wrong with a dialogue as an example to learn from: hedging, refusing, repeating itself, saying nothing.

Zephyr (Tunstall et al. 2023, section 4) drops dialogues whose assistant talks of its own missing opinions, feelings and
experiences, since a model that is taught so says it everywhere. Which phrases was never published; these are ours.
"""

import re
from collections import Counter
from collections.abc import Sequence

from potstill.curation.phrases import hedges, refusal
from potstill.records import Message

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+[\"'”’)]*|\n|\Z)\s*")


def find_hedge(messages: Sequence[Message]) -> str | None:
    """The first phrase in which an assistant talks of being a machine without opinions, feelings and the like."""
    found = (next(hedges(message.content), None) for message in messages if message.role == "assistant")
    return next((" ".join(phrase[0].split()) for phrase in found if phrase), None)


def find_refusal(messages: Sequence[Message]) -> str | None:
    """The first assistant turn's opening that declines to answer. Saying that one does not know is no refusal."""
    found = (refusal(message.content) for message in messages if message.role == "assistant")
    return next((phrase for phrase in found if phrase), None)


def strip_hedges(text: str) -> str:
    """The text without the sentences that hedge. May be empty: then it said nothing else."""
    sentences = _SENTENCE.findall(text)
    return "".join(s for s in sentences if not any(hedges(s))).strip()


def repetition(text: str, size: int = 4) -> float:
    """Share of the text's runs of `size` words that it has said before, from 0 to 1. Short texts have none."""
    words = text.lower().split()
    runs = Counter(zip(*(words[i:] for i in range(size)), strict=False))
    total = runs.total()
    return 1 - len(runs) / total if total >= 2 * size else 0.0
