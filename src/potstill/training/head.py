"""Log-probabilities of targets through a plain linear head, without ever holding logits that the caches cannot.

Suffixes: N scored positions, C rows of a chunk, V vocabulary, D hidden width. `taught_head` has the head's other use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 23
"""Logits computed at once: 32 MiB in float32, which a processor's last cache holds: there a softmax is ten times faster
than in memory."""

KEPT_BYTES = 1 << 30
"""Of what the backward needs, this much is kept; the rest of the rows is computed again."""


def linear_logps(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, product: torch.dtype) -> Tensor:
    """log softmax(scale * hidden @ weight.T) at the targets, in nats; shape (N,), float32 or wider.

    Logits and the softmax are in float32 or wider whatever `product` is, which is the type of the backward's products:
    rounding logits to bfloat16 would cost 4 to 23% of the gradient (Liger-Kernel issue 1432).
    """
    logp_N: Tensor = _LinearLogps.apply(hidden_ND, weight_VD, targets_N, scale, product)  # type: ignore[no-untyped-call]
    return logp_N


def _score(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, scale: float, residual_CV: Tensor | None) -> Tensor:
    """Log-probabilities of a chunk. Where a residual is given, the softmax less the one-hot target is written into it:
    the gradient of -logp in the (scaled) logits."""
    logits_CV = product_of(hidden_CD, weight_VD)
    if scale != 1.0:
        logits_CV *= scale
    at_CV = targets_C[:, None]
    top_C = logits_CV.amax(-1, keepdim=True)
    logits_CV -= top_C
    target_C = logits_CV.gather(1, at_CV)
    logits_CV.exp_()
    sum_C = logits_CV.sum(-1, keepdim=True)
    if residual_CV is not None:
        logits_CV *= sum_C.reciprocal()
        logits_CV.scatter_add_(1, at_CV, torch.full_like(target_C, -1.0))
        residual_CV.copy_(logits_CV)
    return (target_C - sum_C.log())[:, 0]


def product_of(hidden_CD: Tensor, weight_VD: Tensor, out: Tensor | None = None) -> Tensor:
    """hidden @ weight.T, its sums and its result in float32 or wider; on a CPU into `out`, where that is given."""
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    if weight_VD.device.type == "cuda" and weight_VD.dtype == torch.bfloat16:
        return torch.mm(hidden_CD.to(torch.bfloat16), weight_VD.t(), out_dtype=torch.float32)
    return torch.mm(hidden_CD.to(wide), weight_VD.to(wide).t(), out=out)


_spare: dict[torch.dtype, Tensor] = {}
"""What the last backward had no more use for, flat, one a type. On a CPU the system would take so large a block back
and give it anew, page by page, which takes longer than to compute what goes into it."""


@contextmanager
def nothing_spare() -> Iterator[None]:
    """Within this nothing is lent from before, which may be larger than what is needed, and nothing stays."""
    global _spare
    before, _spare = _spare, {}
    try:
        yield
    finally:
        _spare = before


class Room:
    """Room for what is made anew for each chunk and never kept, on a CPU; see `_spare`."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def of(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Not initialised; what it was lent for before is overwritten. None elsewhere than on a CPU."""
        if device.type != "cpu":
            return None
        size = shape[0] * shape[1]
        if self._flat.dtype != dtype or len(self._flat) < size:
            self._flat = torch.empty(size, dtype=dtype)
        return self._flat[:size].view(shape)


def borrow(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for a residual, not initialised."""
    size = shape[0] * shape[1]
    spare = _spare.pop(dtype, None) if device.type == "cpu" else None
    if spare is None or len(spare) < size:
        spare = torch.empty(size, dtype=dtype, device=device)
    return spare[:size].view(shape)


def give_back(residual_KV: Tensor) -> None:
    """Nobody reads it any more. Where no backward comes, it is freed as any other tensor."""
    if residual_KV.device.type == "cpu" and residual_KV.numel():
        whole = residual_KV.new_empty(0).set_(residual_KV.untyped_storage())
        _spare[residual_KV.dtype] = whole


class _LinearLogps(torch.autograd.Function):
    """Keeps the residual (softmax - onehot)_NV in `product`. What the rows' gradients scale is folded into the hidden
    states, so that the backward is two products and never passes over N x V itself."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, product: torch.dtype
    ) -> Tensor:
        rows, vocabulary = len(targets_N), len(weight_VD)
        ctx.chunk = max(1, CHUNK_LOGITS // vocabulary)
        ctx.scale, ctx.product = scale, product
        needed = hidden_ND.requires_grad or weight_VD.requires_grad
        kept = min(rows, KEPT_BYTES // (vocabulary * product.itemsize)) if needed else 0
        residual_KV = borrow((kept, vocabulary), product, weight_VD.device)
        logps = []
        for start in range(0, rows, ctx.chunk):
            chunk = slice(start, min(start + ctx.chunk, rows))
            into = residual_KV[chunk] if chunk.stop <= kept else None
            logps.append(_score(hidden_ND[chunk], weight_VD, targets_N[chunk], scale, into))
        ctx.kept = kept if kept == rows else kept // ctx.chunk * ctx.chunk
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, residual_KV)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        return torch.cat(logps) if logps else hidden_ND.new_empty(0, dtype=wide)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, targets_N, residual_KV = ctx.saved_tensors
        weight = weight_VD.to(ctx.product)
        factor_N1 = (-ctx.scale * grad_N)[:, None]
        scaled_ND = (hidden_ND.to(factor_N1.dtype) * factor_N1).to(ctx.product)
        wanted_hidden, wanted_weight = ctx.needs_input_grad[:2]
        grad_ND = torch.empty_like(hidden_ND) if wanted_hidden else None
        grad_VD: Tensor | None = None
        parts = [slice(0, ctx.kept)] if ctx.kept else []
        parts += [slice(a, min(a + ctx.chunk, len(targets_N))) for a in range(ctx.kept, len(targets_N), ctx.chunk)]
        for part in parts:
            residual_CV = residual_KV[part]
            if part.start >= ctx.kept:
                residual_CV = weight.new_empty((part.stop - part.start, len(weight)))
                _score(hidden_ND[part], weight_VD, targets_N[part], ctx.scale, residual_CV)
            if grad_ND is not None:
                grad_ND[part] = (residual_CV @ weight).to(factor_N1.dtype) * factor_N1[part]
            if wanted_weight:
                share_VD = (residual_CV.t() @ scaled_ND[part]).to(weight_VD.dtype)
                grad_VD = share_VD if grad_VD is None else grad_VD.add_(share_VD)
        give_back(residual_KV)
        return grad_ND, grad_VD, None, None, None
