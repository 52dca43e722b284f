"""The gate: how often it is right about planted drops, that it says so where it cannot know, and what it is told."""

import json
import random
import re
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest

from potstill.cli import main
from potstill.errors import DataError
from potstill.evaluation.distributions import coin_at_least, holm
from potstill.evaluation.gate import Requirement, Side, check, compared, outcome
from potstill.evaluation.paired_shares import Discordant
from potstill.evaluation.requirements import read_clauses, resolve
from potstill.evaluation.scores import Measure, SuiteResult, write_observations
from potstill.evaluation.statistics import Observation, evidence, paired_rows
from potstill.scoring.compare import compare

EXACT = Measure("exact", (0.0, 1.0), share=True, unit="share of questions")
GRADES = Measure("mt_bench", (1.0, 10.0), unit="points")
LOSS = Measure("answer_loss", (0.0, None), higher_is_better=False, unit="nats per token")
TRIALS = 1000


def side(measure, values, parts=1, category=""):
    """Values question by question, `parts` of each."""
    rows = [Observation(f"q{i // parts}", str(i % parts), value, category=category) for i, value in enumerate(values)]
    return Side(measure, {"": rows})


def verdict(before, after, margin=0.0, level=0.05, **more):
    return check([(Requirement("", "suite", margin, **more), compared(before, after))], level)[0]


def answers(chance, n, discordant, drop):
    """Two models' answers, right or wrong, of which a share differs, with so many more lost than gained."""
    lost, gained = (discordant + drop) / 2, (discordant - drop) / 2
    before, after = [], []
    for _ in range(n):
        roll = chance.random()
        same = float(chance.random() < 0.6)
        before.append(1.0 if roll < lost else 0.0 if roll < lost + gained else same)
        after.append(0.0 if roll < lost else 1.0 if roll < lost + gained else same)
    return side(EXACT, before), side(EXACT, after)


def rates(make, margin, trials=TRIALS):
    found = [verdict(*make(), margin).verdict for _ in range(trials)]
    return {word: found.count(word) / trials for word in ("holds", "regression", "cannot tell")}


def test_a_drop_of_five_points_in_500_answers_is_caught():
    chance = random.Random(0)
    assert rates(lambda: answers(chance, 500, 0.10, 0.05), 0.0)["regression"] >= 0.95


@pytest.mark.parametrize(("n", "discordant"), [(500, 0.10), (500, 0.01), (200, 0.4), (40, 0.1)])
def test_without_a_drop_it_cries_wolf_in_under_one_of_twenty(n, discordant):
    chance = random.Random(1)
    assert rates(lambda: answers(chance, n, discordant, 0.0), 0.0)["regression"] < 0.05


def test_thirty_questions_cannot_tell_a_drop_of_five_points():
    chance = random.Random(2)
    found = rates(lambda: answers(chance, 30, 0.10, 0.05), 0.0)
    assert found["cannot tell"] > 0.95


@pytest.mark.parametrize("drop", [0.05, 0.051])
def test_a_drop_at_the_margin_seldom_passes_and_is_seldom_called_worse(drop):
    chance = random.Random(3)
    found = rates(lambda: answers(chance, 500, 0.12, drop), -0.05)
    assert found["holds"] <= 0.065
    assert found["regression"] <= 0.075


def test_a_small_margin_of_many_questions_passes_what_is_as_good():
    chance = random.Random(4)
    assert rates(lambda: answers(chance, 1500, 0.10, 0.0), -0.03, 300)["holds"] > 0.95


def dialogues(chance, n, drop):
    """Two turns a question, whole grades from 1 to 10 that rise and fall together."""

    def grade(level):
        return float(min(10, max(1, round(chance.gauss(level, 1.0)))))

    before, after = [], []
    for _ in range(n):
        level, moved = chance.gauss(5.5, 1.8), chance.gauss(-drop, 0.8)
        before += [grade(level), grade(level)]
        after += [grade(level + moved), grade(level + moved)]
    return side(GRADES, before, parts=2), side(GRADES, after, parts=2)


