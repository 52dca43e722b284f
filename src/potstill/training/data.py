"""From rows to training items: what is held out, what is left out, and why."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from potstill.errors import DataError
from potstill.records import Chat, Dropped, Feedback, Message, Pair, Text
from potstill.sources import Data
from potstill.tokens.tokenization import EncodedPair, control_tokens
from potstill.training.batch import Item
from potstill.training.schedule import Part
from potstill.training.tokens import IN_MEMORY, Store, encode_rows

OnLong = Literal["drop", "cut"]
Row = TypeVar("Row", Chat, Pair, Feedback)


@dataclass(frozen=True)
class Split:
    """Items to train on and items to measure on, which share no prompt, and the rows left out."""

    train: list[Item]
    held_out: list[Item]
    dropped: list[Dropped]
    cut: int = 0
    """Conversations that lost turns at their end because they were too long."""
    desirable: Mapping[str, bool] = field(default_factory=dict)
    """Of feedback: what was said of the answer, by the item's row."""

    def without(self, rows: Mapping[str, Dropped]) -> "Split":
        """Without some rows, by their names, which are counted with those that were left out."""
        if not rows:
            return self
        train, held_out = ([item for item in side if item.row not in rows] for side in (self.train, self.held_out))
        return replace(self, train=train, held_out=held_out, dropped=[*self.dropped, *rows.values()])

    def facts(self) -> dict[str, Any]:
        """Counts for the manifest."""
        counts = Counter(row.reason for row in self.dropped)
        good = sum(self.desirable[item.row] for item in self.train) if self.desirable else 0
        labels = {"desirable": good, "undesirable": len(self.train) - good} if self.desirable else {}
        return {
            "rows": len(self.train),
            "held_out": len(self.held_out),
            "tokens": sum(item.tokens for item in self.train),
            "learnt_tokens": sum(item.scored for item in self.train),
            "dropped": dict(sorted(counts.items())),
            "cut": self.cut,
            **labels,
        }


def _said(messages: Sequence[Message]) -> str:
    return "\x1e".join("\x1f".join((message.role, message.content, *_called(message))) for message in messages)


def _called(message: Message) -> Iterator[str]:
    return (f"{call.name}({call.arguments})" for call in message.tool_calls)


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
    chats: Iterable[tuple[str, Chat]],
    *,
    max_length: int,
    on_long: OnLong,
    learn: str,
    held_out: int,
    seed: int,
    where: str,
    new_tokens: Sequence[str] = (),
    store: Store = IN_MEMORY,
) -> Split:
    """Conversations as items. Longer ones are dropped whole, or lose whole turns at their end; never half an answer."""
    dropped: list[Dropped] = []
    items, prompts, cut = [], [], 0
    clean = _clean(tokenizer, chats, new_tokens, dropped)
    for row, chat, (whole,) in encode_rows(tokenizer, clean, learn, store):
        fitting = whole.cut(max_length) if on_long == "cut" or len(whole) <= max_length else None
        if fitting is None:
            dropped.append(Dropped(id=row, reason="too_long", detail=f"{len(whole)} tokens"))
        elif not fitting.learn_L.any():
            dropped.append(Dropped(id=row, reason="nothing_learnt"))
        else:
            cut += fitting is not whole
            items.append(Item.chat(row, fitting))
            prompts.append(prompt_of(chat))
    return _divide(items, hold_out(prompts, held_out, seed, where), dropped, where, cut)


def pair_items(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[str, Pair]],
    *,
    max_length: int,
    held_out: int,
    seed: int,
    where: str,
    new_tokens: Sequence[str] = (),
    store: Store = IN_MEMORY,
) -> Split:
    """Pairs as items. A pair either of whose conversations is too long is dropped whole: cutting would change it."""
    dropped: list[Dropped] = []
    items, prompts = [], []
    clean = _different(_clean(tokenizer, pairs, new_tokens, dropped), dropped)
    for row, pair, (prompt, chosen, rejected) in encode_rows(tokenizer, clean, store=store):
        encoded = EncodedPair(prompt.ids_L, chosen, rejected)
        if encoded.longest > max_length:
            dropped.append(Dropped(id=row, reason="too_long", detail=f"{encoded.longest} tokens"))
        elif not (chosen.learn_L.any() and rejected.learn_L.any()):
            dropped.append(Dropped(id=row, reason="nothing_learnt"))
        else:
            items.append(Item.pair(row, encoded))
            prompts.append(_said(pair.prompt))
    return _divide(items, hold_out(prompts, held_out, seed, where), dropped, where)


