"""Drift of length and of hedging: answers that grow or shrink, and that hedge or decline more, from stage to stage.

Paired by question and turn, against the teacher and against the model before in the recipe's order. A hedge is a phrase
in which an answer speaks of being a machine; `curation.phrases` knows them, and refusals.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from potstill.curation.phrases import hedges, refusal
from potstill.evaluation.audits.base import TOO_FEW, Cell, Danger, Figure, Plot, Point, Series, figure, point
from potstill.evaluation.audits.hypotheses import (
    ANYWHERE,
    OF_DIFFERENCES,
    Effect,
    Hypothesis,
    ends_of,
    hypothesis,
    mean_effect,
)
from potstill.evaluation.audits.said import Said, paired
from potstill.evaluation.audits.thresholds import DRIFT_HEDGES, DRIFT_LENGTH, DRIFT_REFUSALS

DANGER = Danger(
    "drift",
    "Drift of length and hedging",
    "Are answers about as long as those they are set against, and do they hedge and decline hardly more often?",
    "Singhal et al. 2023 (A Long Way to Go); Tunstall et al. 2023 (Zephyr), on hedges in its data",
    {"log_length": DRIFT_LENGTH, "hedges": DRIFT_HEDGES, "refusals": DRIFT_REFUSALS},
)

Read = Callable[[str], float]
MEASURES: tuple[tuple[str, float, bool, float, Read], ...] = (
    ("log length", DRIFT_LENGTH, True, 0.0, lambda text: math.log(max(1, len(text.split())))),
    ("hedging answers", DRIFT_HEDGES, False, 1.0, lambda text: float(next(hedges(text), None) is not None)),
    ("refusals", DRIFT_REFUSALS, False, 1.0, lambda text: float(refusal(text) is not None)),
)
"""What is compared, its margin, whether less is drift too, and what one answer changes it by, where it is a share."""


def drift(
    answers: Mapping[str, Sequence[Said]], against: Mapping[str, Sequence[str]], missing: Mapping[str, str]
) -> Danger:
    """`answers`: by model; `against`: by student, whom it is set against."""
    hypotheses, rows, series = list[Hypothesis](), list[tuple[Cell, ...]](), list[Series]()
    for model, others in against.items():
        points = list[Point]()
        for other in others:
            both = paired(answers[model], answers[other])
            for name, margin, two_sided, grain, read in MEASURES:
                effect = _effect(both, read, grain)
                if effect is None:
                    continue
                about = f"{name} against {other}"
                claim = f"differs from {other} in {name}" if two_sided else f"has more {name} than {other}"
                hypotheses.append(hypothesis(model, about, claim, effect, margin, two_sided=two_sided))
                rows.append((model, f"− {other}", name, _ratio(effect) if two_sided else figure(effect)))
                points.append(point(about, effect))
        series.append(Series(model, tuple(points)))
    columns = ("model", "against", "of", "paired difference (of length: the ratio)")
    plot = Plot("", "paired difference", tuple(series), 0.0)
    told = {one.model for one in hypotheses}
    gone = {model: "it has no answers to what the other was asked" for model in against if model not in told}
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows), plot=plot,
                   missing={**missing, **gone})  # fmt: skip


def _effect(both: Sequence[tuple[Said, Said]], read: Read, grain: float) -> Effect | None:
    differences = (
        (f"{one.suite}/{one.question}", read(one.text or "") - read(other.text or "")) for one, other in both
    )
    return mean_effect(differences, grain, OF_DIFFERENCES if grain else ANYWHERE)


def _ratio(effect: Effect) -> Cell:
    low, high = ends_of(effect)
    if low is None or high is None:
        return TOO_FEW
    return Figure(math.exp(effect.mean), math.exp(low), math.exp(high), effect.n)
