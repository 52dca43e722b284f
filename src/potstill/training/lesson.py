"""The lesson of a batch: what teachers say of its scored positions, and what the student is to make of it.

In nats. Suffixes: N scored positions, C of a chunk, V vocabulary, K entries, D width, R of a target, F figures.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from potstill.objectives.divergence import Divergence, compare, softmax
from potstill.objectives.hidden import HIDDEN
from potstill.objectives.signal import Dense, Part, Sparse

FIGURES = ("loss", "divergence", "nll", "hidden")
"""What a lesson gives for each scored position, in this order; the first alone carries a gradient. `divergence` is
without the square of the temperature, that curves of different temperatures compare."""


@dataclass(frozen=True)
class Aims:
    """What the student is to make of what teachers say: for each scored position, the sum of three weighted terms."""

    divergence: Divergence
    vocabulary: int
    """How many ids are tokens: embeddings may be padded beyond, to another number in each model. Both sides' softmax is
    over these alone."""
    divergence_weight: float = 1.0
    likelihood_weight: float = 0.0
    """Of -log p of the token that follows."""
    hidden_weight: float = 0.0
    """Of how unlike the states of layers are: the mean over each teacher's pairs of layers."""
    hidden: Literal["mse", "cosine"] = "cosine"


class Judge(Protocol):
    """Makes figures of a chunk's logits, and their loss's derivative."""

    @property
    def vocabulary(self) -> int:
        """How many of the student's ids are tokens; logits beyond are not looked at."""
        ...

    @property
    def asks_head(self) -> bool:
        """Whether there is a derivative by logits at all."""
        ...

    def judge(self, rows: slice, logits_CV: Tensor, targets_C: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """The figures of these positions, shape (F, C), and the first figure's derivative by the logits.

        `logits_CV`, float32 or wider and over the tokens alone, may be overwritten.
        """
        ...


class Head(Protocol):
    """A student's, chunk by chunk; an `OutputHead`."""

    def logps(self, hidden_ND: Tensor, targets_N: Tensor, vocabulary: int | None = None) -> Tensor:
        """Log-probabilities of the targets among the first so many tokens, in nats."""
        ...

    def judged(self, hidden_ND: Tensor, targets_N: Tensor, judge: Judge) -> Tensor:
        """What the judge makes of the logits, shape (F, N)."""
        ...


class Says(Protocol):
    """What one teacher says of the N scored positions of a batch."""

    def part(self, rows: slice) -> Part:
        """Of some of them."""
        ...


@dataclass(frozen=True)
class Entries:
    """Some entries of each distribution, as they were captured."""

    sparse: Sparse
    """With N in place of C."""

    def part(self, rows: slice) -> Sparse:
        s = self.sparse
        return Sparse(s.ids_CK[rows], s.mass_CK[rows], s.rest_C[rows], s.entropy_C[rows], s.drawn)


@dataclass(frozen=True)
class Whole:
    """Whole distributions, by a teacher that is at hand: its hidden states, and its head to be asked chunk by chunk."""

    hidden_ND: Tensor
    logits: Callable[[Tensor], Tensor]
    """From hidden states to logits over the tokens, float32 or wider. Those of the call before may be overwritten."""

    def part(self, rows: slice) -> Dense:
        with torch.no_grad():
            return Dense(self.logits(self.hidden_ND[rows]))


@dataclass(frozen=True)
class Told:
    """What one of the teachers says."""

    says: Says | None
    """None: nothing of its distributions."""
    states: Mapping[int, Tensor] = field(default_factory=dict)
    """By the student's layer, the hidden states that it is to be like, or what was kept of them; shape (N, R)."""
    weight: float = 1.0


@dataclass(frozen=True)
class Lesson:
    """What teachers say of a batch, and what is to be made of it."""

    aims: Aims
    told: tuple[Told, ...]

    def figures(self, head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """For each scored position, shape (F, N); see `FIGURES`."""
        return head.judged(hidden_ND, targets_N, self)

    @property
    def vocabulary(self) -> int:
        """See `Aims`."""
        return self.aims.vocabulary

    @property
    def asks_head(self) -> bool:
        """Whether what the student says of tokens is part of the loss: hidden states alone may be."""
        speaking = any(told.says is not None for told in self.told)
        return bool(self.aims.likelihood_weight or (self.aims.divergence_weight and speaking))

    def judge(self, rows: slice, logits_CV: Tensor, targets_C: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """The figures of a chunk of positions, shape (F, C), and the loss's derivative by the student's logits.

        `logits_CV`, float32 or wider and over the tokens alone, is overwritten.
        """
        aims = self.aims
        figures_FC = logits_CV.new_zeros(len(FIGURES), len(targets_C))
        loss_C, divergence_C, nll_C, _ = figures_FC.unbind()
        target_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
        speaking = [told for told in self.told if told.says is not None] if aims.divergence_weight else []
        size_C = learnt_CV = None
        if aims.likelihood_weight:
            size_C, learnt_CV = _learnt(logits_CV, targets_C, aims.likelihood_weight)
            loss_C.add_(size_C - target_C, alpha=aims.likelihood_weight)
        elif not speaking or aims.divergence.temperature != 1:
            size_C = logits_CV.logsumexp(-1)
        for number, told in enumerate(speaking, start=1):
            assert told.says is not None
            own_CV = logits_CV if number == len(speaking) else logits_CV.clone()
            compared = compare(aims.divergence, told.says.part(rows), own_CV, slope=slope)
            weight = aims.divergence_weight * told.weight
            loss_C.add_(compared.value_C, alpha=weight)
            divergence_C.add_(compared.value_C, alpha=told.weight / aims.divergence.temperature**2)
            size_C = compared.size_C if size_C is None else size_C
            if slope:
                if weight != 1.0:
                    compared.slope_CV.mul_(weight)
                learnt_CV = compared.slope_CV if learnt_CV is None else learnt_CV.add_(compared.slope_CV)
        assert size_C is not None
        torch.sub(size_C, target_C, out=nll_C)
        return figures_FC, learnt_CV if slope else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the student: those whose states are compared."""
        if not self.aims.hidden_weight:
            return ()
        return tuple(sorted({layer for told in self.told for layer in told.states}))

    def with_states(self, figures_FN: Tensor, states: Mapping[int, Tensor], projections: Iterable[nn.Module]) -> Tensor:
        """The figures with what the student's states, of shape (N, D) by layer, add to the loss. There is a projection
        for each teacher, in their order."""
        if not self.layers:
            return figures_FN
        unlike = HIDDEN[self.aims.hidden]
        hidden_N = figures_FN.new_zeros(figures_FN.shape[1])
        for told, projection in zip(self.told, projections, strict=True):
            for layer, target_NR in told.states.items():
                value_N = unlike(projection(layer, states[layer]), target_NR)
                hidden_N = hidden_N + told.weight / len(told.states) * value_N
        loss_N, divergence_N, nll_N, _ = figures_FN.unbind()
        loss_N = loss_N + self.aims.hidden_weight * hidden_N
        return torch.stack([loss_N, divergence_N, nll_N, hidden_N.detach()])


def _learnt(logits_CV: Tensor, targets_C: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The logarithm of the normaliser, and the derivative of `weight` times -log p of the targets by the logits."""
    learnt_CV = torch.empty_like(logits_CV)
    size_C = softmax(logits_CV, learnt_CV)[:, 0]
    learnt_CV.scatter_add_(1, targets_C[:, None], learnt_CV.new_full((len(targets_C), 1), -1.0))
    return size_C, learnt_CV.mul_(weight)