def test_grades_of_two_turns():
    chance = random.Random(5)
    assert rates(lambda: dialogues(chance, 80, 0.8), 0.0, 300)["regression"] >= 0.95
    assert rates(lambda: dialogues(chance, 80, 0.0), 0.0)["regression"] <= 0.06
    assert rates(lambda: dialogues(chance, 12, 0.3), 0.0, 300)["cannot tell"] >= 0.7


def test_both_turns_of_a_question_are_one_piece_of_evidence():
    """Copied turns make a p no smaller; taken for questions of their own they would."""
    before, after = [7.0] * 12, [6.0, 7.0, 5.0, 8.0, 6.0, 7.0, 6.0, 7.0, 6.0, 8.0, 6.0, 7.0]
    once = verdict(side(GRADES, before), side(GRADES, after))
    twice = [side(GRADES, [value for value in values for _ in range(2)], parts=2) for values in (before, after)]
    assert verdict(*twice).p == pytest.approx(once.p)
    assert verdict(*(side(GRADES, [row.value for row in one.members[""]]) for one in twice)).p < once.p


def test_the_exact_test_is_the_binomial():
    assert coin_at_least(9, 10) == pytest.approx((comb(10, 9) + 1) / 2**10)
    assert Discordant(100, 1, 9).p_at_most(0.0) == pytest.approx(11 / 1024)
    assert Discordant(100, 9, 1).p_at_most(0.0) == pytest.approx(1 - 1 / 1024)
    assert Discordant(100, 0, 0).p_at_most(0.0) == 1.0


def test_nothing_that_differs_bounds_the_difference_as_wilson_does():
    low, high = Discordant(30, 0, 0).ends(0.95)
    assert (low, high) == pytest.approx((-3.841459 / 33.841459, 3.841459 / 33.841459), rel=1e-5)


@pytest.mark.parametrize(("gained", "lost", "mean"), [(12, 38, -0.03), (5, 2, 0.1), (0, 4, -0.05), (7, 7, 0.02)])
def test_tango_maximises_the_likelihood_under_the_difference(gained, lost, mean):
    """His closed form against a search over the share of losses."""
    n = 120
    same = n - gained - lost

    def likelihood(share):
        up, rest = share + mean, 1 - 2 * share - mean
        if min(share, up, rest) <= 0:
            return None
        return up**gained * share**lost * rest**same

    grid = [i / 200_000 for i in range(1, 100_000)]
    best = max((value, share) for share in grid if (value := likelihood(share)) is not None)[1]
    expected = (gained - lost - n * mean) / (n * (2 * best + mean * (1 - mean))) ** 0.5
    assert Discordant(n, gained, lost).score(mean) == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_several_requirements_correct_regressions_and_not_what_holds():
    """Nine lost of ten that differ, p = 0.011: a regression alone, and none among five requirements."""
    bad = compared(side(EXACT, [1.0] * 9 + [0.0] + [1.0] * 90), side(EXACT, [0.0] * 9 + [1.0] + [1.0] * 90))
    good = compared(side(EXACT, [1.0] * 300), side(EXACT, [1.0] * 300))
    ask = Requirement("", "s", 0.0)
    assert check([(ask, bad)])[0].verdict == "regression"
    several = check([(ask, bad)] + [(Requirement("", "s", -0.02), good)] * 4)
    assert several[0].p_adjusted == pytest.approx(5 * several[0].p)
    assert several[0].verdict == "cannot tell"
    assert [one.verdict for one in several[1:]] == ["holds"] * 4
    assert outcome(several) == "cannot tell"
    assert outcome(several[1:]) == "holds"


