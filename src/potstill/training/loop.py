"""The one training loop. Stages give it rows and an objective; it gives back the curve and the kept weights.

Read it top to bottom: a global batch, its denominator, micro-batches, one step, now and then the held-out rows.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.objectives.base import Loss
from potstill.objectives.likelihood import nll
from potstill.training.batch import Batch, Item, micro_batches
from potstill.training.schedule import ScheduleName, rate
from potstill.training.scoring import Scorer

CURVES_FILE = "curves.jsonl"
FLUSH_STEPS = 8  # losses are read from the device this often, so that it never waits for them in between

Progress = Callable[..., None]
"""Told (done, total, unit, **figures); see `stages.base`."""

Objective = Callable[[Tensor, Batch], Loss]
"""From log-probabilities of the scored positions, and the batch they belong to."""


@dataclass(frozen=True)
class Settings:
    """How to train; each stage fills it from its config."""

    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    schedule: ScheduleName
    warmup: float
    weight_decay: float
    beta2: float
    clip: float
    evaluations: int
    """How many times the held-out rows are scored on the way, evenly spaced; once more before the first step."""
    keep: Literal["best", "last"]
    patience: int | None
    micro_tokens: int


@dataclass(frozen=True)
class Task:
    """What to train on."""

    steps: Sequence[Sequence[Item]]
    """One global batch an optimizer step."""
    held_out: Sequence[Item]
    objective: Objective
    denominator: Callable[[Item], float]
    """What a row adds to the objective's count: known before anything is computed, so that the split into micro-batches
    cannot change the gradient."""


def likelihood(steps: Sequence[Sequence[Item]], held_out: Sequence[Item]) -> Task:
    """The task of pretraining and SFT: the mean over learnt tokens of -log p."""
    return Task(steps, held_out, lambda logp_N, batch: nll(logp_N, batch.weights_N), lambda item: float(item.scored))


def train(scorer: Scorer, task: Task, settings: Settings, out: Path, progress: Progress) -> dict[str, Any]:
    """Train in place; writes the curve to `out` and returns what happened, for the manifest."""
    with scorer.products():
        return _train(scorer, task, settings, out, progress)


def _train(scorer: Scorer, task: Task, settings: Settings, out: Path, progress: Progress) -> dict[str, Any]:
    parameters = [p for p in scorer.parameters() if p.requires_grad]
    optimizers = _optimizers(scorer, settings)
    curve = _Curve(len(task.steps), progress)
    keeper = _Keeper(scorer, settings)
    marks = _marks(len(task.steps), settings.evaluations if task.held_out else 0)
    keeper.offer(0, _evaluate(scorer, task, settings, curve, 0))
    scorer.train()
    for step, rows in enumerate(task.steps, start=1):
        learning_rate = settings.learning_rate * rate(step - 1, len(task.steps), settings.schedule, settings.warmup)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate
        denominator = math.fsum(task.denominator(item) for item in rows)
        sums: dict[str, Tensor] = {}
        for batch in micro_batches(rows, settings.micro_tokens):
            batch = batch.to(scorer.device)
            loss = task.objective(scorer(batch), batch)
            (loss.sum / denominator).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.sum, **loss.figures}.items():
                sums[name] = sums.get(name, 0) + value.detach()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        means = {name: value / denominator for name, value in sums.items()}
        curve.add(step, means | {"grad_norm": norm}, learning_rate, sum(item.tokens for item in rows))
        if step in marks:
            keeper.offer(step, _evaluate(scorer, task, settings, curve, step))
            if keeper.exhausted(step, marks):
                break
    curve.flush()
    keeper.restore()
    curve.write(out / CURVES_FILE)
    return {"steps": step, **keeper.facts()}


def _optimizers(scorer: Scorer, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the body's matrices beside it. Decay, where there is any, falls on matrices only."""
    trained = [(name, p) for name, p in scorer.named_parameters() if p.requires_grad]
    body = (
        {name for name, p in trained if p.ndim == 2 and ".layers." in name} if settings.optimizer == "muon" else set()
    )
    rest = [p for name, p in trained if name not in body]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        fused=True,
    )
    if not body:
        return [adamw]
    muon = torch.optim.Muon(
        [p for name, p in trained if name in body],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def _marks(steps: int, evaluations: int) -> list[int]:
    """The steps behind which the held-out rows are scored; the last is one of them."""
    return sorted({max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)})


