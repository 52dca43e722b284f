"""What a stage that trains takes: its own step, rehearsed, and then as many of them as the recipe asks for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from potstill.errors import ModelError, PotstillError
from potstill.estimates.base import Change, Estimate
from potstill.estimates.measured import Pace
from potstill.estimates.models import Known
from potstill.estimates.rows import Sample
from potstill.hardware import Hardware
from potstill.objectives.divergence import Divergence
from potstill.stages.distill import ACROSS, DistillConfig
from potstill.stages.dpo import REFERENCE_FREE, DpoConfig
from potstill.stages.pretrain import PretrainConfig
from potstill.stages.training import TrainingConfig
from potstill.training.adapter_config import Adapter
from potstill.training.batch import Item
from potstill.training.lesson import Aims
from potstill.training.loop import Settings
from potstill.training.memory import PREFERRED_TOKENS, Plan, decide
from potstill.training.rehearsal import Cast, Play, Takes, rehearse
from potstill.training.scoring import Scorer
from potstill.training.tasks import Task, distillation, likelihood, preference
from potstill.training.taught_head import room_bytes
from potstill.training.tellers import Present, lessons

OWN_BYTES = {"cuda": 600 << 20, "workers": 500 << 20}
"""What CUDA's context and cuBLAS take on a GPU, and NCCL's buffers beside them: seen on A100 and H100."""
TOKENS_ON_DISK = 5
"""Bytes of a token in the cache: its number and whether it is learnt."""
CHECKPOINTS = 3
"""Two stay, and one is being written."""
MORE_DEVICES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Lot:
    """A stage's rows, and how it passes over them."""

    sample: Sample
    rows: int
    held_out: int

    @property
    def trained(self) -> int:
        """Rows of an epoch."""
        return max(1, round(self.rows * self.sample.share) - self.held_out)


@dataclass(frozen=True)
class Variant:
    """A stage under some settings, rehearsed."""

    config: TrainingConfig
    workers: int
    micro_tokens: int
    takes: Takes
    items: Sequence[Item]
    pieces: int
    """Micro-batches of a worker in an optimizer step."""
    memory: dict[str, int]
    peak: int
    checkpointed: bool


