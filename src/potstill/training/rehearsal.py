"""A training step without memory: the stage's own code on tensors that have a shape and no bytes, and what it takes.

Nothing is estimated that can be counted: the model is built from its config, the adapter attached, the optimizer made,
and an optimizer step is taken by the loop's own `learn`, all on torch's fake tensors, while a `Tally` counts bytes.
Deep models are rehearsed twice, with few of their layers, and each figure goes on in a line.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from potstill.training import head
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach, hold_base
from potstill.training.attention import choose_kernel
from potstill.training.batch import Batch, Item, collate, cut
from potstill.training.loop import Settings, learn
from potstill.training.making import renumber
from potstill.training.memory import bytes_at_once, middling
from potstill.training.models import footprint, rows_of
from potstill.training.optimizers import STATES, make_optimizers
from potstill.training.scoring import Scorer
from potstill.training.tally import Roof, Tally
from potstill.training.tasks import Task
from potstill.training.team import Team

FEW_LAYERS = (2, 4)
"""A deeper model is rehearsed with so many of its layers, first and then, times the length of its pattern."""
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 whose scales, one of 64 weights, are in 8 bits (Dettmers et al. 2023, section 3)."""


@dataclass(frozen=True)
class Cast:
    """Who takes part in a stage of training."""

    config: PreTrainedConfig
    """The model that is trained."""
    stored: torch.dtype
    """What its weights are stored in, which a base that carries an adapter is held in."""
    settings: Settings
    adapter: Adapter | None = None
    teachers: tuple[PreTrainedConfig, ...] = ()
    """Who reads beside it, weights at hand."""
    checkpoint: bool = False
    accumulates: bool = False
    """Whether a step has several micro-batches, so that gradients are there while a forward is computed."""
    precision: torch.dtype = torch.bfloat16
    device: str = "cuda"
    """The kind of device that it is rehearsed for."""

    @property
    def four_bits(self) -> bool:
        """Whether its base is."""
        return self.adapter is not None and self.adapter.kind == "qlora"

    @property
    def held(self) -> torch.dtype:
        """What a base that carries an adapter is held in, or computed in if it is in 4 bits; see `hold_base`."""
        return torch.bfloat16 if self.four_bits else self.stored


Play = Callable[[Scorer, Sequence[Scorer]], Task]
"""From the student's scorer and its teachers' to what there is to learn."""


@dataclass
class Takes:
    """What a stage takes. Bytes of one device that holds everything; seconds by the roof."""

    weights: float = 0.0
    """Of the model, as they are held while it trains."""
    gradients: float = 0.0
    optimizer: float = 0.0
    teachers: float = 0.0
    activations: float = 0.0
    """What the forward of a micro-batch leaves for its backward."""
    at_head: float = 0.0
    """The most beside what stands until the first gradient of the body is there: activations, the head's chunk."""
    in_body: float = 0.0
    """The most from then on: gradients, what is left of the activations."""
    loading: float = 0.0
    """The most before the first step: the whole model in float32, and the probe that its layout is right."""
    largest_layer: float = 0.0
    """Weights of a layer, and of what stands around them: what workers that share a model gather at once."""
    around: float = 0.0
    each: float = 0.0
    """Bytes of a token at the worst moment; see `memory.bytes_at_once`."""
    parameters: float = 0.0
    trained: float = 0.0
    forward_seconds: float = 0.0
    """A micro-batch without gradients, teachers with it."""
    seconds: float = 0.0
    """A micro-batch, forward and backward, teachers with it."""
    step_seconds: float = 0.0
    """The optimizer's."""
    flops: float = 0.0
    """Of products, in a micro-batch."""

    @property
    def standing(self) -> float:
        """What is there all the time."""
        return self.weights + self.optimizer + self.teachers

    @property
    def peak(self) -> float:
        """The most at once."""
        return max(self.loading, self.standing + self.worst)

    @property
    def worst(self) -> float:
        """The most beside what stands."""
        return max(self.at_head, self.in_body)


class _Stagehand(Team):
    """One process, whose batches were laid out beforehand: that looks at numbers."""

    def rounds(self, items: Sequence[Item], budget: int) -> Iterator[tuple[Batch, float, bool]]:
        with _disable_current_modes():
            groups = [collate(group) for group in cut(items, budget) if group]
        for number, batch in enumerate(groups, start=1):
            yield batch, 1.0, number == len(groups)


def rehearse(cast_: Cast, items: Sequence[Item], play: Play, roof: Roof, *, standing: bool = False) -> Takes:
    """What a stage takes that computes these items in a micro-batch. ModelError as training would raise it.

    `standing`: only what is there before the first step, loading with it, and what a token leaves; no step is taken.
    Otherwise what loading takes is left out, which no micro-batch changes.
    """
    everyone = (cast_.config, *cast_.teachers)
    lows = [_few(config, 0) for config in everyone]
    found = base = _rehearse(cast_, items, play, roof, lows, standing=standing)
    for place, config in enumerate(everyone):
        layers, high = layers_of(config), _few(config, 1)
        if layers == lows[place]:
            continue
        counts = [*lows[:place], high, *lows[place + 1 :]]
        more = _rehearse(cast_, items, play, roof, counts, standing=standing)
        times = (layers - lows[place]) / (high - lows[place])
        grown = {f.name: times * (getattr(more, f.name) - getattr(base, f.name)) for f in fields(Takes)}
        found = Takes(**{name: getattr(found, name) + more_of for name, more_of in grown.items()})
    return found


