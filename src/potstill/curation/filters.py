"""What is wrong with a dialogue as an example to learn from: hedging, refusing, silence, repetition, spoilt text.

Zephyr (Tunstall et al. 2023, section 4) drops dialogues whose assistant talks of its own missing opinions, feelings and
experiences, since a model that is taught so says it everywhere. Which phrases was never published; `phrases` has ours.
Every finding is a `Fault`; None says that there is none. Each takes time that grows with the text's length, whatever
the text.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potstill.curation.phrases import code_spans, hedges, refusal, told
from potstill.records import Message

Fault = tuple[str, str]
"""(reason, detail), as `Dropped` has them."""

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
# In scripts that write no spaces every character counts as a word: Thai, kana, ideographs.
_UNSPACED = re.compile(r"[\u0e01-\u0e30\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")

_RUN = 4
_MIN_PIECE = 20  # characters: a shorter line, such as a brace, may stand many times
_PIECE = re.compile(r"[^.!?\n]+")
# One to eight characters over and over; which of these are loops, `_loop` decides.
_LOOP = re.compile(r"(\S[^\n]{0,7}?)\1{7,}")
_MIN_LOOP = 48  # characters
_MOST_IN_LOOP = 8

_NORMAL = re.compile(r"\w+")
_MIN_ANSWER_WORDS = 5  # "Yes." may be said twice
_MIN_ECHO_WORDS = 4

# UTF-8 read as Latin-1 or Windows-1252; "Ã" before a plain letter is Portuguese.
_MOJIBAKE = re.compile(
    r"Ã[\u0080-\u00bf\u2018-\u203a€ƒ„…†‡ˆ‰Š‹ŒŽ]|â€[\u0080-\u00bf™œžš¦\u2018-\u201e]|Â[\u00a0-\u00bf]|ï»¿|ðŸ|ï¿½"
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_MIN_SYMBOLS = 40  # characters
_MIN_LETTER_SHARE = 0.2

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?]+[\"'”’)]*|\n|\Z)\s*")
# What a full stop ends without ending a sentence.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|approx|dr|mr|mrs|ms|prof|st|jr|sr|no|fig|eq|inc|ltd|dept|a\.m|p\.m)|\b\w|(?:\A|\n)\W*\d{1,3})\.\s*\Z",
    re.IGNORECASE,
)
_LEFT_BEHIND = re.compile(
    r"(?:however|nevertheless|nonetheless|that\s+(?:being\s+)?said|with\s+that\s+(?:being\s+)?said|but|still|instead),?\s+",
    re.IGNORECASE,
)


def find_hedge(messages: Sequence[Message]) -> str | None:
    """The first phrase in which an assistant talks of being a machine without opinions, feelings and the like."""
    found = (next(hedges(answer), None) for answer in _answers(messages))
    return next((told(phrase) for phrase in found if phrase), None)


def find_refusal(messages: Sequence[Message]) -> str | None:
    """The first assistant turn's opening that declines to answer. Saying that one does not know is no refusal."""
    return next((phrase for answer in _answers(messages) if (phrase := refusal(answer))), None)


def strip_hedges(text: str) -> str:
    """The text without the sentences that hedge. May be empty: then it said nothing else.

    Cut are whole sentences, never within code; a "However," that is left behind without what it answers goes as well.
    """
    places = [found.start() for found in hedges(text)]
    if not places:
        return text
    parts: list[str] = []
    after_cut = False
    for start, end in _sentences(text):
        sentence = text[start:end]
        first = bisect_left(places, start)
        if first < len(places) and places[first] < end:
            after_cut = True
            # The lines that follow keep their distance from what stands before.
            parts.append("\n" * (sentence.count("\n") - sentence.strip().count("\n")) if parts else "")
            continue
        left = _LEFT_BEHIND.match(sentence) if after_cut else None
        if left:
            rest = sentence[left.end() :]
            sentence = rest[:1].upper() + rest[1:]
        parts.append(sentence)
        after_cut = False
    return "".join(parts).strip()


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """The spans of a text's sentences, code blocks whole; together they are the text."""
    place = 0
    for begin, end in [*code_spans(text, inline=False), (len(text), len(text))]:
        start = place
        for found in _SENTENCE.finditer(text, place, begin):
            stop = found.end()
            if stop > start and (stop == begin or not _goes_on(text, start, stop)):
                yield start, stop
                start = stop
        if end > begin:
            yield begin, end
        place = end


def _goes_on(text: str, start: int, stop: int) -> bool:
    """Whether what looks like a sentence's end is none: a decimal, an abbreviation, a list's number."""
    if not text[stop - 1].isspace():
        return True
    return "\n" not in text[stop - 2 : stop] and bool(_ABBREVIATION.search(text, max(start, stop - 16), stop))


def is_silent(message: Message) -> bool:
    """Whether a turn neither says anything nor calls a tool."""
    return not message.tool_calls and not message.content.strip().strip(_INVISIBLE).strip()


def find_silence(messages: Sequence[Message]) -> Fault | None:
    """A turn of the user or the assistant that says nothing. A turn that only calls a tool does something."""
    for number, message in enumerate(messages, start=1):
        if message.role in ("user", "assistant") and is_silent(message):
            return "empty", f"turn {number}, the {message.role}'s, says nothing"
    return None


@dataclass(frozen=True)
class Lengths:
    """What an answer and a dialogue may measure; None sets no bound."""

    min_words: int | None = None
    """Of each answer that calls no tool."""
    max_words: int | None = None
    """Of each answer."""
    min_characters: int | None = None
    """Of the whole dialogue."""
    max_characters: int | None = None
    """Of the whole dialogue."""