class Trainer:
    """One stage on one kind of hardware."""

    def __init__(self, config: TrainingConfig, model: Known, teachers: Sequence[Known], lot: Lot, pace: Pace) -> None:
        self.config, self.model, self.teachers, self.lot, self.pace = config, model, teachers, lot, pace
        self._standing: dict[tuple[Adapter | None, bool], Takes] = {}

    def estimate(self, name: str, family: str, hardware: Hardware) -> Estimate:
        """Under the recipe's settings; where that does not fit, with the nearest that do. `family`: what the recipe
        calls the stage, or those that it is one of."""
        workers = hardware.count if self.config.sharding != "none" else 1
        variant = self.variant(self.config, workers, hardware)
        assert variant is not None, "it was asked for anyway"
        available = hardware.device.memory_bytes
        change = None
        if variant.peak > available:
            change = next(self._nearest(family, hardware), None)
        seconds = self.seconds(variant, hardware)
        price = hardware.device.usd_per_hour
        idle = hardware.count - workers
        assumed = [self.lot.sample.said] if self.lot.sample.said else []
        if idle:
            assumed.append(f"one of {hardware.count} devices works in {name}, the others wait: {family}.sharding=fsdp2")
        if getattr(self.config, "on_policy", None) is not None:
            assumed.append(f"the time in which {name}'s student answers is not counted")
        if getattr(self.config, "divergence", "") in ACROSS:
            assumed.append(f"{name} compares as if both sides had the same tokens")
        return Estimate(
            stage=name,
            kind=str(self.config.kind),
            devices=workers,
            memory=variant.memory,
            peak_bytes=variant.peak,
            available_bytes=available,
            settings={"micro_batch_tokens": variant.micro_tokens, "activation_checkpointing": variant.checkpointed},
            change=change,
            tokens=self.tokens,
            seconds=seconds,
            starting_seconds=self.pace.start_seconds,
            usd=None if price is None else seconds / 3600 * price * hardware.count,
            disk=self._disk(variant),
            assumed=tuple(assumed),
        )

    @property
    def tokens(self) -> int:
        """Read in training."""
        return round(self.lot.trained * self.lot.sample.mean * self.config.epochs)

    @property
    def _step_tokens(self) -> float:
        """Of a global batch."""
        if isinstance(self.config, PretrainConfig):
            return min(self.config.batch_tokens, self.lot.trained * self.lot.sample.mean)
        rows = min(self.config.global_batch, self.lot.trained)  # type: ignore[attr-defined]
        return float(rows * self.lot.sample.mean)

    def variant(
        self, config: TrainingConfig, workers: int, hardware: Hardware, *, anyway: bool = True
    ) -> Variant | None:
        """Rehearsed: to know what stands and what "auto" becomes; then with a micro-batch. None where what stands alone
        is too much, unless it is to be rehearsed `anyway`."""
        few = self.lot.sample.batch(min(1024.0, self._step_tokens))
        own, available = self._own(workers, hardware), hardware.device.memory_bytes
        found: dict[bool, Takes] = {}

        def each(checkpointed: bool) -> int:
            if checkpointed not in found:
                key = config.adapter, checkpointed  # of what is changed in a search, this alone changes what stands
                if key not in self._standing:
                    self._standing[key] = self._rehearsed(config, few, checkpointed, standing=True)
                found[checkpointed] = self._standing[key]
            return max(1, round(found[checkpointed].each))

        chosen = self._decided(config, each, found, workers, hardware)
        before = found[chosen.checkpoint_activations]
        pieces = math.ceil(max(1, math.ceil(self._step_tokens / chosen.micro_tokens)) / workers)
        items = self.lot.sample.batch(self._step_tokens / (pieces * workers))
        least = sum(_of_device(before, workers, own).values())
        least += round(before.each * min(chosen.micro_tokens, sum(item.tokens for item in items)))
        if not anyway and max(least, before.loading + own) > available:
            return None
        takes = self._rehearsed(config, items, chosen.checkpoint_activations, accumulates=pieces > 1)
        takes.loading = before.loading
        memory = _of_device(takes, workers, own)
        if kept := round(self.pace.kept * takes.worst):
            memory["kept between uses"] = kept
        peak = max(sum(memory.values()), round(takes.loading) + own)
        checkpointed = chosen.checkpoint_activations
        return Variant(config, workers, chosen.micro_tokens, takes, items, pieces, memory, peak, checkpointed)

    def _decided(
        self,
        config: TrainingConfig,
        each: Callable[[bool], int],
        found: Mapping[bool, Takes],
        workers: int,
        hardware: Hardware,
    ) -> Plan:
        """As `memory.plan` would, on a device that is empty but for what stands."""
        asked = config.activation_checkpointing
        each(bool(asked))
        takes = found[bool(asked)]
        standing = takes.weights + takes.teachers + (takes.gradients + takes.optimizer) / workers
        free = hardware.device.memory_bytes - self._own(workers, hardware) - round(standing)
        if isinstance(config, DistillConfig):
            free -= room_bytes(self.model.config.get_text_config().vocab_size)
        longest = max(item.tokens for item in self.lot.sample.items)
        worth_while = PREFERRED_TOKENS[hardware.device.kind]
        return decide(each, longest, free, worth_while, config.micro_batch_tokens, asked)

    def _own(self, workers: int, hardware: Hardware) -> int:
        """What is taken before there is a model."""
        if hardware.device.kind == "cpu":
            return self.pace.own_bytes
        return OWN_BYTES["cuda"] + (OWN_BYTES["workers"] if workers > 1 else 0)

    def _rehearsed(
        self,
        config: TrainingConfig,
        items: Sequence[Item],
        checkpointed: bool,
        *,
        standing: bool = False,
        accumulates: bool = False,
    ) -> Takes:
        cast, play = replace(self.cast(config, checkpointed), accumulates=accumulates), self.play(config)
        try:
            return rehearse(cast, signalled(config, items), play, self.pace.roof, standing=standing)
        except PotstillError:
            raise
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # code of its own, as a rule
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            what = f"a step of it cannot be rehearsed without memory: {first}"
            raise ModelError(
                f"model {self.model.name}", what, "Run the stage on a few rows, and look at its peak"
            ) from error

    def cast(self, config: TrainingConfig, checkpointed: bool) -> Cast:
        """Who takes part."""
        stored = self.model.config.dtype or torch.float32
        settings = Settings(
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            beta2=config.beta2,
            clip=config.clip,
            evaluations=1,
            keep="last",
            patience=None,
            micro_tokens=1 << 62,
        )
        return Cast(
            self.model.config,
            getattr(torch, stored) if isinstance(stored, str) else stored,
            settings,
            config.adapter,
            tuple(teacher.config for teacher in self.teachers),
            checkpointed,
            precision=self.pace.precision(config.dtype),
            device=self.pace.kind,
        )

    def play(self, config: TrainingConfig) -> Play:
        """The stage's objective."""

        def task(scorer: Scorer, teachers: Sequence[Scorer]) -> Task:
            if isinstance(config, DpoConfig):
                loss = "sigmoid" if config.loss == "kto" else config.loss  # both read two answers of a prompt
                return preference([], [], loss, {"beta": 0.1} if config.loss == "kto" else config.parameters)
            if isinstance(config, DistillConfig) and teachers:
                configs = [self.model.config, *(teacher.config for teacher in self.teachers)]
                rows = min(one.get_text_config().vocab_size for one in configs)
                name = "jsd" if config.divergence in ACROSS else config.divergence
                mix = None if config.divergence in ACROSS else config.mix
                aims = Aims(Divergence(name, mix, config.temperature or 1.0), rows)  # type: ignore[arg-type]
                return distillation([], [], lessons(aims, [Present(one, rows) for one in teachers]), ["divergence"])
            return likelihood([], [])

        return task

    def seconds(self, variant: Variant, hardware: Hardware) -> float:
        """All of the stage: start, reference, training, evaluations."""
        takes, config, lot = variant.takes, variant.config, self.lot
        batch = sum(item.tokens for item in variant.items)
        steps = self.steps
        factor = self.pace.factor
        micro, step = takes.seconds * factor, takes.step_seconds * factor / variant.workers
        if variant.workers > 1 and (link := hardware.device.link_bytes_per_second):
            gathered = 3 * 4 * takes.parameters * (variant.workers - 1) / variant.workers
            micro = max(micro, gathered / link)
        training = steps * step + self.tokens / variant.workers / batch * micro
        forward = takes.forward_seconds * factor / batch / variant.workers
        held_out = min(lot.held_out, lot.rows) * lot.sample.mean
        scored = held_out * (config.evaluations + 1)
        if isinstance(config, DpoConfig) and config.loss not in REFERENCE_FREE:
            scored += lot.trained * lot.sample.mean + 2 * held_out
        return self.pace.start_seconds + training + scored * forward

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(
            1, round(self.config.epochs * math.ceil(self.lot.trained * self.lot.sample.mean / self._step_tokens))
        )

    def _disk(self, variant: Variant) -> dict[str, int]:
        takes, config = variant.takes, variant.config
        trained = 4 * takes.trained
        width = 4 if config.store == "float32" or (config.store == "auto" and _is_wide(self.model)) else 2
        rows = self.lot.rows * self.lot.sample.mean
        disk = {
            "checkpoints, until it is sealed": CHECKPOINTS * (trained + takes.optimizer),
            "model": takes.parameters * width + (trained if config.adapter is not None else 0),
            "cache of tokens": TOKENS_ON_DISK * rows,
        }
        if config.keep == "best":
            disk["checkpoints, until it is sealed"] += 2 * trained
        if isinstance(config, DpoConfig) and config.loss not in REFERENCE_FREE:
            disk["cache of the reference"] = 4 * self.lot.rows * self.lot.sample.scored
        return {name: round(value) for name, value in disk.items()}

    def _nearest(self, name: str, hardware: Hardware) -> Iterator[Change]:
        """Settings that fit, the least change first."""
        for config, devices, overrides in self._others(name, hardware):
            try:
                variant = self.variant(config, devices, replace(hardware, count=devices), anyway=False)
            except ValueError:  # an adapter that this model cannot carry
                continue
            if variant is not None and variant.peak <= hardware.device.memory_bytes:
                yield Change(tuple(overrides), devices, variant.peak)

    def _others(self, name: str, hardware: Hardware) -> Iterator[tuple[TrainingConfig, int, list[str]]]:
        config = self.config
        longest = max(item.tokens for item in self.lot.sample.items)
        workers = hardware.count if config.sharding != "none" else 1
        smaller: list[dict[str, Any]] = []
        if config.micro_batch_tokens is not None:
            tokens = config.micro_batch_tokens // 2
            while tokens > longest:
                smaller.append({"micro_batch_tokens": tokens})
                tokens //= 2
            smaller.append({"micro_batch_tokens": longest})
        if config.activation_checkpointing is False:
            smaller += [{"activation_checkpointing": True}]
            smaller += [{"activation_checkpointing": True, "micro_batch_tokens": longest}]
        for change in smaller:
            yield config.model_copy(update=change), workers, _overrides(name, change)
        lightest: dict[str, Any] = {"activation_checkpointing": True, "micro_batch_tokens": longest}
        said = {field: value for field, value in lightest.items() if getattr(config, field) is not None}
        for change, devices in self._larger(hardware):
            # What the recipe leaves open, training makes as small as it has to be; what it says has to be said anew.
            yield config.model_copy(update={**lightest, **change}), devices, [*_overrides(name, {**change, **said})]

    def _larger(self, hardware: Hardware) -> Iterator[tuple[dict[str, Any], int]]:
        """Changes beyond what is computed at once, and on how many devices."""
        config, on_gpus = self.config, hardware.device.kind == "cuda"
        can_share = on_gpus and config.optimizer != "muon" and not (config.adapter and config.adapter.kind == "qlora")
        if can_share and hardware.count > 1 and config.sharding == "none":
            yield {"sharding": "fsdp2"}, hardware.count
        kinds = [] if config.optimizer == "muon" else ["lora", "qlora"] if on_gpus else ["lora"]
        for kind in kinds:
            if config.adapter is None or (kind == "qlora" and config.adapter.kind != "qlora"):
                adapter = (config.adapter or Adapter()).model_copy(update={"kind": kind})
                yield {"adapter": adapter, **({"sharding": "none"} if config.sharding != "none" else {})}, 1
        for devices in MORE_DEVICES if can_share else ():
            if devices > hardware.count:
                yield {"sharding": "fsdp2" if config.sharding == "none" else config.sharding}, devices


