"""Families: what `for` makes of a stage, who follows, what reruns, and that whatever is wrong is one line."""

import io
import json
import re
from pathlib import Path

import fakes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from potstill import cli
from potstill.errors import PotstillError, RecipeError
from potstill.lineage import ancestry
from potstill.members import labels, pools, read_member
from potstill.recipe import load_recipe
from potstill.runs.pipeline import Silent, run
from potstill.runs.plan import make_plan
from potstill.runs.trial import run_trial
from potstill.runs.workspace import Hashes, Workspace
from potstill.stages.base import UNFINISHED, stage_seed
from potstill.terminal.console import Bars

HEAD = "name: f\nseed: 3\nmodels:\n  scribe: {endpoint: 'http://localhost:1/v1', name: scribe-1}\nstages:\n"
CHAIN = """\
  first: {kind: words, count: 2}
  loud: {kind: shout, data: first%s}
  made: {kind: smith, data: loud%s}
  asked: {kind: asks, models: [scribe, made], suites: {one: {questions: first}}}
"""

TWO_SEEDS = """\
  a: {kind: words, for: {seed: [0, 1]}}
  b: {kind: words, for: {seed: [1, 0]}}
  l:
    kind: shout
    data: a
    extra: b
"""
TWICE = """\
  w: {kind: words}
  m: {kind: smith, data: w, for: {seed: [0, 1]}}
  q:
    kind: asks
    models:
      - m
      - 'm[seed=1]'
"""


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def load(stages, *overrides):
    Path("r.yaml").write_text(HEAD + stages)
    return load_recipe("r.yaml", overrides)


def chain(loud="", made="", *overrides):
    return load(CHAIN % tuple(f", for: {one}" if one else "" for one in (loud, made)), *overrides)


def plan(recipe, folder="unused"):
    return make_plan(recipe, Workspace(Path(folder)), Hashes(Path(folder) / "hashes.json")).steps


def keys(recipe):
    return {name: step.key for name, step in plan(recipe).items()}


