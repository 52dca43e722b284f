"""The import stage: from files of others to rows of ours, bad rows refused or kept aside."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, assistant, given, make, user
from pydantic import ValidationError

from potstill.errors import DataError
from potstill.records import Chat, Prompt, Text
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


def test_a_bad_row_is_refused_or_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 7}\n{"text": "b"}\n{"text": "cut')
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'text' is a number; expected text"):
        run(tmp_path, path, "texts")
    made = run(tmp_path, path, "texts", on_bad_row="skip")
    assert [row.text for row in made.rows] == ["a", "b"]
    assert [(row.id, row.reason) for row in made.dropped] == [("line-2", "bad_row"), ("line-4", "bad_row")]
    assert made.facts == {"rows": 2, "dropped": {"bad_row": 2}}
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
    assert train.facts == {"rows": len(train.rows), "dropped": {"contaminated": 60 - len(train.rows)}}
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