def test_lower_is_better_is_turned():
    values = [1.0 + 0.01 * i for i in range(50)]
    worse = [value + 0.2 + 0.001 * (i % 3) for i, value in enumerate(values)]
    found = verdict(side(LOSS, values), side(LOSS, worse), -0.1)
    assert found.verdict == "regression"
    assert found.mean == pytest.approx(-0.201, abs=1e-3)
    assert verdict(side(LOSS, worse), side(LOSS, values), -0.1).verdict == "holds"


def test_the_number_of_questions_that_would_decide_does():
    """Of as many questions as it names, four in five evaluations decide, were the difference the observed one."""
    chance = random.Random(6)
    first = verdict(*answers(chance, 100, 0.10, 0.04))
    assert first.verdict == "cannot tell"
    share = -first.mean
    decided = rates(lambda: answers(chance, first.questions_needed, 0.10, share), 0.0, 400)["regression"]
    assert 0.7 <= decided <= 0.95


def test_a_difference_at_the_margin_is_decided_by_no_number():
    same = [0.0, 1.0] * 30
    found = verdict(side(EXACT, same), side(EXACT, same), 0.0)
    assert (found.verdict, found.questions_needed) == ("cannot tell", None)
    assert verdict(side(EXACT, same), side(EXACT, same), -0.01).questions_needed == pytest.approx(268, abs=2)


def test_what_is_missing_keeps_it_from_holding():
    before, after = [1.0, 0.0] * 100, [1.0, 0.0] * 90 + [None] * 20
    found = verdict(side(EXACT, before), side(EXACT, after), -0.1)
    assert found.verdict == "cannot tell"
    assert found.why.startswith("only 90%")


def test_a_few_grades_are_too_few():
    found = verdict(side(GRADES, [9.0] * 5), side(GRADES, [2.0] * 5))
    assert (found.verdict, found.questions_needed) == ("cannot tell", 10)


def test_other_seeds_are_part_of_the_doubt():
    """Three seeds that differ among themselves: over these very models a regression, over the recipe not."""
    chance = random.Random(7)
    base = {str(s): [Observation(f"q{i}", "", 6.0 + (i % 5)) for i in range(60)] for s in range(3)}
    moved = {
        str(s): [Observation(f"q{i}", "", 6.0 + (i % 5) + shift + chance.gauss(0, 0.3)) for i in range(60)]
        for s, shift in enumerate((-1.2, 0.3, -0.6))
    }
    whole = compared(Side(GRADES, base), Side(GRADES, moved))
    assert whole.over_seeds
    assert check([(Requirement("", "s", 0.0), whole)])[0].verdict == "cannot tell"
    alone = compared(Side(GRADES, {"0": base["0"]}), Side(GRADES, {"0": moved["0"]}))
    assert check([(Requirement("", "s", 0.0), alone)])[0].verdict == "regression"


def test_a_familys_failed_judgments_are_missing():
    """Two of three seeds have a value on one question of twenty: every question has one in some seed, and yet."""
    chance = random.Random(9)
    rows = {str(s): [Observation(f"q{i}", "", float(chance.random() < 0.5)) for i in range(200)] for s in range(3)}
    failed = {
        seed: [replace(row, value=row.value if seed == "0" or i >= 190 else None) for i, row in enumerate(found)]
        for seed, found in rows.items()
    }
    for before, after in ((rows, failed), ({"": rows["0"]}, failed), (rows, {f"{s}x": v for s, v in failed.items()})):
        whole = compared(Side(EXACT, before), Side(EXACT, after))
        assert whole.coverage == pytest.approx((200 + 10 + 10) / 600)
        found = check([(Requirement("", "s", -0.5), whole)])[0]
        assert (found.verdict, found.why) == ("cannot tell", "only 37% of one side could be scored")


def test_a_drop_in_few_questions_seldom_passes():
    """Five points lost in one question of 25, a mean of -0.2: most samples hold none or few, and no spread to see."""
    chance = random.Random(10)

    def graded(n):
        levels = [float(chance.randint(1, 10)) for _ in range(n)]
        return side(GRADES, levels), side(GRADES, [level - 5.0 * (chance.random() < 0.04) for level in levels])

    for n in (10, 20, 40, 80, 160):
        assert rates(lambda n=n: graded(n), -0.2, 200)["holds"] <= 0.055, n


