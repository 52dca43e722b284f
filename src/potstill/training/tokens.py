"""Tokens of many rows: encoded shard by shard, kept on disk under what they were made of, and read by mapping.

A shard is some thousand rows' sequences end to end in flat arrays. Its file's name is the hash of the rows' content,
its folder's that of the tokenizer and the way of encoding: a stage that runs again with another beta tokenizes
nothing, and a crash loses one shard. Suffixes: T tokens of a shard, S its sequences, E the ends of learnt turns.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, TypeVar

import jinja2
import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from potstill.artifact import digest, storage_errors
from potstill.records import Chat, Pair, Record, Text
from potstill.tokens.tokenization import Encoded, Ids, Mask, backend_of, encode_chats, encode_pairs, encode_texts

R = TypeVar("R", bound=Record)
Sequences = tuple[Encoded, ...]
"""A row as tokens: a chat or a text is one sequence, a pair its shared prompt and what is left of each answer."""

MEANING = 1
"""Raised when the same rows and tokenizer come to mean other tokens or masks."""
SHARD_ROWS = 2048
"""Rows of a shard. Later ones are longer, so that millions of rows need but hundreds of open files."""
POOL_AFTER = 2
"""Shards that this process encodes before it asks others to help, whose start takes as long as encoding these."""
NOT_TOKENS = {"id", "category", "chosen_score", "rejected_score"}
"""Columns that tokens do not depend on."""
DTYPES: dict[str, Any] = {"I32": np.int32, "I64": np.int64, "BOOL": np.bool_}


@dataclass(frozen=True)
class Store:
    """Where tokens are kept, and how many processes make them."""

    workspace: Path | None = None
    """The run's folder; None keeps them in memory, in the same arrays."""
    workers: int | None = None
    """Processes beside this one. None: as many as cores from the fourth core on, else none: the tokenizer itself
    keeps two busy. The tokens are the same, byte for byte."""

    @property
    def processes(self) -> int:
        """How many processes help."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers if self.workers is not None else cores if cores >= 4 else 0


IN_MEMORY = Store()


@dataclass(frozen=True)
class Shard:
    """Some rows' sequences, as many a row, in flat arrays; views into a file, or arrays of their own."""

    ids_T: Ids
    learn_T: Mask
    starts_S: NDArray[np.int64]
    """Where each sequence begins, and behind the last where it ends: S + 1 places."""
    turn_ends_E: NDArray[np.int32]
    turns_S: NDArray[np.int64]
    """Where each sequence's turn ends begin; S + 1 places as well."""

    @classmethod
    def of(cls, sequences: Iterable[Encoded]) -> Self:
        """From sequences in their order."""
        each = list(sequences)
        return cls(
            _joined([one.ids_L for one in each], np.int32),
            _joined([one.learn_L for one in each], np.bool_),
            np.cumsum([0, *(len(one) for one in each)], dtype=np.int64),
            _joined([one.turn_ends for one in each], np.int32),
            np.cumsum([0, *(len(one.turn_ends) for one in each)], dtype=np.int64),
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Mapped from a file; None where there is none, or a disk spoilt it."""
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            begin = 8 + int.from_bytes(mapped[:8], "little")
            places = json.loads(bytes(mapped[8:begin]))
            told = places.pop("__metadata__")["sum"]
            arrays = {}
            for name, place in places.items():
                first, last = (begin + offset for offset in place["data_offsets"])
                arrays[name] = np.frombuffer(mapped[first:last], DTYPES[place["dtype"]]).reshape(place["shape"])
            shard = cls(**arrays)
            return shard if shard.sum == told else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """To a file, in the safetensors format, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with aside.open("wb") as file:
            file.write(save({field.name: getattr(self, field.name) for field in fields(self)}, {"sum": self.sum}))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    @property
    def sum(self) -> str:
        """Over all of its content."""
        total = 0
        for field in fields(self):
            total = zlib.crc32(np.ascontiguousarray(getattr(self, field.name)).view(np.uint8).data, total)
        return f"{total:08x}"

    def rows(self, number: int) -> Iterator[Sequences]:
        """Its sequences, as views, row by row; `number` is how many rows there are."""
        width = (len(self.starts_S) - 1) // number
        for row in range(number):
            yield tuple(self._sequence(row * width + place) for place in range(width))

    def _sequence(self, index: int) -> Encoded:
        first, last = self.starts_S[index : index + 2]
        turn, beyond = self.turns_S[index : index + 2]
        return Encoded(self.ids_T[first:last], self.learn_T[first:last], tuple(self.turn_ends_E[turn:beyond].tolist()))


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[tuple[str, R]],
    learn: str = "assistant",
    store: Store = IN_MEMORY,
) -> Iterator[tuple[str, R, Sequences]]:
    """Every (name, chat, pair or text), which are all of one kind, with its tokens. Reads `rows` as it goes.

    `learn` is what is learnt of chats; see `tokenization.encode_chats`. Raises ModelError and StorageError.
    """
    with _Encoder(tokenizer, learn, store) as encoder:
        under_way: deque[tuple[list[tuple[str, R]], Callable[[], Shard]]] = deque()
        for named in _shards(rows):
            under_way.append((named, encoder.begin([row for _, row in named])))
            if len(under_way) > store.processes:
                yield from _finished(*under_way.popleft())
        for named, shard in under_way:
            yield from _finished(named, shard)


