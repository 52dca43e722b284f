"""Overfitting: a held-out loss that rises again while the training goes on, and epochs past the best one.

Two looks. Of a model's own curve: how far the held-out loss where its weights were taken lies above its lowest, set
against the curve's own scatter. Of a family that differs in its epochs alone: whether the last scores below an earlier
one, question by question (Figure 3 of the Zephyr paper: accuracy on the training pairs goes to 100% and the benchmarks
need not fall; where they do, it is past its optimum).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from potstill.evaluation.audits.base import Cell, Danger, Figure, Plot, Point, Series, figure, point
from potstill.evaluation.audits.hypotheses import Effect, Hypothesis, above, hypothesis, mean_effect
from potstill.evaluation.audits.thresholds import LEAST_EVALUATIONS, PAST_OPTIMUM, RISE
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Evidence, Observation, evidence, paired_rows
from potstill.members import SEED, Member, read_member

DANGER = Danger(
    "overfitting",
    "Overfitting",
    "Does the held-out loss end within two per cent of its lowest, and the last epoch score as well as any before it?",
    "Tunstall et al. 2023 (Zephyr), Figure 3; Gao et al. 2023 (over-optimisation)",
    {"rise": RISE, "past_optimum": PAST_OPTIMUM, "least_evaluations": LEAST_EVALUATIONS},
)
EPOCHS = "epochs"
NEAR_LOWEST = 1.1
"""A held-out loss within a tenth of the lowest is past the fall of the beginning."""
NORMAL_MEDIAN = 0.6745
"""The median of |x| of a standard normal x."""


@dataclass(frozen=True)
class Learning:
    """A model's curve."""

    rows: Sequence[Mapping[str, Any]]
    """The lines of curves.jsonl."""
    kept: int | None = None
    """The step whose weights were taken; None: the last."""

    def held_out(self) -> list[tuple[int, float]]:
        """(step, loss) up to the step that was taken."""
        return self._losses("held_out")

    def train(self) -> list[tuple[int, float]]:
        """(step, loss) up to the step that was taken."""
        return self._losses("train")

    def _losses(self, split: str) -> list[tuple[int, float]]:
        last = math.inf if self.kept is None else self.kept
        return [(row["step"], row["loss"]) for row in self.rows
                if row["split"] == split and row["step"] <= last and "loss" in row]  # fmt: skip

    def accuracy(self) -> float | None:
        """On the training pairs at the end, over a tenth of the steps."""
        found = [row["accuracy"] for row in self.rows if row["split"] == "train" and "accuracy" in row]
        last = found[-max(1, len(found) // 10) :]
        return math.fsum(last) / len(last) if last else None


def overfitting(curves: Mapping[str, Learning], results: Mapping[str, SuiteResult], models: Sequence[str]) -> Danger:
    """`curves`: of the models that were trained here; `results`: of suites, for families over epochs."""
    hypotheses, rows, series = list[Hypothesis](), list[tuple[Cell, ...]](), list[Series]()
    for model, learning in curves.items():
        held_out = learning.held_out()
        if held_out:
            one = _rise(model, held_out)
            hypotheses.append(one)
            rows.append(_curve_row(model, learning, one))
            series.append(Series(f"{model}: held out", _points(held_out)))
            series.append(Series(f"{model}: training", _points(_thin(learning.train()))))
    for family in epoch_families(models):
        for suite, result in results.items():
            if all(result.observations.get(model) for model in family):
                found, line = _past_optimum(family, suite, result)
                hypotheses += found
                rows += [(family[-1], f"{suite}: {one.about}", "", "", Figure(one.mean, one.low, one.high, one.n))
                         for one in found]  # fmt: skip
                series.append(line)
    told = {one.model for one in hypotheses}
    why = "it needs held_out rows while it is trained, or members of its family with other epochs and their scores"
    columns = ("model", "of", "training loss", "training accuracy", "lost since the best")
    plot = Plot("step, or epochs", "loss, or score", tuple(series))
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows), plot=plot,
                   missing={model: why for model in models if model not in told})  # fmt: skip


