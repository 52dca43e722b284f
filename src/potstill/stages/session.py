"""One training stage from its model to its sealed files: what pretrain, sft and dpo do alike."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import Stopped
from potstill.sources import Inputs
from potstill.stages.base import Facts, Work
from potstill.stages.training import TrainingConfig
from potstill.training.adapters import adapter_facts, attach, is_adapted, load_base, save_trained
from potstill.training.batch import Item, Signal
from potstill.training.curves import Row
from potstill.training.data import Split
from potstill.training.loop import Desk, Settings, train
from potstill.training.models import choose_device, choose_precision, resize, save_model
from potstill.training.optimizers import make_optimizers
from potstill.training.reference import Cache, by_answer, column, weights_hash, with_reference
from potstill.training.schedule import Part, global_batches
from potstill.training.scoring import build_scorer
from potstill.training.tasks import Task
from potstill.training.team import Team


class Session:
    """Holds the model while a stage trains it."""

    def __init__(self, config: TrainingConfig, inputs: Inputs, work: Work, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.inputs, self.work, self.tokenizer = config, inputs, work, tokenizer
        self.team, self.device = _team(config, work)
        self.precision = choose_precision(config.dtype, self.device)
        self.settings = _settings(config, self.device)
        self._reference = ""

    def load(self, new_tokens: Sequence[int] = (), *, referred: bool = False) -> None:
        """The stage's `model`, with room for new tokens and with an adapter, where the config asks for them.

        `referred`: it is the reference too, which is what it is before an adapter is attached.
        """
        adapter = self.config.adapter
        model = load_base(self.inputs.model("model"), self.tokenizer, self.device, adapter)
        if new_tokens:
            resize(model, self.tokenizer, new_tokens)
        if referred:
            self._reference = weights_hash(model, self.precision)
        if adapter is not None:
            attach(model, adapter, self.work.seed, new_tokens)
        self.take(model)

    def take(self, model: PreTrainedModel) -> None:
        """Train this model."""
        config = self.config
        torch.manual_seed(self.work.seed + self.team.rank)  # dropout and noise draw from here
        scorer = build_scorer(model, self.precision, neftune_alpha=getattr(config, "neftune_alpha", 0.0))
        optimizers = make_optimizers(scorer, config.optimizer, config.learning_rate, config.weight_decay, config.beta2)
        self.model = model
        self._adapter = {"adapter": adapter_facts(model)} if is_adapted(model) else {}
        self.team.prepare(scorer, optimizers)

    def steps(self, items: Sequence[Item], capacity: int, *, by_tokens: bool = False) -> list[list[Item]]:
        """The global batches of all epochs, of `capacity` rows or tokens each, sources mixed by their weights."""
        sizes = [item.tokens for item in items] if by_tokens else [1] * len(items)
        data = self.inputs.data["data"]
        counts = [sum(item.row.startswith(f"{source.name}/") for item in items) for source in data]
        parts = [Part(source.name, count, source.weight) for source, count in zip(data, counts, strict=True)]
        order = global_batches(sizes, capacity, self.config.epochs, self.work.seed, parts)
        return [[items[index] for index in batch] for batch in order]

    def refer(self, items: Sequence[Item]) -> list[Item]:
        """The items with the reference's log-probabilities as their signals."""
        assert self._reference, "the model was not loaded as a reference"
        cache = Cache(self.work.workspace / "cache" / "reference" / self._reference)
        with self.work.stoppable() as stopping:

            def tell(done: int, total: int) -> None:
                self.work.progress(done, total, "reference tokens")
                if self.team.any(stopping()) and done < total:
                    where = f"token {done:,} of {total:,}"
                    raise Stopped(where, "the reference's pass was asked to stop", "Run again to go on there")

            return with_reference(items, self.team, cache, self.settings.micro_tokens, tell)

    def score(self, items: Sequence[Item]) -> dict[str, tuple[Signal, ...]]:
        """What the model says now of every scored token, by row and answer; in nats."""
        values = column(self.team, items, self.settings.micro_tokens) if items else []
        return {item.row: by_answer(found_N, item) for item, found_N in zip(items, values, strict=True)}

    def train(self, task: Task) -> dict[str, Any]:
        """Train; returns what happened."""

        def follow(row: Row) -> None:
            if row["split"] == "train":
                shown = {name: row[name] for name in SHOWN if name in row}
                self.work.progress(row["step"], len(task.steps), "steps", **shown)

        with self.work.stoppable() as stopping:
            desk = Desk(self.work.path, self.work.state, follow, stopping)
            return train(self.team, task, self.settings, desk)

    def finish(self, split: Split, happened: dict[str, Any]) -> Facts:
        """Save what was trained and the rows left out; returns everything that belongs into the manifest."""
        facts = {**split.facts(), **self.team.scorer.facts(), **self.team.facts(), **happened, **self._adapter}
        model, path, store = self.team.scorer.release(), self.work.path, self.config.store
        weights = self.team.whole(trained_only=is_adapted(model))
        if self.team.rank > 0:
            return facts
        if is_adapted(model):
            save_trained(model, self.inputs.model("model"), self.tokenizer, path, store, weights)
        else:
            save_model(model, self.tokenizer, path, store, weights)
        self.work.drop(split.dropped)
        return facts


SHOWN = ("loss", "accuracy", "margin", "tokens_per_second")
"""What of a row stands in the terminal's line."""


def _team(config: TrainingConfig, work: Work) -> tuple[Team, torch.device]:
    """Who trains, and where this process of it computes."""
    device = choose_device(config.device)
    if not work.launched:
        return Team(), device
    from potstill.training.distributed import join

    return join(config.sharding, device)


def _settings(config: TrainingConfig, device: torch.device) -> Settings:
    return Settings(
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        beta2=config.beta2,
        clip=config.clip,
        evaluations=config.evaluations,
        keep=config.keep,
        patience=config.patience,
        micro_tokens=config.micro_batch_tokens or (4096 if device.type == "cpu" else 16384),
        checkpoint_seconds=60 * config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
    )
