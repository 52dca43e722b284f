"""What stands behind a model's body: its output head, asked for log-probabilities, lessons or a teacher's logits.

It is always called as the module it is, which may be tied, sharded, quantised or adapted. Suffixes: N scored positions,
C rows of a chunk, V vocabulary, D hidden width, F figures of a lesson.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from potstill.training.head import Room, linear_logps, product_of
from potstill.training.lesson import Judge
from potstill.training.probe import bare
from potstill.training.taught_head import judged, linear_lesson

CHUNK_LOGITS = 1 << 25
"""Logits held at once in the head: 128 MiB in float32. Where there are more, chunks are recomputed in the backward."""


class OutputHead:
    """The head of one model, as it is at each call."""

    def __init__(self, model: PreTrainedModel, precision: torch.dtype) -> None:
        """`precision` bfloat16: products are. Else they are in the weights' own type."""
        self.model = model
        self.precision = precision
        self.chunk_logits = CHUNK_LOGITS
        self.least_chunks = 1
        """It is called so often at least: where it is gathered for every call, all workers have to call alike."""
        self._narrow_VD: Tensor | None = None

    @property
    def module(self) -> nn.Module:
        """The head itself."""
        return cast(nn.Module, bare(self.model).get_output_embeddings())  # type: ignore[no-untyped-call]

    def narrow(self) -> None:
        """Keep a copy in bfloat16 for `said` on a GPU, where only that is multiplied fast; for weights that stay."""
        if self._device.type == "cuda" and self._is_plain:
            self._narrow_VD = cast(nn.Linear, self.module).weight.detach().to(torch.bfloat16)

    def logps(self, hidden_ND: Tensor, targets_N: Tensor, vocabulary: int | None = None) -> Tensor:
        """Log-probabilities of the targets, without N x V being there at once in full precision; among so many tokens,
        the first, or all rows of the head."""

        def fused(hidden_ND: Tensor, weight_VD: Tensor, **how: Any) -> Tensor:
            fewer = vocabulary is not None and vocabulary < len(weight_VD)
            return linear_logps(hidden_ND, weight_VD[:vocabulary] if fewer else weight_VD, targets_N, **how)

        def compute(logits_CV: Tensor, rows: slice) -> Tensor:
            return -F.cross_entropy(logits_CV[:, :vocabulary], targets_N[rows], reduction="none")

        return self._through_head(hidden_ND, fused, compute)

    def judged(self, hidden_ND: Tensor, targets_N: Tensor, judge: Judge) -> Tensor:
        """What a lesson makes of the logits, likewise; shape (F, N)."""

        def compute(logits_CV: Tensor, rows: slice) -> Tensor:
            return judged(logits_CV, targets_N[rows], judge, rows)

        return self._through_head(hidden_ND, partial(linear_lesson, targets_N=targets_N, judge=judge), compute)

    def _through_head(
        self, hidden_ND: Tensor, fused: Callable[..., Tensor], compute: Callable[[Tensor, slice], Tensor]
    ) -> Tensor:
        """Through the head as a module (it may be tied, sharded, quantised or adapted), shape (..., N).

        A plain linear one answers `fused` at once; of any other, `compute` sees the logits chunk by chunk.
        """
        head = self.module
        if self._is_plain:
            product = self.precision if self.precision == torch.bfloat16 else head.weight.dtype
            answer = partial(fused, scale=self._scale, product=cast(torch.dtype, product))
            with torch.autocast(self._device.type, enabled=False), _Fused(answer) as mode:
                out = head(hidden_ND)
            if mode.done:
                return cast(Tensor, out)
        count = max(self.least_chunks, self.chunks(len(hidden_ND)))
        if count == 1:
            return compute(self.logits(hidden_ND), slice(0, len(hidden_ND)))

        def both(hidden_CD: Tensor, rows: slice) -> Tensor:
            return compute(self.logits(hidden_CD), rows)

        found, start = [], 0
        for hidden_CD in hidden_ND.tensor_split(count):
            rows = slice(start, start + len(hidden_CD))
            found.append(cast(Tensor, checkpoint(both, hidden_CD, rows, use_reentrant=False)))
            start = rows.stop
        return torch.cat(found, -1)

    @property
    def _is_plain(self) -> bool:
        """Whether logits are hidden states times a matrix, and nothing else."""
        head = self.module
        return type(head) is nn.Linear and getattr(head, "bias", None) is None and not self._caps

    def chunks(self, scored: int) -> int:
        """How often the head has to be called for so many scored positions, where it is no plain linear one."""
        vocabulary: int = self._config.vocab_size
        return max(1, -(-scored // max(1, self.chunk_logits // vocabulary)))

    @torch.no_grad()
    def said(self, hidden_CD: Tensor, vocabulary: int, room: Room) -> Tensor:
        """As `logits`, of the first tokens alone, for a teacher: where its head is a plain linear one they lie in the
        room, which keeps a processor from fetching so much memory anew for each chunk."""

        def product(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
            tokens_VD = (weight_VD if self._narrow_VD is None else self._narrow_VD)[:vocabulary]
            wide = torch.promote_types(tokens_VD.dtype, torch.float32)
            out = room.of((len(hidden_CD), len(tokens_VD)), wide, tokens_VD.device)
            return product_of(hidden_CD, tokens_VD, out)

        if self._is_plain:
            with torch.autocast(self._device.type, enabled=False), _Fused(product) as mode:
                out_CV: Tensor = self.module(hidden_CD)
            if mode.done:
                return out_CV if self._scale == 1.0 else out_CV.mul_(self._scale)
        return self.logits(hidden_CD)[:, :vocabulary]

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """The head's, all after them in full precision: bfloat16 logits cost 4 to 23% of the gradient (Liger-Kernel
        1432)."""
        head = self.module
        weights = next(head.parameters()).dtype
        wide = torch.promote_types(weights if weights.is_floating_point else hidden_CD.dtype, torch.float32)
        with torch.autocast(self._device.type, enabled=False), _WideSums():
            logits_CV: Tensor = head(hidden_CD.to(wide)).to(wide)
            if self._scale != 1.0:
                logits_CV = logits_CV * self._scale
            if self._caps:
                logits_CV = torch.tanh(logits_CV / self._caps) * self._caps
            return logits_CV

    @property
    def _scale(self) -> float:
        """What some families multiply their logits by: Cohere scales, Granite divides."""
        config = self._config
        scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        return float(1.0 if scale is None else scale) / float(1.0 if divisor is None else divisor)

    @property
    def _caps(self) -> float | None:
        """Where logits level off; Gemma Team 2024, section 2."""
        return getattr(self._config, "final_logit_softcapping", None)

    @property
    def _device(self) -> torch.device:
        return bare(self.model).device

    @property
    def _config(self) -> Any:
        return bare(self.model).config.get_text_config()


class _Fused(TorchFunctionMode):
    """Within this, a plain linear layer answers with what is made of its logits instead of them.

    It is done inside the layer's own call, where a wrapper (ZeRO-3, FSDP2) has gathered its weights.
    """

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._answer = answer
        self.done = False
        """False where a wrapper computes the layer in its own way: then it answered with logits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not self.done:
            self.done = True
            return self._answer(args[0], args[1])
        return func(*args, **(kwargs or {}))


class _WideSums(TorchFunctionMode):
    """Within this, a linear layer whose weights are in half precision sums and answers in float32.

    It is done inside the layer's own call, where a wrapper (ZeRO-3, FSDP2) has gathered its weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _wide_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _wide_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return F.linear(input.to(wide), weight.to(wide), bias if bias is None else bias.to(wide))
