"""The load-time probe: does a scorer compute what the model's own forward does? Log-probabilities and gradients.

It leaves no trace: gradients, modes, random states and attention are afterwards as they were.
Suffixes: T tokens, N scored positions, L length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.errors import ModelError
from potstill.training import attention
from potstill.training.batch import Batch, Item, collate
from potstill.training.experts import balance_loss

TOLERANCES = {torch.bfloat16: (0.03, 0.5), torch.float16: (0.005, 0.1)}
"""Relative, of log-probabilities and of gradients. Measured on models of 4 to 48 layers, two right computations in
bfloat16 differ by up to 0.012 and 0.19; where keys that should be seen are not, by 0.05 and 2 at least."""
TOLERANCE = (1e-3, 1e-3)
"""In float32 and wider: right computations differ by 1e-5; scores that are 5% too large, by 0.05 in gradients."""


class Scores(Protocol):
    """What is probed: a Scorer."""

    def __call__(self, batch: Batch) -> Tensor: ...

    def computing_in(self, precision: torch.dtype) -> AbstractContextManager[None]:
        """Within this, products are in another precision."""
        ...


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model itself, without what adapters wrap around it (they stay inside it)."""
    unwrap = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, unwrap()) if unwrap else model


def position_limit(model: PreTrainedModel) -> int:
    """The longest row, in tokens, that the model has positions for.

    Longrope has other frequencies beyond the length that a model was first trained with, and transformers picks them
    for a whole batch: one long row would change what is computed for all others. So there that length is the limit.
    """
    config = bare(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [part["original_max_position_embeddings"] for part in ropes if part.get("rope_type") == "longrope"]
    known = getattr(config, "max_position_embeddings", None)
    return min([*limits, *([] if known is None else [known])], default=1 << 62)


def check_positions(model: PreTrainedModel, items: Sequence[Item], remedy: str = "Set max_length: {limit}") -> None:
    """ModelError where a row is longer than the model has positions for; `remedy` says what to do about it."""
    limit = position_limit(model)
    longest = max(items, key=lambda item: item.longest)
    if longest.longest > limit:
        raise ModelError(
            f"row '{longest.row}'",
            f"it has {longest.longest:,} tokens, and the model reads {limit:,} at most",
            remedy.format(limit=limit),
        )


class Probe:
    """What the model's own forward says about a pair that shares a prompt, and a lone sequence."""

    def __init__(self, model: PreTrainedModel, precision: torch.dtype) -> None:
        """`precision` is bfloat16 to compare under autocast; else products are in the weights' own type."""
        self.model, self.precision = model, precision
        coarser = precision if precision in TOLERANCES else bare(model).dtype
        self.logp_tolerance, self.gradient_tolerance = TOLERANCES.get(coarser, TOLERANCE)
        self.items = _items(bare(model).config.get_text_config().vocab_size)
        with _no_trace(model), _own_attention(bare(model)):
            self.truth_N = self._own_logps()
            self.gradients = self._gradients(self.truth_N)
        self.truth_N = self.truth_N.detach()

    def difference(self, scorer: Scores) -> str:
        """What differs from the model's own forward by more than the tolerance, in words; empty where nothing does."""
        device = bare(self.model).device
        with _no_trace(self.model), attention.checked(bare(self.model)), scorer.computing_in(self.precision):
            logp_N = scorer(collate(self.items).to(device))
            gradients = self._gradients(logp_N)
        logp_N = logp_N.detach()
        if not _close(logp_N, self.truth_N, self.logp_tolerance):
            return f"log-probabilities differ by {float((logp_N - self.truth_N).abs().max()):.2g} nats"
        if gradients.keys() != self.gradients.keys():
            return "other parameters have gradients"
        # The gradient of a parameter that hardly matters may be all rounding: there a share of the typical one counts.
        norms = [float(gradient.norm()) for gradient in self.gradients.values()]
        least = 0.1 * float(np.median(norms)) if norms else 0.0
        tolerance = self.gradient_tolerance
        far = [name for name, theirs in self.gradients.items() if not _close(gradients[name], theirs, tolerance, least)]
        return f"gradients of {far[0]} differ" if far else ""

    def balance_difference(self, scorer: Any) -> str:
        """How the balance loss of experts differs from the model's own, in words; empty where it does not."""
        model, lone = bare(self.model), self.items[-1:]
        batch = collate(lone).to(model.device)
        with _no_trace(self.model), torch.no_grad():
            with _own_attention(model):
                own = cast(Any, model)(batch.tokens_T[None], use_cache=False, output_router_logits=True)
            theirs = getattr(own, "aux_loss", None)
            if not isinstance(theirs, Tensor):
                return "its own forward returns none"
            _, routed_E, router_E = scorer(batch, want="routing")
            ours = balance_loss(routed_E, router_E, scorer.experts_per_token)
        return (
            ""
            if _close(ours, theirs, self.logp_tolerance)
            else f"{float(ours):.4g} where its own forward says {float(theirs):.4g}"
        )

    def _own_logps(self) -> Tensor:
        """One sequence a call."""
        logps = []
        device = bare(self.model).device
        for item in self.items:
            for ids_L, learn_L in item.answers:
                whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64)).to(device)
                with torch.autocast(device.type, self.precision, enabled=self.precision == torch.bfloat16):
                    logits_LV = cast(Any, self.model)(input_ids=whole[None], use_cache=False).logits[0]
                logp_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32)).log_softmax(-1)
                at = torch.from_numpy(np.flatnonzero(learn_L)).to(device) + len(item.prompt_ids)
                logps.append(logp_LV[at - 1, whole[at]])
        return torch.cat(logps)

    def _gradients(self, logp_N: Tensor) -> dict[str, Tensor]:
        """A sketch of each trained parameter's gradient: its rows' products with one random vector.

        Two gradients with equal sketches are equal but for luck, and a sketch of seven billion numbers is small: each
        gradient is dropped as soon as it is there.
        """
        sketches: dict[str, Tensor] = {}
        hooks = []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue

            def sketch(parameter: Tensor, name: str = name) -> None:
                sketches[name] = _sketch(cast(Tensor, parameter.grad))
                parameter.grad = None

            hooks.append(parameter.register_post_accumulate_grad_hook(sketch))  # type: ignore[no-untyped-call]
        try:
            if hooks:  # unequal weights, so that scores put in the wrong order do not cancel
                weights_N = torch.linspace(1, 2, len(logp_N), device=logp_N.device)
                (logp_N * weights_N).mean().backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
        return sketches


