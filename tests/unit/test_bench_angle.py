"""The benchmark of angles: its gradients, put together by hand in chunks, are those of autograd over the whole."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY, LENGTH, ROWS, WIDTH, TOP = 300, 16, 3, 8, 4


@pytest.fixture
def angle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, in small."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    module = importlib.import_module("angle")
    for name, value in {"VOCABULARY": VOCABULARY, "LENGTH": LENGTH, "CHUNK": 7}.items():
        monkeypatch.setattr(module, name, value)
    yield module
    sys.modules.pop("angle")


def loss(kind: str, logp_NV: Tensor, logq_NV: Tensor, drawn_NV: Tensor) -> Tensor:
    """Summed forward KL, less what does not depend on the student."""
    if kind == "dense":
        return -(logp_NV.exp() * logq_NV).sum()
    if kind == "drawn":
        return -(drawn_NV * logq_NV).sum()
    ids_NK = logp_NV.topk(TOP).indices
    p_NK, logq_NK = logp_NV.gather(1, ids_NK).exp(), logq_NV.gather(1, ids_NK)
    if kind == "renormalised":
        return -(p_NK / p_NK.sum(-1, keepdim=True) * (logq_NK - logq_NK.logsumexp(-1, keepdim=True))).sum()
    rest_N = 1 - p_NK.sum(-1)
    return -(p_NK * logq_NK).sum() - (rest_N * (1 - logq_NK.exp().sum(-1)).log()).sum()


def test_gradients_are_those_of_autograd(angle: Any) -> None:
    """Dense, sampled, with one bucket, renormalised: in all parameters, the tied head's from both of its ends."""
    chance = torch.Generator().manual_seed(0)
    positions = ROWS * LENGTH
    logp_NV = (2 * torch.randn(positions, VOCABULARY, generator=chance)).log_softmax(-1)
    tokens_BT = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=chance)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    listed, sizes_N = logp_NV.topk(TOP), torch.full((positions,), TOP)
    drawn_NV = torch.zeros_like(logp_NV)
    drawn_NV[:, [1, 5, 9, 200]] = 0.25
    ids_M = drawn_NV.nonzero()[:, 1]
    listed_M = listed.indices.flatten(), listed.values.exp().flatten()
    estimates = {
        "drawn": angle.Estimate(entropy_N, sizes_N, ids_M, torch.full((len(ids_M),), 0.25), "drawn", 0.0, TOP),
        "rest": angle.Estimate(entropy_N, sizes_N, *listed_M, "rest", 0.0, TOP),
        "renormalised": angle.Estimate(entropy_N, sizes_N, *listed_M, "renormalised", 0.0, TOP),
    }
    student = angle.transformer(seed=3, width=WIDTH, spread=0.3)
    gradients = angle.Gradients(student, estimates)
    for begin, stop in ((0, 5), (5, LENGTH), (LENGTH, positions)):
        gradients.add(tokens_BT, begin, stop, lambda a, z: iter(logp_NV[a:z].clone().split(7)))

    parameters = list(student.base_model.parameters())
    for kind, ours in gradients.totals.items():
        logq_NV = student(tokens_BT).logits.flatten(0, 1).log_softmax(-1)
        theirs = torch.autograd.grad(loss(kind, logp_NV, logq_NV, drawn_NV), parameters)
        for mine, right in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, right, rtol=1e-3, atol=2e-4 * float(right.abs().max())), kind
    divergence = (logp_NV.exp() * (logp_NV - logq_NV.detach())).sum()
    assert gradients.divergence == pytest.approx(float(divergence), rel=1e-4)
    assert gradients.angles()["drawn"] > 1
