"""Several opinions become one: what is averaged, what never is, and what comparisons say of each answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.evaluation.panel import bradley_terry, over_both_orders, over_judges, over_orders, spread, win_shares
from potstill.records import Rating
from potstill.teachers.ratings import is_not_applicable, is_unread, unread


def rated(score, **fields):
    return Rating(aspect="honesty", score=score, **fields)


NA, UNREAD = rated(None, rationale="N/A: a poem"), unread("honesty", "no")


def test_orders_are_averaged_over_what_could_be_read():
    assert over_orders([rated(4.0), rated(1.0)]).score == 2.5
    assert over_orders([rated(4.0), UNREAD]).score == 4
    assert over_orders([NA, rated(2.0)]).score == 2
    assert is_not_applicable(over_orders([UNREAD, NA]))
    assert is_unread(over_orders([UNREAD, UNREAD]))


def test_a_verdict_stays_where_both_orders_say_it():
    same = [rated(4.0, verdict="good"), rated(5.0, verdict="good")]
    assert over_orders(same).verdict == "good"
    assert over_orders([same[0], rated(1.0, verdict="poor")]).verdict == ""


def test_a_comparison_that_turns_with_the_order_is_a_tie_or_nothing():
    """Trap: "Position bias": what the place decided is no preference."""
    both = [rated(1.0), rated(0.0)]
    assert over_both_orders(both, "tie").score == 0.5
    assert is_unread(over_both_orders(both, "drop"))
    assert over_both_orders([rated(1.0), rated(0.5)], "drop").score == 0.75
    assert over_both_orders([rated(1.0), UNREAD], "tie").score is None, "half a comparison would keep the bias"


def test_judges_by_mean_median_and_majority():
    panel = [rated(1.0), rated(4.0), rated(4.0), rated(5.0)]
    assert [over_judges(panel, how).score for how in ("mean", "median")] == [3.5, 4]
    assert is_unread(over_judges(panel, "majority")), "two of four are no majority"
    assert over_judges(panel[1:], "majority").score == 4
    assert over_judges([rated(0.1), rated(0.2), rated(0.3)], "mean").score == pytest.approx(0.2, abs=1e-15)


def test_not_applicable_is_never_a_number():
    """Trap: 'Ratings "N/A" averaged as numbers'."""
    assert over_judges([NA, rated(4.0), rated(2.0)], "mean").score == 3
    assert is_not_applicable(over_judges([NA, NA, rated(5.0)], "mean"))
    assert over_judges([NA, rated(5.0)], "mean").score == 5
    assert is_unread(over_judges([UNREAD, UNREAD], "median"))


def test_spread():
    assert spread([rated(1.0), NA, rated(4.0)]) == 3
    assert spread([rated(1.0)]) == spread([]) == spread([UNREAD]) == 0


def test_win_shares():
    assert win_shares({(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.0}) == {0: 0.75, 1: 0.0, 2: 0.75}


def test_bradley_terry_of_two_is_the_log_odds():
    """With half a win and half a loss against 1 each, two answers solve p = (won + .5) / (1/(p+q) + 1/(p+1))."""
    found = bradley_terry({(0, 1): 1.0})
    assert found[0] == -found[1]
    p, q = math.exp(found[0]), math.exp(found[1])
    # At the maximum, wins are what the strengths expect, for both; the centre is free, so solve for it here.
    low, high = -5.0, 5.0
    for _ in range(200):
        centre = (low + high) / 2
        a, b = p * math.exp(centre), q * math.exp(centre)
        surplus = a / (a + 1) + b / (b + 1) - 1.0
        low, high = (centre, high) if surplus < 0 else (low, centre)
    assert a / (a + b) + a / (a + 1) == pytest.approx(1.5, abs=1e-7)
    assert b / (a + b) + b / (b + 1) == pytest.approx(0.5, abs=1e-7)


def test_bradley_terry_expects_the_wins_that_were_seen():
    wins = {(0, 1): 1.0, (0, 2): 0.5, (0, 3): 1.0, (1, 2): 0.0, (1, 3): 1.0, (2, 3): 0.75}
    found = bradley_terry(wins)
    assert sum(found.values()) == pytest.approx(0, abs=1e-8)
    assert sorted(found, key=lambda place: -found[place]) == [0, 2, 1, 3]
    assert bradley_terry({}) == {}


@given(
    st.dictionaries(
        st.sampled_from([(i, j) for i in range(4) for j in range(i + 1, 4)]), st.sampled_from([0.0, 0.5, 1.0])
    )
)
def test_strengths_follow_a_renaming_and_are_finite(wins):
    found = bradley_terry(wins)
    assert all(math.isfinite(value) for value in found.values())
    turned = bradley_terry({(3 - j, 3 - i): 1 - share for (i, j), share in wins.items()})
    assert turned == {3 - place: pytest.approx(value, abs=1e-7) for place, value in found.items()}
