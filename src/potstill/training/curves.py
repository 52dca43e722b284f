"""What people watch while a model trains: means over all rows of all workers, step by step.

Values are read from the device a few steps at a time, so that it never waits for them in between. What is sealed holds
no times; those stand in the live file beside it, and in trackers.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.training.team import Team

CURVES_FILE = "curves.jsonl"
FLUSH_STEPS = 8

Row = dict[str, Any]
Follower = Callable[[Row], None]
"""Told every row as it becomes known, times included."""


class Curve:
    """The rows of a run so far, and what has been measured but not read yet."""

    def __init__(self, steps: int, team: Team, follow: Follower, flops_per_token: float = 0.0) -> None:
        self.rows: list[Row] = []
        self._steps, self._team, self._follow = steps, team, follow
        self._flops = flops_per_token
        self._pending: list[tuple[int, Mapping[str, Tensor], Tensor, float, float, int]] = []
        self._since = time.perf_counter()

    def add(
        self, step: int, sums: Mapping[str, Tensor], norm: Tensor, denominator: float, rate: float, tokens: int
    ) -> None:
        """What this member measured of a step: sums over its own rows, the norm of the gradient, tokens of all."""
        self._pending.append((step, sums, norm, denominator, rate, tokens))
        if len(self._pending) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Read what is pending. Raises ModelError where a loss is no number any more."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        sums_SF = torch.stack([torch.stack([sums[name].float() for name in names]) for _, sums, *_ in self._pending])
        norms_S = torch.stack([norm.float() for _, _, norm, *_ in self._pending])
        values_SF, norms = self._team.total(sums_SF).tolist(), norms_S.tolist()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        speed = sum(tokens for *_, tokens in self._pending) / seconds
        for (step, _, _, denominator, rate, _), values, norm in zip(self._pending, values_SF, norms, strict=True):
            means = {name: value / denominator for name, value in zip(names, values, strict=True)}
            if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
                raise ModelError(
                    f"step {step} of {self._steps}",
                    f"training has diverged: the loss is {means['loss']}, the gradient's norm {norm}",
                    "Lower learning_rate, lengthen warmup, or set dtype: float32",
                )
            row = {"step": step, "split": "train", **means, "grad_norm": norm, "learning_rate": rate}
            self._keep(row, {"tokens_per_second": speed})
        self._pending.clear()
        self._since = time.perf_counter()

    def evaluated(self, step: int, means: Mapping[str, float]) -> None:
        """Means over the held-out rows."""
        self._keep({"step": step, "split": "held_out", **means}, {})
        self._since = time.perf_counter()  # scoring them is no training time

    def _keep(self, row: Row, speed: Row) -> None:
        self.rows.append(rounded(row))
        self._follow(rounded({**row, **speed}))

    def write(self, path: Path) -> None:
        """Every row, as JSON lines."""
        with storage_errors(path), path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)


def rounded(row: Row) -> Row:
    """To six digits."""
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
