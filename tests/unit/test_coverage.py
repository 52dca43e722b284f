"""Whether intervals hold the truth as often as they say: on published judgments where they are here, and on made ones.

Each of 1,000 evaluations asks n questions drawn with replacement from those of one model; the truth is that model's
mean over all of its own.
"""

import json
import random
from pathlib import Path

import pytest

from potstill.evaluation.leaderboard import average, observations
from potstill.evaluation.spread import Value, spread_over_seeds
from potstill.evaluation.statistics import (
    Observation,
    mean_estimate,
    mean_over_seeds,
    paired_difference,
    paired_ratio,
    share_estimate,
)

SHARED = Path("../shared/data")
TIMES = 1000
NOMINAL = (0.93, 0.97)


def read_json(path):
    if not path.is_file():
        pytest.skip(f"{path.parent} is not here")
    return json.loads(path.read_text(encoding="utf-8"))


def preferences(folder):
    """The share of the win that each annotation gives the model; stored draws of 0 are halves."""
    found = [row["preference"] for row in read_json(SHARED / "alpaca_eval" / folder / "annotations.json")]
    return [(1.5 if value == 0 else value) - 1 for value in found if value is not None]


def grades(model):
    """The two grades of each question, as they were first stored; a judgment that failed is None."""
    path = SHARED / "mt_bench/model_judgment/alvarobartt_gpt-4_single.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.parent} is not here")
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["model"] == model:
            score = None if row["score"] < 0 else float(row["score"])
            found.setdefault(row["question_id"], {}).setdefault(row["turn"], score)
    return [[turns[1], turns[2]] for turns in found.values()]


def drawn(chance, questions, n):
    """An evaluation of n questions, each a list of values."""
    return [
        Observation(f"q{place}", str(part), value)
        for place, values in enumerate(chance.choices(questions, k=n))
        for part, value in enumerate(values)
    ]


def held(questions, n, estimate, truth=None, times=TIMES):
    """The share of evaluations whose interval holds the truth."""
    chance = random.Random(n)
    if truth is None:
        known = [value for values in questions for value in values if value is not None]
        truth = sum(known) / len(known)
    found = [estimate(drawn(chance, questions, n)) for _ in range(times)]
    return sum(one.low <= truth <= one.high for one in found) / times


@pytest.mark.parametrize("model", ["mistral-orpo", "mistral-orpo-mix", "mistral-orpo-capybara", "mistral-orpo-trl"])
def test_mt_bench_judgments_of_two_turns(model):
    questions = grades(model)
    assert len(questions) == 80
    assert NOMINAL[0] <= held(questions, 80, lambda rows: mean_estimate(rows, (1.0, 10.0))) <= NOMINAL[1]


@pytest.mark.parametrize("n", [100, 805])
@pytest.mark.parametrize(
    ("folder", "share"),
    [
        ("llama-2-70b-chat-hf/alpaca_eval_gpt4", 0.927),
        ("vicuna-13b/alpaca_eval_gpt4", 0.704),
        ("vicuna-13b/weighted_alpaca_eval_gpt4_turbo", 0.058),  # by a judge's log-probabilities: continuous
    ],
)
def test_alpaca_eval_annotations(folder, share, n):
    values = preferences(folder)
    assert sum(values) / len(values) == pytest.approx(share, abs=1e-3)
    assert NOMINAL[0] <= held([[value] for value in values], n, share_estimate) <= NOMINAL[1]


@pytest.mark.parametrize("n", [100, 805])
@pytest.mark.parametrize("folder", ["vicuna-13b/alpaca_eval_gpt4", "vicuna-13b/weighted_alpaca_eval_gpt4_turbo"])
def test_annotations_near_one_half(folder, n):
    """Every second one read as the other model's, as where two models are as good."""
    values = [value if place % 2 else 1 - value for place, value in enumerate(preferences(folder))]
    assert 0.45 < sum(values) / len(values) < 0.55
    assert NOMINAL[0] <= held([[value] for value in values], n, share_estimate) <= NOMINAL[1]


