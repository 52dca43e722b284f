"""Where a text has words whose capitals mean something, and how they are broken: in all of it, or in some sentences.

Code, links, addresses, paths and identifiers are no words here. A sentence begins at the text's beginning, on a new
line, and behind a full stop that no abbreviation has; behind a colon, a bracket or an opening quotation nobody can be
sure.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Damage = Literal["lower", "upper", "title", "starts"]
"""No capitals; nothing else; one on every word; none where sentences begin."""
Place = Literal["start", "unsure", "within"]
"""Of a word in its sentence."""

MIN_WORDS = 3
"""A shorter text shows too little to be called broken."""
TITLE_SHARE = 0.9
TITLE_WORDS = 3
TITLE_SMALL_WORDS = 2
"""Of those that titles leave small: with a capital, they tell a damaged sentence from a title."""
UPPER_SHARE = 0.8
SENTENCE_WORDS = 5
"""Of a single sentence in a text that is sound elsewhere: a shorter one may be a list's item, a label, a shout."""
UPPER_SENTENCE_WORDS = 8
STARTS_SHARE = 0.7
MIN_STARTS = 2
"""Sentences without a capital, and their share, that show a writer who leaves it out."""
MAX_GAP = 12
"""Characters before a word that tell how it begins."""
SYMBOL_SHARE = 0.12
"""Of the characters: more symbols of programs and formulas than prose has."""

# Stretches that no capital may be changed in: fenced and inline code, links, addresses, paths, calls, identifiers. Each
# begins where a word does, or a text of one endless word would be searched anew from every letter.
_KEEP = r"""
    (?:```.*?(?:```|\Z) | ~~~.*?(?:~~~|\Z) | `[^`\n]*` | \\\[.*?(?:\\\]|\Z) | \$\$.*?(?:\$\$|\Z) | \\\(.*?(?:\\\)|\Z)
    | \b(?:https?://|www\.)\S+ | (?<!\S)[^\s@]{1,80}@\S{1,80}
    | (?<!\S)[~.]{0,2}/\S+ | \b[^\W_]*[\d_]\w*(?:\.\w+)* | \b\w{1,40}\([^)\n]{0,200}\) | \b[a-z]+[A-Z]\w*
    | \b\w+(?:\.\w+)+\b | (?<!\S)[$#@%\\]\w+ | (?<!\S)--?[a-z]\w*)
"""
_TOKEN = re.compile(rf"{_KEEP} | (?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)", re.DOTALL | re.VERBOSE)
_START = re.compile(r"[.!?…]['\"”’)\]*_]*\s|\n")
_SPOKEN = re.compile(r"[,:]\s+[\"“]\Z")
_UNSURE = re.compile(r"[:;.!?\"“”(\[*_>|•–—/]|\s-\s")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs etc e.g i.e cf jr sr no fig approx dept gen col capt lt sgt rev hon inc ltd"  # noqa: SIM905
    " co corp ca al"
    " u.s u.k a.m p.m ph.d d.c b.c a.d".split()
)
_SENTENCE_END = re.compile(r"[\w'\"”’)\]%][.!?]['\"”’)\]*_]*\s*$", re.MULTILINE)
_FENCED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|\\\[.*?(?:\\\]|\Z)|\$\$.*?(?:\$\$|\Z)|\\\(.*?(?:\\\)|\Z)",
    re.DOTALL,
)
_CODE_LINE = re.compile(
    r"^(?:\t| {4,})(?![-*•+\d(]|\w[.)]\s)[^\s].*[^\s.!?:,]$|[{};][^\S\n]*$"
    r"|^[^\S\n]*(?:def\s+\w+\s*\(|class\s+\w+\s*[:({]|import\s+[\w.*]+(?:\s+as\s+\w+)?;?$|from\s+[\w.]+\s+import\b|return\b[^\n]*[;)\]]$|#include\b|#!/|<\?php|select\s.{1,200}\sfrom\s|\$\s+\w"
    r"|(?-i:[a-z_])[\w.]*(?:\[\w*\])?\s*[-+*/]?=\s*\S)",
    re.MULTILINE | re.IGNORECASE,
)
_SYMBOLS = re.compile(r"[=<>{}\[\]$_;|\\^+~&%#@/()]")


