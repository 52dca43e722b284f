"""The bar for judges: who clears it, who does not, what stops before anybody is asked, and who is trusted."""

import json
import random
from io import StringIO
from pathlib import Path

import pytest
from evaluation_fakes import FakeTeacher, House, data, endpoint, inputs, judge_by_length, questions, work
from planted_judges import drawn, population
from pydantic import ValidationError
from rich.console import Console

from potstill.artifact import read_json, write_json
from potstill.errors import RecipeError, TeacherError
from potstill.evaluation.bar import _PATHS, CENTRES, measured, standings
from potstill.evaluation.judge_grades import Graded, grades_report
from potstill.evaluation.judge_trial import Comparison, judge_report, people_report
from potstill.recipe import load_recipe
from potstill.reporting.findings import reservations
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.trial import run_trial
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data
from potstill.stages import evaluate
from potstill.stages.judging import HOW_TO_MEASURE, Bar
from potstill.stages.suites import base
from potstill.terminal.show import show
from potstill.terminal.views import plan_view

# On paper.


def trial(measure: str, mean: float, low: float | None, high: float | None, n: int = 200) -> dict:
    """A trial.json in which a judge has that figure."""
    report: dict = {"comparisons": n, "answers": n} if measure in ("spearman", "error") else {"comparisons": n}
    at = report
    for step in _PATHS[measure][:-1]:
        at = at.setdefault(step, {})
    at[_PATHS[measure][-1]] = {"mean": mean, "low": low, "high": high, "n": 2 * n}
    return {
        "protocol": "pairwise" if measure in measured("pairwise", 2) else "grade",
        "repeats": 2,
        "judges": {"j": report},
    }


def stands(measure: str, bar: float, *ends: float | None) -> tuple[str, int | None]:
    (found,) = standings("j", {measure: bar}, {"t": trial(measure, *ends)})
    return found.verdict, found.needed


def test_a_judge_clears_a_bar_with_its_whole_interval():
    assert stands("agreement", 0.6, 0.66, 0.61, 0.71) == ("clears it", None)
    assert stands("agreement", 0.6, 0.66, 0.60, 0.71) == ("clears it", None)
    assert stands("agreement", 0.6, 0.55, 0.50, 0.59) == ("misses it", None)
    # Two points above the bar by an interval of five: (5 / 2)^2 times as many comparisons end it there.
    assert stands("agreement", 0.6, 0.62, 0.57, 0.67) == ("cannot be told", 1250)
    assert stands("agreement", 0.6, 0.59, 0.54, 0.64) == ("cannot be told", 5000), "to be told that it misses"
    assert stands("agreement", 0.6, 0.6, 0.55, 0.65) == ("cannot be told", None), "no number tells it from the bar"
    assert stands("error", 0.6, 0.0, 0.0, 0.0) == ("cannot be told", None), "no spread at all"
    assert stands("kappa", 0.6, 1.0, None, None) == ("cannot be told", None), "without an interval"


def test_a_bias_clears_a_bar_on_both_sides():
    assert stands("position_bias", 0.1, 0.54, 0.49, 0.59) == ("clears it", None)
    assert stands("position_bias", 0.1, 0.46, 0.39, 0.53) == ("cannot be told", (200 * (7 / 6) ** 2).__ceil__())
    assert stands("position_bias", 0.1, 0.75, 0.68, 0.82) == ("misses it", None)
    assert stands("position_bias", 0.1, 0.25, 0.18, 0.32) == ("misses it", None), "for what is shown second"
    assert stands("length_bias", 0.1, -0.15, -0.25, -0.05) == ("cannot be told", 800)
    assert stands("error", 1.0, 0.8, 0.7, 0.9) == ("clears it", None)
    assert stands("error", 1.0, 1.4, 1.2, 1.6) == ("misses it", None)


def test_every_measure_of_the_bar_is_found_in_the_reports_and_can_be_had():
    assert set(Bar.model_fields) == set(_PATHS) == measured("pairwise", 2) | measured("grade", 2)
    assert set(CENTRES) < set(_PATHS)
    always = measured("pairwise", 1) & measured("grade", 1)
    assert set(HOW_TO_MEASURE) == set(_PATHS) - always
    graded = [Graded(str(i), i % 5, (float(i % 5),) * 2) for i in range(20)]
    reports = {"pairwise": judge_report(drawn(1, repeats=2)), "grade": grades_report(graded, [], ((0, 5), (1, 10)))}
    for protocol, report in reports.items():
        for measure in measured(protocol, 2):
            value = report
            for step in _PATHS[measure]:
                value = value[step]
            assert {"mean", "low", "high", "n"} <= value.keys(), measure


