"""One training stage from its model to its sealed files: what pretrain, sft and dpo do alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.artifact import storage_errors, write_json
from potstill.errors import Stopped
from potstill.sources import Inputs
from potstill.stages.base import Facts, Work
from potstill.stages.training import TrainingConfig
from potstill.training.adapters import adapter_facts, attach, hold_base, is_adapted, load_base, save_trained
from potstill.training.batch import Item, Signal
from potstill.training.curves import Follower, Pace, Row
from potstill.training.data import Split, mixture, mixture_facts
from potstill.training.loop import Desk, Settings, train
from potstill.training.memory import Plan, memory_errors, plan
from potstill.training.models import choose_device, choose_precision, load_tokenizer, resize, save_model, stored_dtype
from potstill.training.optimizers import STATES, make_optimizers
from potstill.training.probe import check_positions
from potstill.training.reference import Cache, by_answer, column, weights_hash, with_reference
from potstill.training.schedule import global_batches
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.speed import matrix_peak, operations
from potstill.training.tasks import Task, Teach, untaught
from potstill.training.team import Team
from potstill.training.tokens import Store
from potstill.training.watch import Guard, everyone, live_file, trackers


class Session:
    """Holds the model while a stage trains it."""

    def __init__(
        self, config: TrainingConfig, inputs: Inputs, work: Work, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """`tokenizer`: None takes that of the stage's model."""
        self.config, self.inputs, self.work = config, inputs, work
        self.tokenizer = tokenizer or load_tokenizer(inputs.model("model"))
        self.store = Store(work.workspace)
        self.team, self.device = _team(config, work)
        self.precision = choose_precision(config.dtype, self.device)
        self._reference = ""

    def load(
        self,
        split: Split,
        new_tokens: Sequence[int] = (),
        *,
        referred: bool = False,
        fit: Callable[[Scorer], Teach] = lambda scorer: untaught,
        longest: Sequence[Item] = (),
    ) -> None:
        """The stage's `model`, with room for new tokens and with an adapter, where the config asks for them.

        `referred`: it is the reference too, which is what it is before an adapter is attached. `fit` as in `take`.
        `longest` stands for rows that will be made on the way, where memory is planned.
        """
        self.work.doing("loading the model")
        adapter, source = self.config.adapter, self.inputs.model("model")
        as_it_was = load_tokenizer(source) if new_tokens else self.tokenizer  # the model knows no new ones yet
        model = load_base(source, as_it_was, self.device, adapter)
        check_positions(model, [*split.train, *split.held_out])
        if new_tokens:
            resize(model, self.tokenizer, new_tokens)
        if referred:
            self._reference = weights_hash(model, self.precision)
        if adapter is not None:
            attach(model, adapter, self.work.seed, new_tokens)
        self.take(model, [*split.train, *longest], fit)

    def take(
        self,
        model: PreTrainedModel,
        items: Sequence[Item],
        fit: Callable[[Scorer], Teach] = lambda scorer: untaught,
    ) -> None:
        """Train this model on such items; whatever is "auto" is decided here.

        `fit` is called with its scorer while that is whole, and before anything is made for what is trained in it. It
        gives what batches will be taught by, which takes memory too.
        """
        config = self.config
        torch.manual_seed(self.work.seed + self.team.rank)  # dropout and noise draw from here
        scorer = build_scorer(model, self.precision, neftune_alpha=getattr(config, "neftune_alpha", 0.0))
        teach = fit(scorer)
        optimizers = make_optimizers(scorer, config.optimizer, config.learning_rate, config.weight_decay, config.beta2)
        self.model = model
        self.pace = Pace(operations(model), matrix_peak(self.device, self.precision))
        self.work.doing("measuring memory")
        chosen = self.team.first(lambda: self._memory(scorer, items, teach))
        scorer.checkpoint(chosen.checkpoint_activations)
        if config.adapter is not None and self.precision == torch.bfloat16:
            hold_base(model, stored_dtype(model))
        self.settings = _settings(config, chosen.micro_tokens)
        self._adapter = {"adapter": adapter_facts(model)} if is_adapted(model) else {}
        self.team.prepare(scorer, optimizers)

    def _memory(self, scorer: Scorer, items: Sequence[Item], teach: Teach) -> Plan:
        """How memory is used. What was decided when the stage began holds until it is sealed, so that a run that was
        stopped goes on as it would have gone."""
        config, note = self.config, self.work.state / "memory.json"
        before = _noted(note)
        micro_tokens = config.micro_batch_tokens or before.micro_batch_tokens
        checkpoint = config.activation_checkpointing
        checkpoint = before.activation_checkpointing if checkpoint is None else checkpoint
        chosen = plan(scorer, items, STATES[config.optimizer], self.team.size, micro_tokens, checkpoint, teach)
        with storage_errors(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, chosen.notes())
        return chosen

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Within this, rows are encoded: by the team's first member, then by the others, who find it in the store."""
        if self.team.rank > 0:
            self.team.wait()
        self.work.doing("reading rows and counting tokens")
        yield
        if self.team.rank == 0:
            self.team.wait()

    def steps(self, items: Sequence[Item], capacity: int, *, by_tokens: bool = False) -> list[list[Item]]:
        """The global batches of all epochs, of `capacity` rows or tokens each, sources mixed by their weights."""
        sizes = [item.tokens for item in items] if by_tokens else [1] * len(items)
        parts = mixture(items, self.inputs.data["data"])
        order = global_batches(sizes, capacity, self.config.epochs, self.work.seed, parts)
        self._mixture = mixture_facts(parts)
        return [[items[index] for index in batch] for batch in order]

    def refer(self, items: Sequence[Item]) -> list[Item]:
        """The items with the reference's log-probabilities as their signals."""
        assert self._reference, "the model was not loaded as a reference"
        cache = Cache(self.work.workspace / "cache" / "reference" / self._reference)
        with self.work.stoppable() as stopping, memory_errors(self.settings.micro_tokens):

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

    def train(self, task: Task, guard: Guard | None = None) -> dict[str, Any]:
        """Train; returns what happened."""

        def tell(row: Row) -> None:
            if row["split"] == "train":
                shown = {name: row[name] for name in SHOWN if name in row}
                self.work.progress(row["step"], len(task.steps), "steps", **shown)

        with ExitStack() as stack:
            watching: list[Follower] = [guard] if guard else []
            if self.team.rank == 0:
                watching.append(stack.enter_context(live_file(self.work.live_curves)))
                if self.config.track:
                    config = self.config.model_dump(mode="json")
                    watching.append(stack.enter_context(trackers(self.config.track, self.work, config)))
            follow, recall = everyone([tell, *watching]), everyone(watching)
            stopping = stack.enter_context(self.work.stoppable())
            stack.enter_context(memory_errors(self.settings.micro_tokens))
            desk = Desk(
                self.work.path, self.work.state, follow, stopping, self.pace, recall, self.work.warn, self.work.doing
            )
            happened = train(self.team, task, self.settings, desk)
        return {**happened, "warnings": guard.warnings} if guard and guard.warnings else happened

    def finish(self, split: Split, happened: dict[str, Any]) -> Facts:
        """Save what was trained and the rows left out; returns everything that belongs into the manifest."""
        self.work.doing("saving the model")
        decided = {**self.team.scorer.facts(), "micro_batch_tokens": self.settings.micro_tokens}
        facts = {**happened, **split.facts(), **decided, **self.team.facts(), **self._adapter, **self._mixture}
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


class _Noted(BaseModel):
    """What was decided when a stage began; see `memory.Plan.notes`."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    activation_checkpointing: bool | None = None


def _noted(note: Path) -> _Noted:
    """What the file says; nothing where it is damaged."""
    try:
        return _Noted.model_validate_json(note.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return _Noted()


SHOWN = ("loss", "accuracy", "margin", "tokens_per_second", "utilisation")
"""What of a row stands in the terminal's line."""


def _team(config: TrainingConfig, work: Work) -> tuple[Team, torch.device]:
    """Who trains, and where this process of it computes."""
    device = choose_device(config.device)
    if not work.launched:
        return Team(), device
    from potstill.training.distributed import join

    return join(config.sharding, device)


def _settings(config: TrainingConfig, micro_tokens: int) -> Settings:
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
        micro_tokens=micro_tokens,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
    )