def _overrides(stage: str, change: Mapping[str, Any]) -> list[str]:
    """As they are written on the command line."""
    written = []
    for field, value in change.items():
        if isinstance(value, Adapter):
            written.append(f"{stage}.{field}.kind={value.kind}")
        else:
            written.append(f"{stage}.{field}={str(value).lower() if isinstance(value, bool) else value}")
    return written


def _is_wide(known: Known) -> bool:
    stored = known.config.dtype
    return stored in (None, torch.float32, "float32")


def signalled(config: TrainingConfig, items: Sequence[Item]) -> list[Item]:
    """The rows with a reference's column, where the loss reads one."""
    import numpy as np

    if not isinstance(config, DpoConfig) or config.loss in REFERENCE_FREE:
        return list(items)
    return [
        replace(item, signals=tuple(np.zeros(int(learn_L.sum()), dtype=np.float32) for _, learn_L in item.answers))
        for item in items
    ]


def _of_device(takes: Takes, workers: int, own: int) -> dict[str, int]:
    """By part, at the worst moment, on the device that holds the most. Workers that share a model hold a part each of
    what is trained, and gather two layers and what stands around them in float32 while they compute."""
    alone = workers == 1
    full = min(takes.gradients, max(0.0, takes.worst - takes.activations))
    parts = {
        "weights": takes.weights / workers,
        "gradients": full if alone else takes.gradients / workers,
        "optimizer": takes.optimizer / workers,
        "teachers": takes.teachers,
        "activations": takes.activations,
        "temporary": takes.worst - takes.activations - full,
        "gathered": 0.0 if alone else 2 * takes.largest_layer + takes.around,
        "framework": float(own),
    }
    return {name: round(value) for name, value in parts.items() if round(value) > 0}