def test_how_many_are_told_is_of_what_was_asked():
    """Single verdicts and askings are several a comparison; what a grade is asked for is an answer."""
    trials = {
        "pairs": {"protocol": "pairwise", "repeats": 2, "judges": {"j": judge_report(drawn(1, 20, 2, repeats=2))}}
    }
    graded = [Graded(str(i), i % 5, (float(i % 5),) * 2) for i in range(30)]
    trials["grades"] = {"protocol": "grade", "repeats": 2, "judges": {"j": grades_report(graded, drawn(1, 7, 1), None)}}
    found = standings("j", {"agreement": 0.5, "position_bias": 0.4, "self_consistency": 0.5, "spearman": 0.1}, trials)
    assert {(one.measure, one.trial, one.n, one.unit) for one in found} == {
        ("agreement", "pairs", 40, "comparisons"),
        ("agreement", "grades", 7, "comparisons"),
        ("position_bias", "pairs", 40, "comparisons"),
        ("self_consistency", "pairs", 40, "comparisons"),
        ("self_consistency", "grades", 30, "answers"),
        ("spearman", "grades", 30, "answers"),
    }


def test_what_no_trial_measured_is_said():
    trials = {"t": {"protocol": "grade", "repeats": 1, "judges": {"j": judge_report(drawn(1))}}}
    (found,) = standings("j", {"self_consistency": 0.9}, trials)
    assert (found.verdict, found.text) == ("was not measured", "self consistency was not measured in trial 't'")


def test_a_judge_at_the_bar_is_let_through_as_seldom_as_the_interval_says():
    """A bar at the planted agreement, which 2.5% of the trials clear by luck; a bar 20 points lower is cleared."""
    truth = judge_report(population())["agreement"]["mean"]
    cleared, lower, sims = 0, 0, 300
    for seed in range(sims):
        trials = {"t": {"protocol": "pairwise", "repeats": 1, "judges": {"j": judge_report(drawn(seed, prompts=50))}}}
        at, below = (standings("j", {"agreement": bar}, trials)[0] for bar in (truth, truth - 0.2))
        cleared, lower = cleared + at.holds, lower + below.holds
    assert cleared / sims <= 0.05
    assert lower / sims >= 0.95


# In the stage.

SUITES = {"chat": {"protocol": "mt_bench", "questions": "questions"}}


def tried(folder: Path, **judges: float) -> Data:
    """A sealed trial of judges, each right with that chance, on 200 comparisons."""
    reports = {}
    for name, right in judges.items():
        draw, rows = random.Random(name), []
        for i in range(200):
            said = [float(draw.random() < right) for _ in range(2)]
            rows.append(Comparison(str(i), 1.0, *said, 1.0))
        reports[name] = judge_report(rows)
    path = folder / "tried"
    path.mkdir(parents=True)
    people = people_report([])
    write_json(
        path / "trial.json",
        {"protocol": "pairwise", "repeats": 1, "temperature": 0.0, "people": people, "judges": reports},
    )
    return Data("tried", "trial", path)


@pytest.fixture
def house(monkeypatch):
    made = House(
        FakeTeacher("m", lambda r: "an answer"),
        FakeTeacher("judge", judge_by_length),
        FakeTeacher("own", judge_by_length),
    )
    monkeypatch.setattr(base, "connect", made.connect)
    return made


def evaluated(folder, trials, *, suites=SUITES, bar=None, **fields):
    config = evaluate.Evaluate.model_validate(
        {"kind": "evaluate", "models": ["m"], "judge": "judge", "suites": suites}
        | {"trial": "tried", "bar": bar or {"agreement": 0.6}, **fields}
    )
    rows = {f"suites.{name}.questions": data(folder, f"questions {name}", "prompts", questions(3)) for name in suites}
    own = {f"suites.{name}.judge": endpoint(suite["judge"]) for name, suite in suites.items() if "judge" in suite}
    given = inputs({**rows, "trial": trials}, {"models": endpoint("m"), "judge": endpoint("judge"), **own})
    return evaluate.run(config, given, work(folder))


def asked(house):
    return sum(len(teacher.asked) for teacher in house.teachers.values())


