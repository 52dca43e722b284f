"""Giving broken capitals back, from what the corpus itself shows (Lita et al. 2003, "tRuEcasIng").

Every text whose capitals look sound teaches how often each word stands in which form within a sentence, and beside
which words; where a sentence begins any word has a capital, and nothing is learnt. A text, or a sentence of one, that
is all lower case, ALL CAPITALS or Title Case Throughout then gets each known word's form that fits best: by the words
beside it, by what the dialogue's sound turns show, by what is usual; and a capital where a sentence begins. What looks
sound stays as it is, and so do code, links, and words with digits or underscores.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from potstill.curation.capitals import SMALL, Damage, Token, damage, partial_damage, sentences, suspect, tokens

MAX_WORDS = 500_000
MAX_PAIRS = 1_000_000
"""Forms of words, and pairs of neighbours, that are kept while counting: some 200 MB together."""

_PRIOR = 2.0  # what is usual weighs as much as so many sightings beside the same word
_LOCAL = 3.0  # and one sighting in the same dialogue as much as so many
_SEEN = 5  # times a kind of gap must stand before a small word to tell whether a sentence begins behind it
_RARE = 0.02  # share below which another form of a word is a slip
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "ers", "est", "ness", "ful", "less", "able", "y")

_ORDINAL = re.compile(r"(?<=\d)(?:ST|ND|RD|TH)\b")


class FormCounts:
    """How often each word stands in which form within sentences, and in which form beside which word.

    Bounded: where more than so many are known, the rarest go, those seen once first (lossy counting, Manku and Motwani
    2002). Counts of parts merge to the counts of the whole, exactly so where nothing had to go.
    """

    def __init__(self, max_words: int = MAX_WORDS, max_pairs: int = MAX_PAIRS) -> None:
        self.forms: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        """By "Form next" and "previous\\tForm", neighbours in lower case."""
        self.gaps: Counter[str] = Counter()
        """By "+gap" and "-gap": what stands before words like "the" that have a capital, or have none."""
        self.starts: Counter[str] = Counter()
        """Words with a capital where sentences begin."""
        self.pruned = 0
        """Entries that had to go."""
        self._bounds = (max_words, max_pairs, max_words, max_words)

    def __len__(self) -> int:
        return len(self.forms)

    def add(self, text: str) -> None:
        """Count a text, if its capitals look sound."""
        words = list(tokens(text))
        if words and damage(text, words) is None:
            self.gaps.update(
                ("+" if token.word[0].isupper() else "-") + token.gap
                for token in words
                if token.gap != " " and token.word.lower() in SMALL
            )
            for sentence in sentences(words):
                self._add(sentence)
            self._prune()

    def _add(self, sentence: Sequence[Token]) -> None:
        inner = [token.place == "within" for token in sentence]
        forms = [_base(token.word)[0] for token in sentence]
        if _is_heading(forms, inner):
            return
        self.forms.update(form for form, within in zip(forms, inner, strict=True) if within)
        if sentence[0].place == "start" and forms[0][0].isupper():
            self.starts[forms[0]] += 1
        low = [form.lower() for form in forms]
        for number in range(1, len(forms)):
            if inner[number]:
                self.pairs[f"{low[number - 1]}\t{forms[number]}"] += 1
            if inner[number - 1]:
                self.pairs[f"{forms[number - 1]} {low[number]}"] += 1

    def merge(self, other: "FormCounts") -> None:
        """Take in what another counted."""
        self.forms.update(other.forms)
        self.pairs.update(other.pairs)
        self.gaps.update(other.gaps)
        self.starts.update(other.starts)
        self.pruned += other.pruned
        self._prune()

    def _prune(self) -> None:
        for counts, bound in zip((self.forms, self.pairs, self.gaps, self.starts), self._bounds, strict=True):
            least = 0
            # Down to half, so that this is seldom done.
            while len(counts) > (bound // 2 if least else bound):
                least += 1
                rare = [key for key, count in counts.items() if count <= least]
                self.pruned += len(rare)
                for key in rare:
                    del counts[key]


def _is_shout(form: str, count: int) -> bool:
    """A long word in capitals alone, hardly ever seen, is not an acronym."""
    return count < _SEEN and len(form) > 5 and form.isupper()


def _is_heading(forms: Sequence[str], inner: Sequence[bool]) -> bool:
    """A title's words have capitals of the title, not their own."""
    capital = sum(form[0].isupper() for form, within in zip(forms, inner, strict=True) if within)
    return capital > 1 and capital > 0.8 * sum(inner)


