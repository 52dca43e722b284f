"""What is kept of a teacher's hidden states: a few random directions of each layer, in 8 bits each.

A state of width D is seen through a sketch: R random orthonormal directions. Lengths and inner products, per direction,
are kept up to an error that falls with R (Johnson and Lindenstrauss 1984; Dasgupta and Gupta 2003, lemma 2.2), so that
a mean squared difference or a cosine between sketches is close to the one between states; what a student does in the
other D - R directions is not seen. No model is needed to know the sketch: it follows from its seed.
Suffixes: N positions, D a state's width, R a sketch's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from potstill.errors import ModelError, RecipeError

LEVELS = 127
"""Codes are from -127 to 127."""

LEAST_SCALE = 2.0**-24
"""The smallest number above 0 in float16."""


def sketch(seed: int, layer: int, width: int, size: int) -> Tensor:
    """R = `size` random orthonormal directions in D = `width` dimensions, float32 of shape (R, D).

    The same for the same seed, layer and width; a smaller one is the beginning of a larger. With R = D it is a
    rotation, which loses nothing and is of use even so: some models have a few coordinates a thousand times larger than
    all others (Sun et al. 2024, Massive Activations), which would set the scale of all codes of a position; rotated,
    they are spread over all. Raises RecipeError where more directions than dimensions are asked for.
    """
    if not 1 <= size <= width:
        raise RecipeError("width", f"{size} directions of hidden states of width {width}", f"Set 1 to {width}")
    normal_RD = np.random.default_rng([seed, layer, width]).standard_normal((size, width))
    basis_DR, triangle_RR = np.linalg.qr(normal_RD.T)
    signs_R = np.copysign(1.0, np.diagonal(triangle_RR))  # uniform over all rotations; Mezzadri 2007, section 5
    return torch.from_numpy(np.ascontiguousarray((basis_DR * signs_R).T.astype(np.float32)))


@dataclass(frozen=True)
class Kept:
    """One layer at N positions, as it lies on disk: R + 2 bytes a position."""

    codes_NR: Tensor
    """int8."""
    scale_N: Tensor
    """float16; what one step of a code is worth."""

    def values(self) -> Tensor:
        """The sketched states again, float32 of shape (N, R): each number off by half its position's scale at most."""
        return self.codes_NR.float() * self.scale_N.float()[:, None]


def keep(states_ND: Tensor, sketch_RD: Tensor) -> Kept:
    """What is kept of these states, which are of any type, on their own device. ModelError where they cannot be."""
    with torch.autocast(states_ND.device.type, enabled=False):
        return quantise(states_ND.float() @ sketch_RD.t())


def quantise(values_NR: Tensor) -> Kept:
    """Each position in steps of its own largest magnitude / 127. ModelError for what is not finite, or beyond 8e6."""
    values_NR = values_NR.float()
    largest_N = values_NR.abs().amax(-1)
    scale_N = (largest_N / LEVELS).half()
    # Rounded down, among float16's smallest numbers, it could leave the largest value more than half a step away.
    short_N = largest_N > (LEVELS + 0.5) * scale_N.float()
    scale_N = torch.where(short_N, (scale_N.view(torch.int16) + 1).view(torch.float16), scale_N)
    if not torch.isfinite(scale_N).all():
        what = "its hidden states are not finite, or too large to be kept"
        raise ModelError("the teacher", what, "Choose other layers, set dtype: float32, or use another teacher")
    codes_NR = values_NR / scale_N.float().clamp(min=LEAST_SCALE)[:, None]
    return Kept(codes_NR.round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scale_N)


def relative_error(values_NR: Tensor, kept: Kept) -> Tensor:
    """How far what is kept is from what was to be kept, as a share of its length; shape (N,), 0 where that is 0."""
    values_NR = values_NR.float()
    length_N, error_N = values_NR.norm(dim=-1), (kept.values() - values_NR).norm(dim=-1)
    return torch.div(error_N, length_N.clamp(min=torch.finfo(torch.float32).tiny))


def bytes_per_position(layers: int, size: int) -> int:
    """Of that many layers."""
    return layers * (size + torch.float16.itemsize)
