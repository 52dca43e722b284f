"""Causal attention over rows: each kernel against its definition, outputs and gradients."""

import pytest
import torch
from engine import random_items, tiny_model
from torch import Tensor

from potstill.training import rows
from potstill.training.batch import collate
from potstill.training.rows import causal
from potstill.training.scoring import build_scorer

LENGTH = rows.STEP + 37


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two, and a gradient for the output."""
    torch.manual_seed(1)
    q, grad = (torch.randn(2, 4, LENGTH, 8, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(2, 2, LENGTH, 8, dtype=dtype) for _ in range(2))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad


def definition(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = (behind >= 0) & (behind < (window or LENGTH))
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)


@pytest.mark.parametrize("window", [None, 1, 3, 40])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_written_out_equals_its_definition(window: int | None, softcap: float | None) -> None:
    q, k, v, _ = draw(torch.float64)
    ours = rows._explicit(q, k, v, 0.3, window, softcap, 0.0)
    assert torch.allclose(ours, definition(q, k, v, window, softcap), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 40])
def test_half_rows_equal_their_definition_in_full_precision(window: int | None) -> None:
    """The function takes any type: in float64 its forward and its own backward are exact."""
    q, k, v, grad = draw(torch.float64)
    flat = [x.reshape(-1, LENGTH, 8) for x in rows._every_head(q, k, v)]
    ours = rows._HalfRows.apply(*flat, 0.3, window).view_as(q)
    truth = definition(q, k, v, window, None)
    assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-12)
    for mine, true in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(truth, (q, k, v), grad), strict=True
    ):
        assert (mine - true).norm() < 1e-6 * grad.norm()  # its sums are in float32


@pytest.mark.parametrize("remembered", [2048, 60])
@pytest.mark.parametrize("window", [None, 40])
def test_bfloat16_attention_on_a_cpu_keeps_its_scores_and_softmax_in_full(
    monkeypatch: pytest.MonkeyPatch, window: int | None, remembered: int
) -> None:
    """Within what bfloat16 rounds of the result alone (1.7e-3), whatever the kernel; gradients as FlashAttention's."""
    monkeypatch.setattr(rows, "REMEMBERED_LENGTH", remembered)
    q, k, v, grad = draw(torch.float32)
    half = v.detach().bfloat16().requires_grad_()
    ours = causal(q, k, half, 0.3, window, None, 0.0)
    assert ours.dtype == torch.bfloat16
    wide = [x.detach().double().requires_grad_() for x in (q, k, half)]
    truth = definition(*wide, window, None)
    assert (ours.double() - truth).norm() < 3e-3 * truth.norm()
    grad = grad.bfloat16()
    for mine, true in zip(
        torch.autograd.grad(ours, (q, k, half), grad), torch.autograd.grad(truth, wide, grad.double()), strict=True
    ):
        assert (mine.double() - true).norm() < 6e-3 * true.norm()


def test_under_bfloat16_a_cpu_takes_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated queries come in float32 and values in bfloat16 there; the fused kernel would be half as fast."""
    calls = []
    right = rows._HalfRows.apply
    monkeypatch.setattr(rows._HalfRows, "apply", lambda *args: calls.append(args[0].shape) or right(*args))
    scorer = build_scorer(tiny_model(dtype=torch.float32), torch.bfloat16)
    assert not calls
    scorer(collate(random_items([(7, 5, 9), (0, 11)])))
    assert calls
