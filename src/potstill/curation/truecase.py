"""Giving broken capitals back, from what the corpus itself shows (Lita et al. 2003, "tRuEcasIng", at its simplest).

Every text whose capitals look sound teaches how often each word stands in which form within a sentence; at its start,
where any word has a capital, nothing is learnt. A text that is all lower case, ALL CAPITALS or Title Case Throughout
then gets each known word's usual form, and a capital where a sentence begins. Code, links, and words with digits or
underscores stay as they are, and so does every text whose capitals look sound.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Damage = Literal["lower", "upper", "title"]

MIN_WORDS = 3
"""A shorter text shows too little to be called broken."""
TITLE_SHARE = 0.9
TITLE_WORDS = 6
UPPER_SHARE = 0.8

# Stretches that no capital may be changed in: fenced and inline code, links, addresses, paths, identifiers. Each begins
# where a word does, or a text of one endless word would be searched anew from every letter.
_KEEP = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|\b(?:https?://|www\.)\S+|(?<!\S)[^\s@]+@\S+\.\S+|(?<!\S)[~.]{0,2}/\S+"
    r"|\b[^\W_]*[\d_][\w]*(?:\.\w+)*|\b\w+\([^)\n]*\)|\b[a-z]+[A-Z]\w*|\b\w+(?:\.\w+)+\b",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BEGINS = re.compile(r"(?:\A|[.!?:]['\"”’)\]]*\s+|\n)[\s>*#\-•\"'“‘(\[]*(?:\d+[.)]\s+)?\Z")
_SENTENCE_END = re.compile(r"[^\W\d_][.!?]['\"”’)]*\s*$", re.MULTILINE)
_LOOK_BACK = 40  # characters before a word that decide whether a sentence begins there
_CODE_LINE = re.compile(
    r"^(?:\t| {4,})\S|[{};][^\S\n]*$|^[^\S\n]*(?:def|class|import|from|return|#include)\b", re.MULTILINE
)


@dataclass(frozen=True)
class _Token:
    start: int
    word: str
    begins: bool
    """It begins a sentence, so its capital says nothing."""


def _tokens(text: str) -> Iterator[_Token]:
    """The words whose capitals may be learnt from or mended."""
    place = 0
    for kept in [*_KEEP.finditer(text), None]:
        end = kept.start() if kept else len(text)
        for found in _WORD.finditer(text, place, end):
            before = text[max(0, found.start() - _LOOK_BACK) : found.start()]
            # `\A` in the pattern must mean the text's beginning, not the window's.
            begins = bool(_BEGINS.search(before if found.start() <= _LOOK_BACK else "x" + before))
            yield _Token(found.start(), found[0], begins)
        place = kept.end() if kept else end


def damage(text: str) -> Damage | None:
    """How a text's capitals are broken; None where they look sound, or where it looks like code."""
    if _CODE_LINE.search(text):
        return None
    tokens = list(_tokens(text))
    words = [token.word for token in tokens if len(token.word) > 1]
    if len(words) < MIN_WORDS:
        return None
    if not any(character.isupper() for token in tokens for character in token.word):
        return "lower"
    letters = [character for word in words for character in word if character.isalpha()]
    if sum(character.isupper() for character in letters) >= UPPER_SHARE * len(letters):
        return "upper"
    inner = [token.word for token in tokens if not token.begins]
    capital = sum(word[0].isupper() for word in inner)
    # A list of titles or a table has no line that ends like a sentence, and its capitals are right.
    if len(inner) >= TITLE_WORDS and capital >= TITLE_SHARE * len(inner) and _SENTENCE_END.search(text):
        return "title"
    return None


class Truecaser:
    """The usual form of each word, learnt from sound texts."""

    def __init__(self, forms: dict[str, str]) -> None:
        self._forms = forms

    @classmethod
    def learn(cls, texts: Iterable[str]) -> "Truecaser":
        """Count forms within sentences over every text whose capitals look sound; the most frequent one wins."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            if damage(text) is None:
                for token in _tokens(text):
                    if not token.begins:
                        counts[token.word.lower()][token.word] += 1
        # Of two forms that are as frequent, the one with fewer capitals: capitals are the exception.
        forms = {
            word: min(found, key=lambda form: (-found[form], sum(c.isupper() for c in form), form))
            for word, found in counts.items()
        }
        return cls(forms)

    def restore(self, text: str) -> tuple[str, int]:
        """(the text with sound capitals, how many words changed). A sound text comes back as it is."""
        kind = damage(text)
        if kind is None:
            return text, 0
        parts, place, changed = [], 0, 0
        for token in _tokens(text):
            form = self._form(token, kind)
            parts += [text[place : token.start], form]
            place = token.start + len(token.word)
            changed += form != token.word
        return "".join([*parts, text[place:]]), changed

    def _form(self, token: _Token, kind: Damage) -> str:
        known = self._forms.get(token.word.lower())
        if known is None:
            # A word never seen: in Title Case it may be a name, so it stays; shouted, it most likely is none.
            known = token.word.lower() if kind == "upper" else token.word
        return known[:1].upper() + known[1:] if token.begins else known