def layers_of(config: PreTrainedConfig) -> int:
    """How many it has."""
    return int(config.get_text_config().num_hidden_layers)


def _few(config: PreTrainedConfig, which: int) -> int:
    """With how many layers a model is rehearsed, first and then; all of one that is not deeper."""
    layers, (low, high) = layers_of(config), (count * _period(config) for count in FEW_LAYERS)
    return layers if layers <= high + 2 else (low, high)[which]


def _period(config: PreTrainedConfig) -> int:
    """After how many layers their pattern begins anew."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or [])
    return next((n for n in range(1, len(kinds)) if all(kinds[i] == kinds[i % n] for i in range(len(kinds)))), 1)


def with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The same with its first layers alone."""
    fewer = copy.deepcopy(config)
    if count < fewer.get_text_config().num_hidden_layers:
        renumber(fewer.get_text_config(), {layer: layer for layer in range(count)})
    return fewer


@contextmanager
def without_memory(roof: Roof) -> Iterator[Tally]:
    """Within this, tensors that are made have a shape and no bytes."""
    apply, nn.Module._apply = nn.Module._apply, _by_new_parameters  # type: ignore[method-assign]
    try:
        with head.nothing_spare(), FakeTensorMode(allow_non_fake_inputs=True), Tally(roof) as tally:
            yield tally
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]


def _by_new_parameters(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In place of torch's own, which would swap what parameters hold: those without memory refuse that."""
    for part in module.modules() if recurse else (module,):
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    part._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """In float32, as models are loaded."""
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    kind: Any = AutoModelForCausalLM
    return cast(PreTrainedModel, kind.from_config(config, dtype=torch.float32))


def scorer_of(model: PreTrainedModel, cast_: Cast) -> Scorer:
    """With the attention that the device would have."""
    try:
        scorer = Scorer(model, precision=cast_.precision)
    except NotImplementedError:
        return Scorer(model, "padded", cast_.precision)
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window, cap = getattr(config, "sliding_window", None), getattr(config, "attn_logit_softcapping", None)
    kernel = choose_kernel(cast_.device, cast_.precision, (width, width), window, cap, 0.0)
    scorer.kernel = "rows" if kernel == "rows" else "varlen"  # FlexAttention keeps as much; written out, it keeps more
    return scorer


def company(cast_: Cast, layers: Sequence[int]) -> list[Scorer]:
    """The teachers, with so many layers each, as they are held while they are asked."""
    found = []
    for config, count in zip(cast_.teachers, layers, strict=True):
        model = build(with_layers(config, count))
        model.requires_grad_(False)
        found.append(scorer_of(model, cast_).narrow().eval())
    return found


def _rehearse(
    cast_: Cast, items: Sequence[Item], play: Play, roof: Roof, layers: Sequence[int], *, standing: bool = False
) -> Takes:
    """With so many layers of the student and of each teacher."""
    takes = Takes()
    with without_memory(roof) as tally:
        scorer = _student(cast_, layers[0], tally, takes, probed=standing)
        tally.phase()
        teachers = company(cast_, layers[1:])
        takes.loading = max(takes.loading, float(tally.peak))  # a teacher is read in float32, and narrowed then
        takes.teachers = sum(_bytes(one) for one in teachers)
        if cast_.device == "cuda" and cast_.precision == torch.bfloat16:  # `OutputHead.narrow`
            takes.teachers += 2.0 * sum(rows_of(one.head.module) * _width(one) for one in teachers)
        team, task = _Stagehand(), play(scorer, teachers)
        optimizers = make_optimizers(
            scorer, cast_.settings.optimizer, 1e-6, cast_.settings.weight_decay, cast_.settings.beta2
        )
        if cast_.adapter is not None and cast_.precision == torch.bfloat16:
            hold_base(scorer.model, cast_.held)
        takes.weights = _bytes(scorer) - (_saved_by_four_bits(scorer.model) if cast_.four_bits else 0.0)
        team.prepare(scorer, optimizers)
        scorer.train()
        scorer.checkpoint(cast_.checkpoint)
        takes.gradients = float(sum(p.nbytes for p in team.trained.values()))
        with scorer.products():
            if standing:
                with _disable_current_modes():
                    batch = middling(items)
                takes.each = float(bytes_at_once(scorer, batch, task.teach))
                takes.optimizer = float(footprint(scorer, STATES[cast_.settings.optimizer]).optimizer)
                return takes
            _forward_alone(team, task, items, tally, takes)
            _one_step(_Marks(team, tally), task, items, cast_, sum(map(_bytes, teachers)), takes)
    return takes


def _student(cast_: Cast, layers: int, tally: Tally, takes: Takes, *, probed: bool) -> Scorer:
    """Loaded, probed, with its adapter: as `Session.load` has it."""
    model = build(with_layers(cast_.config, layers))
    takes.parameters = float(sum(p.numel() for p in model.parameters()))
    body = [p for name, p in model.named_parameters() if ".layers." in name or ".h." in name]
    takes.largest_layer = sum(p.nbytes for p in body) / layers
    takes.around = float(sum(p.nbytes for p in model.parameters()) - sum(p.nbytes for p in body))
    if cast_.adapter is not None:
        attach(model, cast_.adapter, 0)
    takes.trained = float(sum(p.numel() for p in model.parameters() if p.requires_grad))
    saved = 0.0
    if cast_.four_bits:  # each matrix is rounded as it is read, and made wide again for its product alone
        hold_base(model, cast_.held)
        saved = _saved_by_four_bits(model)
        tally.phase()
    scorer = scorer_of(model, cast_)
    if probed:
        _probe(scorer)
    takes.loading = tally.peak - saved
    return scorer


def _probe(scorer: Scorer) -> None:
    """What `build_scorer` compares, by one pass; gradients are dropped as they are made."""
    with _disable_current_modes():
        batch = collate(_probe_items(scorer))
    trained = (parameter for parameter in scorer.parameters() if parameter.requires_grad)
    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in trained]  # type: ignore[no-untyped-call]
    scorer(batch).mean().backward()
    for hook in hooks:
        hook.remove()


