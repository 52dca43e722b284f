"""The balance loss of mixtures of experts, in parts that add up: exact over a global batch, however that is cut.

Suffixes: E experts, K experts that a token is routed to, R rows (tokens of a layer).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def balance_loss(routed_E: Tensor, router_E: Tensor, per_token: int) -> Tensor:
    """E * sum_e f_e p_e; Fedus et al. 2021 (Switch Transformer), eq. 4-6, as transformers' `load_balancing_loss_func`
    has it: f_e is the share of (layer, token) rows routed to expert e (they sum to K), p_e the mean probability that
    the router gave it, both over all layers and tokens together.

    `routed_E` counts the *whole* global batch: it has no gradient, so a first pass without gradients yields it. Given
    it, the loss is linear in `router_E`: the parts' losses, each with its own `router_E`, add up to the whole batch's,
    and so do their gradients. `per_token` is K.
    """
    rows = routed_E.sum() / per_token
    return len(routed_E) * (routed_E / rows) @ (router_E / rows)


def routing(logits: Sequence[Tensor], weights_R: Tensor, per_token: int) -> tuple[Tensor, Tensor]:
    """(routed_E, router_E) of one pass: rows routed to each expert, and sums of router probabilities with gradients.

    `logits` holds every layer's (R, E), or (1, R, E); a row counts `weights_R` times, padding with weight 0.
    """
    experts = logits[0].shape[-1]
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    weights_R = weights_R.to(wide)
    routed_E, router_E = weights_R.new_zeros(experts), weights_R.new_zeros(experts)
    for layer in logits:
        probability_RE = layer.reshape(-1, experts).to(wide).softmax(-1)
        chosen_RK = probability_RE.topk(per_token, dim=-1).indices
        routed_E = routed_E.index_add(0, chosen_RK.flatten(), weights_R.repeat_interleave(per_token))
        router_E = router_E + weights_R @ probability_RE
    return routed_E, router_E


def balance_coefficient(config: PreTrainedConfig) -> float:
    """How much of the balance loss plain training would add: what the config says, where it asks for it at all."""
    text: Any = config.get_text_config()
    asked = getattr(text, "output_router_logits", False)
    return float(getattr(text, "router_aux_loss_coef", None) or 0.0) if asked else 0.0


def experts_per_token(config: PreTrainedConfig) -> int:
    """K."""
    return int(getattr(config.get_text_config(), "num_experts_per_tok", None) or 1)
