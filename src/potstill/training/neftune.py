"""NEFTune: noise on the embeddings in training; Jain et al. 2023 (arXiv 2310.05914), Algorithm 1.

Suffixes: T tokens, D width, R the tokens that a layout hands to the body.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.training.paths import Plan


class Noise:
    """Uniform noise in +-alpha / sqrt(L D), L being the length of the token's sequence; one draw a token of the batch.

    It comes from torch's own generator, whose state checkpoints keep. It is drawn for the T tokens, whatever the layout
    makes of them: a shared prompt has one noise in all its branches, by the length of the first.
    """

    def __init__(self, alpha: float, plan: Plan) -> None:
        self.alpha, self.plan = alpha, plan
        self.drawn_TD: Tensor | None = None

    def _draw(self, like: Tensor) -> Tensor:
        if self.drawn_TD is None:
            lengths_T = self.plan.lengths_P[self.plan.path_T].to(torch.float32)
            width = like.shape[-1]
            drawn_TD = torch.rand(len(lengths_T), width, device=like.device) * 2 - 1
            self.drawn_TD = drawn_TD * (self.alpha / (lengths_T * width).sqrt())[:, None]
        return self.drawn_TD

    @contextmanager
    def on(self, embeddings: nn.Module, tokens_R: Tensor) -> Iterator[None]:
        """Within this, what the embeddings return for these tokens of the batch is noisy."""

        def add(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            noise_RD = self._draw(embedded).index_select(0, tokens_R)
            return embedded + noise_RD.view(embedded.shape).to(embedded.dtype)

        hook = embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()