def _different(pairs: Iterable[tuple[str, Pair]], dropped: list[Dropped]) -> Iterator[tuple[str, Pair]]:
    for row, pair in pairs:
        if _said(pair.chosen) == _said(pair.rejected):
            dropped.append(Dropped(id=row, reason="identical"))
        else:
            yield row, pair


def feedback_items(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[tuple[str, Feedback | Pair]],
    *,
    max_length: int,
    held_out: int,
    seed: int,
    where: str,
    new_tokens: Sequence[str] = (),
    store: Store = IN_MEMORY,
) -> Split:
    """Labelled answers as items of two: the row's own, and another row's, for KTO's KL (Ethayarajh et al. 2024, 4.2).

    A pair makes two rows, its chosen answer desirable, its rejected not. The labels are the Split's `desirable`. The
    other answer belongs to another prompt and is the same in every epoch, so that what the reference says of it can be
    kept; where the two together are too long it is cut, which changes an estimate, not what is learnt.
    """
    dropped: list[Dropped] = []
    labelled = [one for row, record in rows for one in _labelled(row, record)]
    clean = list(_clean(tokenizer, labelled, new_tokens, dropped))
    others = mismatched([_said(row.prompt) for _, row in clean], seed, where)
    both = ((name, _beside(row, clean[other][1])) for (name, row), other in zip(clean, others, strict=True))
    items, prompts = [], []
    for row, pair, (prompt, own, other) in encode_rows(tokenizer, both, store=store):
        room = max_length - len(prompt)
        if len(own) > room:
            dropped.append(Dropped(id=row, reason="too_long", detail=f"{len(prompt) + len(own)} tokens"))
        elif not (own.learn_L.any() and other.learn_L[:room].any()):
            dropped.append(Dropped(id=row, reason="nothing_learnt"))
        else:
            answers = (own.ids_L, own.learn_L), (other.ids_L[:room], other.learn_L[:room])
            items.append(Item(row, prompt.ids_L, answers))
            prompts.append(_said(pair.prompt))
    labels = {name: row.desirable for name, row in clean}
    return _divide(items, hold_out(prompts, held_out, seed, where), dropped, where, desirable=labels)


def _labelled(row: str, record: Feedback | Pair) -> Iterator[tuple[str, Feedback]]:
    if isinstance(record, Feedback):
        yield row, record
        return
    for name, answer, desirable in (("chosen", record.chosen, True), ("rejected", record.rejected, False)):
        alone = Feedback(id=row, prompt=record.prompt, answer=answer, desirable=desirable, tools=record.tools)
        yield f"{row}/{name}", alone


def _beside(row: Feedback, other: Feedback) -> Pair:
    return Pair(id=row.id, prompt=row.prompt, chosen=row.answer, rejected=other.answer, tools=row.tools)


def mismatched(prompts: Sequence[str], seed: int, where: str) -> list[int]:
    """For each row another one, with another prompt; each row is once another's. DataError where that cannot be.

    Rows in a seeded order, those of a prompt together, are moved on by as many places as the commonest prompt has rows.
    """
    groups: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(prompts)).tolist():
        groups.setdefault(prompts[row], []).append(row)
    order = [row for group in groups.values() for row in group]
    step = max((len(group) for group in groups.values()), default=0)
    if 2 * step > len(order):
        raise DataError(
            where,
            f"{step} of {len(order)} rows have the same prompt; expected no more than half, because the KL is "
            "estimated with answers to other prompts",
            "Give rows with more prompts",
        )
    others = dict(zip(order, order[step:] + order[:step], strict=True))
    return [others[row] for row in range(len(prompts))]


