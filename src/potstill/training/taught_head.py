"""A lesson through the student's head: figures of each scored position, and gradients, without holding N x V.

Logits of some positions are made, judged and turned into their own gradients; gradients of many are gathered in a slab,
so that the products with the head are large. Those go through the head piece by piece, so that nothing besides its
gradient is as large as the head. All of it happens in the forward: what is kept for the backward is as large as the
hidden states and the head, whose gradients they are.

Suffixes: N scored positions, C of a chunk, S of a slab, P of a piece of the V tokens, D hidden width, F figures.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.training.head import CHUNK_LOGITS, product_of
from potstill.training.lesson import FIGURES, Judge

LEAST_ROWS = 128
"""Positions whose logits are computed at once at least: products of fewer are slower."""

SLAB_BYTES = 1 << 27
"""Of gradients by logits that are gathered for one product."""

PIECE = 1 << 13
"""Tokens of the head in one product on a CPU, so that what it gives is in the caches when it is added up."""


def _chunk(vocabulary: int) -> int:
    """Positions whose logits are there at once."""
    return max(LEAST_ROWS, CHUNK_LOGITS // vocabulary)


def room_bytes(vocabulary: int) -> int:
    """Room that a lesson works in, however many tokens it has: gradients by logits, and a chunk of logits on both sides
    in float32."""
    return SLAB_BYTES + 2 * 4 * _chunk(vocabulary) * vocabulary


def linear_lesson(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, judge: Judge, scale: float, product: torch.dtype
) -> Tensor:
    """The judge's figures, shape (F, N), float32 or wider, where logits are scale * hidden @ weight.T.

    Logits and all that is made of them are in float32 or wider whatever `product` is, which is the type of the
    gradients' products.
    """
    learn = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    call = _Call(targets_N, judge, scale, product)
    figures_FN: Tensor = _LinearLesson.apply(hidden_ND, weight_VD, call, learn)  # type: ignore[no-untyped-call]
    return figures_FN


def judged(logits_CV: Tensor, targets_C: Tensor, judge: Judge, rows: slice) -> Tensor:
    """The figures of a chunk whose logits are there, for heads that are no plain linear layer; shape (F, C)."""
    figures_FC: Tensor = _Judged.apply(logits_CV, targets_C, judge, rows)  # type: ignore[no-untyped-call]
    return figures_FC


class _Call(NamedTuple):
    """What a pass through the head needs besides hidden states and weight."""

    targets_N: Tensor
    judge: Judge
    scale: float
    product: torch.dtype


class _LinearLesson(torch.autograd.Function):
    """The forward makes gradients as if each position counted once. As a rule all count alike, and the backward has
    only to scale them; where they do not, it makes them again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, call: _Call, learn: bool) -> Tensor:
        ctx.call = call
        wanted = tuple(ctx.needs_input_grad[:2]) if learn else (False, False)
        figures_FN, grad_ND, grad_VD = _go_through(hidden_ND, weight_VD, call, None, wanted)
        ctx.save_for_backward(hidden_ND, weight_VD, grad_ND, grad_VD)
        return figures_FN

    @staticmethod
    def backward(ctx: Any, grad_FN: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, grad_ND, grad_VD = ctx.saved_tensors
        grad_N = grad_FN[0]
        if not len(grad_N):
            return torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD), None, None
        if bool((grad_N == grad_N[0]).all()):
            for made in (grad_ND, grad_VD):
                if made is not None:
                    made.mul_(grad_N[0])
            return grad_ND, grad_VD, None, None
        _, grad_ND, grad_VD = _go_through(hidden_ND, weight_VD, ctx.call, grad_N, ctx.needs_input_grad[:2])
        return grad_ND, grad_VD, None, None


