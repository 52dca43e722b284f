"""`shipped:NAME` in a recipe: a file of the package, known by what it holds, wherever a field takes rows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from potstill import questions
from potstill.artifact import find
from potstill.curation.decontaminate import keeping_out
from potstill.errors import DataError, RecipeError
from potstill.questions import shipped_questions
from potstill.recipe import load_recipe
from potstill.recipe.schema import recipe_schema
from potstill.records import Chat, Message, Prompt
from potstill.runs.overlap import refuse_overlap, refuse_shared
from potstill.runs.pipeline import run
from potstill.runs.plan import Plan, make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data

RECIPE = """
name: r
servers: {w: {kind: miniature}}
models:
  base: {endpoint: w, name: one}
  judge: {endpoint: w, name: sage}
stages:
  taken: {kind: import, path: "shipped:paired", rows: prompts}
  chats: {kind: import, path: chats.jsonl, rows: chats, decontaminate: [shipped:instructions]}
  scores: {kind: evaluate, models: [base], judge: judge, suites: {bench: {protocol: mt_bench, questions: QUESTIONS}}}
""".replace("QUESTIONS", "shipped:dialogues")


def said(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Well."}]}


def first(name: str) -> Prompt:
    return next(iter(Data(name, "file", shipped_questions()[name]).rows(Prompt)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "own", **said("Who is Osk?")}, {"id": "again", **said(first("instructions").messages[0].content)}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def planned(*overrides: str) -> Plan:
    return make_plan(load_recipe("r.yaml", overrides), Workspace(Path("run")), Hashes(Path("hashes.json")))


def refused(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_name_means_the_file_of_the_package_and_the_plan_counts_its_rows(here: Path) -> None:
    steps = planned().steps
    (link,) = [link for link in steps["scores"].entry.links if link.field == "suites.bench.questions"]
    assert link.file == shipped_questions()["dialogues"].resolve()
    assert (steps["taken"].expected.rows, steps["scores"].expected.calls) == (55, 160 + 160)


def test_manifests_and_keys_say_the_name_and_the_contents_and_no_folder(here: Path) -> None:
    head = planned().steps["scores"].head
    (source,) = head["inputs"]["suites.bench.questions"]
    assert source["name"] == "shipped:dialogues"
    assert source["key"] == Hashes(here / "h.json").file(shipped_questions()["dialogues"])
    assert head["config"]["suites"]["bench"]["questions"] == "shipped:dialogues"
    assert str(Path(questions.__file__).parent) not in json.dumps(head)


def test_another_folder_is_the_same_key_and_other_contents_are_another(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = planned().steps["scores"].key
    moved = here / "elsewhere"
    shutil.copytree(Path(questions.__file__).parent, moved)
    monkeypatch.setattr(questions, "__file__", str(moved / "__init__.py"))
    assert planned().steps["scores"].key == key
    with (moved / "dialogues.jsonl").open("a") as file:
        file.write('{"id": "more", "prompt": "And one more?"}\n')
    steps = planned().steps
    assert steps["scores"].key != key
    assert steps["scores"].expected.rows == 81


def test_a_file_of_the_same_name_beside_the_recipe_is_another_thing(here: Path) -> None:
    shutil.copy(shipped_questions()["dialogues"], here / "dialogues.jsonl")
    shipped = planned().steps["scores"]
    beside = planned("scores.suites.bench.questions=dialogues.jsonl").steps["scores"]
    assert [step.head["inputs"]["suites.bench.questions"][0]["name"] for step in (shipped, beside)] == [
        "shipped:dialogues", "dialogues.jsonl",
    ]  # fmt: skip


def test_an_unknown_name_is_one_line_with_the_nearest_and_all_of_them(here: Path) -> None:
    names = ", ".join(f"shipped:{name}" for name in sorted(shipped_questions()))
    line = refused("scores.suites.bench.questions=shipped:dialogs")
    assert "'shipped:dialogs' is not among the questions that come with potstill (did you mean 'dialogues'?)" in line
    assert line.endswith(f"Name one of: {names}.")
    assert refused("scores.suites.bench.questions='shipped:'").count(names) == 1
    assert "did you mean" not in refused("scores.suites.bench.questions=shipped:/etc/passwd")
    outside = here / "outside.jsonl"
    outside.write_text('{"prompt": "q"}\n')
    assert "is not among" in refused(f"scores.suites.bench.questions=shipped:{outside.with_suffix('')}")


def test_a_field_that_takes_no_rows_does_not_know_them(here: Path) -> None:
    assert "no model or stage of this recipe" in refused("scores.judge=shipped:dialogues")


def test_a_field_that_takes_other_rows_says_what_these_can_be(here: Path) -> None:
    (here / "pairs.yaml").write_text(
        "name: p\nstages: {dpo: {kind: dpo, model: m, data: shipped:dialogues}}\nmodels: {m: {path: m}}"
    )
    with pytest.raises(
        RecipeError, match=r"pairs.yaml:\d+: 'dpo.data' cannot be used: .*Rows of this shape can be chats, prompts"
    ):
        make_plan(load_recipe("pairs.yaml"), Workspace(here / "run"), Hashes(here / "hashes.json"))


def test_a_recipe_imports_them_and_keeps_them_out_of_other_rows(here: Path) -> None:
    run(load_recipe("r.yaml"), here / "run", until="taken")
    run(load_recipe("r.yaml"), here / "run", until="chats")
    plan = planned()
    taken, chats = (plan.steps[name].artifact for name in ("taken", "chats"))
    assert taken is not None
    assert chats is not None
    prompts = list(Data("taken", "prompts", taken.path).rows(Prompt))
    row = json.loads(shipped_questions()["paired"].read_text().splitlines()[0])
    assert len(prompts) == 55
    assert (prompts[0].id, prompts[0].category, prompts[0].messages[0].content, prompts[0].counterpart) == (
        row["pair"], row["attribute"], row["a"], row["b"],
    )  # fmt: skip
    assert [chat.id for chat in Data("chats", "chats", chats.path).rows(Chat)] == ["own"]
    dropped = json.loads((chats.path / "dropped.jsonl").read_text())
    assert (dropped["id"], dropped["reason"]) == ("again", "contaminated")
    assert "shipped:instructions/instruction-001" in dropped["detail"]


def test_the_word_evaluations_stands_for_them_too(here: Path) -> None:
    """Once each, though a family of evaluations reads them."""
    step = planned(
        "chats.decontaminate=[]",
        "stages.curated={kind: curate, data: chats, decontaminate: evaluations}",
        "scores.for={judge_max_tokens: [100, 200]}",
    ).steps["curated"]
    assert step.head["config"]["decontaminate"] == ["shipped:dialogues"]
    assert [source["name"] for source in step.head["inputs"]["decontaminate"]] == ["shipped:dialogues"]


def test_both_prompts_of_a_pair_are_kept_out() -> None:
    paired = first("paired")
    out = keeping_out(13, [Data("shipped:paired", "file", shipped_questions()["paired"])])
    for text in (paired.messages[0].content, paired.counterpart):
        assert out.find([Message(role="user", content=text)]) is not None


def test_what_is_trained_on_is_not_what_is_evaluated_on(here: Path) -> None:
    """The same file is refused in the plan; single rows of it before the training."""
    text = """
