"""Preference objectives. Suffixes: B pairs, A labelled answers. Log-probabilities are in nats, of whole answers.

Each function is one loss of one paper: it sums over pairs (or answers) and counts them, so that micro-batches add up to
the whole batch. The policy's log-ratio to its reference, times beta, is its implicit reward (Rafailov et al. 2023,
eq. 5). Hyper-parameters are keyword-only, and a loss takes none that it does not read; `parameters` lists them.

- `beta` scales rewards: smaller lets the policy move further from its reference.
- `flipped` is the share of pairs taken to be labelled the wrong way round ("label smoothing").
- `gamma` is the reward by which SimPO wants the chosen answer to win.
- `odds_weight` is ORPO's lambda, `nll_weight` what CPO's likelihood term counts.
- `desirable_weight`, `undesirable_weight` are KTO's lambda_D and lambda_U.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.objectives.base import Loss


@dataclass(frozen=True)
class Pairs:
    """What an objective sees of B pairs: log-probabilities of whole answers in nats, and their scored tokens."""

    chosen_B: Tensor
    """By the policy, with gradients; float32 or float64, as bfloat16 has steps of 1.0 at -186."""
    rejected_B: Tensor
    reference_chosen_B: Tensor | None
    """By the reference, constant; None where there is no reference."""
    reference_rejected_B: Tensor | None
    chosen_tokens_B: Tensor
    """How many tokens each log-probability is the sum of: one or more."""
    rejected_tokens_B: Tensor

    def __post_init__(self) -> None:
        seen = (self.chosen_B, self.rejected_B, self.reference_chosen_B, self.reference_rejected_B)
        assert all(logp_B is None or logp_B.dtype in (torch.float32, torch.float64) for logp_B in seen), "too coarse"
        assert (self.reference_chosen_B is None) == (self.reference_rejected_B is None), "half a reference"

    @property
    def chosen_ratio_B(self) -> Tensor:
        """log pi(chosen) - log ref(chosen)."""
        assert self.reference_chosen_B is not None, "this objective needs a reference"
        return self.chosen_B - self.reference_chosen_B

    @property
    def rejected_ratio_B(self) -> Tensor:
        """log pi(rejected) - log ref(rejected)."""
        assert self.reference_rejected_B is not None, "this objective needs a reference"
        return self.rejected_B - self.reference_rejected_B

    @property
    def margin_B(self) -> Tensor:
        """How much further the policy has moved towards the chosen than towards the rejected answer."""
        return self.chosen_ratio_B - self.rejected_ratio_B

    @property
    def lead_B(self) -> Tensor:
        """The margin without a reference: log pi(chosen) - log pi(rejected)."""
        return self.chosen_B - self.rejected_B

    def per_token(self) -> "Pairs":
        """The same pairs with every log-probability divided by its answer's tokens."""
        reference_chosen_B, reference_rejected_B = self.reference_chosen_B, self.reference_rejected_B
        return replace(
            self,
            chosen_B=self.chosen_B / self.chosen_tokens_B,
            rejected_B=self.rejected_B / self.rejected_tokens_B,
            reference_chosen_B=None if reference_chosen_B is None else reference_chosen_B / self.chosen_tokens_B,
            reference_rejected_B=None
            if reference_rejected_B is None
            else reference_rejected_B / self.rejected_tokens_B,
        )


def dpo(pairs: Pairs, *, beta: float) -> Loss:
    """-log sigmoid(beta * margin); Rafailov et al. 2023, eq. 7."""
    return _over_pairs(-F.logsigmoid(beta * pairs.margin_B))


def length_normalised(pairs: Pairs, *, beta: float) -> Loss:
    """DPO on mean log-probabilities per token; Lambert et al. 2024 (Tulu 3), eq. 6. It wants a larger beta: 5 there."""
    return dpo(pairs.per_token(), beta=beta)


def ipo(pairs: Pairs, *, beta: float) -> Loss:
    """(margin - 1 / (2 beta))^2, where beta is the paper's tau; Azar et al. 2023, eq. 17."""
    return _over_pairs((pairs.margin_B - 1 / (2 * beta)) ** 2)


def ipo_length_normalised(pairs: Pairs, *, beta: float) -> Loss:
    """IPO on mean log-probabilities per token. TRL means this by ipo, and says that the paper's authors do."""
    return ipo(pairs.per_token(), beta=beta)


