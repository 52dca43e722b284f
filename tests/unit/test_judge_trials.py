"""What trials measure of judges: closed forms, published values, and how often an interval holds what was planted."""

import math
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from planted_judges import ALWAYS, MODES, drawn, population, said, verdict

from potstill.evaluation.correlation import Matched, jackknifed, kendall, pearson, spearman
from potstill.evaluation.judge_grades import Graded, error_of, grades_report, order_of
from potstill.evaluation.judge_trial import Comparison, judge_report, list_lines, verdict_of
from potstill.evaluation.repeats import Repeated, grades_again, same_again
from potstill.evaluation.statistics import student_quantile

Report = dict[str, Any]


def table(one, other):
    return Counter(zip(one, other, strict=True))


# Correlations.


def test_correlations_of_published_examples():
    # Scipy's documentation: kendalltau and spearmanr, with ties.
    assert kendall(table([12, 2, 1, 12, 2], [1, 4, 7, 1, 0])) == pytest.approx(-0.47140452079103173)
    assert spearman(table([1, 2, 3, 4, 5], [5, 6, 7, 8, 7])) == pytest.approx(0.8207826816681233)
    # Kendall and Gibbons (1990), Rank Correlation Methods: ten boys, mathematics and music.
    music = [5, 7, 3, 10, 1, 9, 6, 2, 8, 4]
    order = [7, 5, 1, 6, 2, 3, 9, 10, 8, 4]
    pairs = list(zip(music, order, strict=True))
    agree = sum((a - c) * (b - d) > 0 for i, (a, b) in enumerate(pairs) for c, d in pairs[:i])
    assert kendall(table(music, order)) == pytest.approx((2 * agree - 45) / 45)
    assert spearman(table(music, order)) == pytest.approx(1 - 6 * sum((a - b) ** 2 for a, b in pairs) / (10 * 99)), (
        "without ties"
    )
    assert pearson(table([0, 1, 2], [0, 1, 3])) == pytest.approx(3 / math.sqrt(2 * 14 / 3))


def test_correlations_that_cannot_be_said():
    for statistic in (pearson, spearman, kendall):
        assert statistic(table([1, 2, 3], [4, 4, 4])) is None
        assert statistic(table([], [])) is None
        assert statistic(table([1, 2, 3], [10, 20, 90])) == pytest.approx(
            1 if statistic is not pearson else 0.9177, abs=1e-4
        )
    assert kendall(table([Fraction(1, 3), Fraction(2, 6)], [1, 2])) is None, "equal fractions are a tie"


def test_a_jackknife_of_a_mean_is_students_interval():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 8.0]
    rows = [Matched(str(i), value, 0) for i, value in enumerate(values)]
    found = jackknifed(rows, lambda t: sum(v * n for (v, _), n in t.items()) / sum(t.values()))
    mean = math.fsum(values) / 12
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / 11 / 12)
    assert found.mean == pytest.approx(mean)
    assert found.high - found.mean == pytest.approx(student_quantile(11) * error)
    assert jackknifed(rows[:9], pearson).low is None, "too few"


def test_intervals_of_correlations_hold_the_truth():
    """Grades that are normal about their prompt's level: the truth is (6/pi) asin(rho/2) and (2/pi) asin(rho)."""
    rho, held, sims = 0.6, Counter(), 200
    for seed in range(sims):
        draw, rows = random.Random(seed), []
        for prompt in range(40):
            level = _normal_pair(draw, rho)
            for _ in range(2):
                own = _normal_pair(draw, rho)
                rows.append(Matched(str(prompt), level[0] + own[0], level[1] + own[1]))
        for statistic, truth in ((spearman, 6 / math.pi * math.asin(rho / 2)), (kendall, 2 / math.pi * math.asin(rho))):
            found = jackknifed(rows, statistic, fisher=True)
            held[statistic.__name__] += found.low <= truth <= found.high
    assert all(0.92 <= count / sims <= 0.98 for count in held.values()), held


def _normal_pair(draw, rho):
    one = draw.gauss(0, 1)
    return one, rho * one + math.sqrt(1 - rho * rho) * draw.gauss(0, 1)


# Comparisons.

MEASURES: dict[str, Callable[[Report], Report]] = {
    "agreement": lambda report: report["agreement"],
    "decided": lambda report: report["agreement_where_decided"],
    "one order": lambda report: report["agreement_one_order"],
    "kappa": lambda report: report["kappa"],
    "first share": lambda report: report["position"]["first_share"],
    "consistency": lambda report: report["position"]["consistency"],
    "longer share": lambda report: report["length"]["longer_share"],
    "length bias": lambda report: report["length"]["bias"],
}


