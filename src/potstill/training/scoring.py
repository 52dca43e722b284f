"""From tokens to log-probabilities, all inside one module, so that whatever wraps it (FSDP2, ZeRO-3) wraps everything.

Suffixes: T tokens, N scored positions, C rows of a chunk, V vocabulary, D hidden width, B paths, L their length.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from potstill.training import attention
from potstill.training.batch import Batch, Item, collate

logger = logging.getLogger(__name__)

Layout = Literal["shared", "padded"]
"""How the body sees a batch: as a packed tree with our attention, or as padded rows with the model's own."""

CHUNK_LOGITS = 1 << 25
"""Logits held at once in the head: 128 MiB in float32. Where there are more, chunks are recomputed in the backward."""

PROBE_TOLERANCE = 1e-3
"""Relative. Two right float32 computations of a deep model differ by some 1e-5, a wrong mask by 1e-2 or more."""


class Scorer(nn.Module):
    """A causal language model that returns the log-probability of each target of a batch."""

    def __init__(
        self, model: PreTrainedModel, layout: Layout = "shared", precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.precision = precision
        self.own_attention = model.config._attn_implementation
        self.chunk_logits = CHUNK_LOGITS
        if layout == "shared":
            attention.register()
            model.set_attn_implementation(attention.NAME)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities of the batch's targets, in nats; float32 (float64 for a float64 model), shape (N,)."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision == torch.bfloat16):
            hidden_TD = self._packed(batch) if self.layout == "shared" else self._padded(batch)
        hidden_ND = hidden_TD.index_select(0, batch.scored_N)
        vocabulary = self.model.config.get_text_config().vocab_size
        rows = max(1, self.chunk_logits // vocabulary)
        if len(hidden_ND) <= rows:
            return self._head(hidden_ND, batch.targets_N)
        chunks = zip(torch.split(hidden_ND, rows), torch.split(batch.targets_N, rows), strict=True)
        return torch.cat([cast(Tensor, checkpoint(self._head, h, t, use_reentrant=False)) for h, t in chunks])

    @contextmanager
    def products(self) -> Iterator[None]:
        """Within this, forward and backward: on a CPU, the float32 products that remain (the head, attention scores)
        round their inputs to bfloat16 as well, where that is the precision; their sums and results stay float32."""
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = matmul.fp32_precision
        if self.precision == torch.bfloat16 and self.device.type == "cpu":
            matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before

    def _body(self) -> nn.Module:
        return self.model.base_model

    def _packed(self, batch: Batch) -> Tensor:
        """The body once over all tokens; shape (T, D)."""
        output = self._body()(
            input_ids=batch.tokens_T[None], position_ids=batch.positions_T[None], tree=batch.tree, use_cache=False
        )
        return cast(Tensor, output.last_hidden_state[0])

    def _padded(self, batch: Batch) -> Tensor:
        """The body over every path as a padded row, by the model's own attention; then each token's home; (T, D).

        Padding stands on the right, where causal attention never looks: no mask is needed.
        """
        slots_S, parts, start = batch.tree.slots_S, [], 0
        for rows, length in batch.tree.buckets:
            cells = slice(start, start + rows * length)
            output = self._body()(input_ids=batch.tokens_T[slots_S[cells]].view(rows, length), use_cache=False)
            parts.append(output.last_hidden_state.reshape(rows * length, -1))
            start = cells.stop
        return torch.cat(parts).index_select(0, batch.tree.home_T)

    def _head(self, hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        """The head as a module (it may be tied, quantised or carry an adapter), and a softmax in full precision.

        Half-precision logits would cost 4 to 23% of the gradient (Liger-Kernel issue 1432).
        """
        head = cast(nn.Module, self.model.get_output_embeddings())  # type: ignore[no-untyped-call]
        with torch.autocast(self.device.type, enabled=False):
            logits_CV = head(hidden_CD.to(next(head.parameters()).dtype))
            logits_CV = self._shape_logits(logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)))
            return -F.cross_entropy(logits_CV, targets_C, reduction="none")

    def _shape_logits(self, logits_CV: Tensor) -> Tensor:
        """What some families do to their logits: Cohere scales, Granite divides, Gemma 2 caps."""
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits_CV = logits_CV * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits_CV = logits_CV / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits_CV = torch.tanh(logits_CV / cap) * cap
        return logits_CV

    def facts(self) -> dict[str, str]:
        """What "auto" became, for the manifest."""
        precision = str(self.precision).removeprefix("torch.")
        return {"device": self.device.type, "dtype": precision, "layout": self.layout}

    def release(self) -> PreTrainedModel:
        """The model with its own attention again, to generate with or to save."""
        self.model.set_attn_implementation(self.own_attention)
        return self.model


@torch.enable_grad()
def build_scorer(model: PreTrainedModel, precision: torch.dtype = torch.float32) -> Scorer:
    """A scorer whose log-probabilities and gradients were compared with the model's own forward.

    Where the packed and shared layout differs from it (an attention we do not know), the padded one is used and said.
    The choice stands in `layout`.
    """
    # The probe runs in full precision: what it compares is mathematics.
    truth = _probe_truth(model)
    scorer = Scorer(model, "shared")
    try:
        wrong = _difference(scorer, truth)
    except (NotImplementedError, TypeError, RuntimeError, ValueError) as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        scorer = Scorer(scorer.release(), "padded")
        logger.warning("packing is not exact for this model (%s); rows are padded instead", wrong)
        wrong = _difference(scorer, truth)
        assert not wrong, f"even padded rows differ from the model's own forward: {wrong}"
    scorer.precision = precision
    return scorer


def _probe_items(vocabulary: int) -> list[Item]:
    """A pair that shares a prompt, and a lone sequence, of made-up tokens."""
    draw = np.random.default_rng(0)
    prompt, chosen, rejected, lone = (draw.integers(0, vocabulary, size, dtype=np.int32) for size in (5, 4, 6, 7))
    all_of = {len(ids): np.ones(len(ids), dtype=np.bool_) for ids in (chosen, rejected)}
    pair = Item("pair", prompt, ((chosen, all_of[len(chosen)]), (rejected, all_of[len(rejected)])))
    return [pair, Item.text("lone", lone)]


Truth = tuple[Tensor, dict[str, Tensor]]


def _probe_truth(model: PreTrainedModel) -> Truth:
    """Log-probabilities by the model's plain forward, one sequence a call, and the gradients of their weighted mean."""
    logps = []
    for item in _probe_items(model.config.get_text_config().vocab_size):
        for ids_L, learn_L in item.answers:
            whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64)).to(model.device)
            logits_LV = model(input_ids=whole[None], use_cache=False).logits[0]
            logp_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32)).log_softmax(-1)
            at = torch.from_numpy(np.flatnonzero(learn_L)).to(model.device) + len(item.prompt_ids)
            logps.append(logp_LV[at - 1, whole[at]])
    return _gradients(model, torch.cat(logps))


def _gradients(model: nn.Module, logp_N: Tensor) -> Truth:
    # Unequal weights, so that scores put in the wrong order do not cancel.
    (logp_N * torch.linspace(1, 2, len(logp_N), device=logp_N.device)).mean().backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logp_N.detach(), gradients


def _difference(scorer: Scorer, truth: Truth) -> str:
    """What differs from the truth by more than the tolerance, in words; empty where nothing does."""
    batch = collate(_probe_items(scorer.model.config.get_text_config().vocab_size)).to(scorer.device)
    logp_N, gradients = _gradients(scorer.model, scorer(batch))
    if not _close(logp_N, truth[0]):
        return f"log-probabilities differ by {float((logp_N - truth[0]).abs().max()):.2g} nats"
    if gradients.keys() != truth[1].keys():
        return "other parameters have gradients"
    far = [name for name, gradient in gradients.items() if not _close(gradient, truth[1][name])]
    return f"gradients of {far[0]} differ" if far else ""


def _close(ours: Tensor, theirs: Tensor) -> bool:
    scale = theirs.norm()
    return bool((ours - theirs).norm() <= PROBE_TOLERANCE * scale + 1e-7)
