"""Views of a batch's tree that layers need: made once a batch, only where asked for, and without waiting for a GPU.

Suffixes: T tokens, S slots, E further slots of shared tokens (see `Tree`), P paths, R = T + E cells that hold a token.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from potstill.training.batch import Tree

Kernel = Literal["varlen", "flex", "rows"]
"""Torch's FlashAttention over paths end to end; FlexAttention over the tree itself; causal rows, a path each."""

Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) to whether the query sees the key: FlexAttention's mask_mod."""


@dataclass(frozen=True)
class Flat:
    """Paths end to end without padding, as kernels of variable length read them."""

    tree: Tree
    """Its slots are the R cells, in the order of the paths."""
    starts: Tensor
    """int32, shape (P + 1,): where each path begins, and R."""
    longest: int


class Plan:
    """What every layer's attention reads of one batch."""

    def __init__(self, tree: Tree, kernel: Kernel | None = None) -> None:
        self.tree = tree
        self.kernel = kernel
        """Takes the place of the choice, to compare kernels."""
        self.used: set[str] = set()
        """The kernels that ran."""
        self._blocks: dict[int | None, BlockMask] = {}

    @cached_property
    def starts_P(self) -> Tensor:
        """The first slot of each path."""
        starts: list[int] = []
        base = 0
        for rows, length in self.tree.buckets:
            starts += range(base, base + rows * length, length)
            base += rows * length
        return torch.tensor(starts, device=self.tree.home_T.device)

    def path_of(self, slots: Tensor) -> Tensor:
        """The path that each slot lies in."""
        return torch.searchsorted(self.starts_P, slots, right=True) - 1

    @cached_property
    def path_T(self) -> Tensor:
        """The path in which each token has its home."""
        return self.path_of(self.tree.home_T)

    @cached_property
    def positions_T(self) -> Tensor:
        """Each token's position in its sequence."""
        return self.tree.home_T - self.starts_P[self.path_T]

    @cached_property
    def cells_R(self) -> Tensor:
        """The slots that hold a token: homes, then the further ones."""
        return torch.cat([self.tree.home_T, self.tree.extra_slots_E])

    @cached_property
    def lengths_P(self) -> Tensor:
        """How many tokens each path has, its prompt included."""
        paths_R = self.path_of(self.cells_R)
        return torch.zeros_like(self.starts_P).index_add_(0, paths_R, torch.ones_like(paths_R))

    @cached_property
    def copies_T(self) -> Tensor:
        """How many paths hold each token: as often would plain training see it."""
        ones_T, ones_E = torch.ones_like(self.tree.home_T), torch.ones_like(self.tree.extra_tokens_E)
        return ones_T.index_add_(0, self.tree.extra_tokens_E, ones_E)

    @cached_property
    def flat(self) -> Flat:
        """The tree without padding."""
        tree = self.tree
        slots_R, order_R = self.cells_R.sort()
        rank_R = torch.empty_like(order_R)
        rank_R[order_R] = torch.arange(len(order_R), device=order_R.device)
        tokens = len(tree.home_T)
        bounds = torch.cat([self.starts_P, self.starts_P.new_full((1,), len(tree.slots_S))])
        without = replace(
            tree,
            slots_S=tree.slots_S.index_select(0, slots_R),
            home_T=rank_R[:tokens],
            extra_slots_E=rank_R[tokens:],
            plain=False,
        )
        longest = max(length for _, length in tree.buckets)  # each bucket is as long as its longest path
        return Flat(without, torch.searchsorted(slots_R, bounds).to(torch.int32), longest)

    def sees(self, window: int | None = None) -> Seen:
        """Whether one token sees another: on its own path, not behind it, and within `window` positions."""
        tree, path_T, position_T = self.tree, self.path_T, self.positions_T
        branch_E = self.path_of(tree.extra_slots_E)
        root_P = torch.arange(len(self.starts_P), device=path_T.device)
        root_P[branch_E] = path_T[tree.extra_tokens_E]  # a shared prompt has its home in its first branch
        shared_P = torch.zeros_like(root_P).index_add_(0, branch_E, torch.ones_like(branch_E))
        root_T, shared_T = root_P[path_T], shared_P[path_T]

        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            on_path = path_T[key] == path_T[query]
            in_prompt = (path_T[key] == root_T[query]) & (position_T[key] < shared_T[query])
            behind = position_T[query] - position_T[key]
            visible = (on_path | in_prompt) & (behind >= 0)
            return visible if window is None else visible & (behind < window)

        return seen

    def blocks(self, window: int | None) -> BlockMask:
        """The same as FlexAttention reads it: which blocks of 128 x 128 tokens it may skip."""
        if window not in self._blocks:
            tokens, device = len(self.tree.home_T), self.tree.home_T.device
            # Compiled, it never holds the T x T mask.
            create = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
            self._blocks[window] = create(self.sees(window), None, None, tokens, tokens, device=device)
        return self._blocks[window]


def unshared(tree: Tree) -> Tree:
    """The tree of the same paths, each with a prompt of its own: its R tokens are the T, then a copy of each of E."""
    cells_R = torch.cat([tree.home_T, tree.extra_slots_E])
    none = tree.extra_slots_E[:0]
    slots_S = torch.zeros_like(tree.slots_S).index_copy_(0, cells_R, torch.arange(len(cells_R), device=cells_R.device))
    return replace(tree, slots_S=slots_S, home_T=cells_R, extra_tokens_E=none, extra_slots_E=none)


def copied(tree: Tree) -> Tensor:
    """The token of which each of the R tokens of `unshared(tree)` is a copy."""
    return torch.cat([torch.arange(len(tree.home_T), device=tree.home_T.device), tree.extra_tokens_E])
