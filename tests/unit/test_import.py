"""The import stage: from files of others to rows of ours, bad rows refused or kept aside."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, assistant, given, make, user
from pydantic import ValidationError

from potstill.artifact import read_rows
from potstill.errors import DataError, RecipeError
from potstill.recipe import load_recipe
from potstill.records import Chat, Pair, Prompt, Text
from potstill.runs import pipeline
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data
from potstill.stages.import_data import Import


def run(folder: Path, path: Path, rows: str, **fields: Any) -> Made:
    config = {"kind": "import", "path": str(path), "rows": rows, **fields}
    return make(folder, config, {"path": Data(path.name, "file", path)})


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)))
    return path


def texts(made: Made) -> list[int]:
    return [int(row.text.split()[1]) for row in made.rows]


def test_rows_are_cut_in_the_files_order_or_shuffled_by_seed(tmp_path: Path, numbers: Path) -> None:
    assert texts(run(tmp_path, numbers, "texts")) == list(range(100))
    assert texts(run(tmp_path, numbers, "texts", skip=10, limit=5)) == [10, 11, 12, 13, 14]
    shuffled = texts(run(tmp_path, numbers, "texts", shuffle=3))
    assert sorted(shuffled) == list(range(100)) != shuffled
    train = texts(run(tmp_path, numbers, "texts", shuffle=3, skip=20))
    test = texts(run(tmp_path, numbers, "texts", shuffle=3, limit=20))
    assert test + train == shuffled, "two stages with one seed cut the same order"
    assert texts(run(tmp_path, numbers, "texts", shuffle=4)) != shuffled


def test_lines_of_plain_text_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("What is a still?\nWho are you?\n")
    rows = run(tmp_path, tmp_path / "asked.txt", "prompts").rows
    assert [row.messages[0].content for row in rows] == ["What is a still?", "Who are you?"]


def test_what_another_run_sealed_is_its_rows_alone(tmp_path: Path, numbers: Path) -> None:
    folder = tmp_path / "curated"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(numbers.read_bytes())
    (folder / "manifest.json").write_text("{}")
    (folder / "dropped.jsonl").write_text('{"id": "a", "reason": "short", "detail": ""}\n')
    assert texts(run(tmp_path, folder, "texts")) == list(range(100))


def test_a_bad_row_is_refused_or_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 7}\n{"text": "b"}\n{"text": "cut')
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'text' is a number; expected text"):
        run(tmp_path, path, "texts")
    made = run(tmp_path, path, "texts", on_bad_row="skip")
    assert [row.text for row in made.rows] == ["a", "b"]
    assert [(row.id, row.reason) for row in made.dropped] == [("line-2", "bad_row"), ("line-4", "bad_row")]
    assert made.facts == {"rows": 2, "dropped": {"bad_row": 2}, "shape": "texts"}
    assert "'text' is a number" in made.dropped[0].detail
    assert str(tmp_path) not in made.dropped[0].to_line()


def test_chats_become_prompts_or_texts(tmp_path: Path) -> None:
    chats = [Chat(id=f"c{i}", messages=user(f"q{i}") + assistant(f"a{i}"), category="math") for i in range(2)]
    data = given(tmp_path, "chats", chats)
    config = {"kind": "import", "path": "given"}
    made = make(tmp_path, {**config, "rows": "prompts"}, {"path": data})
    assert made.rows == [Prompt(id=f"c{i}", messages=user(f"q{i}"), category="math") for i in range(2)]
    made = make(tmp_path, {**config, "rows": "texts"}, {"path": data})
    assert made.rows == [Text(id=f"c{i}", text=f"q{i}\n\na{i}") for i in range(2)]


def test_a_shape_by_name_overrides_what_the_columns_say(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "response": "a", "text": "t", "data": "d"}) + "\n")
    assert run(tmp_path, path, "texts").rows[0].text == "q\n\na"
    assert run(tmp_path, path, "texts", format="texts").rows[0].text == "t"


def test_nothing_left_is_an_error(tmp_path: Path, numbers: Path) -> None:
    with pytest.raises(DataError, match="no row is left to make texts of"):
        run(tmp_path, numbers, "texts", skip=100)


@pytest.mark.parametrize("fields", [{}, {"path": "a", "hub": "b"}, {"path": "a", "revision": "c"}])
def test_exactly_one_source(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"name either a path or a hub dataset|belong to a hub dataset"):
        Import.model_validate({"kind": "import", "rows": "texts", **fields})


def test_a_hub_dataset_through_its_own_library(tmp_path: Path, numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the Hub here: `datasets` reads both in the same way."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "numbers"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(numbers.read_bytes())
    made = make(tmp_path, {"kind": "import", "hub": str(folder), "rows": "texts", "limit": 7})
    assert texts(made) == list(range(7))
    with pytest.raises(DataError, match="the dataset cannot be loaded"):
        make(tmp_path, {"kind": "import", "hub": str(tmp_path / "nowhere"), "rows": "texts"})


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    """One file, cut by prompt: every row is on one side, and no prompt is on both, whatever rows share it."""
    path = tmp_path / "pairs.jsonl"
    prompts = [f"Name {i // 3} things that fit into shed number {i // 3}." for i in range(60)]
    rows = [{"prompt": prompt, "chosen": f"good {i}", "rejected": f"bad {i}"} for i, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = run(tmp_path, path, "pairs", shuffle=0, limit=5)
    config = {"kind": "import", "path": str(path), "rows": "pairs", "decontaminate": ["held_out"]}
    train = make(tmp_path, config, {"path": Data(path.name, "file", path), "decontaminate": held_out.data})
    kept_out = {row.prompt for row in held_out.rows}
    assert kept_out.isdisjoint(row.prompt for row in train.rows)
    assert {row.prompt for row in train.rows} | kept_out == {user(prompt) for prompt in prompts}
    assert train.facts == {"rows": len(train.rows), "dropped": {"contaminated": 60 - len(train.rows)}, "shape": "pairs"}
    assert len(train.dropped) == 3 * len(kept_out), "rows that share a prompt go together"
    assert train.dropped[0].detail.startswith(f"{held_out.path.name}/pairs-")


def test_the_cut_is_made_of_what_is_clean(tmp_path: Path) -> None:
    chats = [Chat(id=f"c{i}", messages=user(f"What is {i} plus {i}?") + assistant("x")) for i in range(6)]
    data = {"path": given(tmp_path, "chats", chats), "decontaminate": given(tmp_path, "chats", chats[:2], "evaluation")}
    config = {"kind": "import", "path": "given", "decontaminate": "evaluation", "limit": 3}
    for rows in ("chats", "prompts"):
        made = make(tmp_path, {**config, "rows": rows}, data)
        assert [row.id for row in made.rows] == ["c2", "c3", "c4"]
    with pytest.raises(ValidationError, match="texts have no user turns"):
        Import.model_validate({**config, "rows": "texts"})


def test_a_shuffle_holds_no_rows(tmp_path: Path) -> None:
    """The order is that of shuffling them all in memory; only their places are held."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i} " + "x" * 1000}) + "\n" for i in range(5000)))
    expected = list(range(5000))
    random.Random(7).shuffle(expected)
    tracemalloc.start()
    try:
        made = run(tmp_path, path, "texts", shuffle=7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000, f"{peak:,} bytes"
    assert texts(made) == expected
    assert sorted(made.files) == ["dropped.jsonl", "rows.jsonl"], "what waited on the disk is gone"


def test_rows_that_are_well_but_hold_nothing_asked_for_are_counted_by_reason(tmp_path: Path) -> None:
    """A tie is no broken row: it is left out of the pairs under its name, though broken rows are refused."""
    row = {"instruction": "q", "input": "", "response1": "a", "response2": "b"}
    votes = [(1, 1, 2), (0, 0, 1), (1, 2, 0)]
    rows = [row | {f"annotator{i}": vote for i, vote in enumerate(three, start=1)} for three in votes]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"response2": ""}]))
    made = run(tmp_path, path, "pairs")
    assert made.facts == {"rows": 1, "dropped": {"empty": 1, "tie": 2}, "shape": "pandalm"}
    assert [(row.id, row.reason) for row in made.dropped] == [("line-2", "tie"), ("line-3", "tie"), ("line-4", "empty")]
    answers = run(tmp_path, path, "ratings")
    assert answers.facts == {"rows": 4, "dropped": {}, "shape": "pandalm"}
    assert {rating.judge for row in answers.rows for c in row.candidates for rating in c.ratings} == {
        "annotator1",
        "annotator2",
        "annotator3",
    }


