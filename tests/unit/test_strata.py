"""Means over tasks and subjects that are fixed: each counts alike, and only what differs inside them is uncertain."""

import random
from statistics import fmean

import pytest

from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.leaderboard import EFFECT_MEASURE, MEASURE, average, observations, template_effect
from potstill.evaluation.paired_shares import Discordant, discordant
from potstill.evaluation.parts import Parts
from potstill.evaluation.scores import SuiteResult
from potstill.evaluation.spread import Spread
from potstill.evaluation.statistics import Observation, mean_estimate, paired_difference


def test_every_part_and_every_task_counts_alike():
    big = observations({"mmlu_a": [1.0] * 90, "mmlu_b": [0.0] * 10})
    assert mean_estimate(big).mean == pytest.approx(0.5, abs=1e-12)
    whole = average({"mmlu": big, "arc_challenge": observations({"arc_challenge": [1.0, None, 1.0]})})
    assert mean_estimate(whole).mean == pytest.approx((0.5 * 1 + 2 / 3) / (1 + 2 / 3), abs=1e-12)
    assert mean_estimate(row for row in whole if row.value is not None).n == 102
    full = average({"mmlu": big, "arc_challenge": observations({"arc_challenge": [1.0, 0.0, 1.0, 1.0]})})
    assert mean_estimate(full).mean == pytest.approx((0.5 + 0.75) / 2, abs=1e-12)


def test_how_tasks_differ_is_no_uncertainty_of_their_mean():
    """The closed form: var = sum over strata of s^2 / n / H^2 (Cochran 1977, eq. 5.7), H strata of equal weight."""
    draw = random.Random(5)
    parts = {"a": [float(draw.random() < 0.9) for _ in range(50)], "b": [float(draw.random() < 0.2) for _ in range(20)]}
    found = mean_estimate(average({name: observations({name: values}) for name, values in parts.items()}))
    variance = 0.0
    for values in parts.values():
        middle = fmean(values)
        variance += sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values) / 4
    assert found.high - found.mean == pytest.approx(student_quantile(68) * variance**0.5, rel=1e-12)
    flat = mean_estimate([Observation(str(i), "", 1.0, stratum="a") for i in range(9)]
                         + [Observation(f"b{i}", "", 0.0, stratum="b") for i in range(9)])  # fmt: skip
    assert (flat.low, flat.mean, flat.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("count", "share"), [(80, 0.8), (40, 0.97)])
def test_intervals_hold_the_truth_19_times_in_20(count, share):
    """Two tasks far apart and of unequal size: the mean of their true shares lies inside, as often as it says."""
    draw = random.Random(11)
    inside = 0
    for _ in range(800):
        tasks = {
            name: observations({name: [float(draw.random() < true) for _ in range(number)]})
            for name, true, number in (("a", share, count), ("b", 0.3, 60))
        }
        found = MEASURE.estimate(average(tasks))
        inside += found.low <= (share + 0.3) / 2 <= found.high
    assert 0.93 <= inside / 800 <= 0.98


def test_what_all_answer_alike_is_not_certain():
    """All right in one task and all wrong in the other leaves doubt, which a spread of nothing does not show."""
    tasks = {"a": observations({"a": [1.0] * 10}), "b": observations({"b": [0.0] * 10})}
    found = MEASURE.estimate(average(tasks))
    assert found.mean == 0.5
    assert found.low < 0.35 < 0.65 < found.high
    right = MEASURE.estimate(average({"a": tasks["a"], "b": observations({"b": [1.0] * 10})}))
    assert (right.mean, right.high) == (1.0, 1.0)
    assert right.low < 0.9


def test_one_question_a_stratum_still_has_an_interval():
    rows = [Observation(str(i), "", float(i % 3), stratum=str(i)) for i in range(9)]
    alike = [Observation(str(i), "", float(i % 3)) for i in range(9)]
    assert mean_estimate(rows) == mean_estimate(alike)
    lone = [*alike[:8], Observation("x", "", 2.0, stratum="x")]
    assert mean_estimate(lone).low is not None
    assert mean_estimate(rows[:1]).low is None


def test_the_templates_effect_is_question_by_question():
    plain, templated = observations({"t": [1.0, 0.0, None, 1.0]}), observations({"t": [1.0, 1.0, 1.0, 0.0]})
    assert [row.value for row in template_effect(templated, plain)] == [0.0, 1.0, None, -1.0]
    assert SuiteResult(EFFECT_MEASURE, {"m": template_effect(templated, plain)}).to_json()["models"]["m"][
        "mean"
    ] == pytest.approx(0.0)


