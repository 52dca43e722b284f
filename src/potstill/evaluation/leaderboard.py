"""The Open LLM Leaderboard, first version: its tasks and settings, and what its answers come to as observations.

Settings as Beeching et al. 2023 published them. MMLU's aggregate is there the plain mean over 57 subjects; lm-eval's
own group weights each by its size. Everything here is arithmetic: `harness` is what asks the models.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from potstill.evaluation.scores import Measure
from potstill.evaluation.statistics import Observation


@dataclass(frozen=True)
class Setting:
    """How the leaderboard asks one task. Task and metric are called what lm-eval calls them."""

    folder: str
    """Where lm-eval keeps it, below its folder of tasks."""
    shots: int
    """How many solved examples stand before each question."""
    metric: str
    """acc_norm divides each choice's log-probability by its length in letters. TruthfulQA's acc (mc2) is the
    probability of the true answers among all."""
    questions: int
    """How many are asked, as published."""
    parts: int = 1
    """Of how many tasks of their own it is the plain mean."""


V1: dict[str, Setting] = {
    "arc_challenge": Setting("arc", 25, "acc_norm", 1172),
    "hellaswag": Setting("hellaswag", 10, "acc_norm", 10042),
    "mmlu": Setting("mmlu/default", 5, "acc", 14042, parts=57),
    "truthfulqa_mc2": Setting("truthfulqa", 0, "acc", 817),
}

SEED = 1234
"""Of the few-shot examples: lm-eval's own default. Never a recipe's, so that scores of two runs are comparable."""

UNIT = "share of questions"
PROTOCOL, EFFECT = "leaderboard", "template_effect"
MEASURE = Measure(PROTOCOL, (0.0, 1.0), share=True, unit=UNIT)
EFFECT_MEASURE = Measure(EFFECT, (-1.0, 1.0), unit=UNIT)


def observations(values: Mapping[str, Sequence[float | None]]) -> list[Observation]:
    """A task's values by its parts, each in the order of its questions; None where a question could not be scored.

    Every part counts alike, whatever its size: a value's weight is one over how many its part was asked, so that it
    is the same for every model. Parts are strata, for they are fixed and not drawn.
    """
    several = len(values) > 1
    return [
        Observation(
            question=f"{part}/{index}",
            part="",
            value=value,
            weight=1 / len(found) if several else 1.0,
            category=part if several else "",
            stratum=part if several else "",
        )
        for part, found in values.items()
        for index, value in enumerate(found)
    ]


def average(tasks: Mapping[str, Sequence[Observation]]) -> list[Observation]:
    """All tasks as one: each counts alike, and is a category; its parts stay strata of their own."""
    found = []
    for task, rows in tasks.items():
        total = math.fsum(row.weight for row in rows)
        found += [
            replace(row, weight=row.weight / total, category=task, stratum=f"{task}/{row.stratum}") for row in rows
        ]
    return found


def template_effect(templated: Iterable[Observation], plain: Iterable[Observation]) -> list[Observation]:
    """With the chat template minus without, question by question."""
    before = {row.question: row.value for row in plain}
    found = []
    for row in templated:
        other = before[row.question]
        found.append(replace(row, value=None if row.value is None or other is None else row.value - other))
    return found
