"""The one shape that every objective reads: sequences laid end to end, nothing padded, shared prompts held once.

Suffixes: T tokens, N scored positions, A answers, S attention slots (see `Tree`), B paths of a bucket, L their length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.tokens.tokenization import Encoded, EncodedPair, Ids, Mask

if TYPE_CHECKING:
    from potstill.training.across import SpanLesson
    from potstill.training.lesson import Lesson

Signal = NDArray[np.float32]

# Paths whose lengths differ by less than this factor share one padded attention call.
BUCKET_RATIO = 0.75


@dataclass(frozen=True)
class Item:
    """One row as tokens: a prompt, perhaps empty, and the answers that see it. One for SFT, two for a pair."""

    row: str
    """The row's id: what is cached for a row is found by it."""
    prompt_ids: Ids
    answers: tuple[tuple[Ids, Mask], ...]
    """Token ids and which of them are scored, one a branch."""
    signals: tuple[Signal, ...] = ()
    """What a reference says to each scored token, one array a branch; empty where there is none."""

    @classmethod
    def chat(cls, row: str, encoded: Encoded) -> Self:
        """A conversation."""
        return cls(row, encoded.ids_L[:0], ((encoded.ids_L, encoded.learn_L),))

    @classmethod
    def pair(cls, row: str, pair: EncodedPair) -> Self:
        """A prompt with the answer to prefer and the answer to avoid, in this order."""
        answers = tuple((answer.ids_L, answer.learn_L) for answer in (pair.chosen, pair.rejected))
        return cls(row, pair.prompt_ids, answers)

    @classmethod
    def text(cls, row: str, ids_L: Ids) -> Self:
        """Plain text: every token but the first is scored."""
        learn_L = np.ones(len(ids_L), dtype=np.bool_)
        learn_L[:1] = False
        return cls(row, ids_L[:0], ((ids_L, learn_L),))

    @property
    def tokens(self) -> int:
        """How many tokens the body computes for it."""
        return len(self.prompt_ids) + sum(len(ids_L) for ids_L, _ in self.answers)

    @property
    def longest(self) -> int:
        """Tokens of its longest path: the prompt and one answer."""
        return len(self.prompt_ids) + max(len(ids_L) for ids_L, _ in self.answers)

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return int(sum(learn_L.sum() for _, learn_L in self.answers))

    def branch(self, index: int) -> "Item":
        """One of its answers alone."""
        return replace(self, answers=self.answers[index : index + 1], signals=self.signals[index : index + 1])

    def separate(self) -> list["Item"]:
        """The same answers, each with a prompt of its own: what sharing must be equal to."""
        return [self.branch(index) for index in range(len(self.answers))]


@dataclass(frozen=True)
class Tree:
    """Which tokens may see which, as paths from root to leaf: one a (sequence, branch).

    Paths of like length form a bucket of B rows padded on the right to L: a causal call needs no mask then, because
    padding stands behind everything that is read. All buckets' cells, end to end, are the S slots.
    """

    slots_S: Tensor
    """The token in each slot; padding repeats token 0 and is never read."""
    home_T: Tensor
    """The slot where each token's output is taken: a shared prompt's is in its first branch."""
    extra_tokens_E: Tensor
    extra_slots_E: Tensor
    """The further slots of shared tokens, for their gradients."""
    buckets: tuple[tuple[int, int], ...]
    """(B, L) of each bucket."""
    plain: bool
    """Slots are the tokens in their own order: nothing to move."""

    def to(self, device: torch.device) -> "Tree":
        """On another device."""
        return Tree(
            self.slots_S.to(device),
            self.home_T.to(device),
            self.extra_tokens_E.to(device),
            self.extra_slots_E.to(device),
            self.buckets,
            self.plain,
        )


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    tokens_T: Tensor
    positions_T: Tensor
    """Restart at each sequence; every answer of a prompt starts at the prompt's length."""
    tree: Tree
    scored_N: Tensor
    """Positions in T whose next token is scored. The last prompt token of a pair stands here twice."""
    targets_N: Tensor
    """That next token."""
    weights_N: Tensor
    """How much each counts; float32."""
    owner_N: Tensor
    """Which answer a score belongs to, 0 to A - 1; a pair's are 2i (chosen) and 2i + 1 (rejected)."""
    answers: int
    """A."""
    items: tuple[Item, ...]
    """The rows themselves, in their order."""
    signal_N: Tensor | None = None
    """What a reference says to each scored position; float32."""
    lesson: "Lesson | SpanLesson | None" = None
    """What teachers say to each scored position, and what is to be made of it."""

    @property
    def row_ids(self) -> tuple[str, ...]:
        """Which rows these are: what is cached for them is found by it."""
        return tuple(item.row for item in self.items)

    def by_answer(self, values_N: Tensor) -> Tensor:
        """Sums of scored positions' values by the answer they belong to; shape (A,)."""
        return values_N.new_zeros(self.answers).index_add(0, self.owner_N, values_N)

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        return replace(
            self,
            tokens_T=self.tokens_T.to(device),
            positions_T=self.positions_T.to(device),
            tree=self.tree.to(device),
            scored_N=self.scored_N.to(device),
            targets_N=self.targets_N.to(device),
            weights_N=self.weights_N.to(device),
            owner_N=self.owner_N.to(device),
            signal_N=None if self.signal_N is None else self.signal_N.to(device),
        )