def text_items(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[tuple[str, Text]],
    *,
    block_length: int,
    held_out: int,
    seed: int,
    where: str,
    store: Store = IN_MEMORY,
) -> Split:
    """Documents as items of at most `block_length` tokens. A longer one is cut into blocks, and every token but the
    document's first is learnt exactly once."""
    learn_L = np.ones(block_length + 1, dtype=np.bool_)
    learn_L[0] = False  # blocks overlap by the one token that is read but not learnt
    documents: list[list[Item]] = []
    contents = []
    for row, text, (whole,) in encode_rows(tokenizer, texts, store=store):
        starts = range(0, max(1, len(whole) - 1), block_length)
        blocks = [(start, whole.ids_L[start : start + block_length + 1]) for start in starts]
        documents.append([Item(f"{row}#{at}", ids_L[:0], ((ids_L, learn_L[: len(ids_L)]),)) for at, ids_L in blocks])
        contents.append(text.text if held_out else "")
    held = hold_out(contents, held_out, seed, where)
    sides = [side for blocks, side in zip(documents, held, strict=True) for _ in blocks]
    return _divide([item for blocks in documents for item in blocks], sides, [], where)


def mixture(items: Sequence[Item], sources: Sequence[Data]) -> tuple[Part, ...]:
    """What of the items comes from which source, for `schedule.global_batches`. Items stand in the sources' order."""
    counts = Counter(item.row.split("/", 1)[0] for item in items)
    weights: dict[str, float] = {}
    for source in sources:
        if weights.setdefault(source.name, source.weight) != source.weight:
            raise DataError(source.name, "two sources of this name have different weights", "Rename one of the files")
    return tuple(Part(name, counts[name], weight) for name, weight in weights.items())


def mixture_facts(parts: Sequence[Part]) -> dict[str, Any]:
    """For the manifest: rows of each source, and how many of them an epoch takes. Nothing where nothing is mixed."""
    if [part.weight for part in parts] == [1.0]:
        return {}
    told = {p.name: {"rows": p.rows, "weight": p.weight, "rows_per_epoch": p.drawn} for p in parts}
    return {"sources": told}


def _divide(
    items: Sequence[Item],
    held: Sequence[bool],
    dropped: list[Dropped],
    where: str,
    cut: int = 0,
    desirable: Mapping[str, bool] | None = None,
) -> Split:
    split = Split(
        [item for item, out in zip(items, held, strict=True) if not out],
        [item for item, out in zip(items, held, strict=True) if out],
        dropped,
        cut,
        desirable or {},
    )
    if not split.train:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(d.reason for d in dropped).items()))
        raise DataError(
            where,
            f"no row is left ({reasons or 'there were none'})",
            "Give more rows, or raise max_length if they were too long",
        )
    return split


def _clean(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[tuple[str, Row]],
    allowed: Sequence[str],
    dropped: list[Dropped],
) -> Iterator[tuple[str, Row]]:
    """The rows that spell no control token; the others are dropped. `allowed`: those that the user wants in texts."""
    controls = [token for token in control_tokens(tokenizer) if token not in allowed]
    beginnings = {token[:2] for token in controls}  # some tokenizers have hundreds, which nearly all begin alike
    for name, row in rows:
        suspects = (text for text in _texts(row) if any(beginning in text for beginning in beginnings))
        spelled = next((token for text in suspects for token in controls if token in text), "")
        if spelled:
            dropped.append(Dropped(id=name, reason="control_token", detail=spelled))
        else:
            yield name, row


def _texts(row: Chat | Pair | Feedback) -> Iterator[str]:
    """Everything of a row that a template writes."""
    match row:
        case Chat():
            messages = row.messages
        case Pair():
            messages = (*row.prompt, *row.chosen, *row.rejected)
        case Feedback():
            messages = (*row.prompt, *row.answer)
    for message in messages:
        yield message.content
        yield from _called(message)
        yield message.name
    yield from row.tools
