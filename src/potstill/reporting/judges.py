"""What a trial found of judges, as a table of words: for the page and the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = Mapping[str, Any]

SHARES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("agrees with most people", ("agreement",)),
    ("agrees, where neither sees a tie", ("agreement_where_decided",)),
    ("agrees, asked in one order", ("agreement_one_order",)),
    ("prefers what it is shown first", ("position", "first_share")),
    ("says the same in both orders", ("position", "consistency")),
    ("says the same when asked again", ("again", "same")),
    ("prefers the longer text", ("length", "longer_share")),
    ("gives longer texts more than people do", ("length", "bias")),
    ("gives texts with more lists more than people do", ("lists", "bias")),
    ("calls it a tie", ("ties", "judge")),
    ("could be read", ("coverage",)),
)
"""Printed in percent."""
NUMBERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kappa with most people", ("kappa",)),
    ("rank correlation with people's grades (Spearman)", ("correlation", "spearman")),
    ("the same, by pairs (Kendall)", ("correlation", "kendall")),
    ("mean absolute error, in points", ("error", "absolute")),
    ("grades above people's, in points", ("error", "signed")),
    ("correlation with itself, asked again", ("again", "correlation")),
    ("points apart, asked again", ("again", "difference")),
)


@dataclass(frozen=True)
class JudgeTable:
    """A row a measure, a cell a judge: the value, and its 95% interval."""

    name: str
    judges: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    note: str


def judge_table(name: str, trial: Value) -> JudgeTable:
    """The table of a trial.json. A row stands there where one of the judges has the measure."""
    judges = trial["judges"]
    rows = []
    for measures, share in ((SHARES, True), (NUMBERS, False)):
        for label, steps in measures:
            found = [_at(judge, steps) for judge in judges.values()]
            if any(found):
                rows.append((label, tuple(_cell(one, share=share) for one in found)))
    return JudgeTable(name, tuple(judges), tuple(rows), _note(trial))


def _at(judge: Value, steps: tuple[str, ...]) -> Value | None:
    value: Any = judge
    for step in steps:
        value = None if value is None else value.get(step)
    return None if value is None else dict(value)


def _note(trial: Value) -> str:
    """What people did on the same answers, without which a judge's figures say little."""
    people, judge = trial["people"], next(iter(trial["judges"].values()))
    if trial["protocol"] == "grade":
        words = [
            f"{judge['answers']:,} answers, each graded by itself; {people['comparisons']:,} comparisons by people."
        ]
    else:
        words = [f"{people['comparisons']:,} comparisons, each shown in both orders."]
    if trial["repeats"] > 1:
        words.append(f"The same was asked {trial['repeats']} times, at temperature {trial['temperature']:g}.")
    if people["agreement_of_two"]["mean"] is not None:
        words.append(f"Two people agree on {people['agreement_of_two']['mean']:.0%} of them.")
    longer = judge["length"]["people_longer_share"]
    if longer["mean"] is not None:
        words.append(f"Where the lengths differ, most people prefer the longer text in {longer['mean']:.0%}.")
    if trial["protocol"] == "pairwise":
        words.append("Where place plays no part, half of the preferences fall on what is shown first.")
    return " ".join(words)


def _cell(estimate: Value | None, *, share: bool) -> tuple[str, str]:
    if estimate is None or estimate["mean"] is None:
        return "none", ""
    ends = [estimate["low"], estimate["high"]]
    range_ = "" if None in ends else " to ".join(_number(end, share=share) for end in ends)
    return _number(estimate["mean"], share=share), range_


def _number(value: float, *, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.2f}"
