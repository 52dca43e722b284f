"""What `plan` says that an evaluation costs, beside what the journal says: models and judges, each by its price."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from potstill.recipe import Recipe, load_recipe
from potstill.runs.pipeline import run
from potstill.runs.plan import Plan, make_plan
from potstill.runs.trial import run_trial
from potstill.runs.workspace import Hashes, Workspace
from potstill.stages.base import Part
from potstill.stages.evaluate import Evaluate
from potstill.teachers.journal import JOURNAL, Journal
from potstill.terminal import views

GUESS = 3.0
"""How far a guess may lie from the truth, either way: what the plan says without a trial."""
TOLD = 1.15
"""And after a trial on some of the questions."""

RECIPE = """\
name: r
servers: {world: {kind: miniature, seed: 0, entities: 40}}
models:
  sage: {endpoint: world, name: sage, price: {input: 1, output: 4}}
  rambler: {endpoint: world, name: rambler, price: {input: 100, output: 300}}
  judge: {endpoint: world, name: judge, price: {input: 5, output: 20}}
  strict: {endpoint: world, name: judge, revision: strict, price: {input: 500, output: 2000}}
  free: {endpoint: world, name: scribe}
stages:
  questions: {kind: miniature, server: world, part: questions, per_category: 6}
  scores:
    kind: evaluate
    models: [sage, rambler, free]
    judge: judge
    max_tokens: 64
    suites:
      chat: {protocol: mt_bench, questions: questions}
      aspects: {protocol: aspects, questions: questions, aspects: [honesty, helpfulness], judge: strict}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(str(tmp_path / "r.yaml"))


def planned(recipe: Recipe, out: Path) -> Plan:
    return make_plan(recipe, Workspace(out), Hashes(out / "hashes.json"))


def spent(out: Path) -> dict[str, float]:
    """By the name that the server knows."""
    found: dict[str, float] = {}
    with contextlib.closing(Journal(out / JOURNAL, read_only=True)) as journal:
        for total in journal.totals():
            name = total.model + ("-strict" if total.revision.startswith("strict") else "")
            found[name] = found.get(name, 0.0) + total.usd
    return found


def by_part(plan: Plan) -> dict[str, tuple[float, float]]:
    step = plan.steps["scores"]
    found: dict[str, tuple[float, float]] = {}
    for part in step.expected.parts:
        low, high = views._part_usd(step, part)
        before = found.get(part.name, (0.0, 0.0))
        found[part.name] = (before[0] + low, before[1] + high)
    return found


def test_a_guess_and_a_trial_against_the_journal(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe, out, until="questions")
    guess = views._usd(planned(recipe, out).steps["scores"])
    parts = by_part(planned(recipe, out))
    run_trial(recipe, out, 16)
    plan = planned(recipe, out)
    told, after = views._usd(plan.steps["scores"]), by_part(plan)
    expected = plan.steps["scores"].expected
    sealed = run(recipe, out)
    cost = spent(out)
    truth = sum(cost.values())
    assert truth > 0
    assert guess[0] / GUESS < truth < guess[1] * GUESS
    assert told[0] / TOLD < truth < told[1] * TOLD
    real = {"answers": cost["sage"] + cost["rambler"], "chat": cost["judge"], "aspects": cost["judge-strict"]}
    for name, usd in real.items():
        low, high = after[name]
        assert low / TOLD < usd < high * TOLD, name
        assert (low + high) / 2 == pytest.approx(usd, rel=TOLD - 1), name
        assert parts[name][0] / GUESS < usd < parts[name][1] * GUESS, name
    asked = {part.name: 0 for part in expected.parts}
    for part in expected.parts:
        asked[part.name] += part.calls
    facts = sealed["scores"].facts["suites"]
    assert asked["chat"] == pytest.approx(facts["chat"]["scored"], rel=0.1)


def shown(plan: Plan, out: Path) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    views.plan_view(console, plan, Workspace(out))
    return console.export_text()


def test_the_plan_shows_what_each_suite_costs(recipe: Recipe, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path / "out")
    lines = {line.split()[0]: line.split() for line in shown(plan, tmp_path / "out").splitlines() if line.split()}
    calls = {name: lines[name][1] for name in ("answers", "chat", "aspects")}
    assert calls == {"answers": "~288", "chat": "~288", "aspects": "~576"}
    usd = {name: float(lines[name][3]) for name in calls}
    assert usd["aspects"] == pytest.approx(200 * usd["chat"], rel=0.05), "twice as many, at a hundred times the price"


def parts_of(models: Sequence[str], rows: dict[str, int], **suites: dict[str, object]) -> tuple[Part, ...]:
    return Evaluate.model_validate(
        {"kind": "evaluate", "models": models, "judge": "j", "suites": suites, "max_tokens": 50}
    ).expect(rows).parts  # fmt: skip


def test_a_pool_is_as_many_models_as_are_in_it() -> None:
    suite = {"protocol": "mt_bench", "questions": "q"}
    one = parts_of(["pool"], {"models": 1, "suites.chat.questions": 10}, chat=suite)
    four = parts_of(["pool"], {"models": 4, "suites.chat.questions": 10}, chat=suite)
    assert [part.calls for part in one] == [20, 20]
    assert [part.calls for part in four] == [80, 80]
    assert [(part.name, part.field) for part in four] == [("answers", "models"), ("chat", "judge")]


def test_local_models_take_no_money(tmp_path: Path) -> None:
    """Their answers are calls, but whoever judges them is paid for the judgments alone."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    text = RECIPE.replace("  sage: {endpoint: world, name: sage, price: {input: 1, output: 4}}", "  sage: {path: m}")
    (tmp_path / "local.yaml").write_text(text.replace("models: [sage, rambler, free]", "models: [sage]"))
    plan = planned(load_recipe(str(tmp_path / "local.yaml")), tmp_path / "out")
    found = by_part(plan)
    assert found["answers"] == (0, 0)
    assert views._usd(plan.steps["scores"])[0] == pytest.approx(found["chat"][0] + found["aspects"][0])
    assert found["chat"][0] > 0
