"""What a trial found of judges, as a table of words: for the page and the terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = Mapping[str, Any]

MEASURES: tuple[tuple[str, Callable[[Value], Value]], ...] = (
    ("agrees with most people", lambda judge: judge["agreement"]),
    ("agrees, asked in one order", lambda judge: judge["agreement_one_order"]),
    ("kappa with most people", lambda judge: judge["kappa"]),
    ("prefers what it is shown first", lambda judge: judge["position"]["first_share"]),
    ("says the same in both orders", lambda judge: judge["position"]["consistency"]),
    ("prefers the longer text", lambda judge: judge["length"]["longer_share"]),
    ("calls it a tie", lambda judge: judge["ties"]["judge"]),
)


@dataclass(frozen=True)
class JudgeTable:
    """A row a measure, a cell a judge: the value, and its 95% interval."""

    name: str
    judges: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    note: str


def judge_table(name: str, trial: Value) -> JudgeTable:
    """The table of a trial.json."""
    judges, people = trial["judges"], trial["people"]
    rows = [(label, tuple(_cell(label, find(judge)) for judge in judges.values())) for label, find in MEASURES]
    rows.append(("verdicts that could be read", tuple((f"{judge['coverage']:.1%}", "") for judge in judges.values())))
    longer = next(iter(judges.values()))["length"]["people_longer_share"]
    return JudgeTable(name, tuple(judges), tuple(rows), _note(people, longer))


def _note(people: Value, longer: Value) -> str:
    """What people did on the same answers, without which a judge's figures say little."""
    words = [f"{people['comparisons']:,} comparisons, each shown in both orders."]
    if people["agreement_of_two"]["mean"] is not None:
        words.append(f"Two people agree on {people['agreement_of_two']['mean']:.0%} of them.")
    if longer["mean"] is not None:
        words.append(f"Where the lengths differ, most people prefer the longer text in {longer['mean']:.0%}.")
    return " ".join([*words, "Where place plays no part, half of the preferences fall on what is shown first."])


def _cell(label: str, estimate: Value) -> tuple[str, str]:
    share = not label.startswith("kappa")
    ends = [estimate["low"], estimate["high"]]
    range_ = "" if None in ends else " to ".join(_number(end, share=share) for end in ends)
    return ("none" if estimate["mean"] is None else _number(estimate["mean"], share=share)), range_


def _number(value: float, *, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.2f}"
