"""What is kept of hidden states: sketches against the lemma they rest on, codes against exact bounds of their error.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import math

import pytest
import torch
from engine import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potstill.errors import ModelError, RecipeError
from potstill.objectives.hidden import HIDDEN, cosine, mse
from potstill.signals.states import Kept, bytes_per_position, keep, quantise, relative_error, sketch
from potstill.training.layers import Projections, collect, decoder_layers, spread

ROUNDING = 1 + 1e-6
"""A quotient in float32 may fall on the other side of a half."""

GOLDEN = [
    [-0.2723674, -0.14764, 0.5530903, 0.2784016, 0.1819352, -0.6982132],
    [-0.7042946, 0.6462681, -0.0954915, -0.2113137, -0.1680215, -0.0655998],
]


def states(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lemma(directions: int, failures: float) -> tuple[float, float]:
    """Between which shares a length's square, per direction, lies but for this probability on either side: Dasgupta and
    Gupta 2003, lemma 2.2, P <= exp(R / 2 * (1 - b + ln b)) for a share at most b < 1, or at least b > 1."""

    def bound(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            likely = math.exp(directions / 2 * (1 - middle + math.log(middle))) > failures
            inside, outside = (middle, outside) if likely else (inside, middle)
        return outside

    return bound(1.0, 1e-12), bound(1.0, 1e3)


# Sketches


def test_directions_are_orthonormal_and_their_own_for_each_layer() -> None:
    one_RD = sketch(seed=3, layer=2, width=40, size=12)
    torch.testing.assert_close(one_RD @ one_RD.t(), torch.eye(12), rtol=0, atol=1e-6)
    assert torch.equal(sketch(3, 2, 40, 12), one_RD)
    torch.testing.assert_close(sketch(3, 2, 40, 5), one_RD[:5], rtol=0, atol=1e-6)  # the beginning of a larger
    torch.testing.assert_close(sketch(3, 2, 40, 40)[:12], one_RD, rtol=0, atol=1e-6)
    for other_RD in (sketch(4, 2, 40, 12), sketch(3, 1, 40, 12), sketch(3, 2, 41, 12)[:, :40]):
        assert (other_RD - one_RD).abs().max() > 0.1


def test_the_directions_of_a_seed_stay_the_same_for_ever() -> None:
    """A cache outlives versions: a student is seen through the directions that its teacher was seen through."""
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(sketch(seed=11, layer=4, width=6, size=2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0, 9, -1])
def test_more_directions_than_dimensions_are_refused(size: int) -> None:
    with pytest.raises(RecipeError, match=f"^width: {size} directions of hidden states of width 8. Set 1 to 8.$"):
        sketch(0, 1, 8, size)


def test_lengths_and_inner_products_keep_within_the_lemma() -> None:
    """Johnson and Lindenstrauss 1984: of 40 unit vectors and all 780 sums and differences of two, per direction, with a
    probability of failure below 1e-9 over the choice of the seed; so, by 4<a, b> = |a + b|^2 - |a - b|^2, of all inner
    products."""
    width, size, rows = 512, 256, 40
    states_ND = states(rows, width)
    states_ND /= states_ND.norm(dim=1, keepdim=True)
    turn_RD = sketch(0, 1, width, size).double() * math.sqrt(width / size)
    one, other = torch.triu_indices(rows, rows, offset=1)
    vectors_MD = torch.cat([states_ND, states_ND[one] + states_ND[other], states_ND[one] - states_ND[other]])
    low, high = lemma(size, 1e-9 / (2 * len(vectors_MD)))
    assert 0.4 < low < 1 < high < 2
    shares_M = (vectors_MD @ turn_RD.t()).square().sum(-1) / vectors_MD.square().sum(-1)
    assert low <= shares_M.min()
    assert shares_M.max() <= high
    error_NN = (states_ND @ turn_RD.t()) @ (states_ND @ turn_RD.t()).t() - states_ND @ states_ND.t()
    assert error_NN.abs().max() <= max(high - 1, 1 - low)
    assert error_NN.abs().mean() < 1 / math.sqrt(size)  # the lemma is about the worst


def test_directions_are_uniform_over_all_rotations() -> None:
    """The share of a length that a sketch sees is Beta(R / 2, (D - R) / 2), for whichever state: so over 400 seeds are
    its mean and variance, within five standard errors."""
    width, size, draws = 24, 6, 400
    for state_D in (torch.ones(width), torch.eye(width)[3]):
        seen = [
            (sketch(seed, 1, width, size) @ state_D).square().sum() / state_D.square().sum() for seed in range(draws)
        ]
        shares = torch.stack(seen).double()
        variance = 2 * size * (width - size) / (width**2 * (width + 2))
        assert abs(shares.mean() - size / width) <= 5 * math.sqrt(variance / draws)
        assert shares.var().item() == pytest.approx(variance, rel=5 * math.sqrt(3 / draws))


# Codes


@given(st.lists(st.floats(-8e6, 8e6, width=32), min_size=1, max_size=9), st.integers(-24, 0))
def test_each_number_is_off_by_half_a_step_at_most(values: list[float], power: int) -> None:
    """Down to where float16 knows no smaller step, which is 6e-8."""
    values_NR = torch.tensor([values]) * 2.0**power
    kept = quantise(values_NR)
    assert kept.codes_NR.dtype == torch.int8
    assert kept.scale_N.dtype == torch.float16
    step = kept.scale_N.double().item()
    assert (kept.values().double() - values_NR.double()).abs().max() <= step / 2 * ROUNDING
    assert step <= values_NR.abs().max() / 127 * (1 + 2**-10) + 2**-24
    assert torch.equal(kept.values().double(), kept.codes_NR.double() * step)  # no rounding of its own


def test_codes_by_hand() -> None:
    kept = quantise(torch.tensor([[127.0, -63.4, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.54, 0.02, 0.03, 1.27]]))
    assert kept.codes_NR.tolist() == [[127, -63, 1, 0], [0, 0, 0, 0], [-127, 1, 1, 63]]
    assert kept.scale_N.tolist() == [1.0, 0.0, torch.tensor(0.02).half().item()]
    assert kept.values()[1].tolist() == [0.0] * 4
    assert relative_error(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), quantise(torch.zeros(2, 2))).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e7])
def test_states_that_are_no_numbers_are_refused(broken: float) -> None:
    values_NR = torch.ones(3, 4)
    values_NR[1, 2] = broken
    with pytest.raises(ModelError, match="hidden states are not finite, or too large to be kept"):
        quantise(values_NR)


@pytest.mark.parametrize("size", [64, 256, 512])
def test_normal_states_lose_less_than_a_hundredth(size: int) -> None:
    values_NR = states(200, 512) @ sketch(0, 1, 512, size).double().t()
    error_N = relative_error(values_NR, quantise(values_NR))
    # A uniform error of one step, and the largest of R normal numbers is below sqrt(2 ln 2R) of their deviations.
    assert error_N.mean() <= math.sqrt(2 * math.log(2 * size)) / 127 / math.sqrt(12)
    assert error_N.max() < 0.01


def test_a_coordinate_a_thousand_times_larger_does_not_drown_the_others() -> None:
    """Sun et al. 2024, Massive Activations. Rotated by R = D and back, what else a state says is still there; without,
    nearly every other code would be 0."""
    states_ND = states(50, 1024).float()
    states_ND[:, 7] = 1000.0
    turn_DD, others = sketch(0, 1, 1024, 1024), [n for n in range(1024) if n != 7]
    straight_ND, turned_ND = quantise(states_ND).values(), keep(states_ND, turn_DD).values() @ turn_DD
    ones = torch.ones(50)
    assert relative_error(states_ND[:, others], Kept(straight_ND[:, others], ones)).min() > 0.99
    assert relative_error(states_ND[:, others], Kept(turned_ND[:, others], ones)).max() < 0.35


def test_bytes_a_position() -> None:
    kept = quantise(torch.ones(10, 256))
    assert bytes_per_position(1, 256) * 10 == kept.codes_NR.numpy().nbytes + kept.scale_N.numpy().nbytes
    assert bytes_per_position(4, 256) == 1032


# What a loss sees of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_any_type_are_kept_alike_under_autocast(dtype: torch.dtype) -> None:
    states_ND, turn_RD = states(6, 32).to(dtype), sketch(0, 1, 32, 8)
    plain = keep(states_ND, turn_RD)
    with torch.autocast("cpu", torch.bfloat16):
        other = keep(states_ND, turn_RD)
    assert torch.equal(plain.codes_NR, other.codes_NR)
    assert torch.equal(plain.scale_N, other.scale_N)


def test_with_all_directions_the_losses_are_off_by_the_codes_alone() -> None:
    """Exact bounds: a rotation changes neither, the triangle inequality bounds the root of the MSE by the error's, and
    the angle to a vector that is moved by e changes by asin(|e| / |t|) at most. Gradients are off by e as well."""
    width, rows = 96, 64
    student_ND, teacher_ND = states(rows, width, 1).requires_grad_(), states(rows, width, 2)
    turn_DD = sketch(0, 1, width, width).double()
    kept = quantise(teacher_ND @ turn_DD.t())
    target_ND, step_N = kept.values().double(), kept.scale_N.double()
    online_N, cached_N = mse(student_ND, teacher_ND), mse(student_ND @ turn_DD.t(), target_ND)
    assert ((online_N.sqrt() - cached_N.sqrt()).abs() <= step_N / 2 * ROUNDING + 1e-6).all()
    (online_ND,) = torch.autograd.grad(online_N.sum(), student_ND)
    (cached_ND,) = torch.autograd.grad(cached_N.sum(), student_ND)
    assert ((online_ND - cached_ND).norm(dim=1) <= 2 / width * math.sqrt(width) * step_N / 2 + 1e-6).all()
    angle_N = torch.acos(1 - cosine(student_ND, teacher_ND))
    seen_N = torch.acos(1 - cosine(student_ND @ turn_DD.t(), target_ND))
    moved_N = torch.asin(math.sqrt(width) * step_N / 2 / teacher_ND.norm(dim=1))
    assert ((angle_N - seen_N).abs() <= moved_N + 1e-6).all()
    assert moved_N.max() < 0.02


@pytest.mark.parametrize("name", HIDDEN)
def test_with_few_directions_the_losses_are_close_to_the_online_ones(name: str) -> None:
    """A student at several distances from its teacher. The MSE is within the lemma's shares and the codes' bound; both
    losses come out in the same order, and their means over positions within 2%."""
    width, size, rows = 512, 256, 300
    teacher_ND, noise_ND = states(rows, width), states(rows, width, 1)
    turn_RD = sketch(0, 1, width, size).double()
    kept = quantise(teacher_ND @ turn_RD.t())
    low, high = lemma(size, 1e-9 / (2 * 3 * rows))
    means = []
    for distance in (0.1, 0.5, 1.0):
        student_ND = teacher_ND + distance * noise_ND
        online_N = HIDDEN[name](student_ND, teacher_ND)
        cached_N = HIDDEN[name](student_ND @ turn_RD.t(), kept.values().double())
        means.append(cached_N.mean())
        assert cached_N.mean().item() == pytest.approx(online_N.mean().item(), rel=0.02)
        if name == "mse":
            slack_N = kept.scale_N.double() / 2 * ROUNDING + 1e-6
            assert (cached_N.sqrt() <= (high * online_N).sqrt() + slack_N).all()
            assert (cached_N.sqrt() >= (low * online_N).sqrt() - slack_N).all()
    assert means == sorted(means)


@pytest.mark.parametrize("size", [16, 8])
def test_a_teachers_own_layers_cost_it_nothing_but_the_codes(size: int) -> None:
    """Trap: "All layers" that includes the embeddings and misses the last: every layer that is kept is one that the
    student is compared with, by its number. The teacher as its own student, unlearnt."""
    model = tiny_model(dtype=torch.float32)
    layers = spread(len(decoder_layers(model)), 2)
    with torch.no_grad(), collect(model, layers) as found:
        model.base_model(torch.arange(20)[None], use_cache=False)
    states_of = {layer: calls[0][0] for layer, calls in found.items()}
    sketches = {layer: sketch(5, layer, 16, size) for layer in layers}
    kept = {layer: keep(states_of[layer], sketches[layer]) for layer in layers}
    seen = Projections(tuple((n, n) for n in layers), 16, 16, 0, learnt=False, sketches=sketches)
    for layer in layers:
        value_N = mse(seen(layer, states_of[layer]), kept[layer].values())
        assert (value_N.sqrt() <= kept[layer].scale_N.float() / 2 * ROUNDING + 1e-6).all()
        other = 3 - layer
        assert (mse(seen(other, states_of[other]), kept[layer].values()) > 100 * value_N).all()