def hinge(pairs: Pairs, *, beta: float) -> Loss:
    """max(0, 1 - beta * margin); Zhao et al. 2023 (SLiC-HF), eq. 1, with log-ratios to the reference."""
    return _over_pairs(F.relu(1 - beta * pairs.margin_B))


def conservative(pairs: Pairs, *, beta: float, flipped: float) -> Loss:
    """DPO where a share `flipped` of the labels is taken to be wrong; Mitchell 2023 (cDPO), eq. 3."""
    right_B, wrong_B = -F.logsigmoid(beta * pairs.margin_B), -F.logsigmoid(-beta * pairs.margin_B)
    return _over_pairs((1 - flipped) * right_B + flipped * wrong_B)


def robust(pairs: Pairs, *, beta: float, flipped: float) -> Loss:
    """DPO without the bias of a share `flipped`, below a half, of wrong labels; Chowdhury et al. 2024, eq. 12."""
    right_B, wrong_B = -F.logsigmoid(beta * pairs.margin_B), -F.logsigmoid(-beta * pairs.margin_B)
    return _over_pairs(((1 - flipped) * right_B - flipped * wrong_B) / (1 - 2 * flipped))


def apo_zero(pairs: Pairs, *, beta: float) -> Loss:
    """Chosen up, rejected down: for chosen answers better than the policy's; D'Oosterlinck et al. 2024, eq. 7.

    One is added to the paper's value, which puts its bounds at 0 and 2.
    """
    return _over_pairs(torch.sigmoid(-beta * pairs.chosen_ratio_B) + torch.sigmoid(beta * pairs.rejected_ratio_B))


def apo_down(pairs: Pairs, *, beta: float) -> Loss:
    """Chosen down, rejected further down: for chosen answers worse than the policy's; D'Oosterlinck et al. 2024, eq. 8.

    One is added to the paper's value, which puts its bounds at 0 and 2.
    """
    return _over_pairs(torch.sigmoid(beta * pairs.chosen_ratio_B) + torch.sigmoid(-beta * pairs.margin_B))


def simpo(pairs: Pairs, *, beta: float, gamma: float) -> Loss:
    """-log sigmoid(beta * mean log-probability's lead - gamma), without a reference; Meng et al. 2024, eq. 6.

    `gamma` is absolute, in units of reward, as in the equation; the paper's tables give it as gamma / beta.
    """
    return _over_pairs(-F.logsigmoid(beta * pairs.per_token().lead_B - gamma))


def cpo(pairs: Pairs, *, beta: float, nll_weight: float) -> Loss:
    """DPO with a flat reference, and the chosen answer's likelihood; Xu et al. 2024, eq. 3 and the L_NLL added to it.

    The paper sums -log p over the answer and weighs it by 1; here and in its code it is the mean per token.
    """
    return _over_pairs(-F.logsigmoid(beta * pairs.lead_B) + nll_weight * _chosen_nll(pairs))


def orpo(pairs: Pairs, *, odds_weight: float) -> Loss:
    """The chosen answer's mean -log p per token, and -log sigmoid(log odds ratio); Hong et al. 2024, eqs. 6, 7."""
    each = pairs.per_token()
    odds_B = _log_odds(each.chosen_B) - _log_odds(each.rejected_B)
    return _over_pairs(_chosen_nll(pairs) - odds_weight * F.logsigmoid(odds_B))


def sft_term(pairs: Pairs, weight: float) -> Loss:
    """To be added to a loss: `weight` times the chosen answer's mean -log p per token; Pang et al. 2024, eq. 1."""
    return _over_pairs(weight * _chosen_nll(pairs))


@dataclass(frozen=True)
class Labelled:
    """What KTO sees of A answers, each to its own prompt: log-probabilities in nats, and whether they are good ones."""

    policy_A: Tensor
    """With gradients."""
    reference_A: Tensor
    """Constant."""
    desirable_A: Tensor
    """bool."""