def count_words(text: str) -> int:
    """Words apart by spaces; in scripts without spaces, characters."""
    if text.isascii():
        return len(text.split())
    return len(_UNSPACED.findall(text)) + len(_UNSPACED.sub(" ", text).split())


def find_length(messages: Sequence[Message], lengths: Lengths) -> Fault | None:
    """An answer or a dialogue that is "too_short" or "too_long"."""
    characters = sum(len(message.content) for message in messages)
    if lengths.max_characters is not None and characters > lengths.max_characters:
        return "too_long", f"{characters} characters"
    if lengths.min_characters is not None and characters < lengths.min_characters:
        return "too_short", f"{characters} characters"
    if lengths.min_words is None and lengths.max_words is None:
        return None
    for message in messages:
        if message.role == "assistant":
            words = count_words(message.content)
            if lengths.max_words is not None and words > lengths.max_words:
                return "too_long", f"an answer of {words} words"
            if lengths.min_words is not None and words < lengths.min_words and not message.tool_calls:
                return "too_short", f"an answer of {words} words"
    return None


def repetition(text: str, size: int = _RUN) -> float:
    """Share of the text's runs of `size` words that it has said before, from 0 to 1. Short texts have none."""
    words = text.lower().split()
    total = len(words) - size + 1
    if total < 2 * size:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(size)), strict=False))) / total


def repeated_lines(text: str) -> float:
    """Share of the text that is lines and sentences which it has said before, by their characters, from 0 to 1."""
    pieces = Counter(piece for found in _PIECE.findall(text) if len(piece := found.strip()) >= _MIN_PIECE)
    again = sum((count - 1) * len(piece) for piece, count in pieces.items())
    return again / len(text) if again else 0.0


def find_repetition(messages: Sequence[Message], max_runs: float = 0.3, max_lines: float = 0.3) -> Fault | None:
    """An answer that repeats itself: "loop" (a few characters over and over), "repeated_lines", "repetition"."""
    for answer in _answers(messages):
        if loop := _loop(answer):
            return "loop", f"{loop[0]!r} {loop[1]} times in a row"
        if max_lines < 1 and (share := repeated_lines(answer)) > max_lines:
            return "repeated_lines", f"{share:.0%} of an answer is lines or sentences said before"
        if max_runs < 1 and (share := repetition(answer)) > max_runs:
            return "repetition", f"{share:.0%} of an answer's runs of words are repeated"
    return None


def _loop(text: str) -> tuple[str, int] | None:
    """(what is repeated, how many times). Lines drawn with dashes and the like are none."""
    # A loop covers a whole window of half its least length, which then holds few different characters.
    windows = range(0, len(text) - _MIN_LOOP // 2 + 1, _MIN_LOOP // 2)
    if len(text) < _MIN_LOOP or all(len(set(text[i : i + _MIN_LOOP // 2])) > _MOST_IN_LOOP for i in windows):
        return None
    for found in _LOOP.finditer(text):
        if len(found[0]) >= _MIN_LOOP and any(character.isalnum() for character in found[1]):
            return found[1], len(found[0]) // len(found[1])
    return None


def find_repeated_answer(messages: Sequence[Message]) -> Fault | None:
    """Two of the assistant's turns that say the same, capitals and punctuation aside."""
    seen: dict[tuple[str, ...], int] = {}
    for number, answer in enumerate(_answers(messages), start=1):
        words = tuple(_NORMAL.findall(answer.lower()))
        if len(words) >= _MIN_ANSWER_WORDS and (first := seen.setdefault(words, number)) != number:
            return "repeated_answer", f"answers {first} and {number} are the same"
    return None


def find_echo(messages: Sequence[Message]) -> Fault | None:
    """An answer that says what the user said, and next to nothing else."""
    said: list[str] = []
    for message in messages:
        if message.role == "user":
            said = _NORMAL.findall(message.content.lower())
        elif message.role == "assistant" and len(said) >= _MIN_ECHO_WORDS:
            words = _NORMAL.findall(message.content.lower())
            if len(words) <= 1.2 * len(said) and words[: len(said)] == said:
                return "echo", "an answer repeats the user's turn"
    return None


def find_broken_text(messages: Sequence[Message]) -> Fault | None:
    """A turn whose characters were spoilt on the way, or which is mostly symbols."""
    for number, message in enumerate(messages, start=1):
        if what := _broken(message.content):
            return "broken_text", f"turn {number}: {what}"
    return None


def _broken(text: str) -> str | None:
    if not text.isascii():
        if "\ufffd" in text:
            return "characters that could not be decoded (U+FFFD)"
        if found := _MOJIBAKE.search(text):
            return f"text decoded by the wrong encoding ({found[0]!r})"
    if found := _CONTROL.search(text):
        return f"a control character ({found[0]!r})"
    if len(text) < _MIN_SYMBOLS or code_spans(text, inline=False):
        return None
    solid = "".join(text.split())
    letters = sum(map(str.isalnum, solid))
    # Marks (vowel signs, accents) and emoji stand for words; what is left is punctuation and the like.
    signs = 0 if solid.isascii() else sum(ord(character) > 0x2FF and not character.isalnum() for character in solid)
    if solid and letters + signs < _MIN_LETTER_SHARE * len(solid):
        return f"{letters} letters and digits among {len(solid)} characters"
    return None


def _answers(messages: Sequence[Message]) -> Iterator[str]:
    return (message.content for message in messages if message.role == "assistant" and message.content)