def test_columns_and_questions_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for at in range(2):
        line = json.dumps({"body": {"q": f"q{at}"}, "good": "a", "bad": "b"})
        (tmp_path / "data" / f"train-{at}.jsonl").write_text(line + "\n")
    (tmp_path / "questions.jsonl").write_text('{"question_id": 81, "turns": ["q", "r"]}\n')
    (tmp_path / "answers.jsonl").write_text(
        '{"question_id": 81, "model_id": "m", "choices": [{"turns": ["a", "c"]}]}\n'
    )
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n"
        "  pairs: {kind: import, path: data/train-*.jsonl, rows: pairs,\n"
        "    columns: {prompt: body.q, chosen: good, rejected: bad}}\n"
        "  chats: {kind: import, path: answers.jsonl, rows: chats, questions: questions.jsonl}\n"
    )
    recipe = load_recipe("r.yaml")
    sealed = pipeline.run(recipe, tmp_path / "out")
    assert sealed["pairs"].facts == {"rows": 2, "dropped": {}, "shape": "pairs"}
    pairs = list(read_rows(sealed["pairs"].path / "rows.jsonl", Pair))
    assert [(pair.id, pair.prompt) for pair in pairs] == [("data-0", user("q0")), ("data-1", user("q1"))]
    (chat,) = read_rows(sealed["chats"].path / "rows.jsonl", Chat)
    assert chat.messages == user("q") + assistant("a") + user("r") + assistant("c")
    assert str(tmp_path) not in json.dumps(sealed["pairs"].manifest)

    def keys(*overrides: str) -> list[str]:
        plan = make_plan(load_recipe("r.yaml", overrides), Workspace(tmp_path / "no"), Hashes(tmp_path / "hashes"))
        assert [step.expected.rows for step in plan.steps.values()] == [2, 1]
        return [step.key for step in plan.steps.values()]

    before = keys()
    assert keys("pairs.path=data") != before, "the name counts, as rows are called by it"
    (tmp_path / "data" / "other.jsonl").write_text("{}")
    assert keys() == before
    (tmp_path / "data" / "train-1.jsonl").rename(tmp_path / "data" / "train-2.jsonl")
    assert keys() != before
    (tmp_path / "data" / "train-2.jsonl").rename(tmp_path / "data" / "train-1.jsonl")
    assert keys() == before
    (tmp_path / "questions.jsonl").write_text('{"question_id": 81, "turns": ["Q", "r"]}\n')
    assert keys()[1] != before[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "pairs.rows=feedback",
            r"r\.yaml:3: 'pairs.path' cannot be used: .*nothing says whether the answ",
        ),
        (
            "pairs.columns={chosen: gut}",
            r"there is no column 'gut', which is to be 'chosen'; the row has bad, good, q\. ",
        ),
        ("pairs.columns={promt: q}", r"no shape knows a column 'promt' \(did you mean 'prompt'\?\)"),
        ("pairs.format=text", r"'pairs.format' is 'text': input should be 'auto'"),
        ("pairs.path=data", r"a folder that holds several splits: test, train; expected the files of one"),
        (
            "pairs.path=data/none-*",
            r"'pairs.path' names 'data/none-\*', which is neither a stage of this recipe nor a file",
        ),
        (
            "pairs.questions=data/test-0.jsonl",
            r"'pairs.questions' cannot be used: .*test-0.jsonl:1: no known shape of row",
        ),
    ],
)
def test_a_file_that_cannot_be_what_it_is_to_be_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    row = {"q": "q", "good": "a", "bad": "b"}
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}-0.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n"
        "  pairs: {kind: import, path: data/train-0.jsonl, rows: pairs,"
        " columns: {prompt: q, chosen: good, rejected: bad}}"
    )
    with pytest.raises((RecipeError, DataError), match=says) as caught:
        make_plan(load_recipe("r.yaml", [override]), Workspace(tmp_path / "no"), Hashes(tmp_path / "hashes"))
    assert "\n" not in str(caught.value)
