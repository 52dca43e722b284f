"""What is wrong with an evolved prompt, or with the answer to it (Evol-Instruct, Xu et al. 2023, section 3.2)."""

import re

from potstill.curation.filters import find_refusal
from potstill.records import Message

SHORT_ANSWER = 80  # words; an apology in fewer is one that declines

# What belongs to our own prompts and to no user's. English, as the prompts are.
COPIED = (
    "given text", "given prompt", "given instruction", "original text", "original prompt", "original instruction",
    "new text", "new prompt", "rewritten text", "rewritten prompt", "rewritten instruction", "text below",
)  # fmt: skip

# Words that say nothing by themselves.
_STOP_WORDS = frozenset((
    "a", "about", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can",
    "could", "did", "do", "does", "for", "from", "had", "has", "have", "he", "her", "here", "him", "his", "how", "i",
    "if", "in", "into", "is", "it", "its", "just", "me", "more", "my", "no", "not", "of", "on", "or", "our", "out",
    "over", "she", "so", "some", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "to", "too", "up", "us", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will",
    "with", "would", "yes", "you", "your",
))  # fmt: skip
_LABEL = re.compile(
    r"\A\W*(?:the\s+)?(?:new|rewritten)\s+(?:text|prompt|message|instruction)\**\s*:\s*\**\s*", re.IGNORECASE
)
_FRAME = re.compile(r"\A\s*<text \d+>|</text \d+>\s*\Z", re.IGNORECASE)
_EQUAL = re.compile(r"\W*(not\W+equal|unequal|different|equal|same)\b", re.IGNORECASE)


def read_evolved(text: str) -> str:
    """The new prompt in a reply, without the label or the frame that some models put around it."""
    text = _FRAME.sub("", _LABEL.sub("", text)).strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def read_equal(text: str) -> bool | None:
    """Whether two prompts were called equal; None where the reply does not say."""
    found = _EQUAL.match(text)
    return found[1].lower() in ("equal", "same") if found else None


def says_nothing(text: str) -> bool:
    """Whether there is nothing but punctuation and stop words."""
    return all(word in _STOP_WORDS for word in re.findall(r"[^\W_]+", text.lower()))


def copied_words(evolved: str, original: str) -> str:
    """The first words of our own prompt that the new one holds and the original did not; empty where there are none."""
    new, old = evolved.lower(), original.lower()
    return next((words for words in COPIED if words in new and words not in old), "")


def declines(answer: str) -> bool:
    """Whether an answer declines: it opens with a refusal, or is sorry in a few words."""
    if find_refusal([Message(role="assistant", content=answer)]) is not None:
        return True
    return "sorry" in answer.lower() and len(answer.split()) < SHORT_ANSWER
