"""Attention over a tree of packed sequences, registered with transformers under a name of its own.

The tree comes as an argument of the model's forward and is never guessed from positions: branch positions mislead
transformers, which takes positions that jump back for packed sequences. Three kernels compute it:

    varlen  torch's FlashAttention over the paths end to end; CUDA, half precision
    flex    FlexAttention over the tree itself, each prompt once; CUDA, soft caps and whatever else FlashAttention lacks
    rows    every path a row of an ordinary causal call; any device

None of them holds a T x T mask. Suffixes: T tokens, S slots, R tokens of all paths, B paths, L their length, H heads,
K key-value heads, D head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from potstill.training.batch import Tree
from potstill.training.paths import Kernel, Plan
from potstill.training.rows import causal

NAME = "potstill_tree"
CHECKED = "potstill_tree_checked"
"""The same for the load-time probe: it also asks transformers which masks it would make, and compares."""

# What some models hand to their attention and this one does not know: the load-time probe then falls back.
UNKNOWN = ("s_aux", "position_bias", "cache")

HALF = (torch.bfloat16, torch.float16)


def choose_kernel(
    device: str, dtype: torch.dtype, widths: tuple[int, int], window: int | None, softcap: float | None, dropout: float
) -> Kernel:
    """The fastest kernel that computes this exactly; `widths` are a key's and a value's.

    FlashAttention has no soft cap here, wants half precision and one width of at most 256, a multiple of 8. Neither it
    nor FlexAttention drops out.
    """
    if device != "cuda" or dropout > 0:
        return "rows"
    key, value = widths
    if dtype in HALF and softcap is None and key == value <= 256 and key % 8 == 0:
        return "varlen"
    # Without a cap or a window, scaled-dot-product attention has fused kernels for rows of any type and width.
    return "rows" if softcap is None and window is None else "flex"


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
    tree: Plan,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query (1, H, T, D), key and value (1, K, T, D); returns (1, T, H, D).

    A query sees `sliding_window` keys at most, itself among them.
    Raises NotImplementedError for a feature it does not know, rather than leave it out.
    """
    unknown = [name for name in UNKNOWN if other.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"tree attention does not know {unknown or 'masks'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    widths = query.shape[-1], value.shape[-1]
    # Under autocast rotated queries and keys come in float32: of the three, only values are sure to show the precision.
    kernel = tree.kernel or choose_kernel(query.device.type, value.dtype, widths, sliding_window, softcap, dropout)
    tree.used.add(kernel)
    if kernel == "varlen":
        out_TX = _varlen(query, key, value, tree, scale, sliding_window)
    elif kernel == "flex":
        out_TX = _flex(query, key, value, tree, scale, sliding_window, softcap)
    else:
        out_TX = _rows(query, key, value, tree.tree, (scale, sliding_window, softcap, dropout))
    return out_TX.view(1, -1, query.shape[1], value.shape[-1]), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, window: int | None) -> Tensor:
    flat = plan.flat
    q, k, v = (_slots(x.to(value.dtype), flat.tree) for x in (query, key, value))
    seen = (-1, 0) if window is None or window >= flat.longest else (window - 1, 0)  # keys to the left, and right
    out_RHD = varlen_attn(
        q,
        k,
        v,
        flat.starts,
        flat.starts,
        flat.longest,
        flat.longest,
        scale=scale,
        window_size=seen,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(Tensor, _Collect.apply(cast(Tensor, out_RHD).flatten(1), flat.tree))  # type: ignore[no-untyped-call]


def _flex(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    q, k, v = (x.to(value.dtype) for x in (query, key, value))
    out_1HTD = _compiled_flex(query.device.type)(
        q,
        k,
        v,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=plan.blocks(window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out_1HTD).transpose(1, 2).flatten(2)[0]


@cache
def _compiled_flex(device: str) -> Any:
    """Fused only where compiled; a CPU, which has no backward for it, runs it as it is written, in tests."""
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


@cache  # one function a cap: another would be compiled again
def _capped(softcap: float) -> Callable[..., Tensor]:
    """Gemma Team 2024, section 2."""

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def _rows(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, how: tuple[float, int | None, float | None, float]
) -> Tensor:
    """Each bucket of paths as one causal call; `how` is scale, window, cap and dropout."""
    sizes = [rows * length for rows, length in tree.buckets]
    parts = []
    for (rows, length), q_SHD, k_SKD, v_SKD in zip(
        tree.buckets, *(torch.split(_slots(x, tree), sizes) for x in (query, key, value)), strict=True
    ):
        q, k, v = (x.view(rows, length, *x.shape[1:]).transpose(1, 2) for x in (q_SHD, k_SKD, v_SKD))
        out_BHLD = causal(q, k, v, *how)
        parts.append(out_BHLD.transpose(1, 2).reshape(rows * length, -1))
    out_SX = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out_SX if tree.plain else _Collect.apply(out_SX, tree)  # type: ignore[no-untyped-call]


def _slots(x_1HTD: Tensor, tree: Tree) -> Tensor:
    _, heads, tokens, width = x_1HTD.shape
    x_TX = x_1HTD.transpose(1, 2).reshape(tokens, heads * width)
    x_SX = x_TX if tree.plain else _Spread.apply(x_TX, tree)  # type: ignore[no-untyped-call]
    return x_SX.view(-1, heads, width)


@dataclass(frozen=True)
class Asked:
    """In place of a mask: what transformers was asked to let be seen."""

    window: int | None


def _asked(*, local_size: int | None = None, use_vmap: bool = False, **rest: Any) -> Asked:
    """What transformers calls to make a mask."""
    if use_vmap:
        raise NotImplementedError("the model adds a rule of its own to its mask")
    return Asked(local_size)


def _checked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any
) -> tuple[Tensor, None]:
    """Some models put their window, or a chunk, into the mask alone, where attention without a mask would miss it; a
    probe of a few tokens could not tell."""
    if isinstance(attention_mask, Asked):
        told = how.get("sliding_window")
        if attention_mask.window != told:
            raise NotImplementedError(
                f"the model's mask has a window of {attention_mask.window} and its attention is told {told}"
            )
        attention_mask = None
    return tree_attention(module, query, key, value, attention_mask, **how)


def install(model: PreTrainedModel) -> None:
    """Give the model this attention. No mask function comes with its name, so that transformers builds no mask.

    Raises NotImplementedError where the architecture cannot exchange its attention.
    """
    AttentionInterface.register(NAME, tree_attention)
    AttentionInterface.register(CHECKED, _checked_attention)
    AttentionMaskInterface.register(CHECKED, _asked)
    if not model._can_set_attn_implementation():
        raise NotImplementedError("its attention cannot be exchanged")
    if model.config._attn_implementation != NAME:
        model._own_attention = model.config._attn_implementation
        model.set_attn_implementation(NAME)


def remove(model: PreTrainedModel) -> None:
    """Give the model its own attention back."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(str(model._own_attention))


@contextmanager
def checked(model: PreTrainedModel) -> Iterator[None]:
    """Within this, a model that has this attention refuses to run where its masks would say more than it was told."""
    installed = model.config._attn_implementation == NAME
    if installed:
        model.set_attn_implementation(CHECKED)
    try:
        yield
    finally:
        if installed:
            model.set_attn_implementation(NAME)
