"""An answer while it is written: its tokens become pieces of text, up to a stop word, thoughts and calls told apart."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from potstill.records import ToolCall
from potstill.teachers.local import THINK, THOUGHT
from potstill.teachers.spelling import Spelling
from potstill.teachers.tool_calls import CALL, parse_tool_calls
from potstill.training.decoding import Row

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Said:
    """One token and how likely it was."""

    text: str
    logp: float
    """In nats, at temperature 1."""
    likeliest: tuple[tuple[str, float], ...] = ()
    """What might have stood there instead, the likeliest first."""


@dataclass(frozen=True)
class Piece:
    """What came of an answer in one step."""

    content: str = ""
    reasoning: str = ""
    said: tuple[Said, ...] = ()
    """The tokens of it, where their log-probabilities are asked for."""


@dataclass(frozen=True)
class End:
    """How an answer ended."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    calls: tuple[ToolCall, ...] = ()


@dataclass
class Answer:
    """One row of a batch as a client sees it. `read` is called after each step of the batch, until it is `ended`."""

    row: Row
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    """The tokens that end an answer."""
    stops: tuple[str, ...] = ()
    """Texts that end it; they are no part of it."""
    offers_tools: bool = False
    reasons: bool = True
    """Whether what stands between marks of thinking is told apart, as in a chat."""
    end: End | None = None
    _read: int = 0
    _held: str = ""
    """Text that may be the beginning of a stop word."""
    _length: int = 0
    """Characters that have come."""
    _given: int = 0
    """Characters that were let go, to whichever part."""
    _said: list[tuple[int, Said]] = field(default_factory=list)
    """Tokens whose text is not let go yet, each with where it begins."""

    def __post_init__(self) -> None:
        self._spelling = Spelling(self.tokenizer)
        tail = str(self.tokenizer.decode(self.row.prompt_ids[-8:].tolist())) if self.reasons else ""
        self._parts = Parts(tail.rstrip().endswith(THINK), reasons=self.reasons, calls=self.offers_tools)

    def read(self) -> list[Piece]:
        """What the tokens make that have come since the last call."""
        pieces: list[Piece] = []
        while self._read < len(self.row.tokens) and self.end is None:
            token = self.row.tokens[self._read]
            if token in self.ends:
                return [*pieces, *self._finish("stop")]
            piece = self._add(token)
            self._read += 1
            if piece is not None:
                pieces.append(piece)
        if self.end is None and len(self.row.tokens) >= self.row.limit:
            pieces += self._finish("length")
        return pieces

    def _add(self, token: int) -> Piece | None:
        if self.row.told:
            odds = self.row.odds[self._read]
            likeliest = tuple((self._spell(other), logp) for other, logp in odds.likeliest)
            self._said.append((self._length, Said(self._spell(token), odds.logp, likeliest)))
        return self._let_go(self._spelling.add(token))

    def _spell(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def _let_go(self, text: str, *, all_of_it: bool = False) -> Piece | None:
        """Text that has come, without what may be the beginning of a stop word; the answer ends at a whole one."""
        self._length += len(text)
        self._held += text
        at = min((place for stop in self.stops if (place := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self._held = self._held[:at]
            self._end("stop", self._read + 1)
            all_of_it = True
        kept = 0 if all_of_it else longest_beginning(self._held, self.stops)
        free, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._given += len(free)
        content, reasoning = self._parts.add(free)
        if self.end is not None:
            more, thought = self._parts.rest()
            content, reasoning = content + more + self._conclude(), reasoning + thought
        said = tuple(self._spoken(everything=all_of_it and at < 0))
        return Piece(content, reasoning, said) if content or reasoning or said else None

    def _spoken(self, *, everything: bool) -> Iterator[Said]:
        """The tokens that begin in what was let go."""
        while self._said and (everything or self._said[0][0] < self._given):
            yield self._said.pop(0)[1]

    def _finish(self, finish: Finish) -> list[Piece]:
        """The answer has ended by its tokens; a stop word may still stand in the last of its text."""
        rest = self._spelling.rest()
        self._read = len(self.row.tokens) - 1
        self._end(finish, len(self.row.tokens))
        piece = self._let_go(rest, all_of_it=True)
        return [piece] if piece else []

    def _end(self, finish: Finish, tokens: int) -> None:
        self.end = End(finish, len(self.row.prompt_ids), tokens)

    def _conclude(self) -> str:
        """Read the calls; returns what is said behind them. Where the answer was cut, they are words like others."""
        assert self.end is not None
        if not self._parts.called or self.end.finish != "stop":
            return self._parts.called
        text, calls = parse_tool_calls(self._parts.called)
        self.end = replace(self.end, finish="tool_calls", calls=calls)
        return text


def longest_beginning(text: str, words: tuple[str, ...]) -> int:
    """How many of the last characters of a text may be the beginning of one of the words."""
    most = min(len(text), max((len(word) - 1 for word in words), default=0))
    for length in range(most, 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return length
    return 0


class Parts:
    """A text that comes in pieces, as what was thought, what was said and what was called."""

    def __init__(self, begun: bool, *, reasons: bool, calls: bool) -> None:
        """`begun`: the prompt has opened the thought already."""
        self._state = "thinks" if begun else "opens" if reasons else "says"
        self._calls = calls
        self._held = ""
        self.called = ""
        """The calls as they are written, and whatever stands behind the first."""

    def add(self, text: str) -> tuple[str, str]:
        """What is said and what is thought in the text so far, and can be told now."""
        self._held += text
        reasoning = ""
        if self._state == "opens":
            self._open()
        if self._state == "thinks":
            reasoning = self._think()
        content = self._say() if self._state in ("blank", "says") else ""
        if self._state == "calls":
            self.called, self._held = self.called + self._held, ""
        return content, reasoning

    def rest(self) -> tuple[str, str]:
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        if self._state == "thinks":
            return "", held
        return ("", "") if self._state == "calls" else (held, "")

    def _open(self) -> None:
        """It begins with a thought, or it does not."""
        begins = self._held.lstrip()
        if begins.startswith(THINK):
            self._held, self._state = begins.removeprefix(THINK), "thinks"
        elif not THINK.startswith(begins):
            self._state = "says"

    def _think(self) -> str:
        thought, mark, rest = self._held.partition(THOUGHT)
        if mark:
            self._held, self._state = rest, "blank"
            return thought
        kept = longest_beginning(self._held, (THOUGHT,))
        thought, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return thought

    def _say(self) -> str:
        if self._state == "blank":  # between a thought and the answer
            self._held = self._held.lstrip()
            if not self._held:
                return ""
            self._state = "says"
        if not self._calls:
            text, self._held = self._held, ""
            return text
        text, mark, rest = self._held.partition(CALL)
        if mark:
            self._held, self._state = mark + rest, "calls"
            return text
        kept = longest_beginning(self._held, (CALL,))
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return text
