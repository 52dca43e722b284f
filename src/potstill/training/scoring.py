"""From tokens to log-probabilities, all inside one module, so that whatever wraps it (FSDP2, ZeRO-3) wraps everything.

Suffixes: T tokens, N scored positions, C rows of a chunk, V vocabulary, D hidden width, E experts, R rows of the body,
F figures of a lesson.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from potstill.errors import ModelError
from potstill.training import attention, experts
from potstill.training.batch import Batch
from potstill.training.layers import collect
from potstill.training.neftune import Noise
from potstill.training.output_head import OutputHead
from potstill.training.paths import Kernel, Plan, copied, unshared
from potstill.training.probe import Probe, bare

logger = logging.getLogger(__name__)

Layout = Literal["shared", "packed", "padded"]
"""How the body sees a batch: packed, each prompt once; packed, each answer with a prompt of its own; or as padded rows
with the model's own attention."""

LADDER: tuple[Layout, ...] = ("shared", "packed", "padded")

Routing = tuple[Tensor, Tensor, Tensor]
"""(scores, routed_E, router_E); see `experts.routing`."""

Hidden = tuple[Tensor, Sequence[Tensor], Tensor]
"""Hidden states, shape (T, D); every layer's router logits, shape (R, E), or none; how often each of R counts."""


