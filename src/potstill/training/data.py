"""From rows to training items: what is held out, what is left out, and why."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from potstill.errors import DataError
from potstill.records import Chat, Dropped, Message, Pair, Text
from potstill.tokenization import Encoded, control_tokens, encode_chats, encode_pairs, encode_texts
from potstill.training.batch import Item

OnLong = Literal["drop", "cut"]


@dataclass(frozen=True)
class Split:
    """Items to train on and items to measure on, which share no prompt, and the rows left out."""

    train: list[Item]
    held_out: list[Item]
    dropped: list[Dropped]
    cut: int = 0
    """Conversations that lost turns at their end because they were too long."""

    def facts(self) -> dict[str, Any]:
        """Counts for the manifest."""
        counts = Counter(row.reason for row in self.dropped)
        return {
            "rows": len(self.train),
            "held_out": len(self.held_out),
            "tokens": sum(item.tokens for item in self.train),
            "learnt_tokens": sum(item.scored for item in self.train),
            "dropped": dict(sorted(counts.items())),
            "cut": self.cut,
        }


def _said(messages: Sequence[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)


def prompt_of(chat: Chat) -> str:
    """What a conversation begins with, up to the first answer: rows that share it must not be split apart."""
    first = next((i for i, message in enumerate(chat.messages) if message.role == "assistant"), len(chat.messages))
    return _said(chat.messages[:first])


def hold_out(keys: Sequence[str], count: int, seed: int, where: str) -> list[bool]:
    """Which rows to hold out: about `count`, chosen by a seeded hash of their keys, rows with one key together."""
    if count == 0 or not keys:
        return [False] * len(keys)
    sizes = Counter(keys)
    chosen: set[str] = set()
    held = 0
    for key in sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()):
        if held >= count:
            break
        chosen.add(key)
        held += sizes[key]
    if held >= len(keys):
        raise DataError(
            where,
            f"holding out {count} of {len(keys)} rows leaves nothing to train on",
            "Lower held_out, or give more rows",
        )
    return [key in chosen for key in keys]


def chat_items(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[tuple[str, Chat]],
    *,
    max_length: int,
    on_long: OnLong,
    learn: str,
    held_out: int,
    seed: int,
    where: str,
) -> Split:
    """Conversations as items. Longer ones are dropped whole, or lose whole turns at their end; never half an answer."""
    controls = control_tokens(tokenizer)
    dropped, cut = [], 0
    kept: list[tuple[str, Chat, Encoded]] = []
    clean = []
    for row, chat in chats:
        if spelled := _spelled(controls, chat.messages):
            dropped.append(Dropped(id=row, reason="control_token", detail=spelled))
        else:
            clean.append((row, chat))
    encoded = encode_chats(tokenizer, [chat.messages for _, chat in clean], learn)
    for (row, chat), whole in zip(clean, encoded, strict=True):
        fitting = whole.cut(max_length) if on_long == "cut" or len(whole) <= max_length else None
        if fitting is None:
            dropped.append(Dropped(id=row, reason="too_long", detail=f"{len(whole)} tokens"))
        elif not fitting.learn_L.any():
            dropped.append(Dropped(id=row, reason="nothing_learnt"))
        else:
            cut += fitting is not whole
            kept.append((row, chat, fitting))
    held = hold_out([prompt_of(chat) for _, chat, _ in kept], held_out, seed, where)
    items = [Item.chat(row, fitting) for row, _, fitting in kept]
    return _divide(items, held, dropped, where, cut)


def pair_items(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, Pair]],
    *,
    max_length: int,
    held_out: int,
    seed: int,
    where: str,
) -> Split:
    """Pairs as items. A pair either of whose conversations is too long is dropped whole: cutting would change it."""
    controls = control_tokens(tokenizer)
    dropped, clean = [], []
    for row, pair in pairs:
        if spelled := _spelled(controls, (*pair.prompt, *pair.chosen, *pair.rejected)):
            dropped.append(Dropped(id=row, reason="control_token", detail=spelled))
        elif _said(pair.chosen) == _said(pair.rejected):
            dropped.append(Dropped(id=row, reason="identical"))
        else:
            clean.append((row, pair))
    kept, items = [], []
    for (row, pair), encoded in zip(
        clean, encode_pairs(tokenizer, [(p.prompt, p.chosen, p.rejected) for _, p in clean]), strict=True
    ):
        if encoded.longest > max_length:
            dropped.append(Dropped(id=row, reason="too_long", detail=f"{encoded.longest} tokens"))
        elif not (encoded.chosen.learn_L.any() and encoded.rejected.learn_L.any()):
            dropped.append(Dropped(id=row, reason="nothing_learnt"))
        else:
            kept.append(pair)
            items.append(Item.pair(row, encoded))
    held = hold_out([_said(pair.prompt) for pair in kept], held_out, seed, where)
    return _divide(items, held, dropped, where)


def text_items(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, Text]],
    *,
    block_length: int,
    held_out: int,
    seed: int,
    where: str,
) -> Split:
    """Documents as items of at most `block_length` tokens. A longer one is cut into blocks, and every token but the
    document's first is learnt exactly once."""
    held = hold_out([text.text for _, text in texts], held_out, seed, where)
    encoded = encode_texts(tokenizer, [text.text for _, text in texts])
    items, sides = [], []
    for (row, _), ids_L, side in zip(texts, encoded, held, strict=True):
        for start in range(0, max(1, len(ids_L) - 1), block_length):
            # Blocks overlap by the one token that is read but not learnt.
            items.append(Item.text(f"{row}#{start}", ids_L[start : start + block_length + 1]))
            sides.append(side)
    return _divide(items, sides, [], where)


def _divide(items: Sequence[Item], held: Sequence[bool], dropped: list[Dropped], where: str, cut: int = 0) -> Split:
    split = Split(
        [item for item, out in zip(items, held, strict=True) if not out],
        [item for item, out in zip(items, held, strict=True) if out],
        dropped,
        cut,
    )
    if not split.train:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(d.reason for d in dropped).items()))
        raise DataError(
            where,
            f"no row is left to train on ({reasons or 'there were none'})",
            "Give more rows, or raise max_length if they were too long",
        )
    return split


def _spelled(controls: dict[str, int], messages: Sequence[Message]) -> str:
    """The first control token that a message spells, or nothing."""
    return next((token for message in messages for token in controls if token in message.content), "")