def beta(chance, mean, n=2000):
    """What a judge's log-probabilities give: mostly near 0 or 1, seldom between."""
    values = [chance.betavariate(0.12 * mean / (1 - mean), 0.12) for _ in range(n)]
    return [[value] for value in values]


@pytest.mark.parametrize("mean", [0.5, 0.94])
def test_weighted_preferences_that_were_made(mean):
    questions = beta(random.Random(5), mean)
    assert NOMINAL[0] <= held(questions, 150, share_estimate) <= NOMINAL[1]


def test_wilson_of_plain_n_would_hold_too_much_of_weighted_preferences():
    """What the effective number of questions is for: the same interval on n itself is visibly too wide."""
    questions = [[0.25 + value / 2] for (value,) in beta(random.Random(5), 0.5)]
    one = share_estimate(drawn(random.Random(0), questions, 200))
    as_if = share_estimate([Observation(f"q{i}", "", float(i % 2)) for i in range(200)])
    assert one.high - one.low < 0.6 * (as_if.high - as_if.low)
    assert NOMINAL[0] <= held(questions, 200, share_estimate) <= NOMINAL[1]


def test_the_ratio_of_two_models_on_the_same_questions():
    """Fieller's interval, with two turns a question and grades that rise and fall together."""
    chance, truth = random.Random(11), 0.8

    def evaluation():
        student, teacher = [], []
        for place in range(80):
            level = chance.gauss(7.0, 2.0)
            for turn in ("1", "2"):
                one = level + chance.gauss(0, 1.5)
                teacher.append(Observation(f"q{place}", turn, one))
                student.append(Observation(f"q{place}", turn, truth * level + chance.gauss(0, 1.5)))
        return paired_ratio(student, teacher)

    found = [evaluation() for _ in range(TIMES)]
    assert NOMINAL[0] <= sum(one.low <= truth <= one.high for one in found) / TIMES <= NOMINAL[1]
    assert found[0].n == 160


def test_no_ratio_to_what_may_be_nothing():
    student = [Observation(f"q{i}", "", 1.0) for i in range(4)]
    teacher = [Observation(f"q{i}", "", value) for i, value in enumerate([-1.0, 2.0, -1.0, 1.5])]
    assert paired_ratio(student, teacher).to_json() == {"mean": None, "low": None, "high": None, "n": 4}
    assert paired_ratio(student, teacher[:1]).mean is None


def test_the_ratio_of_equals_is_one_without_doubt():
    rows = [Observation(f"q{i}", "", float(i + 3)) for i in range(9)]
    found = paired_ratio(rows, rows)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def crossed(chance, of_questions, of_seeds, of_both, questions=80, seeds=5):
    """Values of questions asked of models of several seeds; the true mean is 0."""
    levels = [chance.gauss(0, of_questions) for _ in range(questions)]
    shifts = [chance.gauss(0, of_seeds) for _ in range(seeds)]
    return [
        Value(f"q{i}", level + shift + chance.gauss(0, of_both), 1.0, str(j))
        for i, level in enumerate(levels)
        for j, shift in enumerate(shifts)
    ]


@pytest.mark.parametrize(
    ("of_seeds", "least", "most"),  # against a question's 1: none, some, as much as the questions make, and most
    [(0.0, 0.94, 0.99), (0.1, 0.92, 0.97), (0.25, 0.92, 0.98), (1.0, 0.93, 0.98)],
)
def test_five_seeds_of_eighty_questions(of_seeds, least, most):
    chance, times = random.Random(3), TIMES
    ends = [spread_over_seeds(crossed(chance, 1.0, of_seeds, 0.8)).ends() for _ in range(times)]
    assert least <= sum(low <= 0 <= high for low, high in ends) / times <= most