def refused(stages, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(stages, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


class Ran(Silent):
    """Notes which stages ran."""

    def __init__(self):
        self.names = []

    def sealed(self, step, artifact, seconds):
        self.names.append(step.name)


def ran(recipe, folder, until=None):
    heard = Ran()
    run(recipe, Path(folder), heard, until)
    return heard.names


def test_for_makes_a_stage_of_each_combination():
    recipe = chain(made="{seed: [0, 7], heat: [0.5, 2]}")
    made = [name for name in recipe.stages if name.startswith("made")]
    assert made == ["made[seed=0,heat=0.5]", "made[seed=0,heat=2]", "made[seed=7,heat=0.5]", "made[seed=7,heat=2]"]
    assert [recipe.stages[name].config.heat for name in made] == [0.5, 2, 0.5, 2]
    seeds = [plan(recipe)[name].seed for name in made]
    assert seeds == [stage_seed(0, "made")] * 2 + [stage_seed(7, "made")] * 2
    assert plan(recipe)["loud"].seed == stage_seed(3, "loud")


def test_a_field_that_collects_takes_all_members_in_order_and_others_follow_member_by_member():
    recipe = chain(loud="{mark: [x, y]}", made="{heat: [1, 2]}")
    made = ["made[mark=x,heat=1]", "made[mark=x,heat=2]", "made[mark=y,heat=1]", "made[mark=y,heat=2]"]
    assert recipe.stages["asked"].config.models == ("scribe", *made)
    assert recipe.stages["asked"].reads == (*made, "first")
    assert [recipe.stages[name].reads for name in made] == [("loud[mark=x]",)] * 2 + [("loud[mark=y]",)] * 2
    assert recipe.stages[made[0]].config.data == "loud"  # as it is written: every member reads its own


def test_the_same_variable_is_matched_and_never_crossed():
    recipe = load("""\
  a: {kind: shout, data: w, for: {seed: [1, 2]}}
  b: {kind: shout, data: w, for: {seed: [1, 2], mark: [x, y]}}
  w: {kind: words}
  c: {kind: shout, data: [a, b], extra: a}
""")
    members = [name for name in recipe.stages if name.startswith("c")]
    assert members == ["c[seed=1,mark=x]", "c[seed=1,mark=y]", "c[seed=2,mark=x]", "c[seed=2,mark=y]"]
    assert recipe.stages["c[seed=2,mark=x]"].reads == ("a[seed=2]", "b[seed=2,mark=x]")


def test_what_stands_behind_a_seed_has_that_seed_too_and_its_own_for_goes_on_from_there():
    steps = plan(chain(loud="{seed: [5, 6]}", made="{heat: [1, 2]}"))
    assert [name for name in steps if name.startswith("made")][:2] == ["made[seed=5,heat=1]", "made[seed=5,heat=2]"]
    assert steps["made[seed=6,heat=1]"].seed == stage_seed(6, "made")
    assert steps["asked"].seed == stage_seed(3, "asked")


def test_one_member_is_named_and_so_are_those_of_one_value():
    text = """\
  w: {kind: words}
  made: {kind: smith, data: w, for: {seed: [0, 1], heat: [1, 2]}}
  one: {kind: smith, data: w, model: "made[seed=0,heat=2]"}
  some: {kind: smith, data: w, model: "made[heat=2]"}
  asked: {kind: asks, models: ["made[seed=1]", one]}
"""
    recipe = load(text)
    assert recipe.stages["one"].reads == ("w", "made[seed=0,heat=2]")
    assert [name for name in recipe.stages if name.startswith("some")] == ["some[seed=0]", "some[seed=1]"]
    assert recipe.stages["some[seed=1]"].reads == ("w", "made[seed=1,heat=2]")
    assert recipe.stages["asked"].config.models == ("made[seed=1,heat=1]", "made[seed=1,heat=2]", "one")


def test_a_variable_can_be_what_is_read_also_a_family():
    recipe = load("""\
  w: {kind: words}
  a: {kind: smith, data: w}
  b: {kind: smith, data: w, for: {seed: [0, 1]}}
  made: {kind: smith, data: w, for: {model: [a, b, null]}}
""")
    made = [name for name in recipe.stages if name.startswith("made")]
    assert made[:3] == ["made[seed=0,model=a]", "made[seed=0,model=b]", "made[seed=0,model=null]"]
    assert recipe.stages["made[seed=1,model=b]"].reads == ("w", "b[seed=1]")
    assert recipe.stages["made[seed=1,model=a]"].reads == ("w", "a")


def test_a_member_has_the_key_of_the_plain_stage_and_so_has_what_stands_behind_it():
    plain, family = keys(chain()), keys(chain(loud="{seed: [3, 4], mark: ['!', x]}"))
    assert family["loud[seed=3,mark=1]"] == plain["loud"]
    assert family["made[seed=3,mark=1]"] == plain["made"]
    assert len(set(family.values())) == len(family)
    moved = keys(chain("", "", "loud.mark=x"))
    assert family["made[seed=3,mark=x]"] == moved["made"]


def test_a_family_of_a_stage_runs_what_is_new_and_back_again_runs_nothing():
    assert ran(chain(), "out") == ["first", "loud", "made", "asked"]
    family = chain("", "{seed: [3, 4]}")
    assert ran(family, "out") == ["made[seed=4]", "asked"]
    assert {path.name for path in Path("out").iterdir() if path.is_symlink()} >= {"made[seed=3]", "made[seed=4]"}
    assert Path("out/made[seed=3]").resolve() == Path("out/made").resolve()
    assert all(re.fullmatch(r"[a-z]+-[0-9a-f]{12}", path.name) for path in Path("out/artifacts").iterdir())
    assert ran(chain(), "out") == []
    assert ran(chain("", "{seed: [3, 4]}", "made.for=null"), "out") == []
    assert ran(chain("", "{seed: [3, 4]}", "made.for.seed=[4]"), "out") == ["asked"]


def test_rows_and_manifests_name_what_is_read_as_the_recipe_does():
    run(chain("{mark: [x, y]}"), Path("out"))
    manifest = json.loads(Path("out/made[mark=y]/manifest.json").read_text())
    assert (manifest["stage"], manifest["config"]["data"]) == ("made", "loud")
    (loud,) = manifest["inputs"]["data"]
    assert loud == {"name": "loud", "key": json.loads(Path("out/loud[mark=y]/manifest.json").read_text())["key"]}
    asked = json.loads(Path("out/asked/manifest.json").read_text())
    assert [one["name"] for one in asked["inputs"]["models"]] == ["scribe", "made[mark=x]", "made[mark=y]"]
    rows = [json.loads(line)["id"] for line in Path("out/asked/rows.jsonl").read_text().splitlines()]
    assert rows == ["scribe", "made[mark=x]", "made[mark=y]"]
    found = ancestry([Path("out/asked")])
    assert {one.path.name for one in found} == {path.name for path in Path("out/artifacts").iterdir()}


def test_an_override_is_of_the_whole_family():
    recipe = chain("", "{seed: [0, 1]}", "made.heat=9", "made.for.seed=[0, 1, 2]")
    assert [e.config.heat for name, e in recipe.stages.items() if name.startswith("made")] == [9, 9, 9]


def test_a_variable_of_the_recipe_may_stand_in_a_list():
    text = "  w: {kind: words, for: {seed: ['${seed}', 4], text: '${all}'}}\n"
    Path("r.yaml").write_text(HEAD.replace("stages:", "variables:\n  all: [a, b]\nstages:") + text)
    assert next(iter(load_recipe("r.yaml").stages)) == "w[seed=3,text=a]"


def test_until_takes_a_family_or_a_member():
    recipe = chain("{mark: [x, y]}")
    assert ran(recipe, "a", "made[mark=y]") == ["first", "loud[mark=y]", "made[mark=y]"]
    assert ran(recipe, "a", "loud") == ["loud[mark=x]"]
    with pytest.raises(RecipeError, match="no stage 'mad' \\(did you mean 'made'"):
        run(recipe, Path("a"), until="mad")


def test_what_one_member_keeps_until_it_is_sealed_is_not_forgotten_for_another():
    recipe = chain("", "{seed: [0, 1]}")
    folder = plan(recipe)["made[seed=1]"].folder
    for name in (folder, "made-000000000000"):
        (Path("out") / UNFINISHED / name).mkdir(parents=True)
    run(recipe, Path("out"), until="made[seed=0]")
    assert [path.name for path in (Path("out") / UNFINISHED).iterdir()] == [folder]
    run(recipe, Path("out"))
    assert list((Path("out") / UNFINISHED).iterdir()) == []


def test_a_member_that_fails_leaves_those_before_it_sealed():
    recipe = chain("", "{fail: ['', known]}")
    with pytest.raises(PotstillError, match="the anvil"):
        run(recipe, Path("out"))
    assert Path("out/made[fail=1]").resolve().is_dir()
    assert not Path("out/made[fail=known]").exists()


def test_a_trial_reads_members():
    assert run_trial(load("  w: {kind: words, count: 9, for: {seed: [0, 1]}}\n  l: {kind: shout, data: w}\n"),
                     Path("out"), 3) == {}  # fmt: skip
    assert set(json.loads(Path("out/trials.json").read_text())) == {"l[seed=0]", "l[seed=1]"}


@pytest.mark.parametrize(
    ("stages", "line", "words"),
    [
        ("  w: {kind: words, for: 3}", 6, "'w.for' names no field"),
        ("  w: {kind: words, for: {}}", 6, "'w.for' names no field"),
        ("  w:\n    kind: words\n    for:\n      coutn: [1]", 9, "'coutn', which is no field of it (did you mean"),
        ("  w:\n    kind: words\n    for: {kind: [words]}", 8, "'kind', which is no field"),
        ("  w: {kind: words, for: {count: []}}", 6, "'w.for.count' is an empty list"),
        ("  w: {kind: words, for: {count: 3}}", 6, "'w.for.count' is no list"),
        ("  w:\n    kind: words\n    for:\n      count: [1, 2, 1]", 9, "holds 1 twice"),
        ("  w: {kind: words, for: {seed: [a]}}", 6, "'w.for.seed' holds 'a'; expected whole numbers"),
        ("  w: {kind: words, for: {seed: [true]}}", 6, "expected whole numbers"),
        ("  w: {kind: words, count: 3, for: {count: [1, 2]}}", 6, "gives 'count' a value, and its for"),
        ("  w:\n    kind: words\n    for:\n      count:\n        - 1\n        - 0", 11, "greater than or equal to 1"),
        ("  w: {kind: words}\n  c: {kind: crew, data: w, for: {sharding: [none, fsdp2]}}", 7, "how fast a stage works"),
        ("  w: {kind: words, for: {count: ${many}}}", 6, "1,001 stages; at most 1,000"),
        ("  w: {kind: words, for: {seed: [0]}}\n  l: {kind: shout, data: 'w[seed=4]'}", 7,
         "'w[seed=4]' is no member of 'w', which has seed: 0"),
        ("  w: {kind: words}\n  l: {kind: shout, data: 'w[seed=4]'}", 7, "which is no family"),
        ("  w: {kind: words, for: {seed: [0, 1]}}\n  l: {kind: shout, data: w, for: {seed: [0, 2]}}", 7,
         "'l' runs through 'seed' twice: 0, 2 by its own for, and 0, 1 by 'w'"),
        (TWO_SEEDS, 11, "0, 1 by 'a', and 1, 0 by 'b'"),
        (TWICE, 12, "names 'm[seed=1]' twice"),
        ("  a: {kind: shout, data: b, for: {seed: [0]}}\n  b: {kind: shout, data: a}", 6, "read each other"),
    ],
)  # fmt: skip
def test_bad_families_are_refused_in_one_line(stages, line, words):
    many = [f"{i}" for i in range(1, 1002)]
    text = HEAD.replace("\nmodels:", f"\nvariables: {{many: [{', '.join(many)}]}}\nmodels:") + stages
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"r.yaml:{line + 1}: "), str(caught.value)  # one for the variable


def test_a_wrong_value_is_said_of_the_member_that_has_it():
    assert "'w[count=0].count' is 0" in refused("  w: {kind: words, for: {count: [1, 0]}}")


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers()))))
def test_labels_tell_values_apart_and_fit_any_folder_and_name(values):
    found = labels(values)
    assert len(set(found)) == len(values)
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", label) for label in found)
    if found:
        name = f"a[{','.join(f'v{i}={label}' for i, label in enumerate(found))}]"
        assert read_member(name).name == name
        assert list(read_member(name).values.values()) == found


