"""What is known of a judge after it graded answers, one at a time, that people graded or compared too.

The order of two answers of a row is that of their grades, equal ones being a tie: that is how far single grading says
what people prefer. Grades themselves are held against people's as correlations and, on one scale, as an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from potstill.evaluation.agreement import Valued, clustered_share
from potstill.evaluation.correlation import Matched, jackknifed, kendall, spearman
from potstill.evaluation.judge_trial import Comparison, agreement_report
from potstill.evaluation.repeats import Repeated, grades_again
from potstill.evaluation.statistics import Observation, mean_estimate


@dataclass(frozen=True)
class Graded:
    """One answer, and its grades."""

    cluster: str
    """The prompt."""
    people: Fraction | None
    """The mean of what people gave, on their own scale; None where they compared without grading."""
    grades: tuple[float | None, ...]
    """The judge's, each time that it was asked; None where that could not be read."""

    @property
    def grade(self) -> float | None:
        """The first."""
        return self.grades[0]


def order_of(one: float | None, other: float | None) -> float | None:
    """The first's share of the win that two grades imply."""
    return None if one is None or other is None else (1 + (one > other) - (one < other)) / 2


def grades_report(
    answers: Sequence[Graded], comparisons: Sequence[Comparison], scales: tuple[tuple[float, float], ...] | None
) -> dict[str, Any]:
    """Everything on one judge, as JSON. `scales`: the ends of people's scale and of the judge's, for the error."""
    read = [Valued(row.cluster, float(row.grade is not None)) for row in answers]
    both = [
        Matched(row.cluster, row.people, row.grade)
        for row in answers
        if row.people is not None and row.grade is not None
    ]
    asked = sum(row.people is not None for row in answers)
    repeated = [Repeated(row.cluster, row.grades) for row in answers if len(row.grades) > 1]
    return {
        "answers": len(answers),
        "comparisons": len(comparisons),
        "coverage": clustered_share(read).to_json(),
        **agreement_report(comparisons),
        "correlation": _correlations(both, asked) if asked else None,
        "error": error_of(both, asked, *scales) if asked and scales else None,
        "again": {"times": len(repeated[0].values), **grades_again(repeated)} if repeated else None,
    }


def _correlations(both: Sequence[Matched], asked: int) -> dict[str, Any]:
    """Of ranks, over all answers of all prompts."""
    coverage = {"coverage": len(both) / asked}
    return {
        "spearman": jackknifed(both, spearman, fisher=True).to_json() | coverage,
        "kendall": jackknifed(both, kendall, fisher=True).to_json() | coverage,
    }


def error_of(
    both: Sequence[Matched], asked: int, people: tuple[float, float], judge: tuple[float, float]
) -> dict[str, Any]:
    """The judge's grade less people's, in points of the judge's scale onto which theirs is stretched."""
    low, high = map(Fraction, people)
    least, most = map(Fraction, judge)
    away = [
        (pair.cluster, float(Fraction(pair.other) - least - (pair.one - low) * (most - least) / (high - low)))
        for pair in both
    ]
    span = float(most - least)
    coverage = {"coverage": len(both) / asked}
    absolute = mean_estimate([Observation(cluster, "", abs(value)) for cluster, value in away], (0.0, span))
    signed = mean_estimate([Observation(cluster, "", value) for cluster, value in away], (-span, span))
    return {"absolute": absolute.to_json() | coverage, "signed": signed.to_json() | coverage}
