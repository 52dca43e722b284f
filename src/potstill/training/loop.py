"""The one training loop. Stages give it a task; it gives back the curve and the kept weights.

Read it top to bottom: a global batch, its denominator, micro-batches, one step, now and then the held-out rows and a
checkpoint. It runs alike in one process and in many, and goes on where an earlier run of it was stopped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.errors import Stopped
from potstill.training.balance import Balance
from potstill.training.batch import Item
from potstill.training.checkpoint import Checkpoints
from potstill.training.curves import CURVES_FILE, Curve, Follower, Measured, Pace, rounded
from potstill.training.optimizers import OptimizerName
from potstill.training.schedule import ScheduleName, rate
from potstill.training.tasks import Objective, Task, Teach, untaught
from potstill.training.team import Team


@dataclass(frozen=True)
class Settings:
    """How to train; each stage fills it from its config."""

    optimizer: OptimizerName
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
    checkpoint_seconds: float = math.inf
    checkpoint_steps: int | None = None


def _nobody(told: Any) -> None:
    pass


@dataclass(frozen=True)
class Desk:
    """Where a training run works."""

    out: Path
    """What is sealed."""
    checkpoints: Path
    """What outlives a run that was stopped."""
    follow: Follower = field(default=_nobody)
    stopping: Callable[[], bool] = field(default=lambda: False)
    """Whether somebody asked this process to end: asked once a step."""
    pace: Pace = field(default_factory=Pace)
    recall: Follower = field(default=_nobody)
    """Told first what an earlier run of this had told."""
    warn: Callable[[str], None] = field(default=_nobody)
    doing: Callable[[str], None] = field(default=_nobody)
    """Told what is done while no step is."""


def train(team: Team, task: Task, settings: Settings, desk: Desk) -> dict[str, Any]:
    """Train the team's scorer in place; writes the curve to `desk.out` and returns what happened, for the manifest."""
    with team.scorer.products():
        return _train(team, task, settings, desk)


def _train(team: Team, task: Task, settings: Settings, desk: Desk) -> dict[str, Any]:
    checkpoints = Checkpoints(desk.checkpoints, team, settings.checkpoint_seconds, settings.checkpoint_steps)
    curve = Curve(len(task.steps), team, desk.follow, desk.pace)
    keeper = _Keeper(settings, checkpoints)
    marks = _marks(len(task.steps), settings.evaluations if task.held_out else 0)
    step = _take_up(team, checkpoints, curve, keeper, desk.warn)
    for row in curve.rows:
        desk.recall(row)
    if step:
        desk.doing(f"goes on from step {step:,} of {len(task.steps):,}")
    else:
        if task.held_out:
            desk.doing("scoring the held-out rows before the first step")
        keeper.offer(0, _evaluate(team, task, settings, curve, 0))
    team.scorer.train()
    while step < len(task.steps) and not keeper.exhausted(step, marks):
        step += 1
        rows = task.steps[step - 1]
        learning_rate = settings.learning_rate * rate(step - 1, len(task.steps), settings.schedule, settings.warmup)
        curve.add(learn(team, task, rows, settings, step, learning_rate))
        if step in marks:
            keeper.offer(step, _evaluate(team, task, settings, curve, step))
        stopping = team.any(desk.stopping())
        if checkpoints.due(step) or stopping:
            curve.flush()  # a checkpoint never holds a loss that is no number
            checkpoints.save(step, {"rows": curve.rows, **keeper.notes()})
        if stopping and step < len(task.steps):
            raise Stopped(f"step {step} of {len(task.steps)}", "training was asked to stop", "Run again to go on there")
    curve.flush()
    keeper.restore(team)
    if team.rank == 0:
        curve.write(desk.out / CURVES_FILE)
    ended = {"ended_by": "patience"} if step < len(task.steps) else {}
    return {"steps": step, **ended, **keeper.facts()}


def learn(
    team: Team, task: Task, rows: Sequence[Item], settings: Settings, step: int, learning_rate: float
) -> Measured:
    """One optimizer step on a global batch: micro-batches, their gradients, the step itself."""
    rows, objective = _coupled(team, task, rows, settings.micro_tokens)
    denominator = math.fsum(task.denominator(item) for item in rows)
    balance = Balance(team, rows, settings.micro_tokens)
    sums: dict[str, Tensor] = {}
    for batch, share, last in team.rounds(rows, settings.micro_tokens):
        taught = task.teach(batch)
        scores, unbalanced = balance.score(taught)
        loss = objective(scores, taught)
        team.backward((loss.sum / denominator + unbalanced) * share, last)
        for name, value in {"loss": loss.sum, **loss.figures, **balance.figures(unbalanced, denominator)}.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
    norm = team.step(settings.clip, learning_rate)
    return Measured(step, rows, sums, norm, denominator, learning_rate)


