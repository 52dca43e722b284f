"""Recipes: what they may say, and that whatever is wrong with one is a single line with its place."""

import os
import re
from pathlib import Path

import fakes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.document import parse, read_document
from potstill.errors import RecipeError
from potstill.recipe import load_recipe, locate, shipped
from potstill.recipe.references import slots
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan, stage_inputs
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import EndpointModel, Inputs, LocalModel


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def load(text, *overrides):
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", overrides)


def refused(text, *overrides):
    """The one line that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_recipe_becomes_typed_parts_in_the_order_they_can_run():
    recipe = load(fakes.RECIPE)
    assert (recipe.name, recipe.seed, recipe.variables) == ("tiny", 3, {"word": "pot"})
    assert list(recipe.stages) == ["first", "second", "loud", "made", "other", "asked"]
    assert recipe.stages["first"].config.text == "pot"
    assert recipe.stages["asked"].reads == ("made", "loud")
    assert [model.name for model in recipe.models["pool"]] == ["one", "two"]
    assert recipe.models["scribe"][0].spec == EndpointModel(endpoint="http://localhost:1/v1", name="scribe-1")


def test_stages_may_stand_in_any_order_and_run_in_one_that_works():
    recipe = load("name: r\nstages:\n  b: {kind: shout, data: c}\n  a: {kind: words}\n  c: {kind: shout, data: a}\n")
    assert list(recipe.stages) == ["a", "c", "b"]


def test_every_reference_is_found_however_deep_it_stands():
    config = load(fakes.RECIPE, "asked.suites.one.judge=scribe").stages["asked"].config
    found = {slot.field: [named.name for named in slot.names] for slot in slots(config)}
    assert found == {
        "models": ["made", "scribe"],
        "suites.one.questions": ["loud"],
        "suites.one.judge": ["scribe"],
        "server": [],
    }


def test_references_in_optional_fields_lists_and_single_names():
    recipe = load(fakes.RECIPE, "loud.extra=second", "loud.data=[first, second]")
    links = recipe.stages["loud"].links
    assert [(link.field, link.steps, link.stage) for link in links] == [
        ("data", ("data", 0), "first"),
        ("data", ("data", 1), "second"),
        ("extra", ("extra",), "second"),
    ]


def test_a_mixture_names_its_sources_by_themselves_or_with_weights(tmp_path):
    recipe = load(fakes.RECIPE, "loud.data=[first, {from: second, weight: 0.3}]")
    links = recipe.stages["loud"].links
    assert [(link.steps, link.stage, link.weight) for link in links] == [
        (("data", 0), "first", 1.0),
        (("data", 1, "from"), "second", 0.3),
    ]
    assert load(fakes.RECIPE, "loud.data={from: second}").stages["loud"].links[0].weight == 1.0


def test_the_key_of_a_stage_sees_the_weights_and_the_sources_of_its_mixture(tmp_path):
    def key(*overrides):
        recipe = load(fakes.RECIPE, *overrides)
        step = make_plan(recipe, Workspace(tmp_path / "run"), Hashes(tmp_path / "hashes.json")).steps["loud"]
        again = step.entry.stage.config.model_validate(step.entry.config.model_dump(mode="json"))
        assert again == step.entry.config, "what a child process is told is what the recipe says"
        assert step.head["inputs"]["data"][-1]["name"] == "second"
        return step.key

    mixed = "loud.data=[first, {from: second, weight: 0.3}]"
    assert key(mixed) == key(mixed)
    others = ["loud.data=[first, {from: second, weight: 0.4}]", "loud.data=[first, second]", "second.text=moving"]
    assert len({key(mixed), *(key(mixed, other) for other in others)}) == 4


def test_the_rows_of_a_mixture_carry_their_weights(tmp_path):
    """Through the plan, and into the process that trains."""
    recipe = load(fakes.RECIPE, "loud.data=[first, {from: second, weight: 2.5}]", "first.count=2")
    run(recipe, tmp_path / "run", until="loud")
    plan = make_plan(recipe, Workspace(tmp_path / "run"), Hashes(tmp_path / "hashes.json"))
    sealed = {name: step.artifact for name, step in plan.steps.items()}
    inputs = stage_inputs(plan, plan.steps["loud"], sealed, {})
    assert [(data.name, data.weight) for data in inputs.data["data"]] == [("first", 1.0), ("second", 2.5)]
    assert Inputs.from_json(inputs.to_json()) == inputs


def test_a_pool_stands_for_all_its_members():
    links = load(fakes.RECIPE, "asked.models=[pool, made]").stages["asked"].links
    assert [[model.name for model in link.models] for link in links[:2]] == [["one", "two"], []]


def test_a_file_may_stand_where_a_stage_may_beside_the_recipe_first(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.jsonl").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "here.jsonl").write_text("{}")
    text = "name: r\nstages:\n  loud: {kind: shout, data: [rows.jsonl, here.jsonl]}\n"
    (tmp_path / "sub" / "r.yaml").write_text(text)
    links = load_recipe("sub/r.yaml").stages["loud"].links
    assert [link.file for link in links] == [tmp_path / "sub" / "rows.jsonl", tmp_path / "here.jsonl"]


# Values.


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-7", 5e-7), ("1E3", 1e3), ("1.5", 1.5), (".5", 0.5), ("-1.0e-5", -1e-5), (".inf", float("inf")),
        ("7", 7), ("-7", -7), ("1_000", 1000), ("0x10", 16), ("0o10", 8), ("007", "007"),
        ("true", True), ("False", False), ("no", "no"), ("on", "on"), ("yes", "yes"),
        ("null", None), ("~", None), ("", None), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("'5e-7'", "5e-7"), ("a b", "a b"), ("[1, x]", [1, "x"]), ("{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2_reads_them(written, value):
    found = parse(f"v: {written}", "r.yaml").value["v"]
    assert found == value
    assert type(found) is type(value)


def test_variables_keep_their_type_and_work_inside_flow_mappings_and_texts():
    recipe = load(
        "name: r\nseed: 7\nvariables: {n: 5, who: pot, both: '${who}-${seed}'}\nstages:\n"
        "  a: {kind: words, count: ${n}, text: ${both}}\n  b: {kind: words, text: 'a $${n} costs ${n}$'}\n"
    )
    assert recipe.stages["a"].config.count == 5
    assert recipe.stages["a"].config.text == "pot-7"
    assert recipe.stages["b"].config.text == "a ${n} costs 5$"


@pytest.mark.parametrize(
    ("override", "stage", "field", "value"),
    [
        ("first.count=9", "first", "count", 9),
        ("stages.first.count=9", "first", "count", 9),
        ("word=jar", "first", "text", "jar"),
        ("variables.word=jar", "first", "text", "jar"),
        ("other.heat=5e-7", "other", "heat", 5e-7),
        ("other.heat=2", "other", "heat", 2.0),
        ("loud.mark='a=b'", "loud", "mark", "a=b"),
        ("loud.mark=a=b", "loud", "mark", "a=b"),
        ("loud={kind: shout, data: second, mark: x}", "loud", "mark", "x"),
        ("first.text=${seed}0", "first", "text", "30"),
        ("loud.data=[first, second]", "loud", "data", ("first", "second")),
        ("other.data.0=first", "other", "data", ("first",)),
    ],
)
def test_overrides(override, stage, field, value):
    assert getattr(load(fakes.RECIPE, override).stages[stage].config, field) == value


def test_overrides_of_models_servers_and_top_level_keys():
    recipe = load(
        fakes.RECIPE, "seed=8", "name=new", "pool.1.name=three", "models.scribe.concurrency=2",
        "servers.world={kind: miniature}", "world.entities=60",
    )  # fmt: skip
    assert (recipe.seed, recipe.name) == (8, "new")
    assert [model.name for model in recipe.models["pool"]] == ["one", "three"]
    assert recipe.models["scribe"][0].spec.concurrency == 2
    assert recipe.servers["world"].entities == 60


def test_a_later_override_wins_and_an_optional_value_can_be_taken_away():
    recipe = load(fakes.RECIPE, "loud.extra=second", "loud.mark=x", "loud.mark=y", "loud.extra=null")
    assert recipe.stages["loud"].config.mark == "y"
    assert recipe.stages["loud"].config.extra is None


# Errors: each names the place, what, and what to do.

GOOD = "name: r\nstages:\n  a: {kind: words}\n  b:\n    kind: shout\n    data: a\n"
DISTIL = "name: r\nstages:\n  s: {kind: distill, model: m, teacher: m, data: d.jsonl,\n    "


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "r.yaml: the recipe is empty. Start it with 'name: my-recipe'"),
        ("# only a comment\n", "r.yaml: the recipe is empty"),
        ("just text", "r.yaml: a recipe is a mapping"),
        ("- a\n- b\n", "r.yaml: a recipe is a mapping"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2: not valid YAML"),
        ("name: r\nstages:\n\ta: 1\n", "r.yaml:3: not valid YAML"),
        ("name: r\n---\nname: s\n", "r.yaml:2: not valid YAML: expected a single document"),
        ("name: r\nname: s\n", "r.yaml:2: the key 'name' stands here twice"),
        (GOOD + "  a: {kind: words}\n", "r.yaml:7: the key 'a' stands here twice"),
        (GOOD + "    ? [x]\n    : 1\n", "r.yaml:7: a key that is itself a list"),
        ("name: !!python/object:os.system {}\n", "r.yaml:1"),
        ("name: !fancy x\n", "r.yaml:1: the YAML tag '!fancy'"),
        ("name: !!int x\n", "r.yaml:1: 'x' is no int"),
        (f"name: r\nseed: 0x{'f' * 5000}\n", f"r.yaml:2: '0x{'f' * 38}' is no int of up to 64 bits. Mend the value."),
        (f"name: r\nseed: {'9' * 5000}\n", f"r.yaml:2: '{'9' * 40}' is no int of up to 64 bits"),
        ('name: r\nvariables: {v: "\\ud83d"}\n', "r.yaml:2: it holds half a character (a lone surrogate)"),
        ('name: r\n"\\udc00": 1\n', "r.yaml:2: it holds half a character (a lone surrogate)"),
        (GOOD.replace("name: r", f"name: {'r' * 65}"), "is not a plain one. Use at most 64 letters, digits, '.', '_'"),
        (GOOD.replace("  a:", f"  {'a' * 65}:"), "is not a plain word. Use at most 64 letters, digits and '_'"),
        (GOOD + "    seconds: .inf\n", "r.yaml:7: 'b.seconds' is inf: input should be a finite number. Mend"),
        (GOOD + "    seconds: .nan\n", "r.yaml:7: 'b.seconds' is nan: input should be a finite number"),
        (GOOD + "    seconds: 1e400\n", "r.yaml:7: 'b.seconds' is inf: input should be a finite number"),
        (GOOD + "    seconds: true\n", "r.yaml:7: 'b.seconds' is true or false: input should be a number. Mend the"),
        (GOOD.replace("data: a", "data: ~nobody-here/x"), "r.yaml:6: '~nobody-here/x' begins with a home that nobody"),
        (GOOD + "models:\n  m: {path: ~nobody-here/x}\n", "r.yaml:8: '~nobody-here/x' begins with a home that nobody"),
        (GOOD.replace("data: a", "data: /dev/null"), "names '/dev/null', which is a pipe or a device, not a file"),
        ("a: &x [*x]\n", "r.yaml:1: values are nested too deeply"),
        ("a: " + "[" * 3000, "r.yaml: values are nested too deeply"),
        ("name: \0\n", "r.yaml: not valid YAML"),
        ("nome: r\n", "r.yaml:1: unknown key 'nome' (did you mean 'name'?)"),
        ("stages: {a: {kind: words}}\n", "r.yaml:1: a recipe needs a name"),
        ("name: ../up\nstages: {a: {kind: words}}\n", "r.yaml:1: the name '../up'"),
        ("name: 5\nstages: {a: {kind: words}}\n", "r.yaml:1: the name '5'"),
        ("name: r\nstages:\n", "r.yaml: the recipe has no stages"),
        ("name: r\nstages: []\n", "r.yaml:2: 'stages' is a mapping of names"),
        ("name: r\nseed: x\nstages: {a: {kind: words}}\n", "r.yaml:2: the seed is 'x'. Write a whole number"),
        (GOOD.replace("  a:", "  a-b:"), "r.yaml:3: the name 'a-b' is not a plain word"),
        (GOOD.replace("  a:", "  été:"), "r.yaml:3: the name 'été' is not a plain word"),
        (GOOD.replace("  a:", "  work:"), "r.yaml:3: the name 'work' is potstill's own"),
        (GOOD + "models:\n  a: {path: m}\n", "'a' stands under 'stages' and under 'models'"),
        (GOOD + "variables:\n  v: null\n", "r.yaml:8: the variable 'v' has no value"),
        (GOOD + "variables:\n  v: null\n", "Give it on the command line: potstill run r.yaml v=VALUE."),
        (GOOD + "    mark: ${vv}\nvariables: {v: 1}\n", "r.yaml:7: '${vv}' names no variable; there are seed, v"),
        (GOOD + "variables: {v: '${w}', w: 1}\n", "r.yaml:7: '${w}' names no variable"),
        ("name: r\nstages:\n  a: words\n", "r.yaml:3: 'stages.a' is no mapping"),
        ("name: r\nstages:\n  a: {}\n", "r.yaml:3: the stage 'a' has no 'kind'"),
        ("name: r\nstages:\n  a:\n    kind: wurds\n", "r.yaml:4: the stage 'a' is of the unknown kind 'wurds'"),
        ("name: r\nstages:\n  a:\n    kind: [words]\n", "r.yaml:4: the stage 'a' is of the unknown kind"),
        (GOOD + "  c:\n    kind: shout\n    data:\n      - a\n      - {from: b, weight: 0}\n",
         "r.yaml:11: 'c.data.1.weight' is 0: input should be greater than 0"),
        (GOOD + "  c:\n    kind: shout\n    data:\n      - a\n      - {from: b, weigth: 2}\n",
         "r.yaml:11: unknown key 'c.data.1.weigth' (did you mean 'weight'?). The keys here are: from, weight"),
        (GOOD + "  c: {kind: shout, data: [a, {weight: 2}]}\n", "r.yaml:7: 'c.data.1.from' is missing"),
        (GOOD + "  c: {kind: shout, data: {from: a, weight: true}}\n", "r.yaml:7: 'c.data.weight' is true or false"),
        (GOOD + "  c: {kind: shout, data: [a, {from: d, weight: 2}]}\n", "'c.data.1.from' names 'd', which is neither"),
        (DISTIL + "on_policy: true}\n",
         "r.yaml:4: 's.on_policy' is true; expected a mapping, such as {share: ...}. The keys here are: max_"),
        (DISTIL + "adapter: lora}\n", "r.yaml:4: 's.adapter' is 'lora'; expected a mapping, such as {"),
        (GOOD + "    marc: x\n", "r.yaml:7: unknown key 'b.marc' (did you mean 'mark'?). The keys here are"),
        (GOOD + "    mark: [x]\n", "r.yaml:7: 'b.mark' is a list; expected one name or text. Write one"),
        (GOOD + "    seconds: soon\n", "r.yaml:7: 'b.seconds' is 'soon': input should be a valid number"),
        ("name: r\nstages:\n  a: {kind: words,\n    count: 0}\n", "r.yaml:4: 'a.count' is 0: input should be greater"),
        ("name: r\nstages:\n  a: {kind: shout}\n", "r.yaml:3: 'a.data' is missing"),
        (GOOD.replace("data: a", "data: aa"), "r.yaml:6: 'b.data' names 'aa', which is neither a stage of this"),
        (GOOD.replace("data: a", "data: first"), "a file. Mend the name or the path"),
        (GOOD.replace("data: a", "data: ."), "r.yaml:6: 'b.data' names '.', which is a folder that holds no file"),
        (GOOD + "    extra: b\n", "r.yaml:4: stages that read each other: b → b"),
        (GOOD + "  c: {kind: shout, data: d}\n  d: {kind: shout, data: c}\n", "each other: c → d → c. Break"),
        (GOOD + "  c: {kind: asks, models: [a]}\n", "r.yaml:7: 'c.models.0' needs a model, but 'a' is texts"),
        (GOOD + "  c: {kind: smith, data: b}\n  d: {kind: shout, data: c}\n",
         "r.yaml:8: 'd.data' needs texts, but 'c' is a model. Name one of: a, b"),
        (GOOD + "  c: {kind: asks, models: [mm]}\nmodels: {m: {path: org/name}}\n",
         "r.yaml:7: 'c.models.0' names 'mm', which is no model or stage of this recipe (did you mean 'm'?)"),
        (GOOD + "  c: {kind: asks, models: [], server: w}\n", "r.yaml:7: 'c.server' names 'w', which is no server"),
        (GOOD + "  c: {kind: asks, models: [], suites: {x: {question: a, questions: a}}}\n",
         "r.yaml:7: unknown key 'c.suites.x.question' (did you mean 'questions'?)"),
        (GOOD + "models:\n  m: {name: x}\n", "r.yaml:8: 'models.m' has to hold either 'path'"),
        (GOOD + "models:\n  m: x\n", "r.yaml:8: 'models.m' has to hold either 'path'"),
        (GOOD + "models:\n  m: {path: x, endpoint: y}\n", "r.yaml:8: 'models.m' has to hold either"),
        (GOOD + "models:\n  m:\n    - {path: a/b}\n    - {}\n", "r.yaml:10: 'models.m.1' has to hold either"),
        (GOOD + "models:\n  m: []\n", "r.yaml:8: the pool 'm' is empty"),
        (GOOD + "models:\n  m:\n    - {path: a/b}\n    - {path: c/b}\n", "r.yaml:10: the pool 'm' has two members"),
        (GOOD + "models:\n  m: {path: ./b}\n", "r.yaml:8: there is no folder './b'"),
        (GOOD + "models:\n  m: {path: .}\n", "r.yaml:8: '.' holds no model: there is no config.json"),
        (GOOD + "models:\n  m: {endpoint: http://x, nam: y}\n", "r.yaml:8: unknown key 'm.nam' (did you mean 'name'?)"),
        (GOOD + "models:\n  m: {endpoint: http://x}\n", "r.yaml:8: 'm.name' is missing"),
        (GOOD + "models:\n  m: {endpoint: world, name: y}\nservers: {wurld: {kind: miniature}}\n",
         "r.yaml:8: 'world' is neither a URL nor a server of this recipe (did you mean 'wurld'?)"),
        (GOOD + "servers:\n  w: {kind: maxiature}\n", "r.yaml:8: 'w.kind' is 'maxiature': input should be 'miniature'"),
        (GOOD + "servers:\n  w: {kind: miniature, entitys: 4}\n", "r.yaml:8: unknown key 'w.entitys' (did"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_its_place(text, line):
    assert line in refused(text)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("b.marc=x", "command line, b.marc=x: unknown key 'b.marc' (did you mean 'mark'?)"),
        ("b.seconds=x", "command line, b.seconds=x: 'b.seconds' is 'x': input should be a valid number"),
        ("bb.seconds=1", "command line, bb.seconds=1: the recipe has nothing named 'bb' (did you mean 'b'?)"),
        ("b[seed=0].seconds=1", "one member of the family 'b' cannot be changed alone. Write b.FIELD=VALUE for all"),
        ("b.seconds", "command line, b.seconds: not of the form key.path=value"),
        ("b..seconds=1", "not of the form key.path=value"),
        ("=1", "not of the form key.path=value"),
        ("b.seconds=[", "command line, b.seconds=[: not valid YAML"),
        ("b.mark.deep=1", "command line, b.mark.deep=1: 'b.mark' is a mapping: input should be a valid string"),
        ("b.data.deep=1", "command line, b.data.deep=1: 'stages.b.data' holds nothing named 'deep'"),
        ("b.data=zz", "command line, b.data=zz: 'b.data' names 'zz'"),
        ("b.mark=${zz}", "command line, b.mark=${zz}: '${zz}' names no variable"),
        ("seed=x", "command line, seed=x: the seed is 'x'"),
        ("stages=", "r.yaml: the recipe has no stages"),
        ("stages=3", "command line, stages=3: 'stages' is a mapping of names"),
        ("models=3", "command line, models=3: 'models' is a mapping of names"),
        ("servers=x", "command line, servers=x: 'servers' is a mapping of names"),
        ("variables=[1]", "command line, variables=[1]: 'variables' is a mapping of names"),
        ("stages.5={}", "command line, stages.5={}: the name '5' is not a plain word"),
        ("stages.5.kind=words", "command line, stages.5.kind=words: the name '5' is not a plain word"),
        ("models.5.path=x", "command line, models.5.path=x: the name '5' is not a plain word"),
        ("variables.5=1", "command line, variables.5=1: the name '5' is not a plain word"),
        (f"b.data.{'9' * 5000}=a", "'stages.b.data' holds nothing named '999"),
        ("b.data=~nobody-here/x", "command line, b.data=~nobody-here/x: '~nobody-here/x' begins with a home that"),
        ("models.m={path: ~nobody-here/x}", "'~nobody-here/x' begins with a home that nobody here has. Mend the path."),
    ],
)
def test_what_is_wrong_with_an_override_is_said_at_the_command_line(override, line):
    assert line in refused(GOOD, override)


def test_a_section_that_an_override_breaks_can_be_given_anew_by_the_next():
    assert "'stages' is a mapping of names" in refused(GOOD, "stages=3", "stages={a: {kind: words}}")
    assert list(load(GOOD, "stages=", "stages.c={kind: words}").stages) == ["c"]


def test_a_character_that_is_spelt_in_two_halves_is_whole():
    assert load(GOOD + '    mark: "\\ud83d\\ude00"\n').stages["b"].config.mark == "\U0001f600"


def test_paths_that_no_manifest_could_name(tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(b"d\xff")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system keeps UTF-8 alone")
    (odd / "t.yaml").write_text(GOOD.replace("data: a", "data: rows.txt"))
    (odd / "rows.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"command line: the path .*d\\udcff/t.yaml is not UTF-8. Rename"):
        load_recipe(str(odd / "t.yaml"))
    monkeypatch.chdir(odd)
    with pytest.raises(RecipeError, match=r"t.yaml:6: the path .*d\\udcff/rows.txt is not UTF-8. Rename"):
        load_recipe("t.yaml")


def test_invalid_utf8_names_its_line(tmp_path):
    Path("r.yaml").write_bytes(b"name: r\nstages:\n  \xff: {}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:3: not valid UTF-8"):
        load_recipe("r.yaml")


def test_a_folder_a_missing_file_and_a_huge_one(tmp_path):
    Path("folder").mkdir()
    with pytest.raises(RecipeError, match="folder: this is a folder, not a recipe"):
        load_recipe("folder")
    with pytest.raises(RecipeError, match="/dev/null: this is a pipe or a device, not a recipe"):
        load_recipe("/dev/null")
    with pytest.raises(RecipeError, match=r"minature: no such file, and no shipped recipe .*did you mean 'miniature'"):
        load_recipe("minature")
    Path("huge.yaml").write_text("a" * 2_000_000)
    with pytest.raises(RecipeError, match="2,000,000 bytes are too many for a recipe"):
        load_recipe("huge.yaml")


def test_a_byte_order_mark_is_no_key():
    Path("r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe("r.yaml").name == "r"


def test_shipped_recipes_are_found_by_name_and_files_come_first(tmp_path):
    assert locate("miniature") == shipped()["miniature"]
    Path("miniature").write_text(GOOD)
    assert locate("miniature") == Path("miniature")


def test_a_model_on_the_hub_keeps_its_name_and_a_folder_gets_its_real_path(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    recipe = load(GOOD + "models: {hub: {path: org/name}, here: {path: m}}\n")
    assert recipe.models["hub"][0].spec == LocalModel(path="org/name")
    assert recipe.models["here"][0].spec == LocalModel(path=str(tmp_path / "m"))


# Whatever is written, there is never a traceback.

words = st.sampled_from(
    ["name", "stages", "models", "variables", "servers", "seed", "kind", "words", "shout", "data", "a", "b", "${a}",
     "${seed}", "path", "endpoint", "1", "-1", "1e400", "null", "true", ".nan", "miniature", "x: y", "&a", "*a"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
kept = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_recipe_errors(text):
    Path("h.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    line = complaint()
    assert re.fullmatch(r"h\.yaml(:\d+)?: .+\.", line or "h.yaml: fine."), line


def complaint(*overrides):
    """What a recipe is refused with, or None."""
    try:
        load_recipe("h.yaml", overrides)
    except RecipeError as error:
        return str(error)
    return None


@kept
@given(
    st.text(max_size=60) | st.lists(words | st.sampled_from([": ", "\n", "  ", "- ", "{", "}", "[", "]"])).map("".join)
)
def test_random_text_is_never_a_traceback(text):
    only_recipe_errors(text)


@kept
@given(values)
def test_random_values_are_never_a_traceback(value):
    import yaml

    only_recipe_errors(yaml.safe_dump(value, allow_unicode=True))


@kept
@given(st.dictionaries(st.sampled_from(["kind", "data", "text", "count", "mark", "models", "suites"]), values), values)
def test_random_stages_and_models_are_never_a_traceback(stage, model):
    import yaml

    whole = {"name": "r", "variables": {"a": 1}, "models": {"m": model}, "stages": {"a": {"kind": "words", **stage}}}
    only_recipe_errors(yaml.safe_dump(whole))


@kept
@given(st.text(max_size=30).map(lambda text: f"a.{text}") | st.text(max_size=20))
def test_random_overrides_are_never_a_traceback(override):
    Path("h.yaml").write_text(GOOD)
    assert (complaint(override) or "h.yaml").startswith(("command line, ", "h.yaml"))


def test_read_document_keeps_the_line_of_every_value(tmp_path):
    Path("d.yaml").write_text("a:\n  - 1\n  - b:\n      c: 2\n")
    document = read_document(Path("d.yaml"))
    assert document.place(("a", 0)) == "d.yaml:2"
    assert document.place(("a", 1, "b", "c")) == "d.yaml:4"
    assert document.place(("a", 1, "b", "missing")) == "d.yaml:3"


def test_a_pattern_of_folders_is_refused_as_such(tmp_path):
    (tmp_path / "sub" / "a").mkdir(parents=True)
    (tmp_path / "sub" / "a" / "x.jsonl").write_text('{"text": "a"}')
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nstages:\n  a: {kind: import, rows: texts, path: 'sub/*/x.jsonl'}\n")
    with pytest.raises(RecipeError, match=r"'sub/\*/x.jsonl' is a pattern of folders; only the file's name"):
        load_recipe(str(path))
