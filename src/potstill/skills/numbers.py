"""Final numbers: found in the words around them and compared exactly, as fractions.

A text's number is what its "#### x" gives (the form of GSM8K, Cobbe et al. 2021), else its line "Answer: x", else its
last \\boxed{x}, else the last number that stands in it. What cannot be told apart from something else (a date, a time,
a power, a bound, two numbers behind "Answer:") is no number: the answer then counts as unread, never as a guess.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from unicodedata import numeric

LONGEST = 100
"""Characters of a number, and the largest exponent."""

_TOKEN = re.compile(
    r"""(?P<sign>(?<![\w)\]}])[-−+][ \t]*)?[$€£]?\s?(?<![\w^])
        (?:(?P<mixed>\d+[ ]+\d+/\d+) | (?P<plain>\.?\d[\d.,:/]*(?:[eE][-+]?\d+)?))
        (?P<ordinal>(?:st|nd|rd|th)\b)?
        (?P<more>[²³¹⁰-⁹]|\s?(?:π|\\pi\b|pi\b|√|\\sqrt)|['’_]\w|[kKMB]\b|[A-Za-z_]\w*\d)?
        (?P<scale>\s*(?:thousand|million|billion|trillion)\b)?
        (?P<percent>\s?%|\s+per\s?cent\b)?""",
    re.VERBOSE,
)
_POWER = re.compile(r"\^\s*+(?:[{(]\s*+)?[-−+]?\d")
_POWERS = re.compile(r"(?:(?<!\S)\S*)?\^\s*+(?:[{(]\s*+)?[-−+]?\d+\s*+[)}]?")
_WHOLE = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_FRACTION = re.compile(r"\\[dt]?frac\s*+\{([^{}]++)\}\s*+\{([^{}]++)\}")
_TIMES_TEN = re.compile(r"(?<=\d)\s*(?:×|\\times|\\cdot|\*|x)\s*10\s*+\^\s*+(?:\{\s*+)?([-−+]?\d+)\s*+\}?")
_FIGURE = r"[-−+]?[$€£]?\s?[-−+]?\.?\d[\d.,:/]*"
# What a number that stands behind it is not: a bound, something denied, what is under a root.
_OTHER = re.compile(
    rf"(?:(?<![<>=-])(?:[<>]=?|[≥≤≠])|\b(?:not|never|\w+n['’]t|at (?:least|most)|(?:more|less|fewer|greater) than)\b"
    rf"|(?:(?<!\S)\S*)?(?:√|\\sqrt)[{{(]?)\s*{_FIGURE}",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?[A-Za-z]\w*>")
_DASH = re.compile(r"(?:(?<=[:=(\[{])|^)([ \t]*)[–—][ \t]*(?=[$€£]?\d)", re.MULTILINE)
_RANGE = re.compile(r"(?<!\d)\d++\s?[–—]\s?\d[\d.,:/]*")
_MINUS = re.compile(
    r"(^[^\S\n]*+|(?:[:=(\[{]|\b(?:is|was|be|of|to|equals)\b)\s*+)(?:minus|negative)\s++(?=[$€£]?\d)", re.I | re.M
)
_VULGAR = re.compile(r"(\d?)([¼½¾⅐-⅞])")
_THOUSANDS = re.compile(r"(?<![\d'’.,])(\d{1,3})((?:['’]\d{3})+)(?![\d'’])")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ANSWER_LINE = re.compile(
    r"^(?:[^\w\n]|_)*+(?:the\s++)?(?:final\s++)?answer[\s*_]*+(?::|\bis\b:?)[\s*_]*+(.*)$", re.I | re.M
)
_EMPHASIS = re.compile(r"[\s*_]*+")


@dataclass(frozen=True)
class Number:
    """A value, and whether it was given in percent: 50 of "50%"."""

    value: Fraction
    percent: bool = False

    def same(self, other: "Number") -> bool:
        """Equal. Beside a plain number either reading of a percentage counts: 50% is 50, its sign left out, or 0.5."""
        if self.percent == other.percent:
            return self.value == other.value
        share, plain = (self, other) if self.percent else (other, self)
        return plain.value in (share.value, share.value / 100)


def final_number(text: str) -> Number | None:
    """The number that a text ends up with; None where none can be told."""
    part, explicit = _final_part(text)
    found = _numbers(part)
    if not found or found[-1] is None:
        return None
    if explicit and any(number is None or not number.same(found[-1]) for number in found):
        return None
    return found[-1]


def answer_lines(text: str) -> list[str]:
    """What stands behind "Answer:" on the lines that begin with it."""
    return [_without_tail(found[1]) for found in _ANSWER_LINE.finditer(text)]


def _without_tail(line: str) -> str:
    """Without the emphasis and blanks at its end."""
    tail = _EMPHASIS.match(line[::-1])
    return line[: len(line) - tail.end()] if tail else line


def boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds, its inner braces matched."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len("\\boxed")
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[first + 1 : place]
    return None


def _final_part(text: str) -> tuple[str, bool]:
    """Where the final number is looked for, and whether the text marks it as that."""
    if "####" in text:
        return (text.rsplit("####", 1)[1].strip().splitlines() or [""])[0], True
    if lines := answer_lines(text):
        inside = [boxed(line) or line for line in lines]
        return "\n".join(inside), True
    inner = boxed(text)
    return (text, False) if inner is None else (inner, True)


def _numbers(text: str) -> list[Number | None]:
    """Every number in a text; None for what looks like one and cannot be read as one."""
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = _FRACTION.sub(lambda found: f" {found[1].strip()}/{found[2].strip()}", text)
    text = _TIMES_TEN.sub(r"e\1", text.replace("\\!", "").replace("\\,", ""))
    text = _spelt(text)
    if _POWER.search(text):
        text = _POWERS.sub(" 0:0 ", text)  # a power of its own is no number here
    return [_read(found) for found in _TOKEN.finditer(text) if not found["ordinal"]]


def _spelt(text: str) -> str:
    """The text with other ways to write a number made into the plain one, and what only looks like one made into none.

    A dash or the word minus is a sign where no number can stand before it; ½ is 1/2; 1'000 is 1000.
    """
    text = _THOUSANDS.sub(lambda found: found[1] + re.sub("['’]", "", found[2]), _TAG.sub(" ", text))
    text = _MINUS.sub(r"\1-", _DASH.sub(r"\1-", _RANGE.sub(" 0:0 ", text)))
    text = _VULGAR.sub(lambda found: f"{found[1]} {Fraction(numeric(found[2])).limit_denominator(10)}", text)
    return _OTHER.sub(" 0:0 ", text)


def _read(found: re.Match[str]) -> Number | None:
    whole, _, rest = (found["mixed"] or "").partition(" ")
    plain = found["plain"] or rest.strip()
    if len(found[0]) > LONGEST or found["more"]:
        return None
    value = _value(plain.rstrip(".,:/"))
    if value is None:
        return None
    if whole:
        value += int(whole)
    value *= _SCALES[found["scale"].strip().lower()] if found["scale"] else 1
    sign = (found["sign"] or "").strip()
    return Number(-value if sign in ("-", "−") else value, bool(found["percent"]))


def _value(text: str) -> Fraction | None:
    above, slash, below = text.partition("/")
    values = [_decimal(part) for part in ((above, below) if slash else (above,))]
    if any(value is None for value in values) or (slash and values[1] == 0):
        return None
    first, second = values[0], values[1] if slash else Fraction(1)
    assert first is not None
    assert second is not None
    return first / second


def _decimal(text: str) -> Fraction | None:
    if not text or not any(map(str.isdigit, text)) or not _WHOLE.fullmatch(text) or not text.isascii():
        return None
    exponent = re.search(r"[eE]([-+]?\d+)$", text)
    if exponent and abs(int(exponent[1])) > LONGEST:
        return None
    return Fraction(text.replace(",", ""))