def _take_up(team: Team, checkpoints: Checkpoints, curve: Curve, keeper: "_Keeper", warn: Callable[[str], None]) -> int:
    """Go on from the latest checkpoint, or from the start; returns the step behind which that is."""
    found = team.first(lambda: checkpoints.latest(warn))
    if found is None:
        return 0
    team.load(found.path)
    curve.rows = found.notes["rows"]
    keeper.take_up(found.notes)
    return found.step


def _marks(steps: int, evaluations: int) -> list[int]:
    """The steps behind which the held-out rows are scored; the last is one of them."""
    return sorted({max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)})


def _coupled(team: Team, task: Task, rows: Sequence[Item], budget: int) -> tuple[Sequence[Item], Objective]:
    """What of these rows is learnt, and by which objective: where it couples the rows, they are measured first."""
    if task.coupling is None:
        assert task.objective is not None
        return rows, task.objective
    coupling = task.coupling
    mode = team.scorer.training
    means = score_all(team, [coupling.first(item) for item in rows], coupling.measure, budget, task.teach)
    team.scorer.train(mode)
    measured = torch.tensor(means["loss"], device=team.scorer.device)
    return [coupling.then(item) for item in rows], coupling.objective(measured)


@torch.no_grad()
def score_all(
    team: Team, items: Sequence[Item], objective: Objective, budget: int, teach: Teach = untaught
) -> dict[str, float]:
    """The objective's means over rows, without gradients, dropout off."""
    team.scorer.eval()
    wide = torch.float32 if team.scorer.device.type == "mps" else torch.float64  # Apple's chips have no wider
    sums: dict[str, Tensor] = {}
    for batch, share, _ in team.rounds(items, budget):
        taught = teach(batch)
        loss = objective(team.score(taught), taught)
        for name, value in {"count": torch.as_tensor(loss.count), "loss": loss.sum, **loss.figures}.items():
            sums[name] = sums.get(name, 0.0) + value.to(team.scorer.device, wide) * share
    names = list(sums)
    values = dict(zip(names, team.total(torch.stack([sums[name] for name in names])).tolist(), strict=True))
    count = values.pop("count")
    return {name: value / count for name, value in values.items()}


def _evaluate(team: Team, task: Task, settings: Settings, curve: Curve, step: int) -> float | None:
    if not task.held_out:
        return None
    curve.flush()
    rows, objective = _coupled(team, task, task.held_out, settings.micro_tokens)
    means = score_all(team, rows, objective, settings.micro_tokens, task.teach)
    team.scorer.train()
    curve.evaluated(step, means)
    return means["loss"]


class _Keeper:
    """Remembers the lowest held-out loss and when it was reached; keeps its weights on disk where they are wanted."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints) -> None:
        self._settings, self._checkpoints = settings, checkpoints
        self._first: float | None = None
        self._best: float | None = None
        self._last: float | None = None
        self._best_step = 0

    def offer(self, step: int, loss: float | None) -> None:
        if loss is None:
            return
        self._last = loss
        self._first = loss if self._first is None else self._first
        if self._best is not None and not loss < self._best:
            return
        self._best, self._best_step = loss, step
        if self._settings.keep == "best":
            self._checkpoints.save_best(step)

    def exhausted(self, step: int, marks: Sequence[int]) -> bool:
        """Whether the loss has not fallen for as many evaluations as patience allows."""
        if self._settings.patience is None:
            return False
        return sum(self._best_step < mark <= step for mark in marks) >= self._settings.patience

    def restore(self, team: Team) -> None:
        """Put the best weights back, where those are to be kept."""
        if self._best is not None and self._settings.keep == "best":
            team.load_weights(self._checkpoints.best(self._best_step))

    def notes(self) -> dict[str, Any]:
        """`best_step` is None where no weights are kept for it."""
        kept = self._settings.keep == "best" and self._best is not None
        losses = {"first": self._first, "best": self._best, "last": self._last}
        return {**losses, "lowest_at": self._best_step, "best_step": self._best_step if kept else None}

    def take_up(self, notes: dict[str, Any]) -> None:
        self._first, self._best, self._last = notes["first"], notes["best"], notes["last"]
        self._best_step = notes["lowest_at"]

    def facts(self) -> dict[str, Any]:
        if self._best is None:
            return {}
        kept = f"step {self._best_step}" if self._settings.keep == "best" else "last"
        losses = {"first": self._first, "best": self._best, "last": self._last}
        return {"kept": kept, "held_out_loss": rounded(losses)}