# A small letter where a sentence may begin, or three words with capitals on end; letters without case count as either.
_LOW_START = re.compile(r"(?:\A|[.!?…]['\"”’)\]*_]*\s|\n)[\W\d_]{0,12}[^\W\d_A-ZÀ-ÖØ-Þ]")
_CAPITALS = re.compile(
    r"(?<![^\W\d_])(?:[^\W\d_a-zß-öø-ÿ][^\W\d_]*(?:['’][^\W\d_]+)?[\W\d_]{1,24}){2}[^\W\d_a-zß-öø-ÿ]"
)


_LONE_I = re.compile(r"\si(?:['’](?:m|ve|d|ll)\b|\s[a-z])")


class Token(NamedTuple):
    """A word whose capitals may be learnt from or mended."""

    start: int
    word: str
    place: Place
    gap: str
    """What stands between it and the word before."""


def tokens(text: str) -> Iterator[Token]:
    """The words of a text, in order."""
    end, before = 0, ""
    for found in _TOKEN.finditer(text):
        start, word = found.start(), found[0]
        if found["word"]:
            gap = text[end:start]
            if gap == " ":
                yield Token(start, word, "within", gap)
            else:
                yield Token(start, word, _place(gap, before) if before else "start", gap[-MAX_GAP:])
        before, end = word, found.end()


def _place(gap: str, before: str) -> Place:
    """Of a word behind this gap and the word before it."""
    if _START.search(gap):
        ended = "\n" in gap or (before.lower() not in _ABBREVIATIONS and (len(before) > 1 or not before.isupper()))
        return "start" if ended or gap[0] != "." else "within"
    if _SPOKEN.search(gap):
        return "start"
    return "unsure" if _UNSURE.search(gap) else "within"


