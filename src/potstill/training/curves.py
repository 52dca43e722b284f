"""What people watch while a model trains: means over all rows of all workers, step by step.

Values are read from the device a few steps at a time, so that it never waits for them in between. What is sealed holds
no times; those stand in checkpoints, in the live file, and in trackers.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.training.batch import Item
from potstill.training.team import Team

CURVES_FILE = "curves.jsonl"
FLUSH_STEPS = 8
TIMES = ("tokens_per_second", "utilisation")
"""What no two runs agree on."""

Row = dict[str, Any]
Follower = Callable[[Row], None]
"""Told every row as it becomes known, times included."""


@dataclass(frozen=True)
class Measured:
    """What one member of a team measured of a step."""

    step: int
    rows: Sequence[Item]
    """Of all members."""
    sums: Mapping[str, Tensor]
    """Over its own rows."""
    norm: Tensor
    """Of the whole gradient."""
    denominator: float
    learning_rate: float


@dataclass(frozen=True)
class Pace:
    """What speed is measured against; see `speed`."""

    operations: Callable[[Item], float] = field(default=lambda item: 0.0)
    peak: float = 0.0
    """Operations a second of one worker; 0: utilisation is not told."""


class Curve:
    """The rows of a run so far, and what has been measured but not read yet."""

    def __init__(self, steps: int, team: Team, follow: Follower, pace: Pace) -> None:
        self.rows: list[Row] = []
        self._steps, self._team, self._follow, self._pace = steps, team, follow, pace
        self._pending: list[Measured] = []
        self._since = time.perf_counter()

    def add(self, measured: Measured) -> None:
        """One more step."""
        self._pending.append(measured)
        if len(self._pending) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Read what is pending. Raises ModelError where a loss is no number any more."""
        if not self._pending:
            return
        names = list(self._pending[0].sums)
        sums_SF = torch.stack([torch.stack([m.sums[name].float() for name in names]) for m in self._pending])
        norms_S = torch.stack([m.norm.float() for m in self._pending])
        values_SF, norms = self._team.total(sums_SF).tolist(), norms_S.tolist()
        speed = self._speed(max(time.perf_counter() - self._since, 1e-9))
        for measured, values, norm in zip(self._pending, values_SF, norms, strict=True):
            means = {name: value / measured.denominator for name, value in zip(names, values, strict=True)}
            if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
                raise self._diverged(measured.step, f"the loss is {means['loss']}, the gradient's norm {norm}")
            row = {"step": measured.step, "split": "train", **means, "grad_norm": norm}
            self._keep({**row, "learning_rate": measured.learning_rate}, speed)
        self._pending.clear()
        self._since = time.perf_counter()

    def _diverged(self, step: int, what: str) -> ModelError:
        remedy = "Lower learning_rate, lengthen warmup or set dtype: float32, and it trains anew; run again "
        remedy += "as it is, and it goes on from the last checkpoint"
        return ModelError(f"step {step} of {self._steps}", f"training has diverged: {what}", remedy)

    def _speed(self, seconds: float) -> Row:
        """Of the steps that are pending."""
        rows = [item for measured in self._pending for item in measured.rows]
        speed = {"tokens_per_second": sum(item.tokens for item in rows) / seconds}
        if self._pace.peak:
            share = sum(self._pace.operations(item) for item in rows) / seconds / (self._pace.peak * self._team.size)
            speed["utilisation"] = share
        return speed

    def evaluated(self, step: int, means: Mapping[str, float]) -> None:
        """Means over the held-out rows. Raises ModelError where their loss is no number."""
        if not math.isfinite(means["loss"]):
            if step == 0:
                what = f"the held-out loss is {means['loss']} before training"
                raise ModelError(f"step 0 of {self._steps}", what, "Set dtype: float32, or start from another model")
            raise self._diverged(step, f"the held-out loss is {means['loss']}")
        self._keep({"step": step, "split": "held_out", **means}, {})
        self._since = time.perf_counter()  # scoring them is no training time

    def _keep(self, row: Row, speed: Row) -> None:
        self.rows.append(rounded({**row, **speed}))
        self._follow(self.rows[-1])

    def write(self, path: Path) -> None:
        """Every row without its times, as JSON lines."""
        timeless = ({name: value for name, value in row.items() if name not in TIMES} for row in self.rows)
        with storage_errors(path), path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in timeless)


def rounded(row: Row) -> Row:
    """To six digits."""
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
