"""Causal attention over rows: of the kernels that there are, the one that is fastest where it runs.

Suffixes: B rows, L their length, H heads, K key-value heads, D head width, G = B x H, S queries of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 128
"""Queries of a block where attention is written out."""

REMEMBERED_LENGTH = 2048
"""Rows up to this length have their probabilities remembered for the backward, G x L x L / 2 of them; longer ones would
take too much memory."""


def causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, dropout: float
) -> Tensor:
    """Causal attention of (B, H, L, D) over (B, K, L, D); a query sees `window` keys at most, itself among them.

    A path begins at position 0, so a row's index is its position and windows go by either.
    """
    length = q.shape[2]
    window = None if window is None or window >= length else window
    half = v.dtype == torch.bfloat16 and q.device.type == "cpu"  # of the three, only values are sure to show autocast
    if half and softcap is None and dropout == 0.0 and length <= REMEMBERED_LENGTH:
        with torch.autocast("cpu", enabled=False):
            q_, k_, v_ = (x.reshape(-1, length, x.shape[-1]) for x in _every_head(q, k, v))
            out_GLD = _HalfRows.apply(q_.float(), k_.float(), v_, scale, window)  # type: ignore[no-untyped-call]
            return out_GLD.view(*q.shape[:3], -1)  # type: ignore[no-any-return]
    if window is not None or softcap is not None:
        return _explicit(q, k, v, scale, window, softcap, dropout)
    if half:  # the CPU's fused kernel is slower in bfloat16 than in float32
        with torch.autocast("cpu", enabled=False):
            return causal(q.float(), k.float(), v.float(), scale, window, softcap, dropout).to(v.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _every_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values once for each head of queries."""
    if q.shape[1] == k.shape[1]:
        return q, k, v
    times = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def _unseen(q_GLD: Tensor, start: int, end: int, low: int, window: int | None) -> Tensor:
    """What is added to the scores of queries from `start` to `end` over keys from `low` on: 0, or minus infinity."""
    unseen = q_GLD.new_full((end - start, end - low), float("-inf")).triu(start - low + 1)
    if window is not None:
        unseen = unseen + torch.full_like(unseen, float("-inf")).tril(start - low - window)
    return unseen


class _HalfRows(torch.autograd.Function):
    """Attention on a CPU in bfloat16, as FlashAttention rounds it: scores, softmax and their gradients in float32, the
    other products in bfloat16. Nearly twice as fast as the fused kernel, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q_GLD: Tensor, k_GLD: Tensor, v_GLD: Tensor, scale: float, window: int | None) -> Tensor:
        length, remember = q_GLD.shape[1], any(ctx.needs_input_grad)
        keys, out_GLD, remembered = k_GLD.transpose(1, 2), torch.empty_like(v_GLD), []
        for start in range(0, length, STEP):
            end = min(start + STEP, length)
            low = 0 if window is None else max(0, start - window + 1)
            unseen = _unseen(q_GLD, start, end, low, window)
            scores = torch.baddbmm(unseen, q_GLD[:, start:end], keys[:, :, low:end], alpha=scale)
            p = scores.softmax(-1).to(v_GLD.dtype)
            out_GLD[:, start:end] = torch.bmm(p, v_GLD[:, low:end])
            if remember:
                remembered.append(p)
        ctx.scale = scale
        ctx.save_for_backward(q_GLD, k_GLD, v_GLD, out_GLD, *remembered)
        return out_GLD

    @staticmethod
    def backward(ctx: Any, grad_GLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_GLD, k_GLD, v_GLD, out_GLD, *remembered = ctx.saved_tensors
        half = v_GLD.dtype
        grad_GLD = grad_GLD.to(half)
        delta_GL1 = (grad_GLD.float() * out_GLD.float()).sum(-1, keepdim=True)  # Dao et al. 2022, appendix B.4
        q, k, values = (q_GLD * ctx.scale).to(half), (k_GLD * ctx.scale).to(half), v_GLD.float().transpose(1, 2)
        dq, dk = torch.empty_like(q_GLD), torch.zeros_like(k_GLD)
        dv = torch.zeros_like(v_GLD, dtype=torch.float32)
        for p, start in zip(remembered, range(0, q.shape[1], STEP), strict=True):
            end = start + p.shape[1]
            low = end - p.shape[2]
            grad = grad_GLD[:, start:end]
            dv[:, low:end] += torch.bmm(p.transpose(1, 2), grad)
            # In float32: where values are alike, delta takes nearly all of this away again.
            ds = torch.bmm(grad.float(), values[:, :, low:end]).sub_(delta_GL1[:, start:end]).mul_(p).to(half)
            dq[:, start:end] = torch.bmm(ds, k[:, low:end])
            dk[:, low:end] += torch.bmm(ds.transpose(1, 2), q[:, start:end])
        return dq, dk, dv.to(half), None, None


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, dropout: float
) -> Tensor:
    """Written out in blocks of queries that see only the keys they may: scores and softmax in float32."""
    rows, heads, length, _ = q.shape
    full = torch.promote_types(q.dtype, torch.float32)
    q_, k_, v_ = (x.reshape(rows * heads, length, x.shape[-1]).to(full) for x in _every_head(q, k, v))
    outs = []
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, length, STEP):
            end = min(start + STEP, length)
            low = 0 if window is None else max(0, start - window + 1)
            unseen = _unseen(q_, start, end, low, window)
            block, keys = q_[:, start:end], k_[:, low:end].transpose(1, 2)
            if softcap is None:
                scores = torch.baddbmm(unseen, block, keys, alpha=scale)
            else:  # Gemma Team 2024, section 2
                scores = torch.tanh(torch.bmm(block, keys) * (scale / softcap)) * softcap + unseen
            outs.append(torch.bmm(F.dropout(scores.softmax(-1), dropout), v_[:, low:end]))
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
    return out.view(rows, heads, length, -1).to(v.dtype)