def sentences(words: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """The words, sentence by sentence."""
    starts = [number for number, token in enumerate(words) if token.place == "start"]
    for begin, end in pairwise([*dict.fromkeys([0, *starts]), len(words)]):
        if end > begin:
            yield words[begin:end]


def suspect(text: str) -> bool:
    """Whether capitals may be broken anywhere: a quick look, which nearly all sound texts pass."""
    return bool(_LOW_START.search(text) or _CAPITALS.search(text) or _LONE_I.search(text))


def looks_like_code(text: str) -> bool:
    """Whether a text, fenced code aside, has lines of a program, or more symbols than prose."""
    prose = _FENCED.sub(" ", text) if any(mark in text for mark in ("`", "~~~", "\\", "$$")) else text
    return bool(_CODE_LINE.search(prose)) or len(_SYMBOLS.findall(prose)) > SYMBOL_SHARE * len(prose)


def damage(text: str, words: Sequence[Token] | None = None) -> Damage | None:
    """How all of a text's capitals are broken; None where some look sound, or where it looks like code."""
    if looks_like_code(text):
        return None
    found = list(tokens(text)) if words is None else words
    long = [token.word for token in found if len(token.word) > 1]
    if len(long) < MIN_WORDS:
        return None
    if all(token.word == token.word.lower() for token in found if token.word != "I"):
        return "lower"
    if sum(map(str.isupper, "".join(long))) >= UPPER_SHARE * len("".join(long)):
        return "upper"
    # A list of titles or a table has no line that ends like a sentence, and its capitals are right.
    return "title" if _titled(found, TITLE_WORDS) and _SENTENCE_END.search(text) else None


def partial_damage(text: str, words: Sequence[Token]) -> list[Damage | None]:
    """Of each word: how its sentence is broken, in a text that is not broken as a whole."""
    kinds: list[Damage | None] = []
    if looks_like_code(text):
        return [None] * len(words)
    found = list(sentences(words))
    bare = low = 0
    for sentence in found:
        kind = _sentence_damage(text, sentence)
        kinds += [kind] * len(sentence)
        if len(sentence) >= MIN_WORDS and _ends(text, sentence) and _stands_bare(text, sentence[0]):
            bare += 1
            low += sentence[0].word[0].islower()
    for number, token in enumerate(words):
        if kinds[number] is None and token.word.startswith("i") and _is_pronoun(words, number):
            kinds[number] = "lower"
    if low >= min(MIN_STARTS, len(found)) and low >= STARTS_SHARE * bare and bare:
        return ["starts" if kind is None else kind for kind in kinds]
    return kinds


def _is_pronoun(words: Sequence[Token], number: int) -> bool:
    """Whether this is the English pronoun, by its ending or the verb behind it: a lone "i" may be a numeral."""
    token = words[number]
    if token.word in ("i'm", "i've", "i'd", "i'll", "i’m", "i’ve", "i’d", "i’ll"):
        return True
    behind = words[number + 1] if number + 1 < len(words) else None
    return token.word == "i" and behind is not None and behind.gap == " " and behind.word in _VERBS


_VERBS = frozenset(
    "am was have had has do did don't don’t didn't can can't can’t cannot could will would should think"  # noqa: SIM905
    " know want need like love hope guess believe feel really just also never must may might see mean".split()
)


def _sentence_damage(text: str, sentence: Sequence[Token]) -> Damage | None:
    if len(sentence) < SENTENCE_WORDS or not _ends(text, sentence):
        return None
    if all(token.word == token.word.lower() for token in sentence):
        return "lower" if _stands_bare(text, sentence[0]) else None
    if len(sentence) >= UPPER_SENTENCE_WORDS and all(token.word == token.word.upper() for token in sentence):
        return "upper"
    return "title" if _titled(sentence, UPPER_SENTENCE_WORDS) else None


SMALL = frozenset(
    "a an the of and to or in on for with is are was by at from as that this it be you your do have not"  # noqa: SIM905
    " what me my we they he she if so but can will how her his their our has were would could should there".split()
)
"""Words that have no capital within a sentence, and seldom in a title."""


def _titled(words: Sequence[Token], least: int) -> bool:
    """Whether words within sentences have a capital nearly all, small ones too, which titles leave small."""
    inner = [token.word for token in words if token.place == "within"]
    small = [word[0].isupper() for word in inner if word.lower() in SMALL]
    capital = sum(word[0].isupper() for word in inner)
    enough = sum(small) >= max(TITLE_SHARE * len(small), min(TITLE_SMALL_WORDS, len(inner) // 2))
    return len(inner) >= least and capital >= TITLE_SHARE * len(inner) and enough


def _ends(text: str, sentence: Sequence[Token]) -> bool:
    """Whether the sentence ends with a mark."""
    end = sentence[-1].start + len(sentence[-1].word)
    return bool(re.match(r"[\w\s'\"”’)%°-]{0,12}[.!?]", text[end : end + 14]))


def _stands_bare(text: str, first: Token) -> bool:
    """Whether a sentence begins with this word, and not as a list's item or a line of verse."""
    if first.place != "start":
        return False
    line = text.rfind("\n", max(0, first.start - MAX_GAP), first.start) + 1
    if line == 0 and first.start > 0:
        return text[first.start - 1].isspace()
    # On a new line it must stand bare, and what it follows must have come to its end: a salutation has not.
    above = text[max(0, line - 8) : max(0, line - 1)]
    last = above.rstrip()[-1:]
    ended = last in (".", "!", "?", ":", "") or (above.rstrip(" ").endswith("\n") and last not in ",;")
    return text[line : first.start] == "" and ended
