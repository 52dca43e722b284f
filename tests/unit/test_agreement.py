"""Agreement and its intervals: published values, closed forms, and how often an interval holds the truth."""

import math
import random

import pytest

from potstill.evaluation.agreement import (
    Choice,
    Coincidences,
    Matched,
    PairedMean,
    Valued,
    clustered_share,
    cohen_kappa,
    logistic,
)
from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.statistics import Observation, mean_estimate

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units, gaps.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def gathered(units):
    found = Coincidences()
    for unit in units:
        found.add(value for value in unit if value is not None)
    return found


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(metric, published):
    found = gathered(zip(*OBSERVERS, strict=True))
    assert found.units == 11, "one unit has a single value"
    assert found.alpha(metric) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
def test_alpha_at_its_ends(metric):
    assert gathered([(1, 1), (4, 4), (5, 5, 5)]).alpha(metric) == 1
    assert gathered([(3, 3), (3, 3)]).alpha(metric) is None, "nothing varies: there is nothing to agree on"
    assert gathered([(3,)]).alpha(metric) is None
    assert gathered([(1, 5), (5, 1), (1, 5), (5, 1)]).alpha(metric) == pytest.approx(-0.75)


def test_alpha_of_chance_is_nought():
    draw = random.Random(0)
    found = gathered([[draw.randint(1, 5) for _ in range(3)] for _ in range(4000)])
    assert abs(found.alpha("interval")) < 0.02


