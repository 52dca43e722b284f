"""What a judge's reply says of texts: read strictly, from labelled lines or from JSON, and held against its own words.

Nothing is guessed: a text that the reply does not rate once, clearly and on the scale has no score, and says why. A
number is never made of "N/A", nor of a reply that cannot be read. Nothing in a reply is ever run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from potstill.records import Rating, whole_text

NOT_APPLICABLE = "N/A"
"""How the rationale of a rating without a score begins where the judge said that the aspect does not apply."""
UNREAD = "unread"
"""How it begins where the judge's reply could not be read."""
INCONSISTENT = "inconsistent"
"""How it begins where the judge's score and its own words contradict each other."""
SLACK = 1
"""So many points a score may lie outside the range of its verdict until the two are called a contradiction."""


MOST_PARTS = 10**6
"""The largest denominator of a score, so that means of judges and decimals of six places are exact."""


def exact_score(score: float) -> Fraction:
    """The simple fraction that a float stands for: 13/3 of 4.333333333333333, 1/10 of 0.1.

    Rows hold floats, and the means of equal ratings differ in their last bits. Everything that compares scores, or adds
    them, goes by this.
    """
    return Fraction(score).limit_denominator(MOST_PARTS)


@dataclass(frozen=True)
class Scale:
    """Whole numbers from low to high, and which of them each verdict stands for."""

    low: int
    high: int
    verdicts: Mapping[str, tuple[int, int]]


FIVE = Scale(1, 5, {"poor": (1, 2), "fair": (3, 3), "good": (4, 4), "excellent": (5, 5)})
TEN = Scale(1, 10, {"poor": (1, 3), "fair": (4, 6), "good": (7, 8), "excellent": (9, 10)})


@dataclass(frozen=True)
class Form:
    """What a reply is to hold: a rating for each of `count` texts."""

    aspect: str
    count: int
    scale: Scale = FIVE
    verdicts: bool = False
    """A word beside each number."""
    optional: bool = True
    """N/A may be said."""
    structured: bool = False
    """It is JSON that keeps to `schema`; otherwise labelled lines."""

    @property
    def schema(self) -> str:
        """The JSON Schema of a structured reply, as text. Every text has a key of its own, so none is rated twice."""
        choices = [str(score) for score in range(self.scale.low, self.scale.high + 1)]
        fields: dict[str, Any] = {"rationale": {"type": "string"}}
        if self.verdicts:
            fields["verdict"] = {"type": "string", "enum": list(self.scale.verdicts)}
        fields["rating"] = {"type": "string", "enum": choices + [NOT_APPLICABLE] * self.optional}
        texts = {f"text_{number}": closed_object(fields) for number in range(1, self.count + 1)}
        return json.dumps(closed_object(texts))


