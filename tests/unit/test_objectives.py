"""Objectives against closed forms in float64, and their gradients against finite differences.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from potstill.objectives.base import Loss
from potstill.objectives.likelihood import nll
from potstill.objectives.preference import (
    LOSSES,
    Labelled,
    Pairs,
    apo_down,
    apo_zero,
    conservative,
    cpo,
    dpo,
    figures,
    hinge,
    ipo,
    ipo_length_normalised,
    kto,
    kto_kl,
    length_normalised,
    orpo,
    parameters,
    robust,
    sft_term,
    simpo,
)

OPTIONS = {
    "beta": 0.3,
    "flipped": 0.2,
    "gamma": 0.7,
    "odds_weight": 0.6,
    "nll_weight": 0.9,
    "desirable_weight": 1.3,
    "undesirable_weight": 0.8,
}
OVER_PAIRS = sorted(set(LOSSES) - {"kto"})
MARGINS = (-3.0, -0.4, 0.0, 0.7, 12.0)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(*rows: tuple[float, float, float, float, int, int], dtype: torch.dtype = torch.float64) -> Pairs:
    """Rows of chosen, rejected, their references, and tokens."""
    return Pairs(*(torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True)))


def by_margin(*margins: float) -> Pairs:
    """Pairs whose margins are these exactly."""
    return pairs_of(*((margin - 8.0, -16.0, -8.0, -16.0, 4, 8) for margin in margins))


SEVEN = pairs_of(
    (-31.5, -40.25, -33.0, -38.0, 12, 20),
    (-7.25, -3.5, -7.5, -2.5, 3, 2),
    (-100.0, -90.0, -80.0, -95.0, 30, 41),
    (-0.02, -15.0, -0.5, -14.0, 1, 6),
    (-12.0, -12.5, -12.0, -12.5, 5, 5),
    (-64.0, -1.5, -60.0, -9.0, 17, 4),
    (-22.0, -23.0, -29.0, -21.0, 9, 9),
)


def computed(name: str, pairs: Pairs, **changed: float) -> Loss:
    options = OPTIONS | changed
    return LOSSES[name].function(pairs, **{option: options[option] for option in parameters(name)})


def part(pairs: Pairs, rows: slice) -> Pairs:
    return Pairs(*(value[rows] for value in vars(pairs).values()))


def answers_of(pairs: Pairs) -> Labelled:
    """Chosen answers as good ones, and rejected as bad ones."""
    good = torch.ones(len(pairs.chosen_B), dtype=torch.bool)
    return Labelled(
        torch.cat([pairs.chosen_B, pairs.rejected_B]),
        torch.cat([pairs.reference_chosen_B, pairs.reference_rejected_B]),
        torch.cat([good, ~good]),
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Closed forms


def test_dpo_at_its_reference_is_ln_2() -> None:
    """Trap: "leaves both identical: loss sits at ln 2": the value to be wary of, for any lengths and any beta."""
    still = replace(SEVEN, reference_chosen_B=SEVEN.chosen_B, reference_rejected_B=SEVEN.rejected_B)
    for name in ("sigmoid", "length_normalised", "conservative", "robust"):
        loss = computed(name, still)
        assert loss.sum.item() / loss.count == pytest.approx(math.log(2), rel=1e-15), name


def test_dpo_is_minus_log_sigmoid_and_stays_finite_far_out() -> None:
    assert dpo(by_margin(-2000.0), beta=1.0).sum.item() == 2000.0
    assert dpo(by_margin(2000.0), beta=1.0).sum.item() == 0.0
    expected = -sum(log_sigmoid(0.3 * m) for m in MARGINS)
    assert dpo(by_margin(*MARGINS), beta=0.3).sum.item() == pytest.approx(expected, rel=1e-14)


def test_the_gradient_of_dpo_is_its_paper_s() -> None:
    """-beta sigmoid(-beta margin) for the chosen answer, the opposite for the rejected (eq. 7's gradient)."""
    chosen, rejected = SEVEN.chosen_B.clone().requires_grad_(), SEVEN.rejected_B.clone().requires_grad_()
    dpo(replace(SEVEN, chosen_B=chosen, rejected_B=rejected), beta=0.3).sum.backward()
    expected = -0.3 * torch.sigmoid(-0.3 * SEVEN.margin_B)
    torch.testing.assert_close(chosen.grad, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(rejected.grad, -expected, rtol=1e-13, atol=0)


def test_the_margin_rises_with_the_chosen_and_falls_with_the_rejected() -> None:
    pair = pairs_of((1.0, 2.0, 3.0, 5.0, 1, 1))
    assert pair.chosen_ratio_B.item() == 1 - 3
    assert pair.rejected_ratio_B.item() == 2 - 5
    assert pair.margin_B.item() == (1 - 3) - (2 - 5)
    assert pair.lead_B.item() == 1 - 2


def test_ipo_is_zero_at_its_target_margin() -> None:
    assert ipo(by_margin(1 / (2 * 0.25)), beta=0.25).sum.item() == 0.0
    assert ipo(by_margin(2.0, 5.0, -1.0), beta=0.25).sum.item() == 0 + 9 + 9


def test_hinge_is_zero_behind_the_margin() -> None:
    assert hinge(by_margin(10.0, 11.0, 0.0, -30.0), beta=0.1).sum.item() == pytest.approx(0 + 0 + 1 + 4)


def test_label_noise_of_nothing_is_dpo() -> None:
    plain = dpo(SEVEN, beta=0.2).sum
    assert torch.equal(conservative(SEVEN, beta=0.2, flipped=0.0).sum, plain)
    assert torch.equal(robust(SEVEN, beta=0.2, flipped=0.0).sum, plain)


def test_robust_is_unbiased_under_its_noise() -> None:
    pairs = by_margin(*MARGINS)
    switched = by_margin(*(-m for m in MARGINS))
    noisy = 0.7 * robust(pairs, beta=0.2, flipped=0.3).sum + 0.3 * robust(switched, beta=0.2, flipped=0.3).sum
    assert noisy.item() == pytest.approx(dpo(pairs, beta=0.2).sum.item(), rel=1e-13)


def test_conservative_has_its_minimum_where_sigmoid_equals_the_trust() -> None:
    best = (f64(math.log(0.9 / 0.1) / 0.2) - 8).requires_grad_()
    conservative(replace(by_margin(0.0), chosen_B=best), beta=0.2, flipped=0.1).sum.backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_apo_by_hand() -> None:
    """Ratios of 1.5 and -2.25, at beta 0.3; at the reference each is 1; far out they reach 0 and 2."""
    pair = pairs_of((-31.5, -40.25, -33.0, -38.0, 12, 20))
    zero = 1 - sigmoid(0.3 * 1.5) + sigmoid(0.3 * -2.25)
    down = sigmoid(0.3 * 1.5) + 1 - sigmoid(0.3 * 3.75)
    assert apo_zero(pair, beta=0.3).sum.item() == pytest.approx(zero, rel=1e-14)
    assert apo_down(pair, beta=0.3).sum.item() == pytest.approx(down, rel=1e-14)
    still, far = pairs_of((-5, -6, -5, -6, 1, 1)), pairs_of((-500, -9000, -5000, -900, 1, 1))
    assert apo_zero(still, beta=0.3).sum.item() == apo_down(still, beta=0.3).sum.item() == 1.0
    assert apo_zero(far, beta=1.0).sum.item() == 0.0
    assert apo_down(far, beta=1.0).sum.item() == 1.0


def test_length_normalised_losses_divide_by_tokens() -> None:
    """Ratios per token of 1.5 / 12 and -2.25 / 20."""
    pair, margin = pairs_of((-31.5, -40.25, -33.0, -38.0, 12, 20)), 1.5 / 12 + 2.25 / 20
    assert length_normalised(pair, beta=5.0).sum.item() == pytest.approx(-log_sigmoid(5 * margin), rel=1e-13)
    assert ipo_length_normalised(pair, beta=0.5).sum.item() == pytest.approx((margin - 1) ** 2, rel=1e-13)
    assert pair.per_token().lead_B.item() == pytest.approx(-31.5 / 12 + 40.25 / 20, rel=1e-14)


def test_simpo_by_hand_and_its_gamma_is_absolute() -> None:
    """Means per token of -2 and -3; the reference and the lengths alone change nothing."""
    reward = 2.5 * (-2 + 3) - 1.2
    for row in ((-24.0, -60.0, -1.0, -1.0, 12, 20), (-2.0, -3.0, -9.0, -2.0, 1, 1)):
        loss = simpo(pairs_of(row), beta=2.5, gamma=1.2).sum.item()
        assert loss == pytest.approx(-log_sigmoid(reward), rel=1e-14)
    assert simpo(pairs_of((-2.5, -3.0, 0, 0, 1, 1)), beta=2.4, gamma=1.2).sum.item() == pytest.approx(math.log(2))


def test_cpo_is_dpo_with_a_flat_reference_and_likelihood() -> None:
    flat = replace(SEVEN, reference_chosen_B=0 * SEVEN.chosen_B, reference_rejected_B=0 * SEVEN.chosen_B)
    expected = dpo(flat, beta=0.2).sum + sft_term(SEVEN, 0.4).sum
    assert cpo(SEVEN, beta=0.2, nll_weight=0.4).sum.item() == pytest.approx(expected.item(), rel=1e-14)


def test_the_sft_term_is_the_mean_per_token_of_each_pair() -> None:
    loss = sft_term(pairs_of((-12.0, -1.0, 0, 0, 4, 1), (-10.0, -1.0, 0, 0, 20, 1)), 0.5)
    assert loss.sum.item() == 0.5 * (3 + 0.5)
    assert loss.count == 2


def test_orpo_by_hand() -> None:
    """p per token of 0.8 and 0.5: odds of 4 and 1, so -log sigmoid(log 4) = log 1.25."""
    pair = pairs_of((3 * math.log(0.8), 7 * math.log(0.5), 0, 0, 3, 7))
    expected = -math.log(0.8) + 0.6 * math.log(1.25)
    assert orpo(pair, odds_weight=0.6).sum.item() == pytest.approx(expected, rel=1e-14)
    assert orpo(pair, odds_weight=0.0).sum.item() == sft_term(pair, 1.0).sum.item()


@pytest.mark.parametrize("logp", [-1e-6, -1e-3, -0.5, math.log(0.5), -3.0, -20.0, -150.0, -4000.0])
def test_orpo_in_float32_is_what_it_is_in_float64(logp: float) -> None:
    """The odds p / (1 - p) cancel near 1 and overflow near 0 where they are computed as they stand."""
    losses, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        chosen = torch.tensor([logp], dtype=torch.float32).to(dtype).requires_grad_()
        loss = orpo(replace(pairs_of((0, -1.25, 0, 0, 1, 1), dtype=dtype), chosen_B=chosen), odds_weight=1.0).sum
        loss.backward()
        losses.append(loss.item())
        gradients.append(chosen.grad.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-6, abs=1e-9)
    assert gradients[0] == pytest.approx(gradients[1], rel=2e-6)


def test_orpo_of_a_certain_answer_is_finite() -> None:
    """A log-probability of 0 is what float32 makes of a probability near enough to 1."""
    for row in ((0.0, -5.0, 0, 0, 1, 1), (-5.0, 0.0, 0, 0, 1, 1), (0.0, 0.0, 0, 0, 1, 1)):
        pair = pairs_of(row, dtype=torch.float32)
        pair.chosen_B.requires_grad_()
        pair.rejected_B.requires_grad_()
        loss = orpo(pair, odds_weight=1.0).sum
        loss.backward()
        seen = torch.stack([loss.detach(), pair.chosen_B.grad[0], pair.rejected_B.grad[0]])
        assert seen.isfinite().all(), row


# KTO


def test_kto_by_hand() -> None:
    """Log-ratios of 2 (good) and -1 (bad), a KL of 0.5, beta 0.3."""
    answers = Labelled(f64(-3, -9), f64(-5, -8), torch.tensor([True, False]))
    loss = kto(answers, f64(0.5)[0], beta=0.3, desirable_weight=1.3, undesirable_weight=0.8)
    expected = 1.3 * (1 - sigmoid(0.3 * (2 - 0.5))) + 0.8 * (1 - sigmoid(0.3 * (0.5 + 1)))
    assert loss.sum.item() == pytest.approx(expected, rel=1e-14)
    assert loss.count == 2


def test_kto_at_its_reference_is_half_its_weights() -> None:
    answers = Labelled(f64(-3, -9), f64(-3, -9), torch.tensor([True, False]))
    loss = kto(answers, f64(0.0)[0], beta=0.3, desirable_weight=1.0, undesirable_weight=3.0)
    assert loss.sum.item() == 0.5 * 1 + 0.5 * 3


def test_kto_clamps_its_baseline_and_gives_it_no_gradient() -> None:
    """Trap: "gradient through an advantage that should be constant"."""
    answers, options = answers_of(SEVEN), {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    none = kto(answers, f64(0.0)[0], **options).sum
    assert torch.equal(kto(answers, f64(-4.0)[0], **options).sum, none)
    policy = (answers.policy_A + 2).requires_grad_()
    kl = kto_kl(policy, answers.reference_A)
    baseline = (policy - answers.reference_A).mean()
    assert kl.sum.item() / kl.count == pytest.approx(baseline.item(), rel=1e-14)
    assert baseline.item() > 0
    assert not kl.sum.requires_grad
    (through,) = torch.autograd.grad(kto(replace(answers, policy_A=policy), baseline, **options).sum, policy)
    (apart,) = torch.autograd.grad(kto(replace(answers, policy_A=policy), baseline.detach(), **options).sum, policy)
    assert torch.equal(through, apart)


def test_kto_over_micro_batches_is_kto_over_the_whole() -> None:
    """The KL is a sum and a count, too: a mean of micro-batches' own KLs would make their sizes matter."""
    answers = answers_of(SEVEN)
    policy = (answers.policy_A + 1).requires_grad_()
    options = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 2.0}
    cuts = (slice(0, 1), slice(1, 9), slice(9, 14))
    first_pass = [kto_kl(policy[cut], answers.reference_A[cut]) for cut in cuts]
    kl = sum(loss.sum for loss in first_pass) / sum(loss.count for loss in first_pass)
    whole_kl = kto_kl(policy, answers.reference_A)
    torch.testing.assert_close(kl, whole_kl.sum / whole_kl.count, rtol=1e-14, atol=0)
    (whole,) = torch.autograd.grad(kto(replace(answers, policy_A=policy), kl, **options).sum, policy)
    parts = [
        kto(Labelled(policy[cut], answers.reference_A[cut], answers.desirable_A[cut]), kl, **options) for cut in cuts
    ]
    (pieces,) = torch.autograd.grad(sum(loss.sum for loss in parts), policy)
    torch.testing.assert_close(pieces, whole, rtol=1e-14, atol=0)
    assert sum(loss.count for loss in parts) == 14


def test_kto_gradients() -> None:
    answers = answers_of(SEVEN)

    def loss(policy_A: Tensor) -> Tensor:
        options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}
        return kto(replace(answers, policy_A=policy_A), f64(0.4)[0], **options).sum

    assert gradcheck(loss, answers.policy_A.clone().requires_grad_())


# What holds for every loss over pairs


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_gradients(name: str) -> None:
    def loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
        return computed(name, replace(SEVEN, chosen_B=chosen_B, rejected_B=rejected_B)).sum

    away_from_kinks = (SEVEN.chosen_B - 0.0131).requires_grad_()
    assert gradcheck(loss, (away_from_kinks, SEVEN.rejected_B.clone().requires_grad_()))


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_micro_batches_add_up_to_the_whole(name: str) -> None:
    """Trap: "Gradient accumulation averages micro-batch means, so short micro-batches weigh more"."""
    chosen = SEVEN.chosen_B.clone().requires_grad_()
    pairs = replace(SEVEN, chosen_B=chosen)
    whole = computed(name, pairs)
    parts = [computed(name, part(pairs, cut)) for cut in (slice(0, 1), slice(1, 2), slice(2, 7))]
    assert sum(loss.count for loss in parts) == whole.count == 7
    assert sum(loss.sum.item() for loss in parts) == pytest.approx(whole.sum.item(), rel=1e-14)
    (expected,) = torch.autograd.grad(whole.sum, chosen)
    (summed,) = torch.autograd.grad(sum(loss.sum for loss in parts), chosen)
    torch.testing.assert_close(summed, expected, rtol=1e-14, atol=0)
    assert (expected != 0).any()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_reads_every_option_it_takes_and_takes_no_other(name: str) -> None:
    """Trap: "An option accepted and ignored"; "A second, fused copy of a loss that drops an option"."""
    signature = inspect.signature(LOSSES[name].function)
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.parameters.values())
    assert all(p.default is p.empty for p in signature.parameters.values()), "a value lives in one place: the config"
    assert parameters(name) <= set(OPTIONS)

    def value(**changed: float) -> float:
        if name != "kto":
            return computed(name, SEVEN, **changed).sum.item()
        options = OPTIONS | changed
        return kto(answers_of(SEVEN), f64(0.4)[0], **{o: options[o] for o in parameters(name)}).sum.item()

    for option in parameters(name):
        assert value(**{option: OPTIONS[option] + 0.1}) != pytest.approx(value(), rel=1e-6), option


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_a_loss_that_needs_a_reference_refuses_to_go_without(name: str) -> None:
    alone = replace(SEVEN, reference_chosen_B=None, reference_rejected_B=None)
    if LOSSES[name].needs_reference:
        with pytest.raises(AssertionError, match="needs a reference"):
            computed(name, alone)
    else:
        assert torch.equal(computed(name, alone).sum, computed(name, SEVEN).sum)


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_figures_are_of_the_reward_that_the_loss_raises(name: str) -> None:
    """A step down the gradient of a loss raises the margin that its figures show."""
    chosen, rejected = (logp.clone().requires_grad_() for logp in (SEVEN.chosen_B, SEVEN.rejected_B))
    loss = LOSSES[name]
    seen = replace(SEVEN, chosen_B=chosen, rejected_B=rejected)
    if not loss.needs_reference:
        seen = replace(seen, reference_chosen_B=None, reference_rejected_B=None)
    computed(name, seen).sum.backward()
    with torch.no_grad():
        after = replace(seen, chosen_B=chosen - 1e-3 * chosen.grad, rejected_B=rejected - 1e-3 * rejected.grad)
    before, now = (figures(pairs, 0.3, per_token=loss.per_token)["margin"].item() for pairs in (seen, after))
    assert now > before