def test_over_questions_alone_five_seeds_are_far_too_sure():
    """What the second way of clustering is for."""
    chance, times = random.Random(3), 300
    found = [crossed(chance, 1.0, 1.0, 0.8) for _ in range(times)]
    alone = [mean_estimate([Observation(r.question, r.seed, r.value) for r in rows]) for rows in found]
    both = [mean_over_seeds(rows, len(rows), None) for rows in found]
    assert sum(one.low <= 0 <= one.high for one in alone) / times < 0.5
    assert all(wide.high - wide.low >= narrow.high - narrow.low for wide, narrow in zip(both, alone, strict=True))


@pytest.mark.parametrize(("n", "discordant", "drop"), [(500, 0.10, 0.05), (100, 0.2, 0.0), (60, 0.05, 0.02)])
def test_paired_shares(n, discordant, drop):
    """Tango's interval, widened to 0 where the exact test says no more: never below its level."""
    chance, lost = random.Random(n), (discordant + drop) / 2

    def one():
        rolls = [chance.random() for _ in range(n)]
        later = [Observation(f"q{i}", "", float(roll >= lost)) for i, roll in enumerate(rolls)]
        earlier = [Observation(f"q{i}", "", float(not lost <= roll < discordant)) for i, roll in enumerate(rolls)]
        return paired_difference(later, earlier)

    found = [one() for _ in range(TIMES)]
    assert 0.94 <= sum(each.low <= -drop <= each.high for each in found) / TIMES <= 0.995


def answers(chance, n, gained, lost):
    """Later and earlier answers, right or wrong."""
    rolls = [chance.random() for _ in range(n)]
    known = [float(chance.random() < 0.6) for _ in range(n)]
    later = [1.0 if roll < gained else 0.0 if roll < gained + lost else same
             for roll, same in zip(rolls, known, strict=True)]  # fmt: skip
    earlier = [0.0 if roll < gained else 1.0 if roll < gained + lost else same
               for roll, same in zip(rolls, known, strict=True)]  # fmt: skip
    return later, earlier


def probabilities(chance, n, gain, deviation):
    """Later and earlier probabilities of the true answers."""
    earlier = [chance.uniform(0.3, 0.6) for _ in range(n)]
    return [one + chance.gauss(gain, deviation) for one in earlier], earlier


FEW = [(20, 0.03, 0.03)]
SUBJECTS = [(size, *chances) for size in (5, 10, 20, 60) for chances in ((0.0, 0.0), (0.1, 0.02), (0.02, 0.1))] * 4


@pytest.mark.parametrize(
    ("tasks", "graded", "least", "most"),
    [
        ([FEW, FEW, FEW], (20, 0.03, 0.001), 0.95, 1.0),
        ([FEW, FEW, FEW, FEW], None, 0.95, 1.0),
        ([[(150, 0.12, 0.08)], [(80, 0.2, 0.1)]], (60, 0.01, 0.15), 0.93, 0.985),
        ([SUBJECTS], None, 0.93, 0.985),
    ],
    ids=["few differ, one without spread", "few differ", "ordinary", "48 subjects"],
)
def test_a_mean_over_tasks(tasks, graded, least, most):
    """Each task a list of (questions, chance to gain, chance to lose); one graded, (questions, gain, deviation)."""
    chance, inside, times = random.Random(8), 0, 200
    gains = [sum(gained - lost for _, gained, lost in parts) / len(parts) for parts in tasks]
    gains += [graded[1]] if graded else []
    for _ in range(times):
        drawn = [[answers(chance, *part) for part in parts] for parts in tasks]
        drawn += [[probabilities(chance, *graded)]] if graded else []
        later, earlier = (
            average(
                {
                    f"t{i}": observations({f"t{i}_{j}": part[side] for j, part in enumerate(parts)})
                    for i, parts in enumerate(drawn)
                }
            )
            for side in (0, 1)
        )
        found = paired_difference(later, earlier)
        inside += found.low <= sum(gains) / len(gains) <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert least <= inside / times <= most