def test_the_population_is_what_was_planted():
    report = judge_report(population())
    right = (0.6 + 0.12 * 0.5 + 0.12 * 0.5 + 1) / 2  # going by place or length is right every other time
    assert report["agreement_one_order"]["mean"] == pytest.approx(right)
    # Where the two orders are drawn alike: the place moves 3 of 25 verdicts on every other prompt.
    assert report["position"]["first_share"]["mean"] == pytest.approx(0.5 + 0.12 / 2 / 2)
    assert report["length"]["bias"]["mean"] > 0 == report["lists"]["bias"]["n"]


def test_intervals_of_comparisons_hold_what_was_planted():
    truth, held, sims = judge_report(population()), Counter(), 300
    for seed in range(sims):
        report = judge_report(drawn(seed, prompts=50, each=3))
        held.update(name for name, find in MEASURES.items() if _holds(find(report), find(truth)["mean"]))
    assert all(0.93 <= held[name] / sims <= 0.98 for name in MEASURES), held


def _holds(estimate: Report, truth: float) -> bool:
    return bool(estimate["low"] <= truth <= estimate["high"])


def test_kappa_does_not_hang_on_which_answer_stands_first():
    """People's favourite always stands first, as in pairs: a judge that is right in 90 of 100 has a kappa of 0.8, as if
    the favourites stood anywhere."""
    pairs = [Comparison(str(i), 1.0, *[float(i >= 10)] * 2, 0.0) for i in range(100)]
    turned = [Comparison(str(i), 1.0 - i % 2, *[abs(i % 2 - float(i >= 10))] * 2, 0.0) for i in range(100)]
    found, other = (judge_report(rows)["kappa"] for rows in (pairs, turned))
    assert found["mean"] == pytest.approx(0.8)
    assert found == pytest.approx(other)
    assert (found["n"], found["coverage"]) == (100, 1)
    # 0.8 is twice the share less one: so is its interval, but for the jackknife.
    share = judge_report(pairs)["agreement"]
    assert found["low"] == pytest.approx(2 * share["low"] - 1, abs=0.06)
    perfect = judge_report([Comparison(str(i), 1.0, 1.0, 1.0, 0.0) for i in range(40)])["kappa"]
    assert (perfect["mean"], perfect["high"]) == (1, 1)
    assert 0.7 < perfect["low"] < 1


def test_a_judge_without_a_bias_has_none():
    """People like longer texts, and the judge does no more than they."""
    rows = [Comparison(str(i), 1.0, 1.0, 1.0, 1.0, 2) for i in range(60)]
    report = judge_report(rows)
    assert report["length"]["longer_share"]["mean"] == report["length"]["people_longer_share"]["mean"] == 1
    t = student_quantile(59)
    most = 1 - 60 / (60 + t * t)  # Wilson's end of a share of 60 of 60
    assert report["length"]["bias"] == pytest.approx({"mean": 0, "low": -most, "high": most, "n": 60, "coverage": 1})
    assert report["lists"]["bias"]["mean"] == 0


