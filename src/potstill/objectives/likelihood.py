"""Likelihood objectives. Suffixes: N scored positions. Log-probabilities are in nats."""

from torch import Tensor

from potstill.objectives.base import Loss


def nll(logp_N: Tensor, weights_N: Tensor) -> Loss:
    """Negative log-likelihood of the targets, by weight; the count is the sum of weights."""
    return Loss(sum=-(logp_N * weights_N).sum(), count=weights_N.sum())