def test_a_weak_judge_stops_the_evaluation_before_anybody_is_asked(house, tmp_path):
    with pytest.raises(TeacherError) as caught:
        evaluated(tmp_path, tried(tmp_path, judge=0.3))
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert line.startswith("judge judge: agreement 0.")
    assert "of 200 comparisons in trial 'tried'; the bar is 0.6: it misses it. Use another judge" in line
    assert line.endswith("or write trust: [judge] to use this one all the same.")
    assert "\n" not in line
    assert asked(house) == 0
    assert not (tmp_path / "draft" / "scores.json").exists()


def test_a_judge_of_whom_it_cannot_be_told_stops_it_too_and_how_many_would_tell_is_said(house, tmp_path):
    with pytest.raises(TeacherError, match=r"cannot be told, about [\d,]+ comparisons would tell.* more labelled"):
        evaluated(tmp_path, tried(tmp_path, judge=0.79))  # right in both orders, else a tie: about 0.62
    assert asked(house) == 0


def test_a_good_judge_passes_and_how_it_stood_is_kept(house, tmp_path):
    facts = evaluated(tmp_path, tried(tmp_path, judge=0.95), bar={"agreement": 0.6, "position_bias": 0.2})
    held = facts["bar"]["judges"]["judge"]
    assert (held["short"], held["trusted"]) == ([], False)
    assert [(one["measure"], one["verdict"]) for one in held["standings"]] == [
        ("agreement", "clears it"),
        ("position_bias", "clears it"),
    ]
    assert held["standings"][0]["low"] >= 0.6
    assert read_json(tmp_path / "draft" / "scores.json")["bar"] == facts["bar"]
    assert reservations({"bars": {"scores": facts["bar"]}}) == []


def test_a_judge_that_is_trusted_by_name_is_used_and_shown(house, tmp_path):
    facts = evaluated(tmp_path, tried(tmp_path, judge=0.3), trust=["judge"])
    assert facts["bar"]["judges"]["judge"]["trusted"] is True
    assert facts["suites"]["chat"]["scored"] == 6
    scores = read_json(tmp_path / "draft" / "scores.json")
    (sentence,) = reservations({"bars": {"scores": scores["bar"]}})
    assert sentence.startswith("Judge judge did not clear the bar of scores: agreement 0.")
    assert sentence.endswith("It was used because the recipe says trust.")


def test_the_judge_of_a_suite_has_to_clear_it_too(house, tmp_path):
    suites = {**SUITES, "other": {"protocol": "mt_bench", "questions": "questions", "judge": "own"}}
    with pytest.raises(TeacherError, match=r"^judge own: agreement"):
        evaluated(tmp_path, tried(tmp_path, judge=0.95, own=0.3), suites=suites)
    assert asked(house) == 0


def test_a_judge_that_was_not_tried_is_refused(house, tmp_path):
    with pytest.raises(TeacherError, match=r"^judge judge: it was not tried\. Use another judge"):
        evaluated(tmp_path, tried(tmp_path, other=0.95))
    assert asked(house) == 0
    facts = evaluated(tmp_path / "again", tried(tmp_path / "again", other=0.95), trust=["judge"])
    assert facts["bar"]["judges"]["judge"]["short"] == ["it was not tried"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bar": None, "trial": "t"}, "trial and bar belong together"),
        ({"bar": {"agreement": 0.6}}, "trial and bar belong together"),
        ({"bar": {}, "trial": "t"}, "the bar is empty; set one of: agreement"),
        ({"trust": ["judge"]}, "trust names judges to use below a bar, but there is no bar"),
        ({"bar": {"kappa": 0.4}, "trial": "t", "trust": ["juge"]}, "trust names 'juge', which judges nothing here"),
        ({"bar": {"agreement": 60}, "trial": "t"}, "less than or equal to 1"),
    ],
)
def test_bars_that_mean_nothing_are_refused(fields, message):
    config = {"kind": "evaluate", "models": ["m"], "judge": "judge", "suites": SUITES, **fields}
    with pytest.raises(ValidationError, match=message):
        evaluate.Evaluate.model_validate(config)


# In a recipe.