def _go_through(
    hidden_ND: Tensor, weight_VD: Tensor, call: _Call, factor_N: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Figures, and the gradients that are wanted, by hidden states and by the head's weight; each position's loss
    counts by its factor."""
    targets_N, judge, scale, product = call
    wanted = wanted if judge.asks_head else (False, False)
    positions, vocabulary = len(targets_N), judge.vocabulary
    tokens_VD = weight_VD[:vocabulary]
    chunk = _chunk(vocabulary)
    slab = min(positions, max(chunk, SLAB_BYTES // (vocabulary * product.itemsize) // chunk * chunk))
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    figures_FN = hidden_ND.new_zeros((len(FIGURES), positions), dtype=wide)
    grad_ND = torch.zeros_like(hidden_ND) if wanted[0] else None
    grad_VD = torch.zeros_like(weight_VD) if wanted[1] else None
    logits_CV = hidden_ND.new_empty((min(chunk, positions), vocabulary), dtype=wide)
    slope_SV = hidden_ND.new_empty((slab if any(wanted) else 0, vocabulary), dtype=product)
    for begin in range(0, positions, slab):
        end = min(begin + slab, positions)
        for start in range(begin, end, chunk):
            rows = slice(start, min(start + chunk, end))
            made_CV = product_of(hidden_ND[rows], tokens_VD, logits_CV[: rows.stop - start])
            if scale != 1.0:
                made_CV *= scale
            figures_FC, slope_CV = judge.judge(rows, made_CV, targets_N[rows], slope=any(wanted))
            figures_FN[:, rows] = figures_FC
            if slope_CV is not None:
                slope_SV[start - begin : rows.stop - begin].copy_(slope_CV)
        if not any(wanted):
            continue
        factor_s1 = scale * hidden_ND.new_ones(end - begin, 1, dtype=wide)
        if factor_N is not None:
            factor_s1 *= factor_N[begin:end, None]
        scaled_sD = (hidden_ND[begin:end].to(wide) * factor_s1).to(product)
        learnt_sD = _add_up(slope_SV[: end - begin], tokens_VD, scaled_sD, wanted[0], grad_VD)
        if grad_ND is not None:
            grad_ND[begin:end] = learnt_sD.mul_(factor_s1)
    return figures_FN, grad_ND, grad_VD


def _add_up(slope_sV: Tensor, tokens_VD: Tensor, scaled_sD: Tensor, wanted: bool, grad_VD: Tensor | None) -> Tensor:
    """slope @ tokens, where that is `wanted`, shape (s, D), float32 or wider; adds slope.T @ scaled to `grad_VD`."""
    vocabulary = len(tokens_VD)
    piece = PIECE if tokens_VD.device.type == "cpu" else vocabulary
    learnt_sD = scaled_sD.new_zeros(scaled_sD.shape, dtype=torch.promote_types(tokens_VD.dtype, torch.float32))
    for start in range(0, vocabulary, piece):
        tokens = slice(start, min(start + piece, vocabulary))
        slope_sP = slope_sV[:, tokens]
        if wanted:
            learnt_sD += slope_sP @ tokens_VD[tokens].to(slope_sV.dtype)
        if grad_VD is not None:
            grad_VD[tokens] += slope_sP.t() @ scaled_sD
    return learnt_sD


class _Judged(torch.autograd.Function):
    """Keeps the loss's derivative by the logits."""

    @staticmethod
    def forward(ctx: Any, logits_CV: Tensor, targets_C: Tensor, judge: Judge, rows: slice) -> Tensor:
        tokens_CV = logits_CV[:, : judge.vocabulary].clone()
        figures_FC, slope_CV = judge.judge(rows, tokens_CV, targets_C, slope=ctx.needs_input_grad[0])
        slope_CV = torch.zeros_like(tokens_CV) if slope_CV is None else slope_CV
        ctx.padding = logits_CV.shape[1] - judge.vocabulary
        ctx.save_for_backward(slope_CV)
        return figures_FC

    @staticmethod
    def backward(ctx: Any, grad_FC: Tensor) -> tuple[Tensor | None, None, None, None]:
        (slope_CV,) = ctx.saved_tensors
        grad_CV = slope_CV * grad_FC[0][:, None]
        return torch.nn.functional.pad(grad_CV, (0, ctx.padding)), None, None, None