@pytest.mark.parametrize("name", sorted(set(OVER_PAIRS) - {"apo_zero", "apo_down", "cpo", "orpo"}))
def test_the_margin_stands_still_where_the_loss_does(name: str) -> None:
    """Both answers likelier by as much, whole or per token. The losses left out look at more than the margin."""
    per_token = LOSSES[name].per_token
    by_chosen, by_rejected = (SEVEN.chosen_tokens_B, SEVEN.rejected_tokens_B) if per_token else (1, 1)
    moved = replace(SEVEN, chosen_B=SEVEN.chosen_B + 0.1 * by_chosen, rejected_B=SEVEN.rejected_B + 0.1 * by_rejected)
    assert computed(name, moved).sum.item() == pytest.approx(computed(name, SEVEN).sum.item(), rel=1e-13)
    before, after = (figures(pairs, 0.3, per_token=per_token)["margin"].item() for pairs in (SEVEN, moved))
    assert after == pytest.approx(before, rel=1e-12)


def test_names_are_those_of_the_functions() -> None:
    assert LOSSES["sigmoid"].function is dpo
    assert all(loss.function.__name__ == name for name, loss in LOSSES.items() if name != "sigmoid")
    assert parameters("kto") == {"beta", "desirable_weight", "undesirable_weight"}
    assert parameters("orpo") == {"odds_weight"}
    assert LOSSES["orpo"].per_token, "its odds are of means per token"


