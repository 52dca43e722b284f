"""What students keep of a teacher's score, and what each model is and was asked: the part that can be sealed."""

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.evaluation.scores import SuiteResult
from potstill.evaluation.statistics import Observation, paired_ratio, pooled
from potstill.members import pools

AMOUNTS = ("parameters", "weights_bytes", "answers", "prompt_tokens", "completion_tokens")
"""Of a model that answered: what it is on disk, and how much it was asked and said."""


def kept(result: SuiteResult, models: Sequence[str], teacher: str) -> dict[str, Any]:
    """Each student's score over the teacher's, by name, on the questions that both have a value for.

    {mean, low, high, n}: a paired ratio with its 95% interval. Members of a family count as one model. Nothing where
    the teacher has no score, or nobody keeps a share of it: a lower one is better, or it may lie below zero.
    """
    measure = result.measure
    if not measure.higher_is_better or measure.scale[0] < 0 or teacher not in _rows(result):
        return {}
    rows = _rows(result)
    return {
        name: paired_ratio(rows[name], rows[teacher]).to_json() for name in models if name != teacher and name in rows
    }


def _rows(result: SuiteResult) -> dict[str, list[Observation]]:
    return {
        name: pooled([result.observations[one] for one in members])
        for name, members in pools(result.observations).items()
    }


def amounts(evaluations: Sequence[Mapping[str, Mapping[str, int | None]]]) -> dict[str, dict[str, int | None]]:
    """By model, or family of them, what several evaluations say of it: its size, and the mean of what it was asked.

    `evaluations`: the facts `answering` of each. None is what nobody knows, such as the size of a model behind an
    endpoint.
    """
    found: dict[str, list[Mapping[str, int | None]]] = {}
    for evaluation in evaluations:
        for name, members in pools(evaluation).items():
            found.setdefault(name, []).extend(evaluation[one] for one in members)
    return {name: {what: _mean([one.get(what) for one in rows]) for what in AMOUNTS} for name, rows in found.items()}


def _mean(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if known and len(known) == len(values) else None
