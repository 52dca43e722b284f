"""Tokens on disk: the same bytes with and without a cache, whoever makes them, and again after a crash."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine import say
from transformers import PreTrainedTokenizerFast

from potstill.errors import ModelError, StorageError
from potstill.records import Chat, Pair, Record, Text
from potstill.tokens.tokenization import Encoded, add_tokens, encode_chats, encode_pairs, encode_texts, train_tokenizer
from potstill.training import tokens
from potstill.training.tokens import Sequences, Shard, Store, encode_rows

TURNS = ["the cat sat.", "what is this?", "hello there, it is a cat.", "on the mat é𝄞", "yes"]
CHATS = [
    Chat(
        id=str(n),
        messages=say(f"user: {TURNS[n % 5]}", f"assistant: {TURNS[n % 4]} {n}", "user: go on", "assistant: no"),
    )
    for n in range(23)
]
PAIRS = [
    Pair(id=str(n), prompt=chat.messages[:1], chosen=chat.messages[1:2], rejected=say(f"assistant: it is {n}"))
    for n, chat in enumerate(CHATS)
]
TEXTS = [Text(id=str(n), text=f"{TURNS[n % 5]} {n}") for n in range(23)]
KINDS: dict[str, Sequence[Record]] = {"chats": CHATS, "pairs": PAIRS, "texts": TEXTS}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SHARD_ROWS", 5)


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat. hello there, what is this? it is a cat.\n"] * 20, 320)


def as_bytes(rows: Sequence[Sequences]) -> list[list[tuple[bytes, bytes, tuple[int, ...]]]]:
    return [[(one.ids_L.tobytes(), one.learn_L.tobytes(), one.turn_ends) for one in row] for row in rows]


def encoded(rows: Sequence[Record], store: Store = tokens.IN_MEMORY, learn: str = "assistant") -> list[Sequences]:
    found = list(encode_rows(tokenizer(), ((f"r{n}", row) for n, row in enumerate(rows)), learn, store))
    assert [(name, row) for name, row, _ in found] == [(f"r{n}", row) for n, row in enumerate(rows)]
    return [sequences for _, _, sequences in found]


def direct(kind: str) -> list[Sequences]:
    """What the tokenization says itself, without shards."""
    if kind == "chats":
        return [(one,) for one in encode_chats(tokenizer(), [chat.messages for chat in CHATS])]
    if kind == "texts":
        return [(tokens._silent(ids_L),) for ids_L in encode_texts(tokenizer(), [text.text for text in TEXTS])]
    pairs = encode_pairs(tokenizer(), [(pair.prompt, pair.chosen, pair.rejected) for pair in PAIRS])
    return [(tokens._silent(pair.prompt_ids), pair.chosen, pair.rejected) for pair in pairs]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each call tokenized in this process."""
    calls: list[int] = []
    real = tokens._encode

    def counting(tokenizer: PreTrainedTokenizerFast, records: Sequence[Record], learn: str) -> Shard:
        calls.append(len(records))
        return real(tokenizer, records, learn)

    monkeypatch.setattr(tokens, "_encode", counting)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_same_from_memory_from_disk_and_from_helpers(
    kind: str, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = as_bytes(direct(kind))
    assert as_bytes(encoded(KINDS[kind])) == expected
    assert as_bytes(encoded(KINDS[kind], Store(tmp_path))) == expected
    assert made == [5, 5, 5, 5, 3] * 2
    assert as_bytes(encoded(KINDS[kind], Store(tmp_path))) == expected
    assert made == [5, 5, 5, 5, 3] * 2, "the second time nothing is tokenized"


def test_helpers_make_the_same_files(tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "POOL_AFTER", 1)
    alone, helped = Store(tmp_path / "alone"), Store(tmp_path / "helped", workers=2)
    assert as_bytes(encoded(CHATS, alone)) == as_bytes(encoded(CHATS, helped)) == as_bytes(direct("chats"))
    assert made == [5, 5, 5, 5, 3, 5], "the first shard is made here, the others by helpers"
    folders = (tmp_path / "alone", tmp_path / "helped")
    files = [sorted((file.name, file.read_bytes()) for file in f.rglob("*.safetensors")) for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 5


def test_an_error_of_a_helper_is_the_users_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "POOL_AFTER", 0)
    refusing = tokenizer()
    refusing.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(ModelError, match="not today"):
        list(encode_rows(refusing, [("r", CHATS[0])], store=Store(tmp_path, workers=1)))


def test_what_is_read_is_mapped_not_held(tmp_path: Path) -> None:
    encoded(CHATS, Store(tmp_path))
    ((first,), *_) = encoded(CHATS, Store(tmp_path))
    assert not first.ids_L.flags.owndata
    assert not first.ids_L.flags.writeable
    assert first.ids_L.dtype == np.int32
    assert first.learn_L.dtype == np.bool_
    base = first.ids_L
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)