def test_log_probabilities_in_bfloat16_are_refused() -> None:
    """Trap: "Sequence log-probabilities summed or rounded in bf16 (steps of 1.0 at -186)"."""
    assert torch.tensor(-186.4, dtype=torch.bfloat16).item() == -186.0
    for field in ("chosen_B", "rejected_B", "reference_chosen_B", "reference_rejected_B"):
        with pytest.raises(AssertionError, match="too coarse"):
            replace(SEVEN, **{field: getattr(SEVEN, field).bfloat16()})


# Figures


def test_figures_by_hand_and_a_tie_is_half_right() -> None:
    """Trap: "Chosen and rejected equal"; a policy that stands at its reference has won nothing, and lost nothing."""
    pairs = pairs_of((-3.0, -7.0, -4.0, -6.0, 2, 2), (-5.0, -6.0, -5.0, -6.0, 3, 1), (-9.0, -9.0, -8.0, -9.0, 1, 1))
    seen = {name: value.item() for name, value in figures(pairs, 0.5).items()}
    assert seen == {
        "margin": 0.5 * (2 + 0 - 1),
        "accuracy": 1 + 0.5 + 0,
        "chosen_logp": -17,
        "rejected_logp": -22,
        "chosen_log_ratio": 1 + 0 - 1,
        "rejected_log_ratio": -1 + 0 + 0,
    }
    itself = pairs_of((-5.0, -5.0, -6.0, -6.0, 2, 2))
    assert figures(itself, 1.0)["accuracy"].item() == 0.5


