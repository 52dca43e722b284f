"""The recipe's domain: who takes it, that it is part of their keys, and what is wrong with a bad one."""

from pathlib import Path

import pytest

from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.stages.domain import Domain

RECIPE = """\
name: vertical
domain:
  name: law
  about: Questions of tenants and their landlords.
  topics: {contracts: [formation, breach], torts: []}
  personas: [a tenant, a landlord]
models:
  teacher: {endpoint: "http://localhost:1/v1", name: big}
stages:
  prompts: {kind: topics, teacher: teacher, branching: [4, 5], questions: 3}
  more: {kind: evolve, teacher: teacher, prompts: prompts}
  other: {kind: topics, teacher: teacher, domain: {name: medicine}}
  none: {kind: topics, teacher: teacher, domain: null}
  chats: {kind: converse, teacher: teacher, prompts: more}
  pages: {kind: magpie, teacher: teacher, count: 3, opening: "<|user|>"}
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Recipe:
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", overrides)


def keys(recipe: Recipe) -> dict[str, str]:
    plan = make_plan(recipe, Workspace(Path("run")), Hashes(Path("hashes.json")))
    return {name: step.key for name, step in plan.steps.items()}


def domain_of(recipe: Recipe, stage: str) -> Domain | None:
    found = getattr(recipe.stages[stage].config, "domain", None)
    assert isinstance(found, Domain | None)
    return found


def test_stages_take_the_recipes_domain_unless_they_have_their_own() -> None:
    recipe = load(RECIPE)
    assert {name for name in recipe.stages if domain_of(recipe, name)} == {"prompts", "more", "other", "chats"}
    law = domain_of(recipe, "prompts")
    assert law is not None
    assert law == domain_of(recipe, "chats")
    assert list(law.tree()) == [("contracts", ("formation", "breach")), ("torts", ())]
    other = domain_of(recipe, "other")
    assert other is not None
    assert (other.name, other.topics) == ("medicine", ())
    assert list(Domain(name="x", topics=("a", "b")).tree()) == [("a", ()), ("b", ())]


def test_a_change_of_domain_changes_the_keys_of_who_reads_it() -> None:
    before, after = keys(load(RECIPE)), keys(load(RECIPE, "domain.name=tax law"))
    assert {name for name in before if before[name] != after[name]} == {"prompts", "more", "chats"}
    topics = keys(load(RECIPE, "domain.topics=[contracts]"))
    assert topics["prompts"] not in (before["prompts"], after["prompts"])


def test_variables_reach_into_it() -> None:
    recipe = load(RECIPE.replace("name: law", "name: ${field}") + "variables: {field: finance}\n")
    found = domain_of(recipe, "prompts")
    assert found is not None
    assert found.name == "finance"


def test_forecasts_follow_the_tree() -> None:
    plan = make_plan(load(RECIPE), Workspace(Path("run")), Hashes(Path("hashes.json")))
    assert plan.steps["none"].expected.rows == 30 * 36 * 10
    assert plan.steps["prompts"].expected.rows == (2 + 5) * 3, "the parts of torts are asked for"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  name: law\n", "", r"r.yaml:2: 'name' is missing"),
        ("  about:", "  abaut:", r"r.yaml:4: unknown key 'abaut' \(did you mean 'about'\?\)"),
        ("[formation, breach]", "[breach, breach]", "r.yaml:5: .*the topic 'breach' stands there twice"),
        ("[a tenant, a landlord]", "a tenant", "r.yaml:6: 'personas' is 'a tenant': input should be a valid tuple"),
        ("domain: {name: medicine}", "domain: {nam: medicine}", "r.yaml:12: unknown key 'other.domain.nam'"),
    ],
)
def test_a_bad_domain_is_one_line_with_its_place(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(RECIPE.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_domain_that_nothing_reads_or_that_is_no_mapping_is_refused() -> None:
    text = "name: r\ndomain: {name: law}\nmodels:\n  t: {endpoint: 'http://x/v1', name: t}\nstages:\n"
    stage = "  s: {kind: magpie, teacher: t, count: 1, opening: x}\n"
    with pytest.raises(RecipeError, match=r"r.yaml:2: no stage of this recipe reads a domain"):
        load(text + stage)
    with pytest.raises(RecipeError, match=r"r.yaml:2: 'domain' is no mapping"):
        load((text + stage).replace("{name: law}", "law"))
    load(text.replace("{name: law}", "null") + stage)


def test_a_prompt_file_is_part_of_the_key_by_what_it_says() -> None:
    text = RECIPE.replace("questions: 3", "questions: 3, prompt_files: {questions: mine.txt}")
    Path("mine.txt").write_text("Ask {{ wanted }} things.")
    before = keys(load(text))
    Path("mine.txt").write_text("Ask {{ wanted }} other things.")
    after = keys(load(text))
    assert {name for name in before if before[name] != after[name]} == {"prompts", "more", "chats"}
    assert before["prompts"] != keys(load(RECIPE))["prompts"]


@pytest.mark.parametrize("rows", [1, 5, 12, 1000])
def test_a_trial_grows_a_small_tree_of_the_same_field(rows: int) -> None:
    config = load(RECIPE).stages["prompts"].config
    small = config.for_trial(rows)
    whole, few = config.expect({}), small.expect({})
    assert rows <= few.rows <= max(2 * rows, 3) or few.rows == whole.rows
    assert few.calls <= whole.calls
    assert small.expect({}) == config.for_trial(rows).expect({})


def test_calls_of_a_tree_are_counted_one_by_one() -> None:
    """4 topics in one request, 5 parts of each in four, 2 names of each part in twenty, people for each topic in four;
    then both askers put questions about 20 parts and 40 names."""
    text = RECIPE.replace("domain: null}", "domain: null, branching: [4, 5], entities: 2, personas: 3, askers: 2}")
    assert load(text).stages["none"].config.expect({}).calls == 1 + 4 + 20 + 4 + 60 * 2