class Truecaser:
    """The form of each word, learnt from sound texts."""

    def __init__(self, counts: FormCounts) -> None:
        found: dict[str, list[tuple[str, int]]] = {}
        for form, count in counts.forms.items():
            found.setdefault(form.lower(), []).append((form, count))
        self._usual: dict[str, str] = {}
        self._shares: dict[str, tuple[tuple[str, float], ...]] = {}
        """Of the words that have several forms: each, and its share."""
        for word, forms in found.items():
            if _is_shout(*max(forms, key=lambda pair: (pair[1], pair[0]))):
                continue
            total = sum(count for _, count in forms)
            # Of two forms that are as frequent, the one with fewer capitals: capitals are the exception.
            ranked = sorted(forms, key=lambda pair: (-pair[1], sum(map(str.isupper, pair[0])), pair[0]))
            self._usual[word] = ranked[0][0]
            often = [(form, count / total) for form, count in ranked if count > 1 and count >= _RARE * total]
            if len(often) > 1:
                self._shares[word] = tuple(often)
        kept = {form for forms in self._shares.values() for form, _ in forms}
        # Names end otherwise than other words do.
        ends: Counter[tuple[str, bool]] = Counter(
            (word[-size:], form == word)
            for word, form in self._usual.items()
            for size in (3, 4)
            if len(word) > size + 1
        )
        self._common_ends = frozenset(
            end for end, small in ends if small and ends[end, True] >= max(_SEEN, 4 * ends[end, False])
        )
        # What begins sentences and never stands within one is a name, or an adverb, which ends as other words do.
        for form, count in counts.starts.items():
            word = form.lower()
            if count > 1 and word not in found and word.isalpha() and len(word) > 2 and not self._ends_common(word):
                self._usual[word] = form
        # Behind such a gap a sentence begins, or none does.
        self._starts: dict[str, bool] = {}
        for gap in {key[1:] for key in counts.gaps}:
            capital, small = counts.gaps[f"+{gap}"], counts.gaps[f"-{gap}"]
            if capital + small >= _SEEN:
                self._starts[gap] = capital > small
        self._pairs = {pair: count for pair, count in counts.pairs.items() if _form_of(pair) in kept}

    @classmethod
    def learn(cls, texts: Iterable[str]) -> "Truecaser":
        """From every text whose capitals look sound."""
        counts = FormCounts()
        for text in texts:
            counts.add(text)
        return cls(counts)

    def restore(self, text: str, beside: Iterable[str] = ()) -> tuple[str, int]:
        """(the text with sound capitals, how many words changed). A sound text comes back as it is.

        `beside` are the dialogue's other turns: the names that stand in them are likely to be this one's.
        """
        if not suspect(text):
            return text, 0
        words = list(tokens(text))
        kind = damage(text, words)
        kinds = [kind] * len(words) if kind else partial_damage(text, words)
        if not any(kinds):
            return text, 0
        local = _local(words, kinds, beside)
        parts, place, changed = [], 0, 0
        for number, token in enumerate(words):
            form = self._restored(words, number, kinds[number], local)
            parts += [text[place : token.start], form]
            place = token.start + len(token.word)
            changed += form != token.word
        mended = "".join([*parts, text[place:]])
        return (_ORDINAL.sub(lambda found: found[0].lower(), mended) if kind == "upper" else mended), changed

    def restore_all(self, texts: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Of a dialogue's turns: each restored with the others beside it."""
        for number, text in enumerate(texts):
            yield self.restore(text, (*texts[:number], *texts[number + 1 :]))

    def _restored(self, words: Sequence[Token], number: int, kind: Damage | None, local: Mapping[str, int]) -> str:
        token = words[number]
        if kind is None or not _has_sure_case(token.word):
            return token.word
        if kind != "starts":
            base, ending = _base(token.word)
            form = self._form(words, number, base, kind, local) + ending.lower()
        else:
            form = token.word
        begins = token.place == "start"
        if token.place != "within" and number:
            begins = self._starts.get(token.gap, begins)
        return form[:1].upper() + form[1:] if begins else form

    def _form(self, words: Sequence[Token], number: int, base: str, kind: Damage, local: Mapping[str, int]) -> str:
        word = base.lower()
        shares = self._shares.get(word) or ((self._usual[word], 1.0),) if word in self._usual else ()
        forms = {form: _PRIOR * share for form, share in shares}
        for form in {word, word.capitalize(), word.upper(), base} & local.keys():
            forms[form] = forms.get(form, 0.0) + _LOCAL * local[form]
        if not forms:
            return self._unknown(base, kind)
        if len(forms) > 1:
            before = _base(words[number - 1].word)[0].lower() if number else ""
            after = _base(words[number + 1].word)[0].lower() if number + 1 < len(words) else ""
            for form in forms:
                forms[form] += self._pairs.get(f"{before}\t{form}", 0) + self._pairs.get(f"{form} {after}", 0)
        return max(forms, key=lambda form: (forms[form], form))

    def _unknown(self, base: str, kind: Damage) -> str:
        """Of a word never seen: by the word it is made of. In Title Case what ends like a
        name may be one, and stays."""
        word = base.lower()
        if word[:2] in ("i'", "i’"):
            return self._usual.get("i", "i") + word[1:]
        for ending in _ENDINGS:
            stem = self._usual.get(word.removesuffix(ending)) if word.endswith(ending) else None
            if stem is not None and len(stem) > 2:
                return stem + word[len(stem) :] if not stem.isupper() or ending == "s" else word
        return word if kind != "title" or self._ends_common(word) else base

    def _ends_common(self, word: str) -> bool:
        return word[-4:] in self._common_ends or word[-3:] in self._common_ends


def _local(words: Sequence[Token], kinds: Sequence[Damage | None], beside: Iterable[str]) -> Counter[str]:
    """How often each form stands within the sound sentences of this text and of those beside it."""
    seen = Counter(
        _base(token.word)[0]
        for token, kind in zip(words, kinds, strict=True)
        if kind in (None, "starts") and token.place == "within"
    )
    for text in beside:
        found = list(tokens(text))
        if found and damage(text, found) is None:
            seen.update(_base(token.word)[0] for token in found if token.place == "within")
    return seen


def _base(word: str) -> tuple[str, str]:
    """A word without the ending of a possessive, and that ending."""
    if len(word) > 2 and word[-1] in "sS" and word[-2] in "'’":
        return word[:-2], word[-2:]
    return word, ""


def _has_sure_case(word: str) -> bool:
    """Whether a word's capitals can be changed and changed back: not the Turkish i's, nor what is one sign for several
    letters. A capital I beside Turkish letters may be either of the two."""
    if word.isascii():
        return True
    low = word.lower()
    first = low[:1].upper()
    if len(low) != len(word) or len(first) != 1 or first.lower() != low[:1]:
        return False
    return "ı" not in low and not ("i" in low and any(sign in low for sign in "şğ"))


def _form_of(pair: str) -> str:
    """The word of a pair whose form was counted."""
    return pair.rpartition("\t")[2] if "\t" in pair else pair.partition(" ")[0]
