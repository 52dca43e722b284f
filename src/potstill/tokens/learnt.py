"""What is learnt of a conversation, turn by turn: its tokens, and the bytes that each of them stands for.

Suffixes: L learnt tokens of one turn.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from potstill.errors import ModelError
from potstill.reading.files import escaped
from potstill.records import Message
from potstill.tokens.tokenization import PROBE, Encoded, Tools, Traced, encode_chat, trace_chats

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Turn:
    """One learnt turn as bytes.

    Places count bytes from the beginning of what is said. What a template writes of its own before that (a line break,
    a space) has places below 0, and what it writes to end the turn stands behind `len(said)`.
    """

    said: bytes
    """What the message says, as the template writes it: some trim it, some write calls of tools behind."""
    opens: int
    """Where the learnt tokens take over: the turn's beginning, or further on where a token that begins in the opening,
    and so is not learnt, goes on into the turn."""
    starts_L: NDArray[np.int64]
    """Where each token begins. Blanks that no token has stand between two."""
    ends_L: NDArray[np.int64]
    exact_L: NDArray[np.bool_]
    """Whether the token really ends there. False inside a character whose parts cannot be told apart."""
    tokens: tuple[str, ...]
    """Each as the vocabulary spells it."""

    def __len__(self) -> int:
        return len(self.tokens)


def learnt_turns(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]], tools: Sequence[Tools] | None = None
) -> list[tuple[Encoded, tuple[Turn, ...]]]:
    """Conversations as `encode_chats` gives them, each with its learnt turns as bytes.

    The tokens of all turns, one after another, are those that `learn_L` marks. ModelError where the template ends a
    turn as it does not end others.
    """
    spelling, frame = Spelling.of(tokenizer), cache(partial(_frame, tokenizer))
    return [
        (traced.encoded, tuple(_turn(traced, place, spelling, frame(place[0] == 0)) for place in traced.turns))
        for traced in trace_chats(tokenizer, chats, tools=tools)
    ]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token by which a model says that its turn is over: the last that is learnt of one."""
    encoded = encode_chat(tokenizer, _probe())
    return int(encoded.ids_L[encoded.learn_L][-1])


def _probe() -> list[Message]:
    return [Message(role="user", content="?"), Message(role="assistant", content=PROBE)]


class _Frame(NamedTuple):
    """What a template writes of its own in an assistant's turn."""

    model: str
    before: str
    """Between the turn's opening and its words."""
    behind: str
    """Behind them, as far as it is learnt."""


def _frame(tokenizer: PreTrainedTokenizerBase, first: bool) -> _Frame:
    """Of the `first` turn of a conversation, which has no opening: a role's marker stands before its words; or of any
    other."""
    (traced,) = trace_chats(tokenizer, [_probe()[first:]])
    ((start, _, last),) = traced.turns
    before, _, behind = traced.text[start : traced.encoding.offsets[last - 1][1]].partition(PROBE)
    return _Frame(str(tokenizer.name_or_path), before, behind)