def test_kappa_by_hand():
    rows = [Matched(str(i), a, b) for i, (a, b) in enumerate([("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10)]
    rows += [Matched(f"n{i}", "n", "n") for i in range(15)]
    found = cohen_kappa(rows)
    assert found.mean == pytest.approx(0.4)  # observed 0.7, by chance 0.5
    # Fleiss, Cohen and Everitt (1969): the large-sample standard error.
    error = math.sqrt(_kappa_variance([[20, 5], [10, 15]]))
    assert (found.high - found.low) / 2 == pytest.approx(2.01 * error, rel=0.05)
    assert cohen_kappa([Matched("a", 1, 1), Matched("b", 1, 1)]).mean is None


def _kappa_variance(table):
    n = sum(map(sum, table))
    p = [[value / n for value in row] for row in table]
    rows, columns = [sum(row) for row in p], [sum(column) for column in zip(*p, strict=True)]
    po, pe = sum(p[i][i] for i in range(2)), sum(rows[i] * columns[i] for i in range(2))
    a = sum(p[i][i] * ((1 - pe) - (rows[i] + columns[i]) * (1 - po)) ** 2 for i in range(2))
    b = (1 - po) ** 2 * sum(p[i][j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j)
    return (a + b - (po * pe - 2 * pe + po) ** 2) / (n * (1 - pe) ** 4)


def test_a_share_of_values_that_stand_alone_has_wilsons_interval():
    rows = [Valued(str(i), float(i < 30)) for i in range(100)]
    found = clustered_share(rows, asked=200)
    n, share, z = 100 * 99 / 100, 0.3, student_quantile(99)  # G / (G - 1)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert (found.mean, found.n, found.coverage) == (0.3, 100, 0.5)
    assert (found.low, found.high) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_a_share_counts_what_hangs_together_once():
    alone = clustered_share([Valued(str(i), float(i < 30)) for i in range(100)])
    copied = clustered_share([Valued(str(i), float(i < 30)) for i in range(100) for _ in range(5)])
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    none = clustered_share([Valued(str(i // 2), 0.0) for i in range(40)])
    z2 = student_quantile(19) ** 2
    assert (none.low, none.high) == (0, pytest.approx(z2 / (20 + z2))), "twenty clusters, not forty values"
    assert clustered_share([]).mean is None
    assert clustered_share([Valued("a", 1.0)] * 9).low is None


def _covers(estimates, truth):
    return sum(found.low <= truth <= found.high for found in estimates) / len(estimates)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_says(share):
    """400 samples of 150 clusters of two values that agree more often than chance: 95% within the noise of 400."""

    def sample(seed):
        draw, rows = random.Random(seed), []
        for i in range(150):
            first = draw.random() < share
            rows += [
                Valued(str(i), float(first)),
                Valued(str(i), float(first if draw.random() < 0.5 else draw.random() < share)),
            ]
        return clustered_share(rows)

    assert 0.92 <= _covers([sample(seed) for seed in range(400)], share) <= 0.985


@pytest.mark.parametrize("clusters", [2, 3, 5, 20])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_few_clusters_do_not_make_the_interval_of_a_share_too_narrow(clusters, share):
    """500 samples of so many clusters of 20 values, whose own shares spread: it holds the truth in 91% or more."""

    def sample(seed):
        draw, rows = random.Random(seed), []
        for i in range(clusters):
            own = draw.betavariate(6 * share, 6 * (1 - share))
            rows += [Valued(str(i), float(draw.random() < own)) for _ in range(20)]
        return clustered_share(rows)

    assert _covers([sample(seed) for seed in range(500)], share) >= 0.91


def test_kappa_of_few_clusters_has_no_interval_and_of_perfect_agreement_that_of_the_share():
    four = [Matched(str(i), i % 2, i % 2) for i in range(4)]
    assert (cohen_kappa(four).mean, cohen_kappa(four).low, cohen_kappa(four).high) == (1, None, None)
    many = [Matched(str(i), i % 2, i % 2) for i in range(40)]
    t = student_quantile(39)
    share = 40 / (40 + t * t)  # Wilson's lower end where all of 40 agree
    assert (cohen_kappa(many).mean, cohen_kappa(many).high) == (1, 1)
    assert cohen_kappa(many).low == pytest.approx(2 * share - 1), "chance is a half"
    assert cohen_kappa([*many, Matched("x", 0, 1)]).low > cohen_kappa(many).low - 0.2


def test_the_interval_of_kappa_holds_the_truth_as_often_as_it_says():
    truth = 0.6  # two labels, each as frequent; the second rater copies with 0.8, else says the other

    def sample(seed):
        draw, rows = random.Random(seed), []
        for i in range(120):
            one = draw.random() < 0.5
            rows.append(Matched(str(i), one, one if draw.random() < 0.8 else not one))
        return cohen_kappa(rows)

    assert 0.92 <= _covers([sample(seed) for seed in range(300)], truth) <= 0.985


def test_logistic_regression_of_a_table_is_its_log_odds():
    trials = [Choice(str(i), i % 4 != 0, (1.0, 0.0)) for i in range(80)]  # 60 to 20
    trials += [Choice(f"b{i}", i % 10 == 0, (1.0, 1.0)) for i in range(100)]  # 10 to 90
    constant, slope = logistic(trials)
    assert constant.mean == pytest.approx(math.log(3))
    assert slope.mean == pytest.approx(math.log(1 / 9) - math.log(3))
    error = math.sqrt(1 / 60 + 1 / 20)  # the textbook's, of a log-odds
    assert (constant.high - constant.low) / 2 == pytest.approx(1.97 * error, rel=0.02)


def test_logistic_regression_says_when_it_has_no_answer():
    assert logistic([Choice(str(i), i > 5, (1.0, float(i))) for i in range(10)]) is None, "separated"
    assert logistic([Choice(str(i), i % 2 == 0, (1.0, 1.0)) for i in range(10)]) is None, "one feature twice"
    assert logistic([]) is None


def test_the_intervals_of_a_regression_hold_the_truth_as_often_as_they_say():
    truth = (0.3, 1.2, -0.5)

    def sample(seed):
        draw, trials = random.Random(seed), []
        for i in range(120):
            for sign in (1.0, -1.0):
                features = (1.0, sign * draw.choice((-1.0, 0.0, 1.0)), sign * draw.gauss(0, 1))
                chance = 1 / (1 + math.exp(-sum(w * f for w, f in zip(truth, features, strict=True))))
                trials.append(Choice(str(i), draw.random() < chance, features))
        return logistic(trials)

    fits = [sample(seed) for seed in range(200)]
    for place, value in enumerate(truth):
        assert 0.91 <= _covers([fit[place] for fit in fits], value) <= 0.99


def test_a_mean_gathered_cluster_by_cluster_is_that_of_all_at_once():
    draw = random.Random(3)
    clusters = [[draw.gauss(1, 2) for _ in range(draw.randint(0, 4))] for _ in range(30)]
    gathered_mean = PairedMean()
    for values in clusters:
        gathered_mean.add(values)
    whole = mean_estimate([Observation(str(i), str(j), v) for i, c in enumerate(clusters) for j, v in enumerate(c)])
    found = gathered_mean.estimate()
    assert found == {
        "mean": pytest.approx(whole.mean),
        "low": pytest.approx(whole.low),
        "high": pytest.approx(whole.high),
        "n": whole.n,
    }
    assert PairedMean().estimate()["mean"] is None
