"""Divergences from a teacher: closed forms, slopes against automatic ones, few entries against all."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from potstill.objectives.divergence import MIX, Divergence, DivergenceName, compare
from potstill.objectives.signal import NO_ENTRY, Dense, Part, Sparse

NAMES: tuple[DivergenceName, ...] = get_args(DivergenceName)
ALL = [Divergence(name) for name in NAMES]
ALL += [Divergence(name, mix=mix) for name in MIX for mix in (0.3, 0.85)]
ALL += [Divergence(name, temperature=2.5) for name in NAMES]
POSITIONS, VOCABULARY = 5, 23


def label(divergence: object) -> str | None:
    return (
        f"{divergence.name}-{divergence.mix}-{divergence.temperature}" if isinstance(divergence, Divergence) else None
    )


def logits(seed: int, spread: float = 2.0, shape: tuple[int, int] = (POSITIONS, VOCABULARY)) -> Tensor:
    return spread * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TEACHER, STUDENT = logits(0), logits(1)


def compared(divergence: Divergence, teacher: Part | Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """`compare` on a copy."""
    part = Dense(teacher) if isinstance(teacher, Tensor) else teacher
    value, slope = compare(divergence, part, student.clone())
    return value, slope


def straight(divergence: Divergence, p: Tensor, q: Tensor, tail: int = 0) -> Tensor:
    """The definition as it is written, on distributions without a 0, differentiable by q. The last `tail` entries
    cannot be in adaptive KL's head."""

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return (first * (first.log() - second.log())).sum(-1)

    mix = divergence.mix or 0.0
    if divergence.name == "forward_kl":
        value = kl(p, q)
    elif divergence.name == "reverse_kl":
        value = kl(q, p)
    elif divergence.name == "jsd":
        middle = mix * p + (1 - mix) * q
        value = mix * kl(p, middle) + (1 - mix) * kl(q, middle)
    elif divergence.name == "skew_kl":
        value = kl(p, mix * p + (1 - mix) * q)
    elif divergence.name == "skew_reverse_kl":
        value = kl(q, mix * q + (1 - mix) * p)
    elif divergence.name == "total_variation":
        value = (p - q).abs().sum(-1) / 2
    else:
        shares = []
        for p_V, q_V in zip(p.tolist(), q.tolist(), strict=True):
            order = sorted(range(len(p_V) - tail), key=lambda i: -p_V[i])
            head = {i for place, i in enumerate(order) if place == 0 or sum(p_V[j] for j in order[: place + 1]) <= mix}
            gaps = [abs(a - b) for a, b in zip(p_V, q_V, strict=True)]
            shares.append(sum(gaps[i] for i in head) / sum(gaps))
        share = torch.tensor(shares, dtype=p.dtype)
        value = share * kl(p, q) + (1 - share) * kl(q, p)
    return value * divergence.temperature**2


def straight_on_logits(divergence: Divergence, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope by automatic differentiation."""
    student = student.clone().requires_grad_()
    value = straight(
        divergence, (teacher / divergence.temperature).softmax(-1), (student / divergence.temperature).softmax(-1)
    )
    (slope,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), slope


def listed(teacher: Tensor, count: int, temperature: float = 1.0) -> Sparse:
    """The `count` largest entries, as a file would have them."""
    p = (teacher / temperature).softmax(-1)
    mass, ids = p.topk(count)
    rest = p.scatter(1, ids, 0.0).sum(-1)
    return Sparse(ids, mass, rest, -(p * p.log()).sum(-1), drawn=False)


def drawn(teacher: Tensor, count: int, seed: int) -> Sparse:
    """`count` draws with replacement at each position, equal ones counted together."""
    p = teacher.softmax(-1)
    draws = torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros_like(p).scatter_add_(1, draws, torch.ones_like(draws, dtype=p.dtype))
    most = int((counts > 0).sum(-1).max())
    seen, ids = counts.topk(most)
    ids = ids.masked_fill(seen == 0, NO_ENTRY)
    return Sparse(ids, seen / count, torch.zeros_like(seen[:, 0]), -(p * p.log()).sum(-1), drawn=True)


# Dense signals


@pytest.mark.parametrize("divergence", ALL, ids=label)
def test_values_and_slopes_are_those_of_the_definition(divergence: Divergence) -> None:
    """Trap: "Temperature squared forgotten, applied to the logged loss only"; it is in value and slope alike."""
    value, slope = compared(divergence, TEACHER, STUDENT)
    expected_value, expected_slope = straight_on_logits(divergence, TEACHER, STUDENT)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-11, atol=1e-14)
    assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("divergence", ALL, ids=label)
def test_a_student_like_its_teacher_has_value_and_slope_0(divergence: Divergence) -> None:
    """Trap: "KL printed without the teacher's entropy: not zero at a match". Logits may differ by a constant."""
    for student in (TEACHER, TEACHER + 7.0):
        value, slope = compared(divergence, TEACHER, student)
        assert value.abs().max() < 1e-13
        kink = divergence.name == "total_variation"  # its slope there depends on the sign of the rounding
        assert kink or slope.abs().max() < 1e-13
    if divergence.name == "total_variation":
        assert compared(divergence, TEACHER, TEACHER)[1].abs().max() == 0


@pytest.mark.parametrize("divergence", ALL, ids=label)
@pytest.mark.parametrize("count", [1, 4, VOCABULARY - 1])
def test_a_list_is_compared_like_a_vocabulary_of_one_more(divergence: Divergence, count: int) -> None:
    """Its entries and one for the rest, with the chain rule through that one's softmax."""
    signal = listed(TEACHER, count, divergence.temperature)
    value, slope = compared(divergence, signal, STUDENT)
    student = STUDENT.clone().requires_grad_()
    q = (student / divergence.temperature).softmax(-1)
    inside = torch.zeros_like(q, dtype=torch.bool).scatter(1, signal.ids_CK, True)
    q_E = torch.cat([q.gather(1, signal.ids_CK), (q * ~inside).sum(-1, keepdim=True)], 1)
    p_E = torch.cat([signal.mass_CK, signal.rest_C[:, None]], 1)
    expected = straight(divergence, p_E, q_E, tail=1)
    (expected_slope,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("divergence", ALL, ids=label)
def test_a_list_of_the_whole_vocabulary_is_dense(divergence: Divergence) -> None:
    value, slope = compared(divergence, listed(TEACHER, VOCABULARY, divergence.temperature), STUDENT)
    expected_value, expected_slope = compared(divergence, TEACHER, STUDENT)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-11, atol=1e-14)
