"""Inherited errors: where the student repeats the very mistakes of its teacher.

On questions whose right answer is known: how often the student gives the teacher's wrong answer where the teacher was
wrong, against how often it is wrong at all where the teacher was right. A question that is hard for both raises the
first only where they fail in the same words, so that with few possible answers (yes or no) part of it is difficulty.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from potstill.curation.decontaminate import words
from potstill.evaluation.audits.base import Cell, Danger, Figure, Plot, Point, Series, share_figure
from potstill.evaluation.audits.hypotheses import Hypothesis, Share, share_above, share_difference
from potstill.evaluation.audits.said import Said, paired
from potstill.evaluation.audits.thresholds import INHERITED, LEAST_WRONG

DANGER = Danger(
    "inherited_errors",
    "Inherited errors",
    "Where the teacher is wrong, does the student give the same wrong answer hardly more often than it errs elsewhere?",
    "Gudibande et al. 2023 (The False Promise of Imitating Proprietary LLMs); Newcombe 1998, method 10",
    {"risk_difference": INHERITED, "least_wrong": LEAST_WRONG},
)
EXAMPLES = 3
EVERYTHING = "all questions"


@dataclass(frozen=True)
class Shared:
    """One question that a teacher and a student both answered."""

    question: str
    category: str
    teacher_right: bool
    student_right: bool
    same: bool
    """Both gave the same answer."""
    answer: str = ""
    """The teacher's."""


def shared(
    student: Sequence[Said], teacher: Sequence[Said], same: Callable[[str, str], bool], least: float
) -> list[Shared]:
    """The answers that both gave; one is right from the score `least` on."""
    return [
        Shared(
            f"{one.question}/{one.turn}",
            one.category,
            other.score >= least,
            one.score >= least,
            same(one.text or "", other.text or ""),
            other.text or "",
        )
        for one, other in paired(student, teacher)
        if one.score is not None and other.score is not None
    ]


def same_words(one: str, other: str) -> bool:
    """Whether two answers say the same but for case and punctuation."""
    return words(one) == words(other)


def inherited_errors(found: Mapping[str, Sequence[Shared]], missing: Mapping[str, str]) -> Danger:
    """`found`: by student. Every category in which the teacher errs often enough is tested, and all together."""
    hypotheses, rows, notes, series = list[Hypothesis](), list[tuple[Cell, ...]](), list[str](), list[Series]()
    for model, answers in found.items():
        points = []
        groups = _groups(answers)
        for category, group in groups.items():
            copied, own, wrong = _counts(group)
            one = _test(model, category, copied, own)
            hypotheses.append(one)
            rows.append((model, category, share_figure(wrong), share_figure(copied), share_figure(own),
                         Figure(one.mean, one.low, one.high, one.n)))  # fmt: skip
            if one.mean is not None:
                points.append(Point(category, one.mean, one.low, one.high))
            if category != EVERYTHING or len(groups) == 1:
                notes += [f"{model}, {category}: both say '{row.answer[:80]}' on '{row.question}', which is wrong"
                          for row in group if _repeats(row)][:EXAMPLES]  # fmt: skip
        series.append(Series(model, tuple(points)))
    columns = ("model", "category", "teacher wrong", "then repeated", "student wrong where the teacher is right",
               "difference")  # fmt: skip
    plot = Plot("", "repeated where the teacher is wrong, minus wrong elsewhere", tuple(series), 0.0)
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows), plot=plot,
                   missing=dict(missing), notes=tuple(notes))  # fmt: skip


def _groups(answers: Iterable[Shared]) -> dict[str, list[Shared]]:
    """All, and each category in which the teacher errs often enough, if there are several."""
    answers = list(answers)
    found: dict[str, list[Shared]] = {}
    for row in answers:
        found.setdefault(row.category, []).append(row)
    told = {name: group for name, group in found.items() if _counts(group)[2].count >= LEAST_WRONG}
    return {EVERYTHING: answers, **(told if len(found) > 1 else {})}


def _counts(group: Sequence[Shared]) -> tuple[Share, Share, Share]:
    """Repeated of the teacher's mistakes; the student's own where it made none; the teacher's mistakes."""
    wrong = [row for row in group if not row.teacher_right]
    right = [row for row in group if row.teacher_right]
    return (
        Share(sum(map(_repeats, wrong)), len(wrong)),
        Share(sum(not row.student_right for row in right), len(right)),
        Share(len(wrong), len(group)),
    )


def _repeats(row: Shared) -> bool:
    return row.same and not row.teacher_right and not row.student_right


def _test(model: str, category: str, copied: Share, own: Share) -> Hypothesis:
    claim = f"repeats its teacher's mistakes, {copied.count} of {copied.of}, in {category}"
    n = copied.of + own.of
    if not copied.of or not own.of:
        if own.of:  # a teacher without a mistake has none to pass on
            return Hypothesis(model, category, claim, 0.0, 0.0, 0.0, n, INHERITED, 1.0)
        return Hypothesis(model, category, claim, None, None, None, n, INHERITED, None)
    low, high = share_difference(copied, own)
    p = share_above(copied, own, INHERITED) if copied.of >= LEAST_WRONG else None
    return Hypothesis(model, category, claim, copied.mean - own.mean, low, high, n, INHERITED, p)