def collate(items: Sequence[Item], *, one_bucket: bool = False) -> Batch:
    """Lay items end to end. `one_bucket`: however unlike their lengths are, so that one call reads them all."""
    tokens, positions, scored, targets, owners, paths = [], [], [], [], [], []
    start, answer = 0, 0
    for item in items:
        root = np.arange(start, start + len(item.prompt_ids))
        tokens.append(item.prompt_ids)
        positions.append(np.arange(len(root)))
        start += len(root)
        for branch, (ids_L, learn_L) in enumerate(item.answers):
            path = np.concatenate([root, np.arange(start, start + len(ids_L))])
            learnt = np.flatnonzero(learn_L) + len(root)
            assert not len(learnt) or learnt[0] > 0, "the first token of a sequence has nothing that predicts it"
            tokens.append(ids_L)
            positions.append(np.arange(len(root), len(path)))
            scored.append(path[learnt - 1])
            targets.append(ids_L[learn_L])
            owners.append(np.full(len(learnt), answer))
            paths.append((path, len(root) if branch else 0))
            start, answer = start + len(ids_L), answer + 1
    return Batch(
        tokens_T=_long(tokens),
        positions_T=_long(positions),
        tree=_grow(paths, start, 0.0 if one_bucket else BUCKET_RATIO),
        scored_N=_long(scored),
        targets_N=_long(targets),
        weights_N=torch.ones(sum(len(part) for part in scored)),
        owner_N=_long(owners),
        answers=answer,
        items=tuple(items),
        signal_N=_signal(items),
    )


def _signal(items: Sequence[Item]) -> Tensor | None:
    """All items' signals end to end. Either every item has one or none has."""
    given = sum(bool(item.signals) for item in items)
    assert given in (0, len(items)), "some rows have a signal and others none"
    if not given:
        return None
    parts = [signal for item in items for signal in item.signals]
    assert sum(map(len, parts)) == sum(item.scored for item in items), "a signal of another length than what is scored"
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def _long(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _grow(paths: Sequence[tuple[np.ndarray, int]], tokens: int, ratio: float) -> Tree:
    """The tree of these paths. Each comes with how many of its first tokens have their home in an earlier path."""
    order = sorted(range(len(paths)), key=lambda index: -len(paths[index][0]))
    buckets: list[list[int]] = []
    for index in order:
        if not buckets or len(paths[index][0]) < ratio * len(paths[buckets[-1][0]][0]):
            buckets.append([])
        buckets[-1].append(index)
    home_T = np.zeros(tokens, dtype=np.int64)
    slots, shapes, extra_tokens, extra_slots, base = [], [], [], [], 0
    for bucket in buckets:
        length = len(paths[bucket[0]][0])
        cells_BL = np.zeros((len(bucket), length), dtype=np.int64)
        for row, index in enumerate(bucket):
            path, shared = paths[index]
            cells_BL[row, : len(path)] = path
            here = base + row * length + np.arange(len(path))
            home_T[path[shared:]] = here[shared:]
            extra_tokens.append(path[:shared])
            extra_slots.append(here[:shared])
        slots.append(cells_BL.ravel())
        shapes.append((len(bucket), length))
        base += cells_BL.size
    slots_S = _long(slots)
    return Tree(
        slots_S=slots_S,
        home_T=torch.from_numpy(home_T),
        extra_tokens_E=_long(extra_tokens),
        extra_slots_E=_long(extra_slots),
        buckets=tuple(shapes),
        plain=len(slots_S) == tokens and bool((slots_S == torch.arange(tokens)).all()),
    )


def cut(items: Sequence[Item], budget: int, workers: int = 1) -> list[list[Item]]:
    """Cut one global batch into micro-batches of at most `budget` tokens (a longer item stands alone).

    There are as many for each worker; where items run out the last are empty. Items of like length come together, which
    the attention likes, and sums do not mind the order.
    """
    tokens = sum(item.tokens for item in items)
    pieces = max(1, -(-tokens // budget))
    even = tokens / (-(-pieces // workers) * workers)
    groups: list[list[Item]] = []
    size = 0
    for item in sorted(items, key=lambda item: -item.tokens):
        if not groups or size + item.tokens > budget or size >= even:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.tokens
    return groups + [[] for _ in range(-len(groups) % workers)]


def micro_batches(items: Sequence[Item], budget: int) -> Iterator[Batch]:
    """The same as batches, for one worker."""
    return (collate(group) for group in cut(items, budget) if group)
