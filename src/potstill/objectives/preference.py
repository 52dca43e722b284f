"""Preference objectives over pairs. Suffixes: B pairs; log-probabilities of whole answers, in nats.

Each takes policy and reference log-probabilities of the chosen and the rejected answers and returns a sum over pairs.
`margin_B` is how much further the policy has moved towards the chosen than towards the rejected answer, in nats:
beta times it is the difference of implicit rewards (Rafailov et al. 2023, eq. 5).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from potstill.objectives.base import Loss


def margin(
    policy_chosen_B: Tensor, policy_rejected_B: Tensor, reference_chosen_B: Tensor, reference_rejected_B: Tensor
) -> Tensor:
    """(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)); shape (B,)."""
    return (policy_chosen_B - reference_chosen_B) - (policy_rejected_B - reference_rejected_B)


def dpo(margin_B: Tensor, *, beta: float) -> Loss:
    """-log sigmoid(beta * margin); Rafailov et al. 2023, eq. 7."""
    return Loss(sum=-F.logsigmoid(beta * margin_B).sum(), count=margin_B.numel())


def ipo(margin_B: Tensor, *, beta: float) -> Loss:
    """(margin - 1 / (2 beta))^2, where beta is the paper's tau; Azar et al. 2023, eq. 17."""
    return Loss(sum=((margin_B - 1 / (2 * beta)) ** 2).sum(), count=margin_B.numel())


def hinge(margin_B: Tensor, *, beta: float) -> Loss:
    """max(0, 1 - beta * margin); Zhao et al. 2023 (SLiC), eq. 1, with the reference's log-probabilities subtracted."""
    return Loss(sum=F.relu(1 - beta * margin_B).sum(), count=margin_B.numel())


def conservative(margin_B: Tensor, *, beta: float, flipped: float) -> Loss:
    """DPO where a share `flipped` of the labels is taken to be wrong; Mitchell 2023 (cDPO), eq. 3."""
    right_B, wrong_B = -F.logsigmoid(beta * margin_B), -F.logsigmoid(-beta * margin_B)
    return Loss(sum=((1 - flipped) * right_B + flipped * wrong_B).sum(), count=margin_B.numel())


def robust(margin_B: Tensor, *, beta: float, flipped: float) -> Loss:
    """DPO without the bias that a share `flipped` of wrong labels brings; Chowdhury et al. 2024, eq. 12."""
    right_B, wrong_B = -F.logsigmoid(beta * margin_B), -F.logsigmoid(-beta * margin_B)
    return Loss(sum=((1 - flipped) * right_B - flipped * wrong_B).sum() / (1 - 2 * flipped), count=margin_B.numel())


PreferenceName = Literal["sigmoid", "ipo", "hinge", "conservative", "robust"]


def preference(name: PreferenceName, *, beta: float, flipped: float) -> Callable[[Tensor], Loss]:
    """The objective of that name as a function of the margins."""
    match name:
        case "sigmoid":
            return lambda margin_B: dpo(margin_B, beta=beta)
        case "ipo":
            return lambda margin_B: ipo(margin_B, beta=beta)
        case "hinge":
            return lambda margin_B: hinge(margin_B, beta=beta)
        case "conservative":
            return lambda margin_B: conservative(margin_B, beta=beta, flipped=flipped)
        case "robust":
            return lambda margin_B: robust(margin_B, beta=beta, flipped=flipped)
