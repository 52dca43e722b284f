"""Who tells a batch what a teacher says of it: the teacher itself, reading beside the student, or what was captured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from potstill.objectives.signal import Sparse
from potstill.signals.files import Key, Reader
from potstill.signals.rows import RowSignal
from potstill.signals.sparse import to_sparse
from potstill.signals.states import Kept
from potstill.training.batch import Batch, Item, collate
from potstill.training.head import Room
from potstill.training.lesson import Aims, Entries, Lesson, Told, Whole
from potstill.training.reference import content_hash
from potstill.training.scoring import Scorer


class Teller(Protocol):
    """One teacher."""

    def tell(self, batch: Batch) -> Told:
        """What it says of the batch's scored positions, on the batch's device."""
        ...


View = Callable[[Item], Item]
"""What a teacher reads where the student reads a row: the same answers, perhaps behind another prompt."""


def same(item: Item) -> Item:
    """The teacher reads what the student reads."""
    return item


@dataclass(frozen=True)
class Present:
    """A teacher whose weights are at hand. It reads the student's tokens, or the same answers behind another prompt."""

    scorer: Scorer
    """In evaluation mode: dropout in a teacher is noise in the lesson."""
    vocabulary: int
    weight: float = 1.0
    layers: Mapping[int, int] = field(default_factory=dict)
    """By the student's layer, the teacher's whose states are asked for."""
    speaks: bool = True
    """Whether its distributions are asked for."""
    view: View = same

    def tell(self, batch: Batch) -> Told:
        seen = batch
        if self.view is not same:
            seen = collate([self.view(item) for item in batch.items]).to(self.scorer.device)
            assert len(seen.scored_N) == len(batch.scored_N), "the teacher sees other answers than the student"
        with torch.no_grad():
            asked = tuple(self.layers.values())
            hidden_ND, *states = cast(tuple[Tensor, ...], self.scorer(seen, "hidden", asked))
        said = partial(self.scorer.head.said, vocabulary=self.vocabulary, room=Room())
        says = Whole(hidden_ND, said) if self.speaks else None
        return Told(says, dict(zip(self.layers, states, strict=True)), self.weight)


@dataclass(frozen=True)
class Captured:
    """What a teacher said before of the same rows, from disk."""

    reader: Reader
    weight: float = 1.0
    layers: Mapping[int, int] = field(default_factory=dict)
    """By the student's layer, the teacher's whose states were captured."""
    speaks: bool = True

    def tell(self, batch: Batch) -> Told:
        rows = self.reader.read([key_of(item) for item in batch.items])
        device = batch.scored_N.device
        says = self._entries(rows, device) if self.speaks else None
        states = {ours: self._states(rows, theirs).to(device) for ours, theirs in self.layers.items()}
        return Told(says, states, self.weight)

    def _entries(self, rows: Sequence[RowSignal], device: torch.device) -> Entries:
        found = to_sparse(rows, self.reader.header)
        arrays = (found.ids_CK, found.mass_CK, found.rest_C, found.entropy_C)
        ids_NK, mass_NK, rest_N, entropy_N = (torch.from_numpy(array).to(device) for array in arrays)
        return Entries(Sparse(ids_NK, mass_NK, rest_N, entropy_N, found.drawn))

    @staticmethod
    def _states(rows: Sequence[RowSignal], layer: int) -> Tensor:
        """What was kept of a layer, as float32; shape (N, R)."""
        kept = [row.hidden[layer] for row in rows]
        codes_NR = torch.from_numpy(np.concatenate([one.codes_CH for one in kept]))
        return Kept(codes_NR, torch.from_numpy(np.concatenate([one.scale_C for one in kept]))).values()


def key_of(item: Item) -> Key:
    """Under what a row's signal is kept: its name, and a hash of its tokens and of which are scored."""
    return item.row, content_hash(item)


def lessons(aims: Aims, tellers: Sequence[Teller]) -> Callable[[Batch], Batch]:
    """For a task: gives each batch its lesson."""

    def teach(batch: Batch) -> Batch:
        return replace(batch, lesson=Lesson(aims, tuple(teller.tell(batch) for teller in tellers)))

    return teach
