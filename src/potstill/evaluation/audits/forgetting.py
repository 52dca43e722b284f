"""Forgetting: what the base could do and the student can no more, on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from potstill.evaluation.audits.base import Cell, Danger, Plot, Point, Series, figure, point
from potstill.evaluation.audits.hypotheses import Hypothesis, hypothesis
from potstill.evaluation.audits.overfitting import lost, width
from potstill.evaluation.audits.thresholds import FORGOTTEN_LOSS, FORGOTTEN_SCORE
from potstill.evaluation.scores import SuiteResult

DANGER = Danger(
    "forgetting",
    "Forgetting",
    "Does the student lose no more than 0.05 nats a token, or two per cent of a scale, on what the base can do?",
    "McCloskey and Cohen 1989; Luo et al. 2023 (catastrophic forgetting in LLM fine-tuning)",
    {"loss": FORGOTTEN_LOSS, "score_share_of_scale": FORGOTTEN_SCORE},
)


def forgetting(
    results: Mapping[str, SuiteResult], base: str, models: Sequence[str], missing: Mapping[str, str]
) -> Danger:
    """Every suite that the base and a model have scores of."""
    hypotheses, rows, points = list[Hypothesis](), list[tuple[Cell, ...]](), dict[str, list[Point]]()
    for suite, result in results.items():
        before = result.observations.get(base, ())
        for model in models:
            effect = lost(result.observations.get(model, ()), before, result.measure)
            if effect is None or model == base:
                continue
            endless = result.measure.scale[1] is None
            margin = FORGOTTEN_LOSS if endless else FORGOTTEN_SCORE * width(result, before)
            claim = f"does worse than {base} on {suite}"
            hypotheses.append(hypothesis(model, suite, claim, effect, margin, unit=result.measure.unit))
            rows.append((model, suite, result.measure.unit, figure(effect)))
            points.setdefault(model, []).append(point(suite, effect))
    columns = ("model", "suite", "unit", f"lost since {base}")
    plot = Plot("", f"lost since {base}", tuple(Series(model, tuple(group)) for model, group in points.items()), 0.0)
    told = {one.model for one in hypotheses}
    why = f"it needs a suite, such as one of answer_loss on texts of the base's own kind, that scores it and {base}"
    gone = {model: why for model in models if model not in told}
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows), plot=plot,
                   missing={**gone, **missing})  # fmt: skip