def test_a_gain_in_few_questions_seldom_makes_a_regression():
    """Won instead of drawn in one comparison of 17, a mean of 0.03, which most samples fall below without a spread."""
    chance = random.Random(11)
    won = Measure("alpaca_eval", (0.0, 1.0), share=True, unit="share won")

    def drawn(n):
        return side(won, [0.5] * n), side(won, [0.5 + 0.5 * (chance.random() < 0.06) for _ in range(n)])

    for n in (20, 100):
        assert rates(lambda n=n: drawn(n), 0.03, 200)["regression"] <= 0.055, n


def test_where_most_questions_differ_nothing_is_widened():
    chance = random.Random(12)
    for n in (20, 80):
        before, after = dialogues(chance, n, 0.3)
        found = compared(before, after).found
        assert found == evidence(paired_rows(after.observations, before.observations))


def test_questions_alike_need_as_many_as_it_says():
    same = side(GRADES, [6.0] * 40)
    first = verdict(same, same, -0.2)
    assert first.verdict == "cannot tell"
    enough, fewer = (side(GRADES, [6.0] * n) for n in (first.questions_needed, int(0.8 * first.questions_needed)))
    assert verdict(enough, enough, -0.2).verdict == "holds"
    assert verdict(fewer, fewer, -0.2).verdict == "cannot tell"


def test_questions_that_were_left_out_are_missed():
    whole = [float(3 + i % 5) for i in range(100)]
    found = verdict(side(GRADES, whole), side(GRADES, [value + i % 3 for i, value in enumerate(whole[:90])]))
    assert (found.verdict, found.only_before, found.coverage) == ("cannot tell", 10, 1.0)
    assert found.why == "AFTER was asked only 90 of BEFORE's 100 questions"
    assert verdict(side(GRADES, whole), side(GRADES, [value + i % 3 for i, value in enumerate(whole[:95])])).why == ""


WHERE = "--require"
SIDES = {
    "mt_bench": side(GRADES, [5.0] * 20, category="math"),
    "hellaswag": side(EXACT, [1.0] * 20),
    "rated/truthfulness": side(GRADES, [5.0] * 20, category="math"),
}


def requirements(text, before=SIDES, after=SIDES):
    return [resolve(clause, (before, after), WHERE) for clause in read_clauses(text, WHERE)]


def test_requirements_are_read():
    found = requirements("mt_bench > -0.1, hellaswag>=−1.5 %,rated/truthfulness/Math >0 ,  mt_bench/math ≥ -.5")
    assert [(one.suite, one.category, one.margin, one.strict) for one in found] == [
        ("mt_bench", "", -0.1, True),
        ("hellaswag", "", -0.015, False),
        ("rated/truthfulness", "math", 0.0, True),
        ("mt_bench", "math", -0.5, False),
    ]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("mt_bench", 1, "cannot be read"),
        ("mt_bench > -0.1,, hellaswag > -1%", 17, "is empty"),
        ("mt_bench > 0, hellaswag < -1%", 15, "bounds from above"),
        ("mt_bench > -1%", 1, "a percentage of those"),
        ("hellaswag > -0.01", 1, "can mean -0.01 or -1 percentage points"),
        ("mtbench > 0", 1, "no suite is called 'mtbench'"),
        ("mt_bench/maths > 0", 1, "no category 'maths'"),
        ("mt_bench > 1e999", 1, "no finite margin"),
    ],
)
def test_what_is_wrong_with_a_requirement_is_said_with_its_place(text, place, words):
    with pytest.raises(DataError) as caught:
        requirements(text)
    assert caught.value.where == f"{WHERE}, character {place}"
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_suite_of_one_side_alone_is_refused_by_name():
    with pytest.raises(DataError, match="suite 'hellaswag' stands in BEFORE alone"):
        requirements("hellaswag > -1%", after={"mt_bench": SIDES["mt_bench"]})


