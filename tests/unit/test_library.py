"""The library: what `import potstill` gives, what its objects say, and how mistakes read."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest

import potstill
from potstill.library import face as library
from potstill.library import handles
from potstill.records import Chat, Message, Pair, Prompt, Text

ROOT = Path(__file__).parents[2]
NAMES = [
    "BudgetError", "BusyError", "DataError", "Made", "ModelError", "Planned", "PotstillError", "RecipeError", "Run",
    "Scores", "StorageError", "TeacherError", "load_recipe", "make_plan", "open_run", "run", "stage",
]  # fmt: skip
TINY = """\
name: tiny
stages:
  chats: {kind: import, path: chats.jsonl, rows: chats}
  curated: {kind: curate, data: chats, deduplicate: 0.7}
"""
ROWS = [
    {"prompt": "Name a river.", "completion": "The Rhine."},
    {"prompt": "Name a river.", "completion": "The Rhine."},
    {"prompt": "Name a town.", "completion": "Leith, a port on the Forth."},
]


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.fixture
def fake_run(monkeypatch):
    fakes.install(monkeypatch)
    Path("fake.yaml").write_text(fakes.RECIPE)
    return potstill.run("fake.yaml", out="out", progress=False)


# The names.


def test_the_exported_names_are_these():
    assert sorted(potstill.__all__) == sorted(NAMES)
    assert all(getattr(potstill, name).__doc__ for name in NAMES)
    assert set(NAMES) <= set(dir(potstill))
    with pytest.raises(AttributeError, match="has no attribute 'rum'"):
        potstill.rum  # noqa: B018


def test_what_a_run_and_a_result_have_is_frozen_too():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(potstill.Run) == {
        "cost", "dropped", "events", "facts", "model", "rows", "scores", "stages", "status",
    }  # fmt: skip
    assert public(potstill.Made) == {"dropped", "facts", "path", "produces", "rows"}
    assert public(potstill.Scores) == {"models", "rows", "suites", "to_pandas"}
    assert public(potstill.Planned) == {"stages", "to_run"}
    assert public(handles.Model) == {"chat"}


def test_importing_takes_no_time_and_nothing_with_it():
    program = (
        "import time; began = time.process_time(); import potstill; took = time.process_time() - began\n"
        "import sys; print(took, sorted(set(sys.modules) & {'torch', 'pydantic', 'rich', 'yaml', 'numpy'}))"
    )
    shown = [subprocess.check_output([sys.executable, "-c", program], text=True).split(" ", 1) for _ in range(5)]
    assert min(float(took) for took, _ in shown) < 0.1
    assert {modules for _, modules in shown} == {"[]\n"}


@pytest.mark.parametrize("module", [potstill, library], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(module, extraglobs={name: getattr(potstill, name) for name in NAMES})
    assert found.attempted > 0
    assert found.failed == 0


# Recipes, plans, runs.


def test_a_plan_is_the_command_lines(fake_run):
    planned = potstill.make_plan("fake.yaml", {"loud.mark": "?"}, out="out")
    assert planned.to_run == ["loud", "made", "asked"]
    assert next(iter(planned.stages)) == "first"
    assert "mark changed" in str(planned)
    html = planned._repr_html_()
    assert html.startswith("<pre")
    assert "mark changed" in html
    assert "<script" not in html


def test_a_run_says_what_lies_in_it(fake_run):
    again = potstill.open_run("out")
    assert list(again.stages) == ["first", "second", "loud", "made", "other", "asked"]
    assert again.stages["loud"].facts["rows"] == 4
    rows = again.rows("loud", Text)
    assert next(rows).text.startswith("POT 0")
    assert [row.reason for row in again.dropped("loud")] == ["hoarse"]
    assert again.facts("made")["steps"] == 10
    assert os.fspath(again.model("made")) == str(again.stages["made"].path)
    assert again.model().name == "other"
    assert "All 6 stages are sealed in out." in str(again.status())
    assert "sealed" in again._repr_html_()
    assert [event["event"] for event in again.events()][-1] == "finished"
    cost = again.cost()
    assert (cost.replies, cost.usd) == (0, 0)
    assert cost.seconds > 0


def test_a_run_refuses_clearly_what_it_does_not_have(fake_run):
    with pytest.raises(potstill.StorageError, match=r"no stage 'lout' \(did you mean 'loud'\?\)"):
        fake_run.rows("lout")
    with pytest.raises(potstill.DataError, match="'loud' makes texts, not Chat rows"):
        fake_run.rows("loud", Chat)
    with pytest.raises(potstill.DataError, match="'made' makes model"):
        fake_run.rows("made")
    with pytest.raises(potstill.StorageError, match="nothing is scored here yet"):
        fake_run.scores()
    with pytest.raises(potstill.DataError, match="'made' makes model, not scores"):
        fake_run.scores("made")
    with pytest.raises(potstill.StorageError, match="nothing has run here"):
        potstill.open_run("tiny.yaml")
    with pytest.raises(potstill.DataError, match="written over"):
        potstill.run(potstill.load_recipe("fake.yaml"), {"loud.mark": "?"})


def test_what_goes_wrong_raises_what_the_command_line_prints(monkeypatch):
    fakes.install(monkeypatch)
    Path("fake.yaml").write_text(fakes.RECIPE)
    with pytest.raises(potstill.ModelError) as caught:
        potstill.run("fake.yaml", {"made.fail": "known"}, out="out", progress=False)
    assert str(caught.value) == "the anvil: it is cold. Heat it."
    run = potstill.open_run("out")
    assert run.stages["loud"] is not None
    assert run.stages["made"] is None
    with pytest.raises(potstill.StorageError, match="'made' is not sealed yet"):
        run.facts("made")


def test_progress_may_be_a_function(monkeypatch):
    fakes.install(monkeypatch)
    Path("fake.yaml").write_text(fakes.RECIPE)
    seen = []
    potstill.run("fake.yaml", progress=seen.append, until="loud")
    assert [event["stage"] for event in seen if event["event"] == "sealed"] == ["first", "loud"]


def test_an_interrupt_keeps_what_is_sealed_and_the_same_call_goes_on(monkeypatch):
    fakes.install(monkeypatch)
    Path("fake.yaml").write_text(fakes.RECIPE)

    def interrupt(event):
        if (event["event"], event["stage"]) == ("started", "made"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        potstill.run("fake.yaml", progress=interrupt, out="out")
    run = potstill.open_run("out")
    assert [name for name, made in run.stages.items() if made is not None] == ["first", "second", "loud"]
    seen = []
    potstill.run("fake.yaml", progress=seen.append, out="out")
    assert [event["stage"] for event in seen if event["event"] == "found"] == ["first", "second", "loud"]


SUMMARY = {
    "models": ["sft", "dpo"],
    "measures": {"chat": {"protocol": "mt_bench", "scale": [1, 10], "share": False, "unit": "", "models": {}}},
    "scores": {
        "chat": {
            "sft": {"mean": 6.1, "low": 5.8, "high": 6.4, "n": 160, "coverage": 1.0},
            "dpo": {"mean": 7.3, "low": 7.0, "high": 7.6, "n": 160, "coverage": 1.0},
        }
    },
    "paired": {},
    "headline": ["dpo is better than sft."],
}


def test_scores_print_with_their_intervals():
    scores = potstill.Scores(SUMMARY)
    assert (scores.models, scores.suites) == (["sft", "dpo"], ["chat"])
    assert scores["chat", "dpo"]["high"] == 7.6
    for text in (str(scores), scores._repr_html_()):
        assert all(part in text for part in ("7.30", "7.00", "7.60", "dpo is better than sft."))
    assert scores.rows()[1] == {"suite": "chat", "model": "dpo", "mean": 7.3, "low": 7.0, "high": 7.6, "n": 160}


def test_scores_become_a_frame_where_pandas_is(monkeypatch):
    made = SimpleNamespace(DataFrame=lambda rows: ("frame", rows))
    monkeypatch.setitem(sys.modules, "pandas", made)
    assert potstill.Scores(SUMMARY).to_pandas()[1] == potstill.Scores(SUMMARY).rows()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(potstill.ModelError, match="pandas is not installed"):
        potstill.Scores(SUMMARY).to_pandas()


# Stages on rows in memory.


def test_a_stage_takes_dicts_records_and_results():
    made = potstill.stage("curate", data=ROWS, deduplicate=0.7)
    assert (made.produces, len(made), made.facts["dropped"]) == ("chats", 2, {"duplicate": 1})
    assert [chat.messages[-1].content for chat in made] == ["The Rhine.", "Leith, a port on the Forth."]
    assert len(made.dropped) == 1
    again = potstill.stage("curate", data=made)
    assert [row.messages for row in again] == [row.messages for row in made]
    assert [row.messages for row in potstill.stage("curate", data=list(made.rows))] == [row.messages for row in made]
    assert repr(made).startswith("Made(2 chats, 1 left out (1 duplicate)")


def test_a_stage_seals_what_a_recipe_of_it_seals():
    """The same code: the same rows in a file, read by a recipe, give the same bytes."""
    from potstill.runs.pipeline import run

    made = potstill.stage("curate", data=ROWS, deduplicate=0.7)
    Path("one.yaml").write_text("name: one\nstages: {curate: {kind: curate, data: data.jsonl, deduplicate: 0.7}}\n")
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sealed = run(potstill.load_recipe("one.yaml"), Path("out"))["curate"]
    assert (sealed.path / "rows.jsonl").read_bytes() == (made.path / "rows.jsonl").read_bytes()


def test_its_folder_goes_with_the_result_or_stays_where_it_was_asked_for():
    made = potstill.stage("curate", data=ROWS)
    folder = made.path
    assert folder.is_dir()
    del made
    assert not folder.exists()
    made = potstill.stage("curate", data=ROWS, out="kept")
    folder = made.path
    del made
    assert folder.is_relative_to("kept")
    assert folder.is_dir()
    seen = []
    potstill.stage("curate", data=ROWS, out="kept", progress=seen.append)
    assert [event["event"] for event in seen] == ["planned", "found", "finished"]


def test_every_kind_of_row_finds_its_way_back():
    user, said = Message(role="user", content="Hello?"), Message(role="assistant", content="Hello.")
    pair = Pair(id="p", prompt=(user,), chosen=(said,), rejected=(Message(role="assistant", content="No."),))
    for kind, row in (
        ("texts", Text(id="t", text="A still.")),
        ("prompts", Prompt(id="q", messages=(user,))),
        ("chats", Chat(id="c", messages=(user, said))),
        ("pairs", pair),
    ):
        Path("rows.jsonl").write_text(row.to_line())
        (back,) = potstill.stage("import", path="rows.jsonl", rows=kind).rows
        assert type(back) is type(row)


def test_a_stage_asks_an_endpoint_that_is_named_in_place():
    from potstill.library.in_memory import one_stage

    big = {"endpoint": "http://localhost:1/v1", "name": "big"}
    name, recipe = one_stage("sample", {"models": [big], "prompts": [{"prompt": "Hi"}]}, Path("inputs"))
    (member,) = recipe.models["models_1"]
    assert (name, member.spec.name) == ("sample", "big")
    assert Path("inputs/prompts.jsonl").read_text() == '{"prompt": "Hi"}\n'


def test_a_model_may_stand_in_a_field_that_is_named_as_the_stage():
    from potstill.library.in_memory import one_stage

    big = {"endpoint": "http://localhost:1/v1", "name": "big"}
    said = [{"model": name, "response": name} for name in "ab"]
    fields = {"judge": big, "data": [{"instruction": "Hi", "completions": said}], "aspects": ["helpfulness"]}
    name, recipe = one_stage("judge", fields, Path("inputs"))
    assert (name, list(recipe.models)) == ("judge", ["judge_model"])


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("kurate", {"data": ROWS}, r"unknown kind 'kurate' \(did you mean 'curate'\?\)"),
        (
            "curate",
            {"data": ROWS, "deduplicat": 1},
            r"unknown key 'curate.deduplicat' \(did you mean 'deduplicate'\?\)",
        ),
        ("curate", {"data": [{"prompt": 3}]}, "'prompt' is a number"),
        ("curate", {"data": [3]}, "data, row 1: this is int; expected a record or a dict"),
        ("curate", {"data": [{"prompt": {1, 2}}]}, "data, row 1: it cannot be written as JSON"),
        ("curate", {"data": []}, "data: there are no rows"),
    ],
)
def test_mistakes_are_one_clear_line(kind, fields, says):
    with pytest.raises(potstill.PotstillError, match=says) as caught:
        potstill.stage(kind, **fields)
    assert "\n" not in str(caught.value)


# What the documentation shows.


def snippets():
    page = (ROOT / "docs" / "library.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_pages_snippets_run(capsys):
    potstill.run("tiny.yaml", progress=False)
    ran = 0
    for text in snippets():
        program = compile(text, "library.md", "exec")
        if text.startswith("# run: tiny"):
            exec(program, {"__name__": "snippet"})
            ran += 1
    assert ran >= 4
    out = capsys.readouterr().out
    assert "did you mean 'deduplicate'?" in out
    assert "duplicate" in out


@pytest.mark.slow
def test_programs_like_the_pages_pass_mypy_strict(tmp_path):
    for number, text in enumerate(snippets()):
        (tmp_path / f"user_{number}.py").write_text(text)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\nfollow_imports = silent\n")
    programs = sorted(path.name for path in tmp_path.glob("user_*.py"))
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *programs]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
