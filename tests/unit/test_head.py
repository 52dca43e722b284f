"""The fused head: log-probabilities and gradients of a plain linear head, kept or recomputed."""

import pytest
import torch
from engine import VOCABULARY
from torch import Tensor

from potstill.training import head
from potstill.training.head import linear_logps

ROWS, WIDTH = 37, 8


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights, targets, and a gradient of its own for every row."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    return hidden_ND, weight_VD, torch.randint(0, VOCABULARY, (ROWS,)), torch.randn(ROWS, dtype=dtype)


def plain(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float) -> Tensor:
    return (scale * hidden_ND @ weight_VD.t()).log_softmax(-1).gather(1, targets_N[:, None])[:, 0]


def gradients(logp_N: Tensor, grad_N: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(logp_N, of, grad_N)


@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
@pytest.mark.parametrize("kept_rows", [0, 12, 1000])
def test_chunks_kept_or_recomputed_are_the_dense_softmax(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, kept_rows: int
) -> None:
    """Trap: "A second, fused copy of a loss that ... ignores logit scale"."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk_rows * VOCABULARY)
    monkeypatch.setattr(head, "KEPT_BYTES", kept_rows * VOCABULARY * 8)
    hidden_ND, weight_VD, targets_N, grad_N = draw()
    ours_N = linear_logps(hidden_ND, weight_VD, targets_N, 0.7, torch.float64)
    theirs_N = plain(hidden_ND, weight_VD, targets_N, 0.7)
    assert torch.allclose(ours_N, theirs_N, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(
        gradients(ours_N, grad_N, hidden_ND, weight_VD), gradients(theirs_N, grad_N, hidden_ND, weight_VD), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_it_passes_gradcheck() -> None:
    hidden_ND, weight_VD, targets_N, _ = draw()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logps(h, w, targets_N, 1.3, torch.float64), (hidden_ND, weight_VD)
    )


def test_products_in_bfloat16_round_the_gradient_and_never_the_log_probabilities() -> None:
    """Trap: "bf16 logits before the float32 softmax: 4-23% gradient error". Here it is what bfloat16 itself rounds."""
    hidden_ND, weight_VD, targets_N, grad_N = draw(torch.float32)
    exact_N = linear_logps(hidden_ND, weight_VD, targets_N, 1.0, torch.float32)
    ours_N = linear_logps(hidden_ND, weight_VD, targets_N, 1.0, torch.bfloat16)
    assert torch.equal(ours_N, exact_N)
    for ours, exact in zip(
        gradients(ours_N, grad_N, hidden_ND, weight_VD), gradients(exact_N, grad_N, hidden_ND, weight_VD), strict=True
    ):
        assert 0 < (ours - exact).norm() < 0.005 * exact.norm()


def test_a_frozen_head_and_frozen_states_get_no_gradient() -> None:
    hidden_ND, weight_VD, targets_N, grad_N = draw()
    for frozen, trained in ((hidden_ND, weight_VD), (weight_VD, hidden_ND)):
        frozen.requires_grad_(False)
        (ours,) = gradients(linear_logps(hidden_ND, weight_VD, targets_N, 1.0, torch.float64), grad_N, trained)
        (theirs,) = gradients(plain(hidden_ND, weight_VD, targets_N, 1.0), grad_N, trained)
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)
        frozen.requires_grad_(True)


def test_nothing_to_score_is_nothing() -> None:
    hidden_ND, weight_VD, targets_N, _ = draw()
    assert linear_logps(hidden_ND[:0], weight_VD, targets_N[:0], 1.0, torch.float64).shape == (0,)