@pytest.fixture
def scored(tmp_path):
    """Two sealed evaluations of one suite, and one of other questions."""
    chance = random.Random(8)
    before, after = answers(chance, 500, 0.10, 0.05)
    other = [Observation(f"other{i}", "0", 1.0) for i in range(20)]
    for name, rows in (("before", before.members[""]), ("after", after.members[""]), ("other", other)):
        lay_down(tmp_path / name, rows)
    return tmp_path


def lay_down(folder, rows):
    """A copied evaluation of two models that answered alike."""
    folder.mkdir(exist_ok=True)
    result = SuiteResult(EXACT, {"base": rows, "chat": rows})
    (folder / "scores.json").write_text(json.dumps({"models": ["base", "chat"], "suites": {"sums": result.to_json()}}))
    write_observations(folder, {"sums": result})


@pytest.mark.parametrize(
    ("require", "code"),
    [
        (None, 0),
        ("sums > -10%", 0),
        ("sums > 0", 1),
        ("sums > -5%", 3),
        ("sums > -20%, sums > -5%", 3),
        ("nuts > 0", 2),
    ],
)
def test_exit_codes(scored, require, code, capsys):
    words = ["compare", str(scored / "before"), str(scored / "after"), *(["--require", require] if require else [])]
    assert main(words) == code
    assert main([*words, "--json"]) == code
    out = capsys.readouterr()
    if code == 2:
        assert "Traceback" not in out.err
        return
    found = json.loads(out.out[out.out.index("{") :])
    assert found["exit_code"] == code
    assert found["suites"]["sums"]["difference"]["mean"] == pytest.approx(-0.05, abs=0.03)
    assert found["after"].endswith("after:chat")


def test_other_questions_are_refused(scored, capsys):
    assert main(["compare", str(scored / "before"), str(scored / "other")]) == 2
    assert "were asked other questions" in capsys.readouterr().err


def test_what_people_see(scored, capsys):
    """The difference with its interval, why it cannot be told, and what would tell."""
    sides = [str(scored / "before"), str(scored / "after")]
    main(["compare", *sides, "--require", "sums > -5%, sums > -20%"])
    out = " ".join(capsys.readouterr().out.split())
    assert "sums > -20%" in out
    assert len(re.findall(r"\[−\d+\.\d, −\d+\.\d\]", out)) == out.count("n 500") == 2
    assert "holds" in out
    assert "questions like these would decide" in out or "no number of questions" in out
    assert "Regressions are corrected for 2 requirements (Holm)." in out
    main(["compare", sides[0], sides[0]])
    assert "cannot tell" in capsys.readouterr().out, "nothing that differs bounds how far apart two can be"


@pytest.mark.parametrize("require", ["", " "])
def test_an_empty_requirement_is_bad_input(scored, require, capsys):
    """What a variable that was never set comes to."""
    assert main(["compare", str(scored / "before"), str(scored / "after"), "--require", require]) == 2
    assert "a requirement is empty" in capsys.readouterr().err


@pytest.mark.parametrize("sides", [("", "after"), ("after", "")])
def test_an_empty_side_is_bad_input(scored, sides, capsys, monkeypatch):
    monkeypatch.chdir(scored / "before")
    assert main(["compare", *(str(scored / one) if one else "" for one in sides)]) == 2
    assert "the name of a side is empty" in capsys.readouterr().err