def _close(ours: Tensor, theirs: Tensor, tolerance: float, least: float = 0.0) -> bool:
    return bool((ours - theirs).norm() <= tolerance * max(float(theirs.norm()), least) + 1e-7)


def _sketch(gradient: Tensor) -> Tensor:
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if wide.ndim < 2:
        return wide
    source = torch.Generator().manual_seed(0)
    direction = torch.randn(wide.shape[-1], generator=source, dtype=wide.dtype).to(wide.device)
    return wide @ direction


def _items(vocabulary: int) -> list[Item]:
    """A pair that shares a prompt, and a lone sequence, of made-up tokens."""
    draw = np.random.default_rng(0)
    prompt, chosen, rejected, lone = (draw.integers(0, vocabulary, size, dtype=np.int32) for size in (5, 4, 6, 7))
    every = {len(ids): np.ones(len(ids), dtype=np.bool_) for ids in (chosen, rejected)}
    pair = Item("pair", prompt, ((chosen, every[len(chosen)]), (rejected, every[len(rejected)])))
    return [pair, Item.text("lone", lone)]


@contextmanager
def _no_trace(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients there; both, and the random states, put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    device = bare(model).device
    forked = [device] if device.type == "cuda" else []
    model.eval()  # type: ignore[no-untyped-call]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.enable_grad(), torch.random.fork_rng(forked):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    installed = model.config._attn_implementation == attention.NAME
    attention.remove(model)
    try:
        yield
    finally:
        if installed:
            attention.install(model)