@torch.no_grad()
def score_all(scorer: Scorer, items: Sequence[Item], objective: Objective, micro_tokens: int) -> dict[str, float]:
    """The objective's means over rows, and its count, without gradients."""
    scorer.eval()
    sums: dict[str, float] = {}
    count = 0.0
    for batch in micro_batches(items, micro_tokens):
        batch = batch.to(scorer.device)
        loss = objective(scorer(batch), batch)
        count += float(loss.count)
        for name, value in {"loss": loss.sum, **loss.figures}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / count for name, value in sums.items()}


def _evaluate(scorer: Scorer, task: Task, settings: Settings, curve: "_Curve", step: int) -> float | None:
    if not task.held_out:
        return None
    curve.flush()
    means = score_all(scorer, task.held_out, task.objective, settings.micro_tokens)
    scorer.train()
    curve.rows.append({"step": step, "split": "held_out", **_rounded(means)})
    return means["loss"]


class _Curve:
    """Collects what each step measured; reads it from the device a few steps at a time."""

    def __init__(self, steps: int, progress: Progress) -> None:
        self.rows: list[dict[str, Any]] = []
        self.steps, self.progress = steps, progress
        self.pending: list[tuple[int, dict[str, Tensor], float]] = []
        self.tokens, self.since = 0, time.perf_counter()

    def add(self, step: int, measured: dict[str, Tensor], learning_rate: float, tokens: int) -> None:
        self.pending.append((step, measured, learning_rate))
        self.tokens += tokens
        if len(self.pending) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Raises ModelError where a loss is no number any more."""
        if not self.pending:
            return
        for step, measured, learning_rate in self.pending:
            values = {name: float(value) for name, value in measured.items()}
            if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
                raise ModelError(
                    f"step {step} of {self.steps}",
                    f"training has diverged: the loss is {values['loss']}, the gradient's norm {values['grad_norm']}",
                    "Lower learning_rate, lengthen warmup, or set dtype: float32",
                )
            row = {"step": step, "split": "train", **values, "learning_rate": learning_rate}
            self.rows.append(_rounded(row))
        seconds = time.perf_counter() - self.since
        last = self.rows[-1]
        self.progress(
            last["step"], self.steps, "steps", loss=last["loss"], tokens_per_second=self.tokens / max(seconds, 1e-9)
        )
        self.pending.clear()

    def write(self, path: Path) -> None:
        with storage_errors(path), path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}


class _Keeper:
    """Remembers the weights with the lowest held-out loss, and when it was last lowered."""

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        self.scorer, self.settings = scorer, settings
        self.best: float | None = None
        self.best_step = 0
        self.first: float | None = None
        self.last: float | None = None
        self.weights: list[Tensor] | None = None

    def offer(self, step: int, loss: float | None) -> None:
        if loss is None:
            return
        self.last = loss
        self.first = loss if self.first is None else self.first
        if self.best is not None and not loss < self.best:
            return
        self.best, self.best_step = loss, step
        if self.settings.keep == "best":
            self.weights = [p.detach().to("cpu", copy=True) for p in self.scorer.parameters()]

    def exhausted(self, step: int, marks: Sequence[int]) -> bool:
        """Whether the loss has not fallen for as many evaluations as patience allows."""
        if self.settings.patience is None:
            return False
        return sum(self.best_step < mark <= step for mark in marks) >= self.settings.patience

    @torch.no_grad()
    def restore(self) -> None:
        if self.weights is not None:
            for parameter, kept in zip(self.scorer.parameters(), self.weights, strict=True):
                parameter.copy_(kept)

    def facts(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        kept = self.best_step if self.settings.keep == "best" else None
        losses = {"first": self.first, "best": self.best, "last": self.last}
        return {"kept": "last" if kept is None else f"step {kept}", "held_out_loss": _rounded(losses)}
