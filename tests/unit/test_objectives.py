"""Objectives against closed forms in float64, and their gradients against finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from potstill.objectives.likelihood import nll
from potstill.objectives.preference import conservative, dpo, hinge, ipo, margin, preference, robust

NAMES = ("sigmoid", "ipo", "hinge", "conservative", "robust")
MARGINS = torch.tensor([-3.0, -0.4, 0.0, 0.7, 12.0], dtype=torch.float64)


def test_dpo_at_its_reference_is_ln_2() -> None:
    logp = torch.tensor([-31.5, -7.25], dtype=torch.float64)
    loss = dpo(margin(logp, logp - 3, logp, logp - 3), beta=0.1)
    assert loss.sum.item() / loss.count == pytest.approx(math.log(2), abs=1e-15)


def test_dpo_is_minus_log_sigmoid_and_stays_finite_far_out() -> None:
    far = torch.tensor([-2000.0, 2000.0], dtype=torch.float64)
    assert dpo(far[:1], beta=1.0).sum.item() == 2000.0
    assert dpo(far[1:], beta=1.0).sum.item() == 0.0
    expected = sum(math.log1p(math.exp(-0.3 * m)) for m in MARGINS.tolist())
    assert dpo(MARGINS, beta=0.3).sum.item() == pytest.approx(expected, rel=1e-14)


def test_the_margin_rises_with_the_chosen_and_falls_with_the_rejected() -> None:
    one, two, three, five = (torch.tensor([v], dtype=torch.float64) for v in (1.0, 2.0, 3.0, 5.0))
    assert margin(one, two, three, five).item() == (1 - 3) - (2 - 5)


def test_ipo_is_zero_at_its_target_margin() -> None:
    assert ipo(torch.tensor([1 / (2 * 0.25)], dtype=torch.float64), beta=0.25).sum.item() == 0.0


def test_hinge_is_zero_behind_the_margin() -> None:
    assert hinge(torch.tensor([10.0, 11.0, 0.0], dtype=torch.float64), beta=0.1).sum.item() == pytest.approx(1.0)


def test_label_noise_of_nothing_is_dpo() -> None:
    plain = dpo(MARGINS, beta=0.2).sum
    assert torch.equal(conservative(MARGINS, beta=0.2, flipped=0.0).sum, plain)
    assert torch.equal(robust(MARGINS, beta=0.2, flipped=0.0).sum, plain)


def test_robust_is_unbiased_under_its_noise() -> None:
    noisy = 0.7 * robust(MARGINS, beta=0.2, flipped=0.3).sum + 0.3 * robust(-MARGINS, beta=0.2, flipped=0.3).sum
    assert noisy.item() == pytest.approx(dpo(MARGINS, beta=0.2).sum.item(), rel=1e-13)


def test_conservative_has_its_minimum_where_sigmoid_equals_the_trust() -> None:
    best = torch.tensor([math.log(0.9 / 0.1) / 0.2], dtype=torch.float64, requires_grad=True)
    conservative(best, beta=0.2, flipped=0.1).sum.backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_preference_gradients(name: str) -> None:
    away_from_kinks = (MARGINS + 0.05).requires_grad_()
    assert gradcheck(lambda m: preference(name, beta=0.3, flipped=0.2)(m).sum, away_from_kinks)  # type: ignore[arg-type]
    assert preference(name, beta=0.3, flipped=0.2)(MARGINS).count == 5  # type: ignore[arg-type]


def test_nll_of_a_uniform_guess_is_the_log_of_the_vocabulary() -> None:
    logp = torch.full((6,), -math.log(50.0), dtype=torch.float64)
    loss = nll(logp, torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0, 1.0]))
    assert loss.count == 3.5
    assert loss.sum.item() / loss.count == pytest.approx(math.log(50.0), rel=1e-14)
