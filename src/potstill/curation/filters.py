"""What is wrong with a dialogue as an example to learn from: hedging, refusing, repeating itself, saying nothing.

Zephyr (Tunstall et al. 2023, section 4) drops dialogues whose assistant talks of its own missing opinions, feelings and
experiences, since a model that is taught so says it everywhere. Which phrases was never published; these are ours.
"""

import re
from collections import Counter
from collections.abc import Sequence

from potstill.records import Message

_FLAGS = re.IGNORECASE | re.VERBOSE

_MACHINE = r"""
    an?\s+ (?:(?:artificial|large|mere|simple|humble|helpful|virtual)\s+)*
    (?:ai\b | a\.i\. | (?:artificial\s+)?intelligence\b | language\s+model | machine\s+learning\s+model
        | chat\s?bot | computer\s+program)
    (?!\s+(?:researcher|engineer|expert|scientist|developer|ethicist|consultant|company|startup|student|enthusiast))
"""
_LACKING = r"""
    (?:do\s+not | don['’]t | can\s?not | can['’]t)\s+ (?:(?:really|actually|truly)\s+)?
    (?:have|hold|feel|form|possess|experience)
"""
_INNER = r"(?:opinion|feeling|emotion|experience|belief|preference|thought|desire|consciousness)s?"

_HEDGES = (
    re.compile(rf"\bas\s+ {_MACHINE} [^.!?\n]{{0,80}}? \b(?:i|my|me)\b", _FLAGS),
    re.compile(rf"\bi(?:\s+am|['’]m)\s+ (?:(?:just|only|merely|simply)\s+)? {_MACHINE}", _FLAGS),
    re.compile(
        rf"\bi\s+ {_LACKING}\s+ (?:(?:any|my\s+own|human|personal|subjective|real)\s+)* {_INNER}\b"
        r"(?!\s+(?:with|in|as|of)\b)",  # a person without experience in something is no machine
        _FLAGS,
    ),
    re.compile(r"\bmy\s+ (?:training\s+data | knowledge\s+cut-?off)\b", _FLAGS),
)

_SORRY = r"""
    (?:(?:i['’]?\s?a?m\s+ | we['’]re\s+)? (?:(?:very|so|really)\s+)? (?:sorry|afraid)
        | my\s+apologies | i\s+apologi[sz]e | unfortunately)\b
"""
_CANNOT = r"""
    (?:can\s?not | can['’]t | won['’]t | will\s+not | am\s+(?:not\s+able|unable)\s+to
        | (?:must|have\s+to)\s+decline\s+to)
"""
_SERVE = r"""
    (?:help|assist|provide|answer|do|comply|fulfil|support|create|write|give|discuss|engage|generate|share|offer)
"""

# Only at a turn's beginning: further on, people are quoted and told what they cannot do.
_REFUSALS = (
    re.compile(rf"\A\W*{_SORRY} [^.!?\n]{{0,40}}? \b(?:i|we)\s+ {_CANNOT}\s+ {_SERVE}\b", _FLAGS),
    re.compile(rf"\A\W*i\s+ {_CANNOT}\s+ {_SERVE}\b", _FLAGS),
)

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+[\"'”’)]*|\n|\Z)\s*")


def find_hedge(messages: Sequence[Message]) -> str | None:
    """The first phrase in which an assistant talks of being a machine without opinions, feelings and the like."""
    return _first(_HEDGES, messages)


def find_refusal(messages: Sequence[Message]) -> str | None:
    """The first assistant turn's opening that declines to answer. Saying that one does not know is no refusal."""
    return _first(_REFUSALS, messages)


def _first(patterns: Sequence[re.Pattern[str]], messages: Sequence[Message]) -> str | None:
    for message in messages:
        if message.role == "assistant":
            for pattern in patterns:
                found = pattern.search(message.content)
                if found:
                    return " ".join(found[0].split())
    return None


def strip_hedges(text: str) -> str:
    """The text without the sentences that hedge. May be empty: then it said nothing else."""
    sentences = _SENTENCE.findall(text)
    return "".join(s for s in sentences if not any(hedge.search(s) for hedge in _HEDGES)).strip()


def repetition(text: str, size: int = 4) -> float:
    """Share of the text's runs of `size` words that it has said before, from 0 to 1. Short texts have none."""
    words = text.lower().split()
    runs = Counter(zip(*(words[i:] for i in range(size)), strict=False))
    total = runs.total()
    return 1 - len(runs) / total if total >= 2 * size else 0.0