def test_a_subset_is_said(scored, capsys):
    rows = [json.loads(line) for line in (scored / "after" / "observations.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["model"] == "chat" and int(row["question"][1:]) < 20]
    lay_down(scored / "after", [Observation(row["question"], row["part"], row["value"]) for row in kept])
    words = ["compare", str(scored / "before"), str(scored / "after")]
    assert main(words) == 0
    assert "480 of the questions asked before were not asked after" in capsys.readouterr().out
    assert main([*words, "--require", "sums > -90%", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["suites"]["sums"]["difference"]["only_before"] == found["requirements"][0]["only_before"] == 480


def test_too_few_questions_or_too_few_scored_are_no_verdict(tmp_path):
    for name, shift in (("before", 0.0), ("after", 2.0)):
        two = [Observation(f"q{i}", "1", 5.0 + i + shift) for i in range(2)]
        nulls = [
            Observation(f"q{i}", "1", None if shift and i % 5 else 4.0 + i % 3 + shift + shift * (i % 7) / 9)
            for i in range(60)
        ]
        results = {"two": SuiteResult(GRADES, {"m": two}), "nulls": SuiteResult(GRADES, {"m": nulls})}
        (tmp_path / name).mkdir()
        suites = {suite: result.to_json() for suite, result in results.items()}
        (tmp_path / name / "scores.json").write_text(json.dumps({"models": ["m"], "suites": suites}))
        write_observations(tmp_path / name, results)
    found = compare(str(tmp_path / "before"), str(tmp_path / "after"))["suites"]
    assert {suite: (one["verdict"], one["difference"]["why"]) for suite, one in found.items()} == {
        "two": ("unclear", "2 questions are too few to tell"),
        "nulls": ("unclear", "only 20% of one side could be scored"),
    }
    assert (found["two"]["difference"]["low"], found["two"]["difference"]["high"]) == (-9.0, 9.0), "all that can be"


def test_a_model_is_named_or_missing(scored, capsys):
    assert main(["compare", f"{scored / 'before'}:base", f"{scored / 'after'}:chat"]) == 0
    assert main(["compare", f"{scored / 'before'}:bass", f"{scored / 'after'}:chat"]) == 2
    assert "no model is called 'bass'" in capsys.readouterr().err
    assert main(["compare", str(scored / "nowhere.jsonl"), str(scored / "after")]) == 2


def test_a_family_is_named_as_a_whole(tmp_path):
    """With all its seeds, which are then part of the doubt."""
    rows = {
        f"{name}[seed={s}]": [Observation(f"q{i}", "1", 5.0 + shift + i % every / 10) for i in range(30)]
        for name, every, shifts in (("sft", 7, (0.0, 0.1, 0.2)), ("dpo", 5, (1.0, 1.1, 1.3)))
        for s, shift in enumerate(shifts)
    }
    result = SuiteResult(GRADES, rows)
    (tmp_path / "scores.json").write_text(json.dumps({"models": list(rows), "suites": {"chat": result.to_json()}}))
    write_observations(tmp_path, {"chat": result})
    found = compare(f"{tmp_path}:sft", f"{tmp_path}", "chat > 0.5")
    assert found["after"].endswith(":dpo")
    assert found["suites"]["chat"]["difference"]["seeds"]
    assert (found["requirements"][0]["verdict"], found["requirements"][0]["n"]) == ("holds", 30)
    one = compare(f"{tmp_path}:sft[seed=0]", f"{tmp_path}:dpo[seed=0]")["suites"]["chat"]["difference"]
    assert not one["seeds"]


def test_published_annotations():
    """Llama 2 70B against Vicuna 13B, on the published annotations: 92.66% and 70.43% won."""
    folder = Path("../shared/data/alpaca_eval")
    if not folder.is_dir():
        pytest.skip("../shared/data/alpaca_eval is not here")
    files = [str(folder / f"{one}/alpaca_eval_gpt4/annotations.json") for one in ("vicuna-13b", "llama-2-70b-chat-hf")]
    found = compare(*files, "alpaca_eval > 15%, alpaca_eval > 30%")
    assert [one["verdict"] for one in found["requirements"]] == ["holds", "regression"]
    assert found["suites"]["alpaca_eval"]["difference"]["mean"] == pytest.approx(0.2223, abs=1e-3)