def kto(answers: Labelled, kl: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Loss:
    """weight * (1 - sigmoid(+-beta * (log-ratio - KL))), + for desirable answers; Ethayarajh et al. 2024, eq. 7.

    `kl`, of shape (), is sum / count of `kto_kl` over the whole global batch: the one thing here that couples its rows.
    It is a baseline, clamped at 0 and without gradient.
    """
    baseline = kl.detach().clamp(min=0)
    reward_A = beta * (answers.policy_A - answers.reference_A - baseline)
    desirable_A = desirable_weight * torch.sigmoid(-reward_A)
    undesirable_A = undesirable_weight * torch.sigmoid(reward_A)
    each_A = torch.where(answers.desirable_A, desirable_A, undesirable_A)
    return Loss(sum=each_A.sum(), count=len(each_A))


def kto_kl(policy_A: Tensor, reference_A: Tensor) -> Loss:
    """The KL of policy from reference, before clamping: the mean log-ratio of answers to prompts that are not theirs.

    Ethayarajh et al. 2024, section 4.1: answer i + 1 of a batch of m (the first for the last) after prompt i.
    """
    return Loss(sum=(policy_A - reference_A).detach().sum(), count=len(policy_A))


@torch.no_grad()
def figures(pairs: Pairs, beta: float, *, per_token: bool = False) -> Mapping[str, Tensor]:
    """Sums over pairs of what people watch, without gradient; each of shape ().

    `margin` is the difference of rewards, beta times nats, and `accuracy` how often it is above 0, a tie for a half; of
    log-ratios where there is a reference, else of log-probabilities; of means per token where the loss is of those.
    The others are of whole answers.
    """
    seen = pairs.per_token() if per_token else pairs
    referred = pairs.reference_chosen_B is not None
    margin_B = seen.margin_B if referred else seen.lead_B
    sums_of = {
        "margin": beta * margin_B,
        "accuracy": (margin_B.sign() + 1) / 2,
        "chosen_logp": pairs.chosen_B,
        "rejected_logp": pairs.rejected_B,
    }
    if referred:
        sums_of |= {"chosen_log_ratio": pairs.chosen_ratio_B, "rejected_log_ratio": pairs.rejected_ratio_B}
    return {name: values_B.sum() for name, values_B in sums_of.items()}


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss, and what whoever calls it must know."""

    function: Callable[..., Loss]
    """Takes `Pairs` and its hyper-parameters; KTO's takes `Labelled` and a KL instead."""
    needs_reference: bool = True
    per_token: bool = False
    """Its rewards are means per token; see `figures`."""


LOSSES: Mapping[str, PreferenceLoss] = MappingProxyType(
    {
        "sigmoid": PreferenceLoss(dpo),
        "length_normalised": PreferenceLoss(length_normalised, per_token=True),
        "ipo": PreferenceLoss(ipo),
        "ipo_length_normalised": PreferenceLoss(ipo_length_normalised, per_token=True),
        "hinge": PreferenceLoss(hinge),
        "conservative": PreferenceLoss(conservative),
        "robust": PreferenceLoss(robust),
        "apo_zero": PreferenceLoss(apo_zero),
        "apo_down": PreferenceLoss(apo_down),
        "simpo": PreferenceLoss(simpo, needs_reference=False, per_token=True),
        "cpo": PreferenceLoss(cpo, needs_reference=False),
        "orpo": PreferenceLoss(orpo, needs_reference=False, per_token=True),
        "kto": PreferenceLoss(kto),
    }
)
"""Every loss by the name it has in a recipe; sigmoid is DPO itself."""


def parameters(name: str) -> frozenset[str]:
    """The hyper-parameters that the loss of that name reads; an option outside them would be ignored."""
    signature = inspect.signature(LOSSES[name].function)
    return frozenset(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)


def _over_pairs(loss_B: Tensor) -> Loss:
    return Loss(sum=loss_B.sum(), count=len(loss_B))


def _chosen_nll(pairs: Pairs) -> Tensor:
    return -pairs.chosen_B / pairs.chosen_tokens_B


def _log_odds(logp_B: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; Hong et al. 2024, eq. 4.

    expm1 keeps 1 - p exact near p = 1, where it matters; where p is small, the rounding of 1 - p is nothing beside
    log p. A p that rounds to 1 counts as the largest below it, so that the odds stay finite.
    """
    logp_B = logp_B.clamp(max=-torch.finfo(logp_B.dtype).eps)
    return logp_B - torch.log(-torch.expm1(logp_B))
