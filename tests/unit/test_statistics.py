"""Intervals: closed forms, textbook values, and whether they hold the truth as often as they say."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.spread import Value, spread_over_questions, spread_over_seeds
from potstill.evaluation.statistics import (
    Observation,
    mean_estimate,
    paired_difference,
    paired_differences,
    pooled,
    seed_values,
    share_estimate,
)


def rows(values, question=lambda i: f"q{i}", weights=None):
    return [Observation(question(i), "1", v, weights[i] if weights else 1.0) for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("freedom", "expected"),  # two-sided 95% points of Student's t, from printed tables
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227), (120, 1.97993)],
)
def test_student_quantile(freedom, expected):
    assert student_quantile(freedom) == pytest.approx(expected, rel=5e-6)


def test_student_quantile_meets_the_normal_one_without_a_step():
    assert student_quantile(2000) == pytest.approx(student_quantile(2001), rel=7e-4)


def test_one_value_a_question_is_the_textbook_interval():
    values = [2.0, 4.0, 4.0, 5.0, 7.0]
    mean = sum(values) / 5
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
    found = mean_estimate(rows(values))
    assert found.mean == pytest.approx(4.4)
    assert found.high - found.mean == pytest.approx(2.776445 * sd / math.sqrt(5), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert (found.n, found.coverage) == (5, 1.0)


def test_copies_of_a_question_make_it_no_surer():
    values = [2.0, 4.0, 4.0, 5.0, 7.0]
    doubled = mean_estimate(rows([v for v in values for _ in range(2)], question=lambda i: f"q{i // 2}"))
    assert doubled.high == pytest.approx(mean_estimate(rows(values)).high)
    as_if_independent = mean_estimate(rows([v for v in values for _ in range(2)]))
    assert as_if_independent.high < doubled.high - 0.5


def test_weights_make_a_ratio():
    found = mean_estimate(rows([1.0, 3.0], weights=[3.0, 1.0]))
    assert found.mean == pytest.approx(1.5)


def test_what_is_missing_enters_no_mean_and_lowers_the_coverage():
    found = mean_estimate(rows([10.0, None, 8.0, None]))
    assert (found.mean, found.n, found.coverage) == (9.0, 2, 0.5)


@pytest.mark.parametrize("values", [[], [None], [3.0]])
def test_too_little_for_an_interval(values):
    for found in (mean_estimate(rows(values)), share_estimate(rows([v and 1.0 for v in values]))):
        assert found.low is None
        assert found.high is None
    assert mean_estimate(rows(values)).mean == (3.0 if values == [3.0] else None)


def test_two_turns_of_one_question_are_too_little_too():
    found = mean_estimate(rows([3.0, 5.0], question=lambda i: "q"))
    assert (found.mean, found.low, found.n) == (4.0, None, 2)


def test_no_mean_leaves_its_scale():
    found = mean_estimate(rows([10.0] * 9 + [1.0]), bounds=(1.0, 10.0))
    assert found.high == 10.0
    assert mean_estimate(rows([10.0] * 9 + [1.0])).high > 10.0


def test_wilson():
    # Wilson's interval for 8 of 10, from Newcombe 1998's formula worked by hand.
    found = share_estimate(rows([1.0] * 8 + [0.0] * 2))
    assert (found.low, found.high) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))
    everything = share_estimate(rows([1.0] * 64))
    assert everything.high == 1.0
    assert everything.low == pytest.approx(64 / (64 + 1.959964**2), rel=1e-6)


def test_paired_difference_uses_what_both_have():
    later = [Observation("a", "1", 3.0), Observation("a", "2", 9.0), Observation("b", "1", 5.0)]
    earlier = [Observation("b", "1", 1.0), Observation("a", "1", 2.0), Observation("a", "2", None)]
    found = paired_difference(later, earlier)
    assert (found.mean, found.n) == (2.5, 2)
    assert found.high - found.mean == pytest.approx(12.706205 * 1.5, rel=1e-6)


def test_values_of_other_weights_are_not_paired():
    found = paired_difference([Observation("a", "1", 3.0, 7.0)], [Observation("a", "1", 2.0, 8.0)])
    assert (found.mean, found.n) == (None, 0)


def test_every_later_minus_earlier():
    scores = {name: rows([float(i), i + 1.0]) for i, name in enumerate(["base", "sft", "dpo"])}
    found = paired_differences(["base", "sft", "dpo"], scores)
    assert {name: d.mean for name, d in found.items()} == {"sft-base": 1.0, "dpo-base": 2.0, "dpo-sft": 1.0}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.floats(-1e6, 1e6), st.floats(0, 1e4)), max_size=12))
def test_never_a_nan(given_rows):
    observed = [Observation(q, str(i), v, w) for i, (q, v, w) in enumerate(given_rows)]
    found = mean_estimate(observed)
    for value in (found.mean, found.low, found.high, found.coverage):
        assert value is None or math.isfinite(value)
    if found.low is not None:
        assert found.low <= found.mean <= found.high


def _covered(draw, truth, estimate, times=1500):
    held = 0
    for _ in range(times):
        found = estimate(draw())
        held += found.low <= truth <= found.high
    return held / times


def test_intervals_hold_the_truth_19_times_in_20():
    """Two correlated turns a question, n = 80: the case of MT-Bench, with whole grades from 1 to 10."""
    chance = random.Random(0)

    def grade(level):
        return float(min(10, max(1, round(chance.gauss(level, 1.5)))))

    def draw():
        found = []
        for i in range(80):
            level = chance.gauss(6.0, 2.0)
            found += [Observation(f"q{i}", str(turn), grade(level)) for turn in (1, 2)]
        return found

    truth = mean_estimate([o for _ in range(400) for o in draw()]).mean
    assert 0.93 <= _covered(draw, truth, mean_estimate) <= 0.97


@pytest.mark.parametrize("truth", [0.5, 0.95])
def test_shares_hold_the_truth_19_times_in_20(truth):
    chance = random.Random(1)
    covered = _covered(lambda: rows([float(chance.random() < truth) for _ in range(200)]), truth, share_estimate)
    assert 0.93 <= covered <= 0.975


def test_members_of_a_family_are_averaged_question_by_question():
    """So that three seeds make nobody surer of other questions than one: the cluster is the question."""
    seeds = [[2.0, 4.0, 9.0], [4.0, 4.0, 3.0], [6.0, 1.0, 3.0]]
    found = pooled([rows(values) for values in seeds])
    assert [row.value for row in found] == pytest.approx([4.0, 3.0, 5.0])
    assert mean_estimate(found) == mean_estimate(rows([4.0, 3.0, 5.0]))
    assert mean_estimate(pooled([rows([1.0, 2.0, 4.0])] * 3)) == mean_estimate(rows([1.0, 2.0, 4.0]))


def test_what_one_member_has_no_value_for_is_the_mean_of_the_others():
    found = pooled([rows([None, None]), rows([3.0, None]), rows([5.0, None])])
    assert [row.value for row in found] == [4.0, None]


def test_members_that_weigh_a_question_differently_have_no_mean_of_it():
    assert pooled([rows([1.0], weights=[2.0]), rows([2.0], weights=[3.0])])[0].value is None


PARTS = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")]
MEMBERS = {
    seed: [Observation(*part, value) for part, value in zip(PARTS, values, strict=True)]
    for seed, values in {"0": [2.0, None, 5.0, 1.0], "1": [4.0, 3.0, None, 2.0]}.items()
}


def test_values_of_seeds_have_the_mean_of_what_is_pooled():
    """Where one has no value, the other's stands for both."""
    values, together = seed_values(MEMBERS), mean_estimate(pooled(list(MEMBERS.values())))
    assert sum(v.weight * v.value for v in values) / sum(v.weight for v in values) == pytest.approx(together.mean)
    over_questions = spread_over_questions(values)
    assert over_questions.ends() == pytest.approx((together.low, together.high))


