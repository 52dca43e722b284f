"""A lesson by a teacher of another vocabulary: two batches of the same words, and which tokens are the same bytes.

Suffixes: N the student's scored positions, M the teacher's, S spans, C spans of a chunk, V and W vocabularies, E the
teacher's width, F figures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from potstill.objectives.cross_tokenizer import Shared, alm, merged, span_sums, uld
from potstill.tokens.alignment import Spans
from potstill.training.batch import Batch, Item, collate
from potstill.training.head import Room
from potstill.training.lesson import FIGURES, Head
from potstill.training.scoring import Scorer

AcrossName = Literal["uld", "gold", "alm"]


@dataclass(frozen=True)
class Read:
    """What a teacher reads of one row, and how that corresponds to what the student reads."""

    item: Item
    spans: Spans

    @classmethod
    def of(cls, student: Item, item: Item, spans: Spans) -> "Read":
        """The student may have been cut to fewer turns: spans beyond are left out."""
        there_S = (spans.student_ends_S <= student.scored) & (spans.teacher_ends_S <= item.scored)
        return cls(item, spans.only(there_S))


@dataclass(frozen=True)
class SpanAims:
    """What the student is to make of a teacher of another vocabulary: two weighted terms.

    A span's loss counts at the span's first token.
    """

    name: AcrossName
    vocabulary: int
    """V: how many of the student's ids are tokens."""
    temperature: float
    mix: float = 0.5
    """gold's beta."""
    divergence_weight: float = 1.0
    likelihood_weight: float = 0.0


@dataclass(frozen=True)
class Foreign:
    """What one teacher of another vocabulary says of a batch's spans."""

    starts_S: Tensor
    """Each span's first token among the student's scored positions."""
    ends_S: Tensor
    logp_S: Tensor
    """How likely the teacher finds the span."""
    follow_S: Tensor
    """And its tokens behind the first."""
    hidden_SE: Tensor
    """What its head is asked with at the span's first token."""
    comparable_S: Tensor
    """Whether the distributions there say the same thing; see `Spans.comparable_S`."""
    logits: Callable[[Tensor], Tensor]
    shared: Shared | None
    weight: float = 1.0

    def where_comparable(self) -> "Foreign":
        """Those spans alone whose first tokens' distributions can be compared."""
        at = self.comparable_S.nonzero()[:, 0]
        return replace(
            self,
            starts_S=self.starts_S[at],
            ends_S=self.ends_S[at],
            logp_S=self.logp_S[at],
            follow_S=self.follow_S[at],
            hidden_SE=self.hidden_SE[at],
            comparable_S=self.comparable_S[at],
        )


@dataclass(frozen=True)
class Interpreter:
    """A teacher of another vocabulary, whose weights are at hand."""

    scorer: Scorer
    """In evaluation mode."""
    vocabulary: int
    """W: how many of its ids are tokens."""
    reads: Mapping[str, Read]
    """By the student's row."""
    shared: Shared | None = None
    """For gold."""
    weight: float = 1.0

    def tell(self, batch: Batch) -> Foreign:
        """What it says of the batch's spans, on the batch's device."""
        device = batch.scored_N.device
        reads = [self.reads[row] for row in batch.row_ids]
        theirs = collate([read.item for read in reads]).to(device)
        starts_S, ends_S = _places((r.spans.student_starts_S, r.spans.student_ends_S, i.scored)
                                   for r, i in zip(reads, batch.items, strict=True))  # fmt: skip
        first_S, last_S = _places((r.spans.teacher_starts_S, r.spans.teacher_ends_S, r.item.scored) for r in reads)
        comparable_S = torch.from_numpy(np.concatenate([read.spans.comparable_S for read in reads])).to(device)
        with torch.no_grad():
            (hidden_ME,) = cast(tuple[Tensor], self.scorer(theirs, "hidden"))
            logp_M = self.scorer.head.logps(hidden_ME, theirs.targets_N, self.vocabulary)
            first_S, last_S = first_S.to(device), last_S.to(device)
            logp_S = span_sums(logp_M, first_S, last_S)
            follow_S = span_sums(logp_M, first_S + 1, last_S)
        hidden_SE = hidden_ME[first_S]
        return Foreign(starts_S.to(device), ends_S.to(device), logp_S, follow_S, hidden_SE, comparable_S,
                       partial(self.scorer.head.said, vocabulary=self.vocabulary, room=Room()),
                       self.shared, self.weight)  # fmt: skip


