"""How far a student's hidden states are from its teacher's. Suffixes: N positions, D the width that both have.

Values are one a position, float32 or wider whatever the model's type, and do not grow with the width. The teacher is
constant. Where widths differ, a projection (`training.layers.Projections`) stands before the student's.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_LENGTH = 1e-6
"""A shorter vector has no direction in `cosine`: dividing by its length would give gradients without bound."""


def mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean over the width of the squared difference, shape (N,); Jiao et al. 2020 (TinyBERT), eq. 8."""
    student_ND, teacher_ND = _wide(student_ND, teacher_ND)
    return (student_ND - teacher_ND).square().mean(-1)


def cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """1 - cos of the angle, shape (N,), from 0 to 2, whatever their lengths; Sanh et al. 2019 (DistilBERT), section 2.

    It is computed as half the squared distance of the two unit vectors (Sun et al. 2019, Patient Knowledge
    Distillation, which takes the whole of it): exactly 0 where they are equal, and its gradient with it, where
    1 minus a rounded cosine may come out negative.
    """
    student_ND, teacher_ND = _wide(student_ND, teacher_ND)
    return (_unit(student_ND) - _unit(teacher_ND)).square().sum(-1) / 2


HIDDEN: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType({"mse": mse, "cosine": cosine})
"""Every one by the name it has in a recipe."""


def _unit(states_ND: Tensor) -> Tensor:
    return F.normalize(states_ND, dim=-1, eps=LEAST_LENGTH)


def _wide(student_ND: Tensor, teacher_ND: Tensor) -> tuple[Tensor, Tensor]:
    assert student_ND.shape == teacher_ND.shape, "a student's state and its target have one width"
    wide = torch.promote_types(torch.promote_types(student_ND.dtype, teacher_ND.dtype), torch.float32)
    return student_ND.to(wide), teacher_ND.detach().to(wide)
