"""Means over tasks and subjects that are fixed: each counts alike, and only what differs inside them is uncertain."""

import random
from statistics import fmean

import pytest

from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.leaderboard import EFFECT_MEASURE, MEASURE, average, observations, template_effect
from potstill.evaluation.scores import SuiteResult
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
    assert 0.93 <= inside / 800 <= 0.97


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


def test_a_difference_is_of_questions_inside_their_strata():
    """A model that gains 1 on every question of one task and loses 1 on every one of the other: there is no doubt."""

    def rows(values):
        return average({name: observations({name: [value] * 8}) for name, value in values.items()})

    found = paired_difference(rows({"a": 1.0, "b": 0.0}), rows({"a": 0.0, "b": 0.0}))
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)
    plain = [Observation(str(i), "", float(i % 2)) for i in range(16)]
    assert paired_difference(plain, [Observation(str(i), "", 0.0) for i in range(16)]).low < 0.5
