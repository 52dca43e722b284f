"""Hidden-state objectives against closed forms in float64, and their gradients against finite differences."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from potstill.objectives.hidden import HIDDEN, LEAST_LENGTH, cosine, mse


def states(rows: int = 5, width: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_closed_forms() -> None:
    student_ND = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    teacher_ND = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-7.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert mse(student_ND, teacher_ND).tolist() == [8.0, 13.0, 40.5, 1.0]
    assert cosine(student_ND, teacher_ND).tolist() == pytest.approx(
        [1 - 3 / 5, 1.0, 2.0, 1 - math.sqrt(0.5)], rel=1e-15
    )


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_equality_value_and_gradient_are_exactly_zero(name: str, dtype: torch.dtype) -> None:
    """One minus a rounded cosine would be up to 1e-7 off in float32, and negative at times."""
    teacher_ND = states(rows=200, width=64, dtype=dtype)
    student_ND = teacher_ND.clone().requires_grad_()
    value_N = HIDDEN[name](student_ND, teacher_ND)
    assert value_N.tolist() == [0.0] * 200
    value_N.sum().backward()
    assert student_ND.grad is not None
    assert not student_ND.grad.any()


@pytest.mark.parametrize("name", HIDDEN)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student_ND, teacher_ND = states().requires_grad_(), states(seed=1)
    assert gradcheck(lambda student_ND: HIDDEN[name](student_ND, teacher_ND), student_ND)


@pytest.mark.parametrize("name", HIDDEN)
def test_the_teacher_is_constant(name: str) -> None:
    """Trap: "gradient through an advantage that should be constant": a teacher that moves towards the student would
    lower the loss too."""
    student_ND, teacher_ND = states().requires_grad_(), states(seed=1).requires_grad_()
    HIDDEN[name](student_ND, teacher_ND).sum().backward()
    assert teacher_ND.grad is None
    assert student_ND.grad is not None


@pytest.mark.parametrize("name", HIDDEN)
def test_values_of_half_precision_states_are_in_float32(name: str) -> None:
    """Trap: "Sequence log-probabilities summed or rounded in bf16", and so it is with squares of differences."""
    student_ND, teacher_ND = states(dtype=torch.bfloat16), states(seed=1, dtype=torch.float32)
    value_N = HIDDEN[name](student_ND, teacher_ND)
    assert value_N.dtype == torch.float32
    torch.testing.assert_close(value_N.double(), HIDDEN[name](student_ND.double(), teacher_ND.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(HIDDEN[name](student_ND, teacher_ND), value_N)


def test_cosine_minds_no_length_and_mse_grows_with_its_square() -> None:
    student_ND, teacher_ND = states(), states(seed=1)
    torch.testing.assert_close(cosine(1e4 * student_ND, 1e-3 * teacher_ND), cosine(student_ND, teacher_ND))
    torch.testing.assert_close(mse(3 * student_ND, 3 * teacher_ND), 9 * mse(student_ND, teacher_ND))


@pytest.mark.parametrize("name", HIDDEN)
def test_a_rotation_of_both_and_a_width_twice_over_change_nothing(name: str) -> None:
    student_ND, teacher_ND = states(), states(seed=1)
    turn_DD = torch.linalg.qr(states(7, 7, seed=2)).Q
    value_N = HIDDEN[name](student_ND, teacher_ND)
    torch.testing.assert_close(HIDDEN[name](student_ND @ turn_DD, teacher_ND @ turn_DD), value_N)
    torch.testing.assert_close(HIDDEN[name](student_ND.repeat(1, 2), teacher_ND.repeat(1, 2)), value_N)


def test_cosine_is_pythagoras_near_zero() -> None:
    """For a small angle a it is a^2 / 2, which 1 - cos in float32 would round to 0 or to steps of 6e-8."""
    angles = torch.tensor([1e-2, 1e-3, 1e-4, 1e-5])
    student_ND = torch.stack([torch.ones(4), angles], 1)
    value_N = cosine(student_ND, torch.tensor([[1.0, 0.0]]).expand(4, 2))
    torch.testing.assert_close(value_N, angles.square() / 2, rtol=1e-4, atol=0)


def test_a_state_of_nothing_has_a_finite_gradient() -> None:
    student_ND = torch.zeros(1, 3, requires_grad=True)
    cosine(student_ND, torch.tensor([[0.0, 2.0, 0.0]])).sum().backward()
    assert student_ND.grad is not None
    assert student_ND.grad.norm() <= 1.01 / LEAST_LENGTH