def closed_object(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that has these fields, all of them, and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_ratings(form: Form, reply: str, quoted: Iterable[str] = ()) -> list[Rating]:
    """One rating a text, in order. `quoted`: what the judge was shown, whose lines are not its own words."""
    if form.structured:
        return _read_json(form, reply)
    blocks, lines = _blocks(plain_lines(reply), form.count), quoted_lines(quoted)
    return [_read_block(form, number, blocks.get(number, []), lines) for number in range(1, form.count + 1)]


def is_not_applicable(rating: Rating) -> bool:
    """The judge was understood, and said that the aspect does not apply."""
    return rating.score is None and rating.rationale.startswith(NOT_APPLICABLE)


def is_unread(rating: Rating) -> bool:
    """The judge was not understood."""
    return rating.score is None and rating.rationale.startswith(UNREAD)


def is_inconsistent(rating: Rating) -> bool:
    """The judge was understood, and contradicted itself."""
    return rating.score is None and rating.rationale.startswith(INCONSISTENT)


def unread(aspect: str, why: str) -> Rating:
    """A rating without a score, which says why."""
    return Rating(aspect=aspect, score=None, rationale=f"{UNREAD}: {why}")


# Labelled lines.

# Of one line, and possessive, so that no run of blanks or signs is read more than once.
_HEADER = re.compile(
    r"^(?:[^\S\n]|[#*_<\[])*+text[^\S\n]++(\d++)(?:[^\S\n]|[*_>\].:])*+$", re.IGNORECASE | re.MULTILINE
)
_LONGEST_NUMBER = 9  # digits
_LABEL = re.compile(r"^[ \t*_-]*(rating|score|verdict|rationale|critique)[ \t*_]*:", re.I | re.M)
_SCORE = re.compile(r"(\[{0,2})(\d{1,3}(?:\.\d{1,6})?)(?:\s*(?:/|out of)\s*(\d+))?(\]{0,2})", re.IGNORECASE)
_NOTHING = re.compile(r"n\s*/?\s*a|not applicable", re.IGNORECASE)
_LABELS = {"score": "rating", "critique": "rationale"}


def plain_lines(text: str) -> str:
    """The text with every end of a line as the one character."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _blocks(reply: str, count: int) -> dict[int, list[str]]:
    """The reply cut at its "Text k" lines. A judge of one text may leave that line out."""
    headers = list(_HEADER.finditer(reply))
    if not headers and count == 1:
        return {1: [reply]}
    blocks: dict[int, list[str]] = {}
    for i, header in enumerate(headers):
        end = headers[i + 1].start() if i + 1 < len(headers) else len(reply)
        number = int(header[1]) if len(header[1]) <= _LONGEST_NUMBER else 0  # of no text
        blocks.setdefault(number, []).append(reply[header.end() : end])
    return blocks


def _read_block(form: Form, number: int, blocks: list[str], lines: frozenset[str]) -> Rating:
    if len(blocks) != 1:
        return unread(form.aspect, f"the reply has {len(blocks)} parts for text {number}, expected one")
    said = labelled(blocks[0], _LABEL)
    ratings = said.get("rating", [])
    if len(ratings) != 1:
        return unread(form.aspect, f"the reply has {len(ratings)} ratings for text {number}, expected one")
    if is_quotation(blocks[0], ratings[0].line, lines) or _ends_rationale(blocks[0], ratings[0].line, lines):
        return unread(form.aspect, f"the rating of text {number} may be a quotation of what was rated")
    rationale = "\n".join(part.text for part in said.get("rationale", []))
    words = [part.first.lower() for part in said.get("verdict", [])]
    return _rating(form, ratings[0].first, words[0] if len(words) == 1 else "", rationale)


def _rating(form: Form, number: str, verdict: str, rationale: str) -> Rating:
    """A rating as it was written down, if it is one."""
    if form.optional and _NOTHING.fullmatch(number):
        return Rating(aspect=form.aspect, score=None, rationale=f"{NOT_APPLICABLE}: {rationale}")
    found, scale = _SCORE.fullmatch(number), form.scale
    if found is None or len(found[1]) != len(found[4]) or (found[3] and found[3] != str(scale.high)):
        return unread(form.aspect, f"{number[:40]!r} is no rating from {scale.low} to {scale.high}")
    if not scale.low <= float(found[2]) <= scale.high:
        return unread(form.aspect, f"{number[:40]!r} is no rating from {scale.low} to {scale.high}")
    word = verdict if form.verdicts and verdict in scale.verdicts else ""
    values = {"aspect": form.aspect, "score": float(found[2]), "rationale": rationale, "verdict": word}
    return Rating.model_validate(values)


@dataclass(frozen=True)
class Part:
    """What stands after one label, up to the next."""

    line: str
    """The whole line that the label stands on."""
    text: str

    @property
    def first(self) -> str:
        """The first line of it, without emphasis and full stop."""
        return self.text.partition("\n")[0].strip(" \t*_.")


def labelled(text: str, label: re.Pattern[str]) -> dict[str, list[Part]]:
    """A text cut at its labels, each of which is the pattern's first group."""
    found, parts = list(label.finditer(text)), dict[str, list[Part]]()
    for i, match in enumerate(found):
        end = found[i + 1].start() if i + 1 < len(found) else len(text)
        name = match[1].lower()
        stop = text.find("\n", match.end())
        line = text[match.start() : stop if stop >= 0 else len(text)]
        parts.setdefault(_LABELS.get(name, name), []).append(Part(line, text[match.end() : end].strip(" \t\n*_")))
    return parts


def quoted_lines(texts: Iterable[str]) -> frozenset[str]:
    """Every line of the texts, plain."""
    return frozenset(_plain(line) for text in texts for line in text.splitlines())


def is_quotation(block: str, line: str, quoted: frozenset[str]) -> bool:
    """Whether a line may be a quotation: it stands in what was shown, and neither opens nor closes the block."""
    if _plain(line) not in quoted:
        return False
    own = [_plain(other) for other in block.splitlines() if other.strip()]
    return _plain(line) not in (own[0], own[-1])


def _ends_rationale(block: str, line: str, quoted: frozenset[str]) -> bool:
    """Whether a line that stands in what was shown may close a rationale that quotes it: it neither opens the block
    nor follows a verdict, as the forms have it."""
    own = [_plain(other) for other in block.splitlines() if other.strip()]
    place = own.index(_plain(line))
    return _plain(line) in quoted and place > 0 and not own[place - 1].startswith("verdict")


def _plain(line: str) -> str:
    return line.strip(" \t>*_-#").casefold()


# JSON.


def parse_json(text: str) -> Any:
    """The JSON value that a model wrote, its characters whole. ValueError where a key stands twice, or for no JSON."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=once)
        spelt = json.dumps(value, ensure_ascii=False)
        whole = whole_text(spelt)
        return value if whole == spelt else json.loads(whole, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_object(reply: str) -> dict[str, Any] | str:
    """The JSON object that a reply is, or why it is none. A key that is told twice makes it none."""
    try:
        value = parse_json(reply)
    except ValueError as error:
        return f"the reply is not the JSON that was asked for ({whole_text(str(error))[:80]})"
    return value if isinstance(value, dict) else "the reply is JSON, but no object"


def _read_json(form: Form, reply: str) -> list[Rating]:
    value = read_object(reply)
    if isinstance(value, str):
        return [unread(form.aspect, value)] * form.count
    return [_read_entry(form, number, value.get(f"text_{number}")) for number in range(1, form.count + 1)]


def _read_entry(form: Form, number: int, entry: Any) -> Rating:
    if not isinstance(entry, dict):
        return unread(form.aspect, f"the reply has no object for text {number}")
    rating, rationale, verdict = entry.get("rating"), entry.get("rationale", ""), entry.get("verdict", "")
    if isinstance(rating, int | float) and not isinstance(rating, bool):
        rating = str(rating) if abs(rating) < 1e6 else "no rating"  # some integers are too long to be spelt
    if not isinstance(rating, str) or not isinstance(rationale, str) or not isinstance(verdict, str):
        return unread(form.aspect, f"the rating of text {number} is {json.dumps(rating)[:40]}")
    return _rating(form, rating.strip(), verdict.lower(), rationale.strip())


# A score against its own critique.

_THIS = r"(?:it|this|that|(?:the|this) (?:text|answer|response|one))"
_NUMBER = r"(\d{1,3}(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?"
# What may follow a rating, so that "give it 2 examples" is none.
_ENDS = r"(?=\s*(?:[.,;:!)\]](?:\s|$)|$|(?:points?|stars?|because|since|for|as|and|but)\b))"
_SAID = (
    re.compile(
        rf"\b(?:give|rate|score|grade|award|assign)\s+{_THIS}\s+(?:as\s+)?(?:an?\s+|only\s+)*"
        rf"(?:(?:rating|score|grade)\s+of\s+)?{_NUMBER}{_ENDS}",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?:rating|score|grade)\s+(?:of|is)\s+(?:an?\s+|only\s+)*{_NUMBER}{_ENDS}", re.IGNORECASE),
    re.compile(rf"\b(?:deserves|earns|merits|gets)\s+(?:an?\s+|only\s+)*{_NUMBER}{_ENDS}", re.IGNORECASE),
)


def contradiction(rating: Rating, scale: Scale, quoted: Iterable[str] = ()) -> str:
    """Why a judge's score and its own words cannot both be meant, or nothing.

    The verdict names a range that the score must lie in or next to (`SLACK`); a rating that the rationale states must
    be the score. What the rationale took from the texts it was shown does not count. UltraFeedback's published scores
    held a 10 beside a critique that named the answer poor (OpenBMB/UltraFeedback, issue 8): a 1 had been read as 10.
    """
    if rating.score is None:
        return ""
    if rating.verdict:
        low, high = scale.verdicts[rating.verdict]
        if not low - SLACK <= rating.score <= high + SLACK:
            return f"{rating.score:g} of {scale.high}, but called {rating.verdict}"
    shown = [text.casefold() for text in quoted]
    said = dict.fromkeys(
        (match[0], match[1], match[2]) for pattern in _SAID for match in pattern.finditer(rating.rationale)
    )
    for words, number, highest in said:
        if highest and highest != str(scale.high):
            continue
        if float(number) != rating.score and not any(words.casefold() in text for text in shown):
            return f"{rating.score:g} of {scale.high}, but its rationale says {words[:60]!r}"
    return ""