def _finished(named: Sequence[tuple[str, R]], shard: Callable[[], Shard]) -> Iterator[tuple[str, R, Sequences]]:
    for (name, row), sequences in zip(named, shard().rows(len(named)), strict=True):
        yield name, row, sequences


def _shards(rows: Iterable[tuple[str, R]]) -> Iterator[list[tuple[str, R]]]:
    source = iter(rows)
    for number in count():
        named = list(islice(source, SHARD_ROWS * (1 + number // 64)))
        if not named:
            return
        yield named


class _Encoder:
    """Finds shards on disk, makes the others, here or in other processes, and keeps them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learn: str, store: Store) -> None:
        self._tokenizer, self._learn, self._store = tokenizer, learn, store
        self._folder: Path | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, records: Sequence[Record]) -> Callable[[], Shard]:
        """What gives the shard of these rows: at once, or when a helper has made it."""
        path = self._path(records)
        found = None if path is None else Shard.read(path)
        if found is not None:
            return lambda: found
        self._made += 1
        if self._made <= POOL_AFTER or not self._store.processes:
            made = _encode(self._tokenizer, records, self._learn)
            return lambda: _kept(made, path)
        future = self._helpers().submit(_help, records)
        return lambda: _kept(future.result(), path)

    def _path(self, records: Sequence[Record]) -> Path | None:
        if self._store.workspace is None:
            return None
        if self._folder is None:
            key = _key(self._tokenizer, type(records[0]).__name__, self._learn)
            self._folder = self._store.workspace / "cache" / "tokens" / key
        content = hashlib.sha256()
        for record in records:
            content.update(record.model_dump_json(exclude=NOT_TOKENS).encode() + b"\n")
        return self._folder / f"{content.hexdigest()[:32]}.safetensors"

    def _helpers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, because this process has threads, and perhaps a GPU.
            self._pool = ProcessPoolExecutor(
                self._store.processes, get_context("spawn"), _get_ready, (self._tokenizer, self._learn)
            )
        return self._pool


def _kept(shard: Shard, path: Path | None) -> Shard:
    """The shard, from its file where it has one: mapped memory can be given back, what was built cannot."""
    if path is None:
        return shard
    with storage_errors(path):
        shard.write(path)
    mapped = Shard.read(path)
    assert mapped is not None
    return mapped


def _key(tokenizer: PreTrainedTokenizerBase, kind: str, learn: str) -> str:
    """Everything that tokens depend on besides the rows."""
    specials = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    libraries = [library.__version__ for library in (transformers, tokenizers, jinja2)]
    parts = [MEANING, kind, learn, backend_of(tokenizer).to_str(), tokenizer.chat_template, specials, libraries]
    return digest(parts)[:32]


def _encode(tokenizer: PreTrainedTokenizerBase, records: Sequence[Any], learn: str) -> Shard:
    kind = type(records[0])
    if kind is Chat:
        return Shard.of(encode_chats(tokenizer, [c.messages for c in records], learn, [c.tools for c in records]))
    if kind is Pair:
        said = [(pair.prompt, pair.chosen, pair.rejected) for pair in records]
        pairs = encode_pairs(tokenizer, said, [pair.tools for pair in records])
        return Shard.of(one for pair in pairs for one in (_silent(pair.prompt_ids), pair.chosen, pair.rejected))
    assert kind is Text, f"{kind.__name__} has no tokens of its own"
    return Shard.of(_silent(ids_L) for ids_L in encode_texts(tokenizer, [text.text for text in records]))


def _silent(ids_L: Ids) -> Encoded:
    return Encoded(ids_L, np.zeros(len(ids_L), dtype=np.bool_), ())


def _get_ready(tokenizer: PreTrainedTokenizerBase, learn: str) -> None:
    """In a helper, once: what it needs for every shard. There are as many helpers as cores, so each uses one."""
    global _tools_of_trade
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tools_of_trade = (tokenizer, learn)


_tools_of_trade: tuple[PreTrainedTokenizerBase, str] | None = None


def _help(records: Sequence[Record]) -> Shard:
    assert _tools_of_trade is not None
    tokenizer, learn = _tools_of_trade
    return _encode(tokenizer, records, learn)
