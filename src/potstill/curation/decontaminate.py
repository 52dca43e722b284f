"""Keeping evaluation prompts out of training data: finds dialogues whose user says one, or a long run of words of one.

The unit is a run of n words (13, as in GPT-3's appendix C), without case and punctuation. An opening prompt that is
shorter counts as a whole: within a user turn if it has at least five words, else only where it is the whole turn. A
follow-up means little without what it follows ("Say that again."), so it counts by runs of n words only. In scripts
that set no blanks between words each character is one. A prompt without words repeats nothing.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from potstill.records import Chat, Message, Pair, Prompt
from potstill.sources import Data

LEAST_RUN = 5

Words = tuple[str, ...]
_UNSPACED = "\u0e01-\u0e30\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # Thai, kana, ideographs
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # soft hyphens, and signs without width


def words(text: str) -> Words:
    """What is compared: words in lower case, however their characters are composed (Unicode's NFKC)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return tuple(_WORD.findall(text.lower()))


class Decontaminator:
    """The evaluation prompts to keep out; `size` is n."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._runs: dict[Words, dict[Words, str]] = defaultdict(dict)  # by their first words
        self._whole: dict[Words, str] = {}

    def keep_out(self, name: str, turns: Sequence[str]) -> None:
        """Add an evaluation prompt's user turns, the opening first. The name is what a finding is explained with."""
        for place, turn in enumerate(turns):
            said = words(turn)
            if len(said) >= self.size:
                self._add_runs(name, said, self.size)
            elif place == 0 and len(said) >= LEAST_RUN:
                self._add_runs(name, said, len(said))
            elif place == 0 and said:
                self._whole.setdefault(said, name)

    def _add_runs(self, name: str, said: Words, length: int) -> None:
        for i in range(len(said) - length + 1):
            run = said[i : i + length]
            self._runs[run[:LEAST_RUN]].setdefault(run, name)

    def find(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """(name of the evaluation prompt, the words that were found) for the first run of one that a user says."""
        if not self._runs and not self._whole:
            return None
        for message in messages:
            if message.role != "user":
                continue
            said = words(message.content)
            if said in self._whole:
                return self._whole[said], " ".join(said)
            for i in range(len(said) - LEAST_RUN + 1):
                for run, name in self._runs.get(said[i : i + LEAST_RUN], {}).items():
                    if said[i : i + len(run)] == run:
                        return name, " ".join(run)
        return None


def keeping_out(size: int, held_out: Iterable[Data]) -> Decontaminator:
    """A decontaminator that knows what users say in prompts, chats and pairs that are held out."""
    found = Decontaminator(size)
    for data in held_out:
        for name, turns in user_turns(data):
            found.keep_out(f"{data.name}/{name}", turns)
    return found


def user_turns(data: Data) -> Iterator[tuple[str, list[str]]]:
    """What the user says in each row, follow-ups included."""
    if data.kind == "chats":
        for chat in data.rows(Chat):
            yield chat.id, _said(chat.messages)
    elif data.kind == "pairs":
        for pair in data.rows(Pair):
            yield pair.id, _said(pair.prompt)
    else:
        for row in data.rows(Prompt):
            yield row.id, [*_said(row.messages), *row.follow_ups]
            if row.counterpart:
                yield row.id, [row.counterpart]


def _said(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "user"]
