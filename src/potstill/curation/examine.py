"""What is done to each dialogue on its own, a span of a file at a time: mend it, judge it, fingerprint it.

An `Examiner` knows all that it needs and can be sent to another process, so the same rows come to the same bytes
wherever and in whatever order spans are examined.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from potstill.curation.decontaminate import Decontaminator
from potstill.curation.deduplicate import fingerprints
from potstill.curation.filters import Fault, find_hedge, find_refusal, strip_hedges
from potstill.curation.minhash import Hashes, band_keys
from potstill.curation.truecase import Truecaser
from potstill.errors import DataError
from potstill.own import OwnFilter, own_filters
from potstill.records import Chat, Dropped, Message
from potstill.sources import Function

ROWS_A_SPAN = 1000
EXAMPLES = 2
"""Dropped rows that are shown for each reason."""
EXCERPT = 160
"""Characters of one."""

Check = Callable[[Sequence[Message]], Fault | None]
"""What may be wrong with a dialogue. It can be pickled, so it is no lambda."""


@dataclass(frozen=True)
class Span:
    """Rows of a file that stand together."""

    first: int
    """The number of the first, from 0."""
    rows: int
    offset: int
    length: int
    """In bytes, as the offset."""


def spans(path: Path, rows: int = ROWS_A_SPAN) -> Iterator[Span]:
    """A file of lines, cut."""
    first = offset = count = length = 0
    with path.open("rb") as file:
        for line in file:
            count, length = count + 1, length + len(line)
            if count == rows:
                yield Span(first, count, offset, length)
                first, offset, count, length = first + count, offset + length, 0, 0
    if count:
        yield Span(first, count, offset, length)


@dataclass
class Examined:
    """What became of a span's rows."""

    lines: list[bytes] = field(default_factory=list)
    """Of each row: the mended dialogue, or the record of its being dropped."""
    passed: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    fingerprints_D2: Hashes | None = None
    """Of the rows that passed, where duplicates are looked for."""
    bands_DB: Hashes | None = None
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """The first rows dropped for each reason."""


def example(dropped: Dropped, chat: Chat) -> dict[str, str]:
    """A dropped row as it is shown: its id, what was found, and how its last answer begins."""
    said = " ".join(chat.messages[-1].content.split())
    return {"id": dropped.id, "detail": dropped.detail[:EXCERPT], "says": said[:EXCERPT]}


def text_of(chat: Chat) -> str:
    """What duplicates are judged by."""
    return "\n".join(message.content for message in chat.messages)


@dataclass
class Examiner:
    """The steps with what they learnt."""

    path: Path
    truecaser: Truecaser | None
    strip: bool
    """Take hedging sentences away."""
    checks: Sequence[Check]
    """What may be wrong with a dialogue: the first that is found counts."""
    decontaminator: Decontaminator
    own: Sequence[Function]
    """A user's own filters, asked last."""
    duplicates: bool
    threshold: float | None
    """The Jaccard similarity of near duplicates; None: only exact copies are looked for."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_own_filters"}

    def __call__(self, span: Span) -> Examined:
        """Every row of a span, mended and judged. DataError where one is no dialogue."""
        found, texts, passed = Examined(), [], []
        for number, line in enumerate(self._lines(span), start=span.first + 1):
            chat = self._mend(self._read(line, number), found.counts)
            fault = self._fault(chat)
            passed.append(fault is None)
            if fault is None:
                texts.append(text_of(chat))
                found.lines.append(chat.to_line().encode())
                continue
            dropped = Dropped(id=chat.id, reason=fault[0], detail=fault[1], chat=chat)
            found.lines.append(dropped.to_line().encode())
            found.reasons[dropped.reason] += 1
            shown = found.examples.setdefault(dropped.reason, [])
            if len(shown) < EXAMPLES:
                shown.append(example(dropped, chat))
        found.passed = np.array(passed)
        if self.duplicates:
            found.fingerprints_D2 = fingerprints(texts)
            found.bands_DB = None if self.threshold is None else band_keys(texts, self.threshold)
        return found

    def _lines(self, span: Span) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(span.offset)
            return file.read(span.length).splitlines()

    def _read(self, line: bytes, number: int) -> Chat:
        try:
            return Chat.model_validate_json(line)
        except ValidationError as error:
            what = f"not a Chat: {error.errors()[0]['msg']}"
            remedy = "The file was changed after it was sealed; remove its folder and run again"
            raise DataError(f"{self.path}:{number}", what, remedy) from error

    def _mend(self, chat: Chat, counts: Counter[str]) -> Chat:
        messages = chat.messages
        if self.truecaser is not None:
            restored = list(self.truecaser.restore_all([message.content for message in messages]))
            changed = sum(count for _, count in restored)
            counts["truecased_words"] += changed
            counts["truecased_dialogues"] += changed > 0
            messages = tuple(
                message.model_copy(update={"content": text})
                for message, (text, _) in zip(messages, restored, strict=True)
            )
        if self.strip and find_hedge(messages):
            messages = tuple(_without_hedges(message) for message in messages)
            counts["stripped_dialogues"] += 1
        return chat.model_copy(update={"messages": messages})

    def _fault(self, chat: Chat) -> Fault | None:
        for check in self.checks:
            if (fault := check(chat.messages)) is not None:
                return fault
        overlap = self.decontaminator.find(chat.messages)
        if overlap is not None:
            return "contaminated", f"{overlap[0]}: {overlap[1]}"
        return next((fault for own in self._own_filters if (fault := own.fault(chat)) is not None), None)

    @cached_property
    def _own_filters(self) -> tuple[OwnFilter, ...]:
        """Loaded in the process that calls them."""
        return own_filters(self.own)


def hedging(messages: Sequence[Message]) -> Fault | None:
    """An assistant that talks of being a machine."""
    found = find_hedge(messages)
    return None if found is None else ("hedge", found)


def refusing(messages: Sequence[Message]) -> Fault | None:
    """An assistant that declines to answer."""
    found = find_refusal(messages)
    return None if found is None else ("refusal", found)


def _without_hedges(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return message.model_copy(update={"content": strip_hedges(message.content)})