def _places(rows: Iterable[tuple[Any, Any, int]]) -> tuple[Tensor, Tensor]:
    """Spans' starts and ends among all rows' scored positions, from those among each row's."""
    starts, ends, base = [], [], 0
    for starts_S, ends_S, scored in rows:
        starts.append(starts_S + base)
        ends.append(ends_S + base)
        base += scored
    return torch.from_numpy(np.concatenate(starts)), torch.from_numpy(np.concatenate(ends))


@dataclass(frozen=True)
class SpanLesson:
    """What teachers of other vocabularies say of a batch."""

    aims: SpanAims
    told: tuple[Foreign, ...]
    layers: tuple[int, ...] = ()
    """Hidden states stand at other places on both sides; they are not compared."""

    def figures(self, head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """For each scored position, shape (F, N); see `lesson.FIGURES`."""
        aims = self.aims
        logp_N = head.logps(hidden_ND, targets_N, aims.vocabulary)
        divergence_N = torch.zeros_like(logp_N)
        for told in self.told:
            if aims.name == "alm":
                said_S = span_sums(logp_N, told.starts_S, told.ends_S)
                each_S = alm(said_S, told.logp_S, temperature=aims.temperature)
            else:
                told = told.where_comparable()
                each_S = self._by_first_token(head, hidden_ND, targets_N, logp_N, told)
            divergence_N = divergence_N.index_add(0, told.starts_S, told.weight * each_S.to(logp_N.dtype))
        loss_N = aims.divergence_weight * divergence_N - aims.likelihood_weight * logp_N
        return torch.stack([loss_N, divergence_N.detach(), -logp_N.detach(), torch.zeros_like(loss_N).detach()])

    def _by_first_token(
        self, head: Head, hidden_ND: Tensor, targets_N: Tensor, logp_N: Tensor, told: Foreign
    ) -> Tensor:
        """Each span's value by the distributions at its first token, and by how likely what follows is."""
        follow_S = span_sums(logp_N, told.starts_S + 1, told.ends_S)
        judge = _FirstTokens(self.aims, told, follow_S.detach())
        figures_FS = head.judged(hidden_ND[told.starts_S], targets_N[told.starts_S], judge)
        slope_S = figures_FS[FOLLOW_SLOPE].detach()
        return figures_FS[0] + slope_S * (follow_S - follow_S.detach())

    def with_states(self, figures_FN: Tensor, states: Mapping[int, Tensor], projections: Iterable[Any]) -> Tensor:
        """As they are."""
        return figures_FN


FOLLOW_SLOPE = FIGURES.index("hidden")
"""Where, among a chunk's figures, the derivative by what follows stands: spans know no hidden states."""


@dataclass(frozen=True)
class _FirstTokens:
    """Judges spans by the distributions at their first tokens."""

    aims: SpanAims
    told: Foreign
    follow_S: Tensor
    asks_head = True

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.aims.vocabulary

    def judge(self, rows: slice, logits_CV: Tensor, targets_C: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """The figures of a chunk of spans, and the value's derivative by the student's logits."""
        aims, told = self.aims, self.told
        with torch.no_grad():
            teacher_CW = told.logits(told.hidden_SE[rows]).to(logits_CV.dtype)
        if aims.name == "uld":
            compared = uld(teacher_CW, logits_CV, temperature=aims.temperature)
        else:
            assert told.shared is not None
            follows = (told.follow_S[rows].to(logits_CV.dtype), self.follow_S[rows].to(logits_CV.dtype))
            compared = merged(teacher_CW, logits_CV, *follows, told.shared, beta=aims.mix)
        figures_FC = logits_CV.new_zeros(len(FIGURES), len(logits_CV))
        figures_FC[0], figures_FC[FOLLOW_SLOPE] = compared.value_C, compared.slope_follow_C
        return figures_FC, compared.slope_CV if slope else None


def span_lessons(aims: SpanAims, interpreters: Sequence[Interpreter]) -> Callable[[Batch], Batch]:
    """As `tellers.lessons`, by teachers of other vocabularies."""

    def teach(batch: Batch) -> Batch:
        return replace(batch, lesson=SpanLesson(aims, tuple(one.tell(batch) for one in interpreters)))

    return teach
