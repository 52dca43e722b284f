"""Attention over a tree of packed sequences, registered with transformers under a name of its own.

The tree comes as an argument of the model's forward and is never guessed from positions: branch positions mislead
transformers, which takes positions that jump back for packed sequences. Every path from root to leaf becomes one row
of an ordinary causal attention call, so there is no T x T mask on any device.

Suffixes: T tokens, S slots, B paths, L their length, H heads, K key-value heads, D head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from potstill.training.batch import Tree

NAME = "potstill_tree"

# What some models hand to their attention and this one does not know: the load-time probe then falls back.
UNKNOWN = ("s_aux", "position_bias", "cache")

EXPLICIT_STEP = 128
"""Queries of a block where attention is written out."""
EXPLICIT_LENGTH = 512
"""On a CPU in bfloat16, paths up to this length are written out: twice as fast there as the fused kernel."""


class _Spread(torch.autograd.Function):
    """Tokens to slots. The gradient is gathered as well, not scattered: on a CPU scattering is many times slower."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, tree: Tree) -> Tensor:
        ctx.tree = tree
        return x_TX.index_select(0, tree.slots_S)

    @staticmethod
    def backward(ctx: Any, grad_SX: Tensor) -> tuple[Tensor, None]:
        tree: Tree = ctx.tree
        grad_TX = grad_SX.index_select(0, tree.home_T)
        if len(tree.extra_tokens_E):
            grad_TX.index_add_(0, tree.extra_tokens_E, grad_SX.index_select(0, tree.extra_slots_E))
        return grad_TX, None


class _Collect(torch.autograd.Function):
    """Slots back to tokens: each token's output from its home."""

    @staticmethod
    def forward(ctx: Any, y_SX: Tensor, tree: Tree) -> Tensor:
        ctx.tree, ctx.shape = tree, y_SX.shape
        return y_SX.index_select(0, tree.home_T)

    @staticmethod
    def backward(ctx: Any, grad_TX: Tensor) -> tuple[Tensor, None]:
        grad_SX = grad_TX.new_zeros(ctx.shape)
        return grad_SX.index_copy_(0, ctx.tree.home_T, grad_TX), None


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query (1, H, T, D), key and value (1, K, T, D); returns (1, T, H, D).

    Raises NotImplementedError for a feature it does not know, rather than leave it out.
    """
    unknown = [name for name in UNKNOWN if other.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"tree attention does not know {unknown or 'masks'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = [rows * length for rows, length in tree.buckets]
    parts = []
    for (rows, length), q_SHD, k_SKD, v_SKD in zip(
        tree.buckets, *(torch.split(_slots(x, tree), sizes) for x in (query, key, value)), strict=True
    ):
        q, k, v = (x.view(rows, length, *x.shape[1:]).transpose(1, 2) for x in (q_SHD, k_SKD, v_SKD))
        out_BHLD = _causal(q, k, v, scale, sliding_window, softcap, dropout)
        parts.append(out_BHLD.transpose(1, 2).reshape(rows * length, -1))
    out_SX = parts[0] if len(parts) == 1 else torch.cat(parts)
    out_TX = out_SX if tree.plain else _Collect.apply(out_SX, tree)  # type: ignore[no-untyped-call]
    return out_TX.view(1, -1, query.shape[1], value.shape[-1]), None


def _slots(x_1HTD: Tensor, tree: Tree) -> Tensor:
    _, heads, tokens, width = x_1HTD.shape
    x_TX = x_1HTD.transpose(1, 2).reshape(tokens, heads * width)
    x_SX = x_TX if tree.plain else _Spread.apply(x_TX, tree)  # type: ignore[no-untyped-call]
    return x_SX.view(-1, heads, width)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, dropout: float
) -> Tensor:
    """Causal attention of (B, H, L, D) over (B, K, L, D); a query sees `window` keys at most, itself among them.

    A path begins at position 0, so a row's index is its position and windows go by either.
    """
    length = q.shape[2]
    window = None if window is None or window >= length else window
    if window is None and softcap is None:
        if q.device.type != "cpu" or v.dtype != torch.bfloat16:  # of the three, only values are sure to show autocast
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        if length > EXPLICIT_LENGTH:  # the CPU's fused kernel is slower in bfloat16 than in float32
            with torch.autocast("cpu", enabled=False):
                return _causal(q.float(), k.float(), v.float(), scale, window, softcap, dropout).to(v.dtype)
    return _explicit(q, k, v, scale, window, softcap, dropout)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, dropout: float
) -> Tensor:
    """The same, written out in blocks of queries that see only the keys they may: scores and softmax in float32."""
    rows, heads, length, _ = q.shape
    full = torch.promote_types(q.dtype, torch.float32)
    if heads != k.shape[1]:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    q_, k_, v_ = (x.reshape(rows * heads, length, x.shape[-1]).to(full) for x in (q, k, v))
    outs = []
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, length, EXPLICIT_STEP):
            end = min(start + EXPLICIT_STEP, length)
            low = 0 if window is None else max(0, start - window + 1)
            unseen = torch.full((end - start, end - low), float("-inf"), dtype=full, device=q.device)
            unseen = unseen.triu(start - low + 1)
            if window is not None:
                unseen = unseen + torch.full_like(unseen, float("-inf")).tril(start - low - window)
            block, keys = q_[:, start:end], k_[:, low:end].transpose(1, 2)
            if softcap is None:
                scores = torch.baddbmm(unseen, block, keys, alpha=scale)
            else:  # Gemma Team 2024, section 2
                scores = torch.tanh(torch.bmm(block, keys) * (scale / softcap)) * softcap + unseen
            outs.append(torch.bmm(F.dropout(scores.softmax(-1), dropout), v_[:, low:end]))
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
    return out.view(rows, heads, length, -1).to(v.dtype)


def register() -> None:
    """Make the implementation known to transformers. No mask function is registered, so transformers builds no mask."""
    AttentionInterface.register(NAME, tree_attention)