def test_members_that_differ_in_their_seed_alone_belong_together():
    names = [
        "base",
        "a[seed=0]",
        "a[seed=1]",
        "b[seed=0,beta=0.1]",
        "b[seed=0,beta=0.2]",
        "org/c[seed=0]",
        "data-[0-9].x",
    ]
    assert pools(names) == {
        "base": ["base"], "a": names[1:3], "b[beta=0.1]": [names[3]], "b[beta=0.2]": [names[4]],
        "org/c[seed=0]": [names[5]], "data-[0-9].x": [names[6]],
    }  # fmt: skip


@pytest.fixture
def potstill(capsys):
    def say(*arguments, code=0):
        assert cli.main(list(arguments)) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return say


def test_people_see_a_family_as_one(potstill, monkeypatch):
    chain("", "{seed: [0, 1, 2], heat: [1, 2]}")
    assert re.search(r"made ×6\s+smith\s+will run\s+new\s+~12", potstill("plan", "r.yaml"))
    monkeypatch.setenv("COLUMNS", "140")
    assert re.search(r"made  seed 0, 1, 2; heat 1, 2\s+smith\s+will run\s+new\s+~12", potstill("plan", "r.yaml"))
    potstill("run", "r.yaml", "--until", "made[seed=0,heat=1]")
    assert re.search(r"made  seed .*  5 of 6 will run\s+new", potstill("plan", "r.yaml"))
    assert re.search(r"made  seed .*  1 of 6 sealed", potstill("status", "f"))
    potstill("run", "r.yaml")
    assert re.search(r"made  seed 0, 1, 2; heat 1, 2\s+smith\s+sealed", potstill("status", "f"))
    shown = potstill("show", "f", "made")
    assert shown.count("steps 10") == 6
    assert "potstill show runs/f 'made[seed=0,heat=1]'" in shown
    assert "made (smith, makes model)" in potstill("show", "f", "made[seed=2,heat=1]")
    said = potstill("chat", "f", "made", code=2)
    assert "'made' is a family of 6 models (seed 0, 1, 2; heat 1, 2)" in said
    assert "'made[seed=0,heat=1]'" in said


def test_on_a_terminal_a_sealed_family_is_one_line_and_its_names_are_no_markup():
    def run_at(recipe, out):
        run(recipe, Path("out"), Bars(Console(file=out, width=100, force_terminal=True, color_system=None)))
        return out.getvalue()

    assert re.search("✓ +made\\[seed=1\\]", run_at(chain("", "{seed: [0, 1]}"), io.StringIO()))
    again = run_at(chain("", "{seed: [0, 1]}"), io.StringIO())
    assert re.search("· +made +sealed +2 members: seed 0, 1", again)
    assert "made[seed" not in again.partition("Talk to it")[0]
