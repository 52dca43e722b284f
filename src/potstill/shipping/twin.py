"""What llama.cpp would make of a text, from what a file says of its tokenizer; compared with the tokenizer itself.

It follows llama.cpp's src/llama-vocab.cpp: control tokens and the user's own first, the longest first; then pieces and
merges by rank, or neighbours by score. A test holds it to llama.cpp itself.
"""

import heapq
import json
import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from potstill.shipping.vocabulary import BLANK, BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

HARD = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\n\n\nword",
    "word\n\n\n\n\n word",
    " \n \n  x",
    "\t\tx\t y",
    "a\r\nb\r\n\r\nc",
    "don't can't we'll I'VE 'tis o'clock 'S's",
    "'table 'swim 're-do",
    "1 12 123 1234 12345678",
    " 5  6   7",
    "3.14e-10",
    "½ ² ٣٤ Ⅷ 五百",
    "x²+y³=½",
    "naïve café Katze saß",
    "é composed é",
    "猫がマットの上に座っていた。",
    "Привет, мир!",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "한국어 텍스트",
    "say 😀 or 👩\u200d👩\u200d👧\u200d👦 and 🇩🇪",
    "a\xa0b\u3000c\u2003d",
    "zero\u200bwidth",
    "\ufeffmark",
    "def f(x):\n    return x  # one\n\n\tif not x:\n\t\tpass\n",
    "<html><b>&amp;</b></html>",
    "{'a': [1, 2], \"b\": null}",
    "https://example.com/a?b=c&d=e#f",
    "~~~~ ---- ==== ____",
    "word.Word,word;word:word!word?",
    "...!?!... -- (a) [b] {c}",
    "A" * 300,
    " " * 40 + "x",
    "ab " * 60,
    "x" + "\n" * 17 + "y",
    "CamelCaseAndSNAKE_CASE and kebab-case",
    "\\n is no break",
)
DRAWN = 400
"""Texts of tokens joined at random."""


class Twin:
    """Reads as llama.cpp does, with control tokens steering (`parse_special`) and no start token added."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        kinds = (CONTROL, UNKNOWN, USER_DEFINED)
        atoms = [token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind in kinds]
        self._atoms = sorted(atoms, key=lambda token: -len(token.encode()))

    def ids(self, text: str) -> list[int]:
        """The tokens."""
        found: list[int] = []
        after_atom = True
        for part, is_atom in self._parts(text):
            if is_atom:
                found.append(self._ids[part])
            elif self._vocabulary.model == "gpt2":
                found += self._bytes.encode(part, add_special_tokens=False).ids
            else:
                blank = " " if self._vocabulary.space_prefix and after_atom else ""
                found += self._joined((blank + part).replace(" ", BLANK))
            after_atom = is_atom
        return found

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text cut at tokens that nothing cuts or joins; whether each part is one."""
        parts = [(text, False)] if text else []
        for atom in self._atoms:
            if atom in text:
                parts = [piece for part in parts for piece in ([part] if part[1] else _cut(part[0], atom))]
        yield from parts

    @cached_property
    def _bytes(self) -> Any:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        cut = self._vocabulary.cut
        assert cut is not None
        bpe: Any = models.BPE
        made = Tokenizer(bpe(self._ids, list(self._vocabulary.merges), ignore_merges=cut.ignore_merges))
        pieces: list[Any] = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in cut.expressions]
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        return made

    def _joined(self, text: str) -> list[int]:
        """Characters, of which the two neighbours whose joint token has the best score become one, until none is."""
        scores = self._vocabulary.scores
        symbols = list(text)
        behind = [*range(1, len(symbols)), -1] if symbols else []
        before = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (both := symbols[left] + symbols[right]) in self._ids:
                heapq.heappush(queue, (-scores[self._ids[both]], left, right, both))

        for left, right in pairwise(range(len(symbols))):
            offer(left, right)
        while queue:
            _, left, right, both = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != both:
                continue
            symbols[left], symbols[right] = both, ""
            behind[left] = behind[right]
            if behind[right] >= 0:
                before[behind[right]] = left
            offer(before[left], left)
            offer(left, behind[left])
        return [index for symbol in symbols if symbol for index in self._spelt(symbol)]

    def _spelt(self, symbol: str) -> list[int]:
        """A token, or the bytes of what is none."""
        if symbol in self._ids:
            return [self._ids[symbol]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def _cut(text: str, atom: str) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for place, piece in enumerate(text.split(atom)):
        parts += [(atom, True)] if place else []
        parts += [(piece, False)] if piece else []
    return parts


def hard_texts(vocabulary: Vocabulary, pieces: Sequence[str]) -> list[str]:
    """Texts over which tokenizers differ, and tokens joined at random; `pieces`: what each token says."""
    chance = random.Random(0)
    plain = [piece for piece, kind in zip(pieces, vocabulary.kinds, strict=False) if kind not in (CONTROL, BYTE)]
    drawn = ["".join(chance.choice(plain) for _ in range(chance.randint(2, 12))) for _ in range(DRAWN if plain else 0)]
    return [*HARD, *drawn]


def difference(vocabulary: Vocabulary, backend: Any, texts: Iterable[str]) -> str:
    """The first text that llama.cpp would read otherwise than the tokenizer does, in words; "" where there is none."""
    twin = Twin(vocabulary)
    for text in texts:
        read = vocabulary.opening + (unicodedata.normalize("NFC", text) if vocabulary.nfc else text)
        expected, found = backend.encode(read, add_special_tokens=False).ids, twin.ids(read)
        if expected != found:
            place = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if len({*pair}) > 1), None)
            at = min(len(expected), len(found)) if place is None else place
            told = json.dumps(read[:80], ensure_ascii=False)
            ids = f"{found[at:][:4]}, not {expected[at:][:4]}"
            return f"llama.cpp would read {told} as other tokens from the {at + 1}. on: {ids}"
    return ""
