"""Hypotheses with margins: published intervals, closed forms of Student's p, Holm by hand, and the verdicts."""

import math
import random

import pytest

from potstill.evaluation.audits.base import Danger, conclude, flagged
from potstill.evaluation.audits.hypotheses import (
    Effect,
    Hypothesis,
    Share,
    above,
    contrast,
    holm,
    hypothesis,
    jackknife,
    mean_effect,
    share_above,
    share_difference,
)
from potstill.evaluation.paired_shares import Discordant


def test_the_p_of_a_mean_is_that_of_its_closed_forms():
    for t in (-2.0, 0.0, 0.5, 3.0):
        assert above(Effect(0.1 + t, 1.0, 1, 2), 0.1) == pytest.approx(0.5 - math.atan(t) / math.pi)
        assert above(Effect(0.1 + t, 1.0, 2, 3), 0.1) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))


def test_of_right_and_wrong_answers_only_those_that_differ_tell():
    """Twelve of a hundred lost and one gained: McNemar's exact p at a margin of zero."""
    assert above(Discordant(100, 12, 1), 0.0) == pytest.approx(14 / 2**13)
    assert hypothesis("m", "", "x", Discordant(100, 12, 1), 0.02).p > 14 / 2**13


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        (Share(56, 70), Share(48, 80), 0.0524, 0.3339),
        (Share(9, 10), Share(3, 10), 0.1705, 0.8090),
        (Share(10, 10), Share(0, 20), 0.6791, 1.0),
        (Share(5, 56), Share(0, 29), -0.0381, 0.1926),
    ],
)
def test_differences_of_shares_have_the_intervals_that_newcombe_printed(one, other, low, high):
    """Newcombe 1998, Table II, method 10."""
    assert share_difference(one, other) == pytest.approx((low, high), abs=6e-5)


def test_the_p_of_a_difference_of_shares_is_the_level_at_which_its_interval_begins_there():
    low = share_difference(Share(56, 70), Share(48, 80))[0]
    assert share_above(Share(56, 70), Share(48, 80), low) == pytest.approx(0.025, abs=1e-4)
    assert share_above(Share(5, 10), Share(6, 10), 0.0) == 1.0


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, and the last not below the one before it.
    assert holm([0.03, None, 0.01, 0.04, 0.02]) == [
        pytest.approx(0.06), None, pytest.approx(0.04), pytest.approx(0.06), pytest.approx(0.06),
    ]  # fmt: skip


def test_an_effect_is_clustered_by_question_and_never_surer_than_its_grain():
    twice = [(str(i), value) for i, value in enumerate((1.0, 2.0, 4.0)) for _ in range(2)]
    once = mean_effect([(str(i), value) for i, value in enumerate((1.0, 2.0, 4.0))])
    doubled = mean_effect(twice)
    assert doubled == Effect(pytest.approx(once.mean), pytest.approx(once.error), 2, 3)
    assert once.error == pytest.approx(math.sqrt((7 / 3) / 3))
    alike = mean_effect([(str(i), 0.0) for i in range(50)], grain=1.0)
    assert alike.error == 1 / 50
    assert alike.ends()[1] == pytest.approx(2.0096 / 50, abs=1e-4)


def test_two_groups_have_welchs_interval():
    one, other = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8]
    effect = contrast(one, other)
    variances = [sum((x - sum(g) / len(g)) ** 2 for x in g) / (len(g) - 1) / len(g) for g in (one, other)]
    assert effect.mean == pytest.approx(sum(one) / 6 - sum(other) / 7)
    assert effect.error == pytest.approx(math.sqrt(sum(variances)))
    assert effect.freedom == int(sum(variances) ** 2 / (variances[0] ** 2 / 5 + variances[1] ** 2 / 6))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [random.Random(3).gauss(0, 1) for _ in range(20)]
    effect = jackknife(lambda kept: sum(values[i] for i in kept) / len(kept), 20)
    mean = sum(values) / 20
    assert effect.error == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 19 / 20))


def test_verdicts():
    """Refuted is flagged; wholly within the margin is clean; what is neither cannot be told."""
    sure, wide = Effect(0.5, 0.05, 50, 51), Effect(0.02, 0.2, 50, 51)
    near = Effect(0.0, 0.01, 50, 51)
    found = [hypothesis(model, "", "does it", effect, 0.1)
             for model, effect in (("bad", sure), ("vague", wide), ("good", near), ("few", None))]  # fmt: skip
    danger = Danger("d", "D", "?", "here", {}, tuple(found), missing={"none": "it needs more"})
    audit = conclude([danger], ["bad", "vague", "good", "few", "none"])
    said = audit["dangers"]["d"]
    assert said["verdicts"] == {
        "bad": "flagged", "vague": "cannot tell", "good": "clean", "few": "cannot tell", "none": "not measured",
    }  # fmt: skip
    assert flagged(audit) == {"d": ["bad"]}
    assert audit["hypotheses"] == 3
    for words in (
        "bad does it: +0.5",
        "No sign of it in good.",
        "Of vague, few it cannot be told.",
        "none: it needs more",
    ):
        assert words in said["sentence"]


def test_an_effect_that_is_sure_but_small_is_clean_and_one_below_its_margin_counts_where_both_ways_do():
    small = hypothesis("m", "", "x", Effect(0.05, 0.001, 50, 51), 0.1)
    assert small.within
    assert small.p > 0.99
    below = Effect(-0.5, 0.05, 50, 51)
    assert hypothesis("m", "", "x", below, 0.1).within
    both = hypothesis("m", "", "x", below, 0.1, two_sided=True)
    assert not both.within
    assert both.p < 1e-6


def test_too_few_questions_say_nothing():
    assert hypothesis("m", "", "x", Effect(1.0, 0.01, 8, 9), 0.1).p is None


def test_under_the_hypothesis_of_no_effect_an_audit_of_twenty_flags_one_time_in_twenty():
    """With a margin of zero, so that it is the test alone that holds the line."""
    chance, wrong = random.Random(5), 0
    for _ in range(400):
        found = tuple(
            hypothesis(str(i), "", "x", mean_effect((str(q), chance.gauss(0, 1)) for q in range(30)), 0.0)
            for i in range(20)
        )
        audit = conclude([Danger("d", "D", "?", "", {}, found)], [str(i) for i in range(20)])
        wrong += bool(flagged(audit))
    assert 8 <= wrong <= 32  # 20 expected, standard deviation 4.4
    assert isinstance(found[0], Hypothesis)