def test_a_difference_of_grades_is_of_questions_inside_their_strata():
    """How much more one task gains than the other is no doubt of their mean; how questions differ inside them is."""

    def rows(values):
        return average(
            {name: observations({name: [value + i / 100 for i in range(8)]}) for name, value in values.items()}
        )

    found = paired_difference(rows({"a": 0.9, "b": 0.2}), rows({"a": 0.3, "b": 0.2}))
    assert (found.low, found.mean, found.high) == pytest.approx((0.3, 0.3, 0.3))


def right(values):
    return [float(value) for value in values]


HALF = right(i % 2 for i in range(20))
EVEN = {name: observations({name: HALF}) for name in ("arc_challenge", "hellaswag", "mmlu")}


def test_a_mean_over_tasks_is_no_surer_than_the_tasks():
    """Three tasks of 20 without a difference, of which each may be 16 points, and one of next to no spread."""
    probabilities = [0.3 + i / 50 for i in range(20)]
    later, earlier = (
        average(
            EVEN
            | {
                "truthfulqa_mc2": observations(
                    {"t": [one + gain + i % 2 * 1e-5 for i, one in enumerate(probabilities)]}
                )
            }
        )
        for gain in (0.032, 0.0)
    )
    found = paired_difference(later, earlier)
    assert (found.mean, found.n) == (pytest.approx(0.008), 80)
    of_one = paired_difference(EVEN["mmlu"], EVEN["mmlu"])
    assert (of_one.low, of_one.high) == pytest.approx((-0.161, 0.161), abs=1e-3)
    # Tango's of 60 questions without a difference is z^2 / (60 + z^2), and they are three quarters of the mean.
    widest = 0.75 * 1.96**2 / (60 + 1.96**2)
    assert (found.low, found.high) == pytest.approx((0.008 - widest, 0.008 + widest), abs=1e-4)
    assert 0.3 < found.p < 1


def test_the_p_of_a_mean_over_tasks_says_what_its_interval_says():
    found = Parts(((0.75, Discordant(60, 7, 1)), (0.25, Spread(0.03, 0.02, 19))))
    for level in (0.5, 0.9, 0.99):
        low, high = found.ends(level)
        assert found.p_of(low) == pytest.approx(1 - level, rel=1e-6)
        assert found.p_at_most(high) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert found.turned().ends(level) == pytest.approx((-high, -low))
    assert found.p_at_most(found.mean) == 0.5
    alone = Spread(0.03, 0.02, 19)
    assert Parts(((1.0, alone),)).p_of(0.0) == pytest.approx(alone.p_of(0.0), rel=1e-6)


def test_two_equal_models_may_differ_in_a_mean_over_subjects():
    subjects = observations({"mmlu_a": HALF[:12], "mmlu_b": HALF[:8]})
    found = paired_difference(subjects, subjects)
    # The eight count for half: as much doubt as in 16 questions that weigh what they do.
    assert (found.low, found.high) == pytest.approx((-(1.96**2) / (16 + 1.96**2), 1.96**2 / (16 + 1.96**2)), abs=1e-4)
    assert found.p == 1
    names = [f"{name}[seed={seed}]" for name in ("a", "b") for seed in (0, 1, 2)]
    family = SuiteResult(MEASURE, dict.fromkeys(names, subjects)).to_json()["pooled"]["paired"]
    (one,) = family.values()
    assert one["low"] < -0.1 < 0.1 < one["high"]
    assert one["questions"]["low"] < -0.1
    assert one["p"] > 0.9


def test_counts_of_questions_that_weigh_differently_are_effective_ones():
    assert discordant([(0.5, 1), (0.5, 0), (0.5, -1), (0.5, 0)]) == Discordant(4, 1, 1)
    found = discordant([(2.0, 1), *[(1.0, -1)] * 3, *[(1.0, 0)] * 5])
    assert found.mean == pytest.approx(-0.1)
    # Weights 0.2 and 0.1: (0.5 + 0.2) / (0.04 + 3 * 0.01 + 0.04).
    assert found.n == pytest.approx(0.7 / 0.11)


def test_a_share_over_tasks_is_no_surer_than_tasks_that_nobody_solved():
    nothing = {name: observations({name: [0.0] * 20}) for name in EVEN}
    sure = {"truthfulqa_mc2": observations({"t": [0.45 + i % 2 * 1e-4 for i in range(20)]})}
    found = MEASURE.estimate(average(nothing | sure))
    assert found.mean == pytest.approx(0.1125, abs=1e-4)
    assert found.high > 0.1125 + 0.75 * 0.06  # of 60 wrong answers Wilson says at most 6%
    few = MEASURE.estimate(observations({"a": [1.0] * 10, "b": [1.0] * 90}))
    assert few.low == pytest.approx(20 / (20 + 1.96**2), abs=5e-3)  # 90 of the one say little of the other
    effect = EFFECT_MEASURE.estimate(template_effect(average(EVEN), average(EVEN)))
    assert effect.low < -0.05 < 0.05 < effect.high
