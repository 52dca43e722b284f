"""Writing down what a teacher says: entries of its distributions and hidden states, row by row, shard by shard.

Suffixes: N scored positions of a batch, C of a chunk, M drawn entries, V vocabulary, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.signals.draws import LEAST, Taken, take, uniforms
from potstill.signals.files import Key, Writer
from potstill.signals.rows import Hidden, RowSignal
from potstill.signals.states import Kept, keep
from potstill.training.batch import Batch, Item, micro_batches
from potstill.training.head import CHUNK_LOGITS, Room
from potstill.training.reference import content_hash
from potstill.training.scoring import Scorer
from potstill.training.tellers import key_of

SHARD_POSITIONS = 1 << 16
"""Scored positions of a shard: what a crash loses at most."""

LEAST_ROWS = 256
"""Positions whose logits are made at once: a product of fewer takes longer for each, since the head is read anew."""


@dataclass(frozen=True)
class Asked:
    """What is written down; see the header's fields of the same names."""

    vocabulary: int
    top: int = 0
    draws: int = 0
    temperature: float = 1.0
    target_logp: bool = False
    sketches: Mapping[int, Tensor] = field(default_factory=dict)
    """By layer, what its states are seen through; shape (R, D). See `signals.states`."""
    seed: int = 0

    @property
    def distribution(self) -> bool:
        """Whether the head is asked at all."""
        return bool(self.top or self.draws or self.target_logp)


@torch.no_grad()
def capture(
    scorer: Scorer, items: Sequence[Item], asked: Asked, writer: Writer, budget: int, tell: Callable[[int, int], None]
) -> None:
    """Write down what the scorer's model says of every row, `budget` tokens at once.

    Shards that are there already stay. `tell` hears (positions done, positions to do) after each.
    """
    scorer.eval()

    def read(shard: Sequence[Item]) -> Iterator[tuple[Key, RowSignal]]:
        for batch in micro_batches(shard, budget):
            yield from _said(scorer, batch, asked)

    with scorer.products():
        keep_all(items, read, writer, tell)


def keep_all(
    items: Sequence[Item],
    read: Callable[[Sequence[Item]], Iterable[tuple[Key, RowSignal]]],
    writer: Writer,
    tell: Callable[[int, int], None],
) -> None:
    """Write down, shard by shard, what is read of every row that is not there already. Not all may come of a shard."""
    done, total = 0, sum(item.scored for item in items)
    there = writer.done()
    for shard in _shards(items):
        missing = [item for item in shard if key_of(item) not in there]
        if missing:
            said = dict(read(missing))
            writer.add({key: said[key] for key in map(key_of, missing) if key in said})
        done += sum(item.scored for item in shard)
        tell(done, total)


def _shards(items: Sequence[Item]) -> Iterator[list[Item]]:
    """In the rows' order, so that a run that goes on makes the same ones."""
    shard: list[Item] = []
    size = 0
    for item in items:
        shard.append(item)
        size += item.scored
        if size >= SHARD_POSITIONS:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _said(scorer: Scorer, batch: Batch, asked: Asked) -> Iterator[tuple[Key, RowSignal]]:
    """Row by row."""
    batch = batch.to(scorer.device)
    hidden_ND, *states = cast(tuple[Tensor, ...], scorer(batch, "hidden", tuple(asked.sketches)))
    kept = {
        layer: keep(state_ND, asked.sketches[layer].to(state_ND.device))
        for layer, state_ND in zip(asked.sketches, states, strict=True)
    }
    columns = _columns(scorer, batch, hidden_ND, asked) if asked.distribution else {}
    ends_M = np.cumsum(columns["drawn_sizes"]) if "drawn_sizes" in columns else np.zeros(0, dtype=np.int64)
    start = 0
    for item in batch.items:
        rows = slice(start, start + item.scored)
        drawn = slice(int(ends_M[start - 1]) if start else 0, int(ends_M[rows.stop - 1])) if len(ends_M) else rows
        parts = {name: column[drawn if name in RAGGED else rows] for name, column in columns.items()}
        hidden = {layer: _hidden(one, rows) for layer, one in kept.items()}
        yield key_of(item), RowSignal(**parts, hidden=hidden)
        start = rows.stop


RAGGED = ("drawn_ids", "drawn_counts")
"""Of a row's signal, what has several entries a position."""


def _columns(scorer: Scorer, batch: Batch, hidden_ND: Tensor, asked: Asked) -> dict[str, NDArray[Any]]:
    """What is taken of the distributions, chunk by chunk: all positions of the batch end to end."""
    uniforms_N = None
    if asked.draws:
        drawn = [uniforms(asked.seed, content_hash(item), item.scored) for item in batch.items]
        uniforms_N = torch.from_numpy(np.concatenate(drawn)).to(hidden_ND.device)
    found: dict[str, list[NDArray[Any]]] = {}
    chunk = min(len(hidden_ND), max(LEAST_ROWS, CHUNK_LOGITS // asked.vocabulary))
    room = Room()
    for start in range(0, len(hidden_ND), chunk):
        rows = slice(start, min(start + chunk, len(hidden_ND)))
        taken = take(
            scorer.head.said(hidden_ND[rows], asked.vocabulary, room),
            temperature=asked.temperature,
            top=asked.top,
            draws=asked.draws,
            uniforms_C=None if uniforms_N is None else uniforms_N[rows],
            targets_C=batch.targets_N[rows] if asked.target_logp else None,
        )
        for name, column in _named(taken, asked).items():
            found.setdefault(name, []).append(column.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _named(taken: Taken, asked: Asked) -> dict[str, Tensor]:
    """By the names of `RowSignal`."""
    columns = {
        "top_ids": taken.listed_ids_CK,
        "top_logp": taken.listed_logp_CK,
        "rest_logp": taken.rest_C.clamp(min=LEAST).log() if asked.top else None,
        "drawn_ids": taken.drawn_ids_M,
        "drawn_counts": taken.counts_M,
        "drawn_sizes": taken.sizes_C,
        "target_logp": taken.logp_C,
        "entropy": taken.entropy_C if asked.top or asked.draws else None,
    }
    integers = ("top_ids", "drawn_ids", "drawn_counts", "drawn_sizes")
    return {
        name: column.to(torch.int32 if name in integers else torch.float32)
        for name, column in columns.items()
        if column is not None
    }


def _hidden(kept: Kept, rows: slice) -> Hidden:
    return Hidden(kept.codes_NR[rows].cpu().numpy(), kept.scale_N[rows].cpu().numpy())