def _rise(model: str, held_out: Sequence[tuple[int, float]]) -> Hypothesis:
    """How far the last loss lies above the lowest, as a share of it.

    The scatter is that of second differences, by their median, which the bend of a healthy curve hardly moves (Rice
    1984). That the lowest is the lowest of many is paid for: its p counts for all of them (Bonferroni).
    """
    losses = [loss for _, loss in held_out]
    lowest = min(losses)
    claim = f"ends above its lowest held-out loss, that of step {held_out[losses.index(lowest)][0]}"
    if len(losses) < LEAST_EVALUATIONS:
        return Hypothesis(model, "held-out loss", claim, losses[-1] / lowest - 1, None, None, len(losses), RISE, None)
    scatter, bends = _scatter(losses)
    rise = Effect((losses[-1] - lowest) / lowest, math.sqrt(2) * scatter / lowest, bends, len(losses))
    p = min(1.0, above(rise, RISE) * (len(losses) - 1))
    return Hypothesis(model, "held-out loss", claim, rise.mean, *rise.ends(), rise.n, RISE, p)


def _scatter(losses: Sequence[float]) -> tuple[float, int]:
    """The standard deviation of a curve's points around it, and from how many second differences that is known.

    The fall of the beginning says nothing of it, and is left out as far as enough points remain.
    """
    begin = next(i for i, loss in enumerate(losses) if loss <= NEAR_LOWEST * min(losses))
    level = losses[min(begin, len(losses) - LEAST_EVALUATIONS) :]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(level, level[1:], level[2:], strict=False)]
    return median(bends) / NORMAL_MEDIAN / math.sqrt(6), len(bends)


def _curve_row(model: str, learning: Learning, one: Hypothesis) -> tuple[Cell, ...]:
    train, accuracy = learning.train(), learning.accuracy()
    last = train[-max(1, len(train) // 10) :]
    mean = mean_effect((str(step), loss) for step, loss in last)
    return (
        model,
        "held-out loss",
        figure(mean) if mean is not None else "",
        Figure(accuracy, share=True) if accuracy is not None else "",
        Figure(one.mean, one.low, one.high, one.n),
    )


def epoch_families(models: Sequence[str]) -> list[list[str]]:
    """Members that differ in their epochs alone, the fewest epochs first; of several seeds, each on its own."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name in models:
        member = read_member(name)
        if EPOCHS in member.values:
            rest = {key: value for key, value in member.values.items() if key != EPOCHS}
            found.setdefault(Member(member.family, rest).name, []).append((float(member.values[EPOCHS]), name))
    return [[name for _, name in sorted(group)] for group in found.values() if len(group) > 1]


def _past_optimum(family: Sequence[str], suite: str, result: SuiteResult) -> tuple[list[Hypothesis], Series]:
    """The last against each earlier one; and the scores over the epochs."""
    last = result.observations[family[-1]]
    found, points = [], []
    for model in family:
        rows = result.observations[model]
        low, high = result.measure.scale
        values = ((row.question, row.value) for row in rows if row.value is not None)
        scores = mean_effect(values, bounds=(low, math.inf if high is None else high))
        if scores is not None:
            points.append(point(_epochs(model), scores))
        if model != family[-1]:
            margin = PAST_OPTIMUM * width(result, rows)
            claim = f"scores below {model} on {suite}: past its optimum"
            found.append(
                hypothesis(
                    family[-1],
                    f"below {model}",
                    claim,
                    lost(last, rows, result.measure),
                    margin,
                    unit=result.measure.unit,
                )
            )
    seed = read_member(family[-1]).values.get(SEED)
    label = f"{read_member(family[-1]).family}{f' seed {seed}' if seed else ''}: {suite}"
    return found, Series(label, tuple(points))


def width(result: SuiteResult, rows: Sequence[Observation]) -> float:
    """Of the suite's scale; of one that has no end, the mean of these rows stands for it."""
    low, high = result.measure.scale
    if high is not None:
        return high - low
    values = [abs(row.value) for row in rows if row.value is not None]
    return math.fsum(values) / len(values) if values else 0.0


def lost(later: Sequence[Observation], earlier: Sequence[Observation], measure: Measure) -> Evidence | None:
    """By how much the later one does worse on the same questions; where it does better, less than 0."""
    worse, better = (earlier, later) if measure.higher_is_better else (later, earlier)
    return evidence(paired_rows(worse, better))


def _epochs(model: str) -> float:
    return float(read_member(model).values[EPOCHS])


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over at most sixty stretches."""
    size = max(1, math.ceil(len(points) / 60))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(value for _, value in part) / len(part)) for part in parts]


def _points(line: Sequence[tuple[int, float]]) -> tuple[Point, ...]:
    return tuple(Point(step, value) for step, value in line)