class Scorer(nn.Module):
    """A causal language model that returns the log-probability of each target of a batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout = "shared",
        precision: torch.dtype = torch.float32,
        *,
        checkpoint_activations: bool = False,
        neftune_alpha: float = 0.0,
    ) -> None:
        """Takes the model, perhaps with adapters, as it is; `release` gives it back.

        Raises NotImplementedError for a layout that needs an attention which the architecture cannot take, and
        ModelError where its activations cannot be checkpointed.
        """
        super().__init__()
        self.model = model
        self.head = OutputHead(model, precision)
        self.layout = layout
        self.checkpoint_activations = checkpoint_activations
        """In training mode each decoder layer is computed again in the backward instead of being remembered."""
        self.neftune_alpha = neftune_alpha
        """Noise on embeddings in training mode; Jain et al. 2023 take 5 to 15. 0 is none."""
        self.projections = nn.ModuleList()
        """What stands between its hidden states and those of each teacher of its lessons; see `layers.Projections`."""
        self.kernel: Kernel | None = None
        """Takes the place of the attention kernel that would be chosen, to compare them."""
        self._kernels: set[str] = set()  # of the last batch
        if layout == "padded":
            attention.remove(bare(model))
        else:
            attention.install(bare(model))
        _checkpoint_layers(model, checkpoint_activations)

    @property
    def precision(self) -> torch.dtype:
        """bfloat16: products are, by autocast. Else they are in the weights' own type."""
        return self.head.precision

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return bare(self.model).device

    def checkpoint(self, on: bool) -> None:
        """Compute each decoder layer again in the backward, or remember its activations. ModelError where it cannot."""
        _checkpoint_layers(self.model, on)
        self.checkpoint_activations = on

    @contextmanager
    def remembering_a_layer(self) -> Iterator[None]:
        """Within this the last layer is not computed again: what it leaves shows what computing it again takes."""
        layer = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)][-1]
        layer.gradient_checkpointing = False
        try:
            yield
        finally:
            layer.gradient_checkpointing = self.checkpoint_activations

    def narrow(self) -> Self:
        """Hold the matrices of a body that nobody trains in what their products are computed in: autocast would round
        them anew at every call. No number changes by it, and it takes half the memory. The head stays as it is, which
        may be tied to the embeddings; see `OutputHead.narrow`.
        """
        if self.precision == torch.bfloat16:
            for module in bare(self.model).modules():
                if type(module) is nn.Linear and module is not self.head.module:
                    module.to(self.precision)
            self.head.narrow()
        return self

    @property
    def balance_coefficient(self) -> float:
        """The weight of `experts.balance_loss` in plain training of this model: its config's `router_aux_loss_coef`
        where `output_router_logits` is set there, as transformers has it, and 0 for all other models."""
        return experts.balance_coefficient(bare(self.model).config)

    @property
    def experts_per_token(self) -> int:
        """To how many experts each token is routed; `experts.balance_loss` asks."""
        return experts.experts_per_token(bare(self.model).config)

    def forward(
        self, batch: Batch, want: Literal["scores", "routing", "hidden"] = "scores", layers: Sequence[int] = ()
    ) -> Tensor | Routing | tuple[Tensor, ...]:
        """Log-probabilities of the batch's targets, in nats; float32 (float64 for a float64 model), shape (N,).

        Where the batch has a lesson, its figures instead, shape (F, N). With "hidden", for a teacher, what its head
        is asked with at each scored position, and these layers' states there, each of shape (N, D); see
        `layers`. With "routing" also what the balance of experts needs: each real token counts as often as plain
        training would see it, a shared prompt's once a branch. Tuples are plain ones: FSDP2 looks for tensors in them.
        """
        plan = Plan(batch.tree, self.kernel)
        view = self._padded if self.layout == "padded" else self._packed
        lesson = None if want == "hidden" else batch.lesson
        layers = layers if lesson is None else lesson.layers
        bfloat16 = torch.autocast(self.device.type, self.precision, enabled=self.precision == torch.bfloat16)
        with bfloat16, self._states_of(layers) as outputs:
            hidden_TD, logits, weights_R = view(batch, plan, want == "routing")
        hidden_ND = hidden_TD.index_select(0, batch.scored_N)
        states = {n: self._by_token(found, batch).index_select(0, batch.scored_N) for n, found in outputs.items()}
        if want == "hidden":
            return (hidden_ND, *(states[layer] for layer in layers))
        if lesson is None:
            scores = self.head.logps(hidden_ND, batch.targets_N)
        else:
            scores = lesson.with_states(lesson.figures(self.head, hidden_ND, batch.targets_N), states, self.projections)
        if want == "scores":
            return scores
        return (scores, *experts.routing(logits, weights_R, self.experts_per_token))

    def _states_of(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, list[Tensor]]]:
        """Within this, what these layers give; see `layers.collect`. Where there are none nothing is looked for."""
        return collect(self.model, layers) if layers else nullcontext({})

    @contextmanager
    def computing_in(self, precision: torch.dtype) -> Iterator[None]:
        """Within this, the precision is another."""
        before, self.head.precision = self.precision, precision
        try:
            yield
        finally:
            self.head.precision = before

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

    def _packed(self, batch: Batch, plan: Plan, routers: bool) -> Hidden:
        """The body once over all tokens end to end."""
        tree, noise = batch.tree, self._noise(plan)
        tokens_R, weights_R = copied(tree), plan.copies_T
        if self.layout == "packed":
            plan = Plan(unshared(tree), self.kernel)
            weights_R = plan.copies_T
        else:
            tokens_R = tokens_R[: len(batch.tokens_T)]
        positions_R = batch.positions_T[tokens_R]
        output = self._body(batch.tokens_T, tokens_R[None], noise, routers, position_ids=positions_R[None], tree=plan)
        self._kernels = plan.used
        hidden_TD = self._by_token([output.last_hidden_state], batch)
        return hidden_TD, output.router_logits if routers else (), weights_R

    def _padded(self, batch: Batch, plan: Plan, routers: bool) -> Hidden:
        """The body over every path as a padded row, by the model's own attention; then each token's home.

        Padding stands on the right, where causal attention never looks: no mask is needed.
        """
        slots_S, outputs, start, noise = batch.tree.slots_S, [], 0, self._noise(plan)
        for rows, length in batch.tree.buckets:
            tokens_BL = slots_S[start : start + rows * length].view(rows, length)
            outputs.append(self._body(batch.tokens_T, tokens_BL, noise, routers))
            start += rows * length
        hidden_TD = self._by_token([output.last_hidden_state for output in outputs], batch)
        layers = zip(*(output.router_logits for output in outputs), strict=True) if routers else ()
        weights_S = torch.zeros_like(slots_S).index_fill_(0, plan.cells_R, 1)
        return hidden_TD, [torch.cat(parts) for parts in layers], weights_S

    def _by_token(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """What the body's calls gave, each token's where its home is; shape (T, D)."""
        if self.layout != "padded":
            return outputs[0][0, : len(batch.tokens_T)]
        return torch.cat([output.flatten(0, 1) for output in outputs]).index_select(0, batch.tree.home_T)

    def _body(self, tokens_T: Tensor, which: Tensor, noise: Noise | None, routers: bool, **inputs: Any) -> Any:
        """The body's output for these tokens of the batch, an index of any shape."""
        model = bare(self.model)
        if routers:
            inputs["output_router_logits"] = True
        with noise.on(model.get_input_embeddings(), which.flatten()) if noise else nullcontext():
            return model.base_model(input_ids=tokens_T[which], use_cache=False, **inputs)

    def _noise(self, plan: Plan) -> Noise | None:
        return Noise(self.neftune_alpha, plan) if self.model.training and self.neftune_alpha else None

    def facts(self) -> dict[str, str]:
        """What "auto" became, for the manifest."""
        return {
            "device": self.device.type,
            "dtype": str(self.precision).removeprefix("torch."),
            "weights": str(bare(self.model).dtype).removeprefix("torch."),
            "layout": self.layout,
            "attention": "+".join(sorted(self._kernels)) or "the model's own",
            "activation_checkpointing": "every layer" if self.checkpoint_activations else "none",
        }

    @contextmanager
    def lent(self) -> Iterator[PreTrainedModel]:
        """Within this the model generates: with its own attention, nothing dropped out, nothing computed a second time.
        Then all is as it was before."""
        training, checkpointed = self.training, self.checkpoint_activations
        self.release()
        self.eval()
        try:
            yield bare(self.model)
        finally:
            self.train(training)
            _checkpoint_layers(self.model, checkpointed)
            if self.layout != "padded":
                attention.install(bare(self.model))

    def release(self) -> PreTrainedModel:
        """The model with its own attention again, to generate with or to save."""
        attention.remove(bare(self.model))
        _checkpoint_layers(self.model, False)
        return self.model


def _checkpoint_layers(model: nn.Module, on: bool) -> None:
    """Random states are restored where a layer is computed again: gradients are the same bit for bit."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if on and not layers:
        raise ModelError(
            f"model {getattr(model, 'name_or_path', '')}",
            "its layers cannot be computed a second time in the backward",
            "Set activation_checkpointing: false",
        )
    for layer in layers:
        layer.gradient_checkpointing = on
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]


def build_scorer(
    model: PreTrainedModel,
    precision: torch.dtype = torch.float32,
    *,
    checkpoint_activations: bool = False,
    neftune_alpha: float = 0.0,
) -> Scorer:
    """A scorer whose log-probabilities and gradients were compared with the model's own forward.

    Where sharing prompts differs from it, they are packed without; where that differs too (an attention we do not
    know), rows are padded; and it is said. The choice stands in `layout`. Raises ModelError where nothing is right.
    """
    probes = [Probe(model, bare(model).dtype)]  # in the weights' own precision: what is compared is mathematics
    if bare(model).device.type == "cuda" and precision == torch.bfloat16 != bare(model).dtype:
        probes.append(Probe(model, precision))  # there another kernel runs then
    reasons = []
    for layout in LADDER:
        try:
            scorer = Scorer(
                model, layout, precision, checkpoint_activations=checkpoint_activations, neftune_alpha=neftune_alpha
            )
            wrong = next(filter(None, (probe.difference(scorer) for probe in probes)), "")
        except (torch.OutOfMemoryError, ModelError):
            raise
        except (NotImplementedError, TypeError, RuntimeError, ValueError) as error:
            wrong = str(error) or type(error).__name__
        if not wrong:
            break
        reasons.append(f"{layout}: {wrong.splitlines()[0]}")
    else:
        attention.remove(bare(model))
        raise ModelError(
            f"model {bare(model).name_or_path}",
            f"its log-probabilities cannot be computed apart from its own forward ({'; '.join(reasons)})",
            "Use a model of another architecture",
        )
    if reasons:
        logger.warning(
            "batches of this model are %s: what would be faster is not exact (%s)", layout, "; ".join(reasons)
        )
    if scorer.balance_coefficient and (wrong := probes[0].balance_difference(scorer)):
        attention.remove(bare(model))
        raise ModelError(
            f"model {bare(model).name_or_path}",
            f"its config asks for a balance loss of experts that is not ours to compute ({wrong})",
            "Set output_router_logits: false in its config.json to train without",
        )
    return scorer