RECIPE = """
name: judged
servers:
  world: {kind: miniature, entities: 60}
models:
  judge: {endpoint: world, name: judge}
  other: {endpoint: world, name: judge, structured: true}
  pool: [{endpoint: world, name: sage}, {endpoint: world, name: forger}, {endpoint: world, name: rambler}]
stages:
  questions: {kind: miniature, server: world, part: questions, per_category: 2}
  answers: {kind: sample, models: pool, prompts: questions, per_prompt: 3, max_tokens: 128}
  rated: {kind: judge, judge: judge, data: answers, mode: overall}
  pairs: {kind: binarize, data: rated, chosen: best_overall, rejected: other_model, max_length_ratio: 20}
  trial: {kind: try_judge, judge: judge, data: pairs, protocol: grade, repeats: 2}
  scores:
    kind: evaluate
    models: [pool]
    judge: judge
    limit: 3
    suites: {chat: {protocol: mt_bench, questions: questions}}
    trial: trial
    bar: {agreement: BAR, self_consistency: 0.5}
    TRUST
  report: {kind: report, scores: [scores], trials: [trial]}
"""


def recipe_of(folder: Path, bar: float, trust: str = "", change: tuple[str, str] = ("", "")):
    (folder / "judged.yaml").write_text(RECIPE.replace("BAR", str(bar)).replace("TRUST", trust).replace(*change))
    return load_recipe(str(folder / "judged.yaml"))


def test_a_recipe_with_a_bar_from_plan_to_page(tmp_path):
    recipe, out = recipe_of(tmp_path, 0.999), Workspace(tmp_path / "out")
    screen = StringIO()
    plan_view(Console(file=screen, width=200), make_plan(recipe, out, Hashes(out.path / "hashes.json")), out)
    said = "scores asks nobody anything unless trial shows that its judges clear the bar"
    assert f"{said} (agreement 0.999, self_consistency 0.5)." in screen.getvalue()

    with pytest.raises(TeacherError, match=r"judge judge: agreement .* the bar is 0.999: .* trust: \[judge\]"):
        run(recipe, tmp_path / "out")
    assert Workspace(tmp_path / "out").latest("trial") is not None, (
        "the trial is sealed, and need not be paid for again"
    )

    sealed = run(recipe_of(tmp_path, 0.999, "trust: [judge]"), tmp_path / "out")
    held = sealed["scores"].facts["bar"]["judges"]["judge"]
    assert held["trusted"] is True
    by_measure = {one["measure"]: one for one in held["standings"]}
    assert by_measure["self_consistency"]["mean"] == 1, "the exact judge says the same again"
    trial_json = json.loads((sealed["trial"].path / "trial.json").read_text())
    assert trial_json["judges"]["judge"]["answers"] == 2 * sealed["pairs"].facts["rows"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert any("Judge judge did not clear the bar of scores" in line for line in summary["headline"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "It was used because the recipe says trust." in page
    assert "says the same when asked again" in page
    screen = StringIO()
    show(Console(file=screen, width=120), Workspace(tmp_path / "out"), "scores", 2, dropped=False)
    assert "did not clear the bar" in screen.getvalue()

    sealed = run(recipe_of(tmp_path, 0.2), tmp_path / "out")
    assert sealed["scores"].facts["bar"]["judges"]["judge"]["trusted"] is False
    assert "did not clear" not in (tmp_path / "out" / "report.html").read_text()


def test_a_trial_run_of_a_few_rows_is_held_to_no_bar(tmp_path):
    recipe = recipe_of(tmp_path, 0.999)
    assert run_trial(recipe, tmp_path / "out", 2) == {}
    assert Workspace(tmp_path / "out").trials()["scores"].calls > 0
    assert Workspace(tmp_path / "out").latest("scores") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("    judge: judge\n    limit", "    judge: other\n    limit"),
            r"the judge 'other' has to clear a bar, but is not tried in trial. .*trust: \[other\]",
        ),
        (
            (", repeats: 2", ""),
            r"set on self_consistency, which no trial of 'judge' here measures. .*repeats: 2 or more",
        ),
        (("self_consistency: 0.5", "consistency: 0.5"), r"set on consistency, .*protocol: pairwise"),
        (("self_consistency: 0.5", "error: 1"), r"set on error, .*scale of people's grades"),
    ],
)
def test_a_plan_refuses_trials_that_cannot_tell(tmp_path, change, message):
    recipe = recipe_of(tmp_path, 0.5, change=change)
    out = Workspace(tmp_path / "out")
    with pytest.raises(RecipeError, match=message):
        make_plan(recipe, out, Hashes(out.path / "hashes.json"))