def test_a_crash_loses_one_shard(tmp_path: Path, made: list[int]) -> None:
    rows = encode_rows(tokenizer(), ((str(n), chat) for n, chat in enumerate(CHATS)), store=Store(tmp_path))
    for _ in range(11):
        next(rows)
    rows.close()  # killed in the third shard
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-7])  # and one was spoilt
    (files[0].parent / ".half.safetensors.1").write_bytes(b"half")
    made.clear()
    assert as_bytes(encoded(CHATS, Store(tmp_path))) == as_bytes(direct("chats"))
    assert made == [5, 5, 3]


def test_another_meaning_is_another_shard(tmp_path: Path, made: list[int]) -> None:
    """Whatever tokens depend on is in the key; what they do not depend on is not."""
    store, five = Store(tmp_path), CHATS[:5]

    def fresh(rows: Sequence[Record], learn: str = "assistant", change: str = "") -> bool:
        made.clear()
        changed = tokenizer()
        if change == "template":
            changed.chat_template = "{# other #}" + changed.chat_template
        elif change == "token":
            add_tokens(changed, ["<think>"])
        elif change == "end":
            changed.eos_token = "<pad>"
        elif change == "used":
            changed(["the cat", "the"], padding=True, truncation=True, max_length=4)
        list(encode_rows(changed, [("x", row) for row in rows], learn, store))
        return bool(made)

    assert fresh(five)
    assert not fresh(five)
    assert not fresh(five, change="used")
    assert not fresh([chat.model_copy(update={"id": "other", "category": "other"}) for chat in five])
    assert fresh(PAIRS[:5])
    assert not fresh([pair.model_copy(update={"chosen_score": 1.0}) for pair in PAIRS[:5]])
    assert fresh(five, "all")
    assert fresh(five, change="template")
    assert fresh(five, change="token")
    assert fresh(five, change="end")
    asked, told, *more = five[0].messages
    silent = told.model_copy(update={"train": False})
    assert fresh([five[0].model_copy(update={"messages": (asked, silent, *more)}), *five[1:]])
    assert fresh(five[::-1])


def test_a_row_more_at_the_end_leaves_the_full_shards_alone(tmp_path: Path, made: list[int]) -> None:
    encoded(CHATS[:20], Store(tmp_path))
    made.clear()
    encoded(CHATS, Store(tmp_path))
    assert made == [3]


def test_later_shards_are_longer_so_that_files_stay_few() -> None:
    sizes = [len(shard) for shard in tokens._shards((str(n), TEXTS[0]) for n in range(2_000))]
    assert sizes[:64] == [5] * 64
    assert sizes[64:128] == [10] * 64
    assert sum(sizes) == 2_000


def test_no_rows_are_no_shards(tmp_path: Path) -> None:
    assert encoded([], Store(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_shard_of_nothing_learnt_survives_the_disk(tmp_path: Path) -> None:
    shard = Shard.of([tokens._silent(np.arange(3, dtype=np.int32)), tokens._silent(np.zeros(0, dtype=np.int32))])
    shard.write(tmp_path / "one.safetensors")
    again = Shard.read(tmp_path / "one.safetensors")
    assert again is not None
    assert as_bytes(list(again.rows(2))) == as_bytes(list(shard.rows(2)))
    assert Shard.read(tmp_path / "none.safetensors") is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(StorageError, match="a file stands where a folder was expected"):
        encoded(CHATS, Store(tmp_path))


def test_a_shard_whose_content_changed_is_read_as_none(tmp_path: Path) -> None:
    """One bit of one token would train another model, and nobody would know."""
    path = tmp_path / "one.safetensors"
    Shard.of([Encoded(np.arange(50, dtype=np.int32), np.ones(50, dtype=np.bool_), (50,))]).write(path)
    assert Shard.read(path) is not None
    content = bytearray(path.read_bytes())
    for place in (len(content) - 1, len(content) - 100):
        content[place] ^= 1
        path.write_bytes(content)
        assert Shard.read(path) is None
        content[place] ^= 1
    for header in (b"[]", b"{}", b'{"__metadata__": []}'):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert Shard.read(path) is None