def test_biases_by_hand():
    rows = [
        Comparison("a", 0.0, 1.0, 1.0, 1.0, 3),  # for the longer one with more lists, against people: +1
        Comparison("b", 1.0, 1.0, 0.0, -2.0, 0),  # a tie where people prefer the shorter: +1/2; no difference in lists
        Comparison("c", 0.5, 0.0, 0.0, 1.0, -1),  # against the longer, for more lists, where people see a tie
        Comparison("d", None, 1.0, 1.0, 1.0, 5),  # people are split
        Comparison("e", 1.0, None, 1.0, 1.0, 5),  # half is unread
    ]
    report = judge_report(rows)
    assert report["length"]["bias"]["mean"] == pytest.approx((1 + 0.5 - 0.5) / 3)
    assert report["lists"]["bias"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert (report["length"]["bias"]["n"], report["length"]["bias"]["coverage"]) == (3, 3 / 5)


def test_lines_of_lists_and_headings():
    assert list_lines("# One\n- two\n  * three\n1. four\n23) five\nsix - seven\n-eight\n#nine\n2026. was a year") == 5
    assert list_lines("") == 0


# The same again.


def test_the_same_again_by_hand():
    rows = [Repeated("a", (1.0, 1.0, 0.0)), Repeated("b", (0.5, None, 0.5)), Repeated("c", (None, 1.0, None))]
    found = same_again(rows)
    assert (found["mean"], found["n"], found["coverage"]) == (2 / 4, 4, 4 / 9)  # a: one of three; b: one of one
    again = grades_again([Repeated(str(i), (float(i), float(i) + (-1) ** i)) for i in range(12)])
    assert again["difference"]["mean"] == 1
    assert again["same"]["mean"] == 0


def test_self_consistency_that_was_planted_is_found():
    """What two askings have in common, by all that each can say."""
    sides = [(people, longer) for people in (1.0, 0.0) for longer in (1.0, -1.0)]
    one_order = _same([[verdict(mode, *side, shown_first=True) for mode in MODES] for side in sides])
    both = _same([[verdict_of(*said(pair, *side)) for pair in product(MODES, MODES)] for side in sides])
    truth = {"same_one_order": (1 + one_order) / 2, "same": (1 + both) / 2}  # every other prompt is sure
    assert len(ALWAYS) == 1
    held, sims = Counter(), 250
    for seed in range(sims):
        again = judge_report(drawn(seed, prompts=40, each=2, repeats=3))["again"]
        assert again["times"] == 3
        held.update(name for name, value in truth.items() if _holds(again[name], value))
    assert all(0.93 <= count / sims <= 0.98 for count in held.values()), held
    assert judge_report(drawn(0))["again"] is None, "asked once"


def _same(said_each):
    """The chance that two draws agree, in the mean."""
    counts = [Counter(one) for one in said_each]
    return sum(sum((n / c.total()) ** 2 for n in c.values()) for c in counts) / len(counts)


def test_test_retest_agreement_that_was_planted_is_found():
    """A level of variance 1 that each asking blurs by 1/2: the intraclass correlation is 1 / 1.5, and two askings are
    apart by 2 / sqrt(pi) of the blur's deviation."""
    held, sims = Counter(), 200
    truth = {"correlation": 1 / 1.5, "difference": 2 * math.sqrt(0.5) / math.sqrt(math.pi)}
    for seed in range(sims):
        draw = random.Random(seed)
        levels = [draw.gauss(0, 1) for _ in range(40)]
        rows = [
            Repeated(str(i), tuple(level + draw.gauss(0, math.sqrt(0.5)) for _ in range(3)))
            for i, level in enumerate(levels)
        ]
        found = grades_again(rows)
        held.update(name for name, value in truth.items() if _holds(found[name], value))
    assert all(0.92 <= count / sims <= 0.98 for count in held.values()), held


# Grades.


def test_a_report_of_grades_by_hand():
    answers = [
        Graded("a", Fraction(1), (1.0, 2.0)),
        Graded("a", Fraction(5), (10.0, 10.0)),
        Graded("b", Fraction(3), (7.0, 7.0)),
        Graded("b", Fraction(2), (None, 4.0)),
        Graded("c", None, (3.0, 3.0)),
    ]
    report = grades_report(answers, [], ((1.0, 5.0), (1.0, 10.0)))
    assert report["coverage"]["mean"] == 4 / 5
    # People's 1, 5 and 3 of 1 to 5 are 1, 10 and 5.5 of 1 to 10.
    assert report["error"]["absolute"]["mean"] == pytest.approx(1.5 / 3)
    assert report["error"]["signed"]["coverage"] == 3 / 4, "of the answers that people graded"
    assert report["correlation"]["spearman"]["mean"] == pytest.approx(1)
    assert report["again"]["same"]["mean"] == 3 / 4
    assert grades_report(answers, [], None)["error"] is None
    assert grades_report([Graded("a", None, (3.0,))], [], None)["correlation"] is None
    assert (order_of(3, 2), order_of(2, 3), order_of(2, 2), order_of(None, 2)) == (1, 0, 0.5, None)


def test_errors_that_were_planted_are_found():
    """A judge half a point too kind, with a deviation of 1: E|N(1/2, 1)|, folded."""
    kind, held, sims = 0.5, Counter(), 300
    folded = math.sqrt(2 / math.pi) * math.exp(-(kind**2) / 2) + kind * math.erf(kind / math.sqrt(2))
    for seed in range(sims):
        draw = random.Random(seed)
        answers = []
        for prompt in range(50):
            for _ in range(2):
                people = Fraction(draw.randint(30, 70), 10)
                answers.append(Graded(str(prompt), people, (float(people) + draw.gauss(kind, 1),)))
        both = [Matched(row.cluster, row.people, row.grade) for row in answers]
        error = error_of(both, 100, (1.0, 10.0), (1.0, 10.0))
        held["absolute"] += _holds(error["absolute"], folded)
        held["signed"] += _holds(error["signed"], kind)
    assert all(0.92 <= count / sims <= 0.98 for count in held.values()), held