def _turn(traced: Traced, place: tuple[int, int, int], spelling: "Spelling", frame: _Frame) -> Turn:
    model, before, behind = frame
    start, first, last = place
    first = max(first, 1)  # the first token of a row is not learnt
    ids = traced.encoded.ids_L[first:last].tolist()
    tokens = tuple(traced.encoding.tokens[first:last])
    offsets = [(max(begin - start, 0), max(end - start, 0)) for begin, end in traced.encoding.offsets[first:last]]
    text = traced.text[start : start + (offsets[-1][1] if offsets else 0)]
    if not text.endswith(behind):
        raise ModelError(
            model,
            f"its chat template ends a turn with {text[-len(behind) :]!r} where it ends others with {behind!r}",
            "Choose a template that ends every assistant's turn alike",
        )
    inner = text[: len(text) - len(behind)]
    opening = before if inner.startswith(before) else ""
    pieces = [spelling.bytes_of(index, token) for index, token in zip(ids, tokens, strict=True)]
    starts_L, ends_L, exact_L = _places(text, pieces, offsets)
    shift = len(opening.encode())
    said = inner[len(opening) :].encode()
    straddled = traced.encoding.offsets[first - 1][1] > start
    opens = int(starts_L[0]) if straddled and len(starts_L) else 0
    return Turn(said, opens - shift, starts_L - shift, ends_L - shift, exact_L, tokens)


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer's vocabulary spells bytes."""

    bytes_of_letters: dict[str, int] | None
    """Of a byte-level vocabulary: the byte that each letter stands for."""
    byte_tokens: bool
    """Whether <0x41> is the byte 0x41, and no text."""
    blank: str
    """Stands for a blank; empty where a blank is a blank."""
    prefix: str
    """Stands before a token that continues a word (WordPiece)."""
    added: dict[int, str]
    """Tokens that are spelled as they are read."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Spelling":
        """As the parts of its tokenizer.json say."""
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        backend = tokenizer.backend_tokenizer
        model = backend.model
        normalizers = list(_parts(backend.normalizer))
        parts = [*normalizers, *_parts(backend.pre_tokenizer), *_parts(backend.decoder)]
        kinds = {part["type"] for part in parts}
        blanks = [part["replacement"] for part in parts if part["type"] == "Metaspace"]
        blanks += [part["content"] for part in normalizers if _replaces_blanks(part)]
        return cls(
            _letters() if "ByteLevel" in kinds else None,
            bool(getattr(model, "byte_fallback", False)) or "ByteFallback" in kinds,
            blanks[0] if blanks else "",
            model.continuing_subword_prefix if isinstance(model, WordPiece) else "",
            {index: token.content for index, token in tokenizer.added_tokens_decoder.items()},
        )

    def bytes_of(self, index: int, token: str) -> bytes | None:
        """The bytes that a token adds to a text; None where it does not say (a letter of no byte-level alphabet)."""
        if index in self.added:
            return self.added[index].encode()
        if self.bytes_of_letters is not None:
            found = [self.bytes_of_letters.get(letter) for letter in token]
            return None if None in found else bytes(byte for byte in found if byte is not None)
        if self.is_byte(token):
            return bytes([int(token[3:5], 16)])
        if self.prefix:
            token = token.removeprefix(self.prefix)
        return (token.replace(self.blank, " ") if self.blank else token).encode()

    def text_of(self, index: int, token: str) -> str:
        """A token for a person: in quotes, on one line; as its vocabulary spells it where it does not say its bytes."""
        piece = self.bytes_of(index, token)
        return f'"{escaped(token if piece is None else piece.decode(errors="backslashreplace"))}"'

    def is_byte(self, token: str) -> bool:
        """Whether it is a byte spelled as one."""
        return self.byte_tokens and BYTE_TOKEN.fullmatch(token) is not None


def _letters() -> dict[str, int]:
    """Of GPT-2's byte-level alphabet."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer as its tokenizer.json has it, or those that it is a sequence of."""
    waiting = [] if part is None else [json.loads(part.__getstate__())]
    while waiting:
        one = waiting.pop(0)
        below = one.get("normalizers") or one.get("pretokenizers") or one.get("decoders")
        if below is None:
            yield one
        else:
            waiting = [*below, *waiting]


def _replaces_blanks(part: dict[str, Any]) -> bool:
    return bool(part["type"] == "Replace" and part["pattern"] == {"String": " "})


def _places(
    text: str, pieces: Sequence[bytes | None], offsets: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Of each token its first byte in the text, the byte behind its last, and whether it really ends there.

    Where the tokens' own bytes, one after another, are the text, they say it. Else a normaliser has changed something,
    or a blank was put before, and the tokenizer's offsets do; they count characters, so that tokens which have parts of
    one character are told apart by their bytes, or not at all.
    """
    whole = text.encode()
    if offsets and (cuts := _cuts(whole, pieces)) is not None:
        return _arrays(cuts[:-1], cuts[1:], [True] * len(pieces))
    bytes_to = _byte_offsets(text)
    spans = [(int(bytes_to[start]), int(bytes_to[end])) for start, end in offsets]
    # A token ends where no token before it goes further, and none behind it begins earlier.
    ends = list(accumulate((end for _, end in spans), max))
    following = [*list(accumulate((start for start, _ in reversed(spans)), min))[::-1][1:], len(whole)]
    exact = [end <= start for end, start in zip(ends, following, strict=True)]
    cuts, first = [min((start for start, _ in spans), default=0), *ends], 0
    for last in [index + 1 for index, clean in enumerate(exact) if clean]:
        if last > first + 1 and (found := _cuts(whole[cuts[first] : cuts[last]], pieces[first:last])) is not None:
            cuts[first + 1 : last + 1] = [cuts[first] + place for place in found[1:]]
            exact[first:last] = [True] * (last - first)
        first = last
    starts = cuts[:-1]
    for index in range(1, len(spans)):
        if exact[index - 1] and (gap := whole[cuts[index] : spans[index][0]]):
            if gap.isspace():  # no token has it
                starts[index] = spans[index][0]
            else:  # a mark that was composed with the letter before, or what a normaliser takes out
                starts[index] = cuts[index] = spans[index][0]
    return _arrays(starts, cuts[1:], exact)


def _cuts(text: bytes, pieces: Sequence[bytes | None]) -> list[int] | None:
    """Where in the text the first piece begins, and where each ends, if together they are the end of the text.

    The text may have more before them: the token before has it, or a blank that is in none. The pieces may have one
    blank more, which some tokenizers put before a text.
    """
    known = [piece for piece in pieces if piece is not None]
    joined = b"".join(known)
    if len(known) < len(pieces):
        return None
    start = low = len(text) - len(joined)
    if not text.endswith(joined):
        if not (joined.startswith(b" ") and text.endswith(joined[1:])):
            return None
        low = start + 1
    return [max(start + place, low) for place in accumulate(map(len, known), initial=0)]


def _arrays(
    starts: Sequence[int], ends: Sequence[int], exact: Sequence[bool]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64), np.array(exact, dtype=np.bool_)


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """Before how many bytes of its UTF-8 each character stands, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])