name: r
models: {m: {path: m}, j: {endpoint: "http://localhost:1/v1", name: j}}
stages:
  chats: {kind: import, path: chats.jsonl, rows: chats}
  sft: {kind: sft, model: m, data: DATA}
  scores: {kind: evaluate, models: [sft], judge: j, suites: {bench: {protocol: mt_bench, questions: QUESTIONS}}}
"""
    (here / "r.yaml").write_text(text.replace("DATA", "chats").replace("QUESTIONS", "shipped:paired"))
    (here / "m").mkdir()
    (here / "m" / "config.json").write_text('{"model_type": "llama"}')
    (here / "chats.jsonl").write_text(json.dumps({"id": "b", **said(first("paired").counterpart)}) + "\n")
    recipe = load_recipe("r.yaml")
    run(recipe, here / "run", until="chats")
    plan = planned()
    refuse_shared(plan)
    chats = plan.steps["chats"].artifact
    assert chats is not None
    with pytest.raises(DataError, match="the first is 'b', which asks what 'paired-001' of 'shipped:paired' asks"):
        refuse_overlap(plan, plan.steps["sft"], {"chats": find(chats.path) or chats})


def test_the_schema_offers_the_names_where_prompts_are_taken(here: Path) -> None:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    names = [f"shipped:{name}" for name in sorted(shipped_questions())]
    suite = schema["$defs"]["MtBenchSuite"]["properties"]
    assert suite["questions"]["examples"] == names
    assert "examples" not in json.dumps(suite["judge"])
    assert "examples" not in json.dumps(schema["$defs"]["DpoConfig"]["properties"]["data"])


def test_plan_says_it_on_the_command_line(here: Path) -> None:
    command = [sys.executable, "-m", "potstill.cli", "plan", "r.yaml", "scores.suites.bench.questions=shipped:dialog"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'dialogues'?" in done.stderr