def _drop(parameter: Any) -> None:
    parameter.grad = None


def _probe_items(scorer: Scorer) -> list[Item]:
    from potstill.training import probe

    return probe._items(probe.bare(scorer.model).config.get_text_config().vocab_size)


def _saved_by_four_bits(model: nn.Module) -> float:
    """Bytes that bitsandbytes would save of the matrices that carry an adapter, as they are held here."""
    base = (p for name, p in model.named_parameters() if name.endswith("base_layer.weight"))
    return sum((p.itemsize - FOUR_BITS) * p.numel() for p in base)


def _forward_alone(team: Team, task: Task, items: Sequence[Item], tally: Tally, takes: Takes) -> None:
    tally.phase()
    team.scorer.eval()
    with torch.no_grad():
        for batch, _, _ in team.rounds(items, 1 << 62):
            team.score(task.teach(batch))
    takes.forward_seconds = tally.seconds
    team.scorer.train()


class _Marks:
    """What is alive when the forward is done, and the most before and after the body has its first gradient."""

    def __init__(self, team: Team, tally: Tally) -> None:
        self.team, self.tally = team, tally
        self.after_forward = self.at_head = self.in_body = self.seconds = self.flops = 0.0
        self._backward = team.backward
        team.backward = self._marked  # type: ignore[method-assign]

    def _marked(self, loss: Any, last: bool) -> None:
        self.after_forward = float(self.tally.live)
        body = (p for name, p in self.team.trained.items() if ".layers." in name or ".h." in name)
        hooks = [p.register_post_accumulate_grad_hook(self._first) for p in body]  # type: ignore[no-untyped-call]
        self._backward(loss, last)
        for hook in hooks:
            hook.remove()
        self.at_head = self.at_head or float(self.tally.peak)
        self.in_body, self.seconds, self.flops = float(self.tally.peak), self.tally.seconds, float(self.tally.flops)
        self.tally.phase()

    def _first(self, parameter: Any) -> None:
        if not self.at_head:
            self.at_head, self.tally.peak = float(self.tally.peak), self.tally.live


def _one_step(marks: "_Marks", task: Task, items: Sequence[Item], cast_: Cast, beside: float, takes: Takes) -> None:
    """An optimizer step, once the optimizer holds all that it will: by a step that moves nothing. `beside`: bytes of
    teachers."""
    team, tally, accumulates = marks.team, marks.tally, cast_.accumulates
    for parameter in team.trained.values():
        parameter.grad = torch.zeros_like(parameter)
    team.step(1.0, 0.0)
    for parameter in team.trained.values() if accumulates else ():
        parameter.grad = torch.zeros_like(parameter)
    tally.phase()
    learn(team, task, items, cast_.settings, 1, 1e-6)
    takes.step_seconds = tally.seconds
    takes.optimizer = float(sum(_held(one) for one in team.optimizers))
    base = _bytes(team.scorer) + beside + takes.optimizer
    takes.activations = marks.after_forward - base - (takes.gradients if accumulates else 0.0)
    takes.at_head = marks.at_head - base
    takes.in_body = max(marks.in_body, tally.peak) - base
    takes.seconds, takes.flops = marks.seconds, marks.flops


def _width(scorer: Scorer) -> int:
    return int(scorer.model.config.get_text_config().hidden_size)


def _held(optimizer: torch.optim.Optimizer) -> int:
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))


def _bytes(module: nn.Module) -> float:
    return float(sum(t.nbytes for t in (*module.parameters(), *module.buffers())))