def test_two_ways_of_clustering_are_the_closed_form_of_a_balanced_table():
    """V = (MS_questions + MS_seeds - MS_rest) / n, of a two-way table (Searle, Casella and McCulloch 1992), but for the
    factors G / (G - 1) that make each way's own."""
    table = {(q, s): 3.0 * q + 2.0 * s + ((q * 7 + s * 5) % 3) for q in range(6) for s in range(4)}
    found = spread_over_seeds([Value(f"q{q}", value, 1.0, str(s)) for (q, s), value in table.items()])
    mean = sum(table.values()) / 24
    of_q = sum((sum(table[q, s] for s in range(4)) - 4 * mean) ** 2 for q in range(6)) * 6 / 5 / 24**2
    of_s = sum((sum(table[q, s] for q in range(6)) - 6 * mean) ** 2 for s in range(4)) * 4 / 3 / 24**2
    of_both = sum((value - mean) ** 2 for value in table.values()) * 24 / 23 / 24**2
    assert found.error**2 == pytest.approx(max(of_q + of_s - of_both, of_q, of_s))
    assert found.freedom == math.floor((of_q + of_s) ** 2 / (of_q**2 / 5 + of_s**2 / 3))


def test_a_family_has_both_intervals_and_one_seed_has_one():
    def drawn(shift, count=40):
        return [Observation(f"q{i}", "1", 5.0 + shift + math.sin(i) * 0.5) for i in range(count)]

    rows = {"base": drawn(0.0), **{f"sft[seed={s}]": drawn(shift) for s, shift in enumerate((0.2, 1.8, 1.0))}}
    measure = Measure("mt_bench", (1.0, 10.0), unit="points")
    found = SuiteResult(measure, {**rows, "dpo[seed=0]": drawn(2.0)}).to_json()["pooled"]
    sft, paired = found["models"]["sft"], found["paired"]["sft-base"]
    for one in (sft, paired):
        assert one["low"] < one["questions"]["low"] <= one["mean"] <= one["questions"]["high"] < one["high"]
    assert paired["mean"] == pytest.approx(1.0)
    assert 0 < paired["questions"]["low"] < 0.99, "of these very models every question says the same; one more may not"
    assert paired["low"] < 0 < paired["high"], "three seeds that differ by so much do not tell of others"
    assert list(paired["members"].values()) == pytest.approx([0.2, 1.8, 1.0])
    assert "questions" not in found["models"]["dpo"]
    assert found["paired"]["dpo-sft"]["members"] == {"0": pytest.approx(1.8)}
    assert {one["comparisons"] for one in found["paired"].values()} == {3}