def test_figures_without_a_reference_and_per_token() -> None:
    pairs = replace(SEVEN, reference_chosen_B=None, reference_rejected_B=None)
    plain, each = figures(pairs, 2.0), figures(pairs, 2.0, per_token=True)
    assert set(plain) == {"margin", "accuracy", "chosen_logp", "rejected_logp"}
    assert plain["margin"].item() == 2 * (SEVEN.chosen_B - SEVEN.rejected_B).sum().item()
    assert plain["accuracy"].item() == 4
    assert each["accuracy"].item() == 3  # -31.5 / 12 is less likely a token than -40.25 / 20
    assert each["chosen_logp"].item() == plain["chosen_logp"].item() == SEVEN.chosen_B.sum().item()


def test_figures_add_up_and_carry_no_gradient() -> None:
    """Trap: "DPO metrics from rank 0 only": they are sums, so that every worker's pairs count alike."""
    pairs = replace(SEVEN, chosen_B=SEVEN.chosen_B.clone().requires_grad_())
    whole, parts = figures(pairs, 0.3), [figures(part(pairs, cut), 0.3) for cut in (slice(0, 2), slice(2, 7))]
    for name, value in whole.items():
        assert value.shape == ()
        assert not value.requires_grad
        assert sum(figure[name].item() for figure in parts) == pytest.approx(value.item(), rel=1e-14)


# Likelihood


def test_nll_of_a_uniform_guess_is_the_log_of_the_vocabulary() -> None:
    logp = torch.full((6,), -math.log(50.0), dtype=torch.float64)
    loss = nll(logp, torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0, 1.0]))
    assert loss.count == 3.5
    assert loss.sum.item() / loss.count == pytest.approx(math.log(50.0), rel=1e-14)


def test_counts_of_tokens_stay_on_the_device() -> None:
    """A count read by the host makes it wait for the device once a micro-batch."""
    loss = nll(torch.zeros(3, device="meta"), torch.ones(3, device="meta"))
    assert isinstance(loss.count, Tensor)
    assert loss.count.shape == ()
