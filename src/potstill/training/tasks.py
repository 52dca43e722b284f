"""What there is to learn: rows in their order, an objective over a batch, and what each row adds to its denominator.

Suffixes: N scored positions, B pairs, A answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.objectives.base import Loss
from potstill.objectives.likelihood import nll
from potstill.objectives.preference import LOSSES, Labelled, Pairs, figures, kto, kto_kl, sft_term
from potstill.training.batch import Batch, Item
from potstill.training.lesson import FIGURES

Objective = Callable[[Tensor, Batch], Loss]
"""From log-probabilities of the scored positions (of a batch with a lesson, its figures), and the batch."""

Teach = Callable[[Batch], Batch]
"""Gives a batch its lesson."""


def untaught(batch: Batch) -> Batch:
    """Where there is no lesson."""
    return batch


@dataclass(frozen=True)
class Coupling:
    """For an objective that couples the rows of a global batch: what is measured of them first, without gradients."""

    first: Callable[[Item], Item]
    """What of a row is measured first."""
    measure: Objective
    """Its mean over all of that is what `objective` is made with."""
    then: Callable[[Item], Item]
    """What of a row the objective sees."""
    objective: Callable[[Tensor], Objective]


@dataclass(frozen=True)
class Task:
    """What to train on."""

    steps: Sequence[Sequence[Item]]
    """One global batch an optimizer step."""
    held_out: Sequence[Item]
    denominator: Callable[[Item], float]
    """What a row adds to the objective's count: known before anything is computed, so that the split into micro-batches
    cannot change the gradient."""
    objective: Objective | None = None
    coupling: Coupling | None = None
    """Instead of an objective."""
    teach: Teach = untaught


def likelihood(steps: Sequence[Sequence[Item]], held_out: Sequence[Item]) -> Task:
    """The task of pretraining and SFT: the mean over learnt tokens of -log p."""

    def objective(logp_N: Tensor, batch: Batch) -> Loss:
        return nll(logp_N, batch.weights_N)

    return Task(steps, held_out, lambda item: float(item.scored), objective)


def distillation(steps: Sequence[Sequence[Item]], held_out: Sequence[Item], teach: Teach, names: Sequence[str]) -> Task:
    """The task of learning from a teacher's signal: the mean over learnt tokens of the lesson's loss.

    `names`: which of the lesson's figures are followed, besides the loss.
    """

    def objective(figures_FN: Tensor, batch: Batch) -> Loss:
        sums = dict(zip(FIGURES, (figures_FN * batch.weights_N).sum(-1), strict=True))
        return Loss(sums["loss"], batch.weights_N.sum(), {name: sums[name] for name in names})

    return Task(steps, held_out, lambda item: float(item.scored), objective, teach=teach)


def preference(
    steps: Sequence[Sequence[Item]],
    held_out: Sequence[Item],
    loss: str,
    parameters: Mapping[str, float],
    sft_weight: float = 0.0,
) -> Task:
    """The task of DPO and its kin: the mean over pairs. Items are pairs, their signals the reference's column."""
    spec = LOSSES[loss]
    scale = parameters.get("beta", 1.0)

    def objective(logp_N: Tensor, batch: Batch) -> Loss:
        pairs = as_pairs(logp_N, batch)
        total = spec.function(pairs, **parameters)
        term = sft_term(pairs, sft_weight).sum if sft_weight else 0.0
        watched = {**figures(pairs, scale, per_token=spec.per_token), **_drift(logp_N, batch, pairs)}
        return Loss(total.sum + term, total.count, watched)

    return Task(steps, held_out, lambda item: 1.0, objective)


def as_pairs(logp_N: Tensor, batch: Batch) -> Pairs:
    """A batch of pairs as objectives see it."""
    policy_B2 = batch.by_answer(logp_N).view(-1, 2)
    tokens_B2 = batch.by_answer(torch.ones_like(logp_N)).view(-1, 2)
    reference: tuple[Tensor | None, ...] = (None, None)
    if batch.signal_N is not None:
        reference = batch.by_answer(batch.signal_N.to(logp_N.dtype)).view(-1, 2).unbind(1)
    return Pairs(*policy_B2.unbind(1), *reference, *tokens_B2.unbind(1))


@torch.no_grad()
def _drift(logp_N: Tensor, batch: Batch, pairs: Pairs) -> dict[str, Tensor]:
    """How far the policy has gone, as sums over pairs: `kl` from its reference in nats a token, `longer` how often it
    has moved towards the longer answer, a tie for a half.

    The KL is estimated on the data's own tokens by exp(r) - 1 - r, r = log ref - log pi, which is never negative
    (Schulman 2020, "k3"); the policy's own samples are not at hand offline.
    """
    if batch.signal_N is None:
        return {}
    ratio_N = batch.signal_N.to(logp_N.dtype) - logp_N
    k3_B2 = batch.by_answer(torch.expm1(ratio_N) - ratio_N).view(-1, 2)
    kl_B = (k3_B2[:, 0] / pairs.chosen_tokens_B + k3_B2[:, 1] / pairs.rejected_tokens_B) / 2
    longer_B = pairs.margin_B * (pairs.chosen_tokens_B - pairs.rejected_tokens_B)
    return {"kl": kl_B.sum(), "longer": ((longer_B.sign() + 1) / 2).sum()}


def feedback(
    steps: Sequence[Sequence[Item]],
    held_out: Sequence[Item],
    desirable: Mapping[str, bool],
    parameters: Mapping[str, float],
) -> Task:
    """The task of KTO: the mean over answers. An item's first answer is labelled, its second another row's, for the KL.

    The KL couples a global batch: it is measured first over all of it, so that micro-batches do not change it.
    """

    def labelled(logp_N: Tensor, batch: Batch) -> Labelled:
        marks = [desirable[row] for row in batch.row_ids]
        return Labelled(*_with_reference(logp_N, batch), torch.tensor(marks, device=logp_N.device))

    def objective(kl: Tensor) -> Objective:
        def compute(logp_N: Tensor, batch: Batch) -> Loss:
            answers = labelled(logp_N, batch)
            loss = kto(answers, kl, **parameters)
            with torch.no_grad():
                ratio_A = answers.policy_A - answers.reference_A
                good_A = answers.desirable_A
                watched = {
                    "kl": kl.clamp(min=0) * len(ratio_A),
                    "accuracy": ((torch.where(good_A, ratio_A - kl, kl - ratio_A).sign() + 1) / 2).sum(),
                    "log_ratio": ratio_A.sum(),
                }
            return Loss(loss.sum, loss.count, watched)

        return compute

    coupling = Coupling(
        first=lambda item: item.branch(1),
        measure=lambda logp_N, batch: kto_kl(*_with_reference(logp_N, batch)),
        then=lambda item: item.branch(0),
        objective=objective,
    )
    return Task(steps, held_out, lambda item: 1.0, coupling=coupling)


def _with_reference(logp_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.signal_N is not None, "KTO needs the reference's column"
    return batch.by_answer(logp_N), batch.by_answer(batch.signal_N.to(logp_N.dtype))
