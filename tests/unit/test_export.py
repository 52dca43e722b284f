"""Datasets for others: what is exported comes back as it was, loads with the Hub's library, and says its origin."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.artifact import read_rows, seal, write_rows
from potstill.cards.card_parts import escape
from potstill.cli import main
from potstill.errors import DataError, RecipeError
from potstill.layouts import columns_of, layout_of
from potstill.reading.formats import read_file
from potstill.reading.shapes import recognise
from potstill.recipe import load_recipe
from potstill.records import (
    ROWS,
    Answers,
    Candidate,
    Chat,
    Feedback,
    Message,
    Pair,
    Prompt,
    Rating,
    Record,
    Text,
    ToolCall,
)
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data, Inputs
from potstill.stages import stage
from potstill.stages.base import Work
from potstill.stages.export import Export

TOOL = json.dumps({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
CALL = ToolCall(name="f", arguments='{"x": [1, "é"]}', id="c1")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str, **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


PROMPT = Prompt(id="p", messages=(Message(role="system", content="s"), user("q")), category="math")
RECORDS: dict[str, list[Record]] = {
    "texts": [Text(id="a", text="one\n\ntwo"), Text(id="b", text='"quoted", \u2028 é')],
    "prompts": [
        PROMPT,
        Prompt(id="r", messages=(user("q"),), follow_ups=("r", "s"), references=("1", "2")),
        Prompt(id="t", messages=(user("q"), said("a"), user("r")), category="talk"),
    ],
    "chats": [
        Chat(id="a", messages=(user("q"), said("a")), category="c"),
        Chat(
            id="b",
            messages=(
                user("q"),
                said("", tool_calls=(CALL, CALL)),
                Message(role="tool", content="42", tool_call_id="c1", name="f"),
                said("a", train=False),
                user("r"),
                said("b"),
            ),
            tools=(TOOL, TOOL),
        ),
    ],
    "answers": [
        Answers(id="x", prompt=PROMPT, candidates=(Candidate(model="m", text="a"), Candidate(model="n", text="b"))),
        Answers(
            id="y",
            prompt=Prompt(id="r", messages=(user("q"),), follow_ups=("r",)),
            candidates=(
                Candidate(model="m", text="", finish="empty", reason="it says nothing"),
                Candidate(
                    model="n",
                    text="a",
                    ratings=(
                        Rating(aspect="honesty", score=None, rationale="N/A"),
                        Rating(aspect="human_preference", score=0.5, judge="annotator1"),
                    ),
                ),
            ),
        ),
    ],
    "pairs": [
        Pair(id="a", prompt=(user("q"),), chosen=(said("a"),), rejected=(said("b"),)),
        Pair(
            id="b",
            prompt=(user("q"),),
            chosen=(said("", tool_calls=(CALL,)), Message(role="tool", content="1", tool_call_id="c1"), said("a")),
            rejected=(said("", tool_calls=(CALL,)), Message(role="tool", content="1", tool_call_id="c1"), said("b")),
            tools=(TOOL,),
            chosen_score=4.5,
            rejected_score=0.0,
        ),
    ],
    "feedback": [
        Feedback(id="a", prompt=(user("q"),), answer=(said("a"),), desirable=True),
        Feedback(id="b", prompt=(user("q"),), answer=(said("b"),), desirable=False, category="c"),
    ],
}


def sealed(folder: Path, name: str, kind: str, rows: list[Record], **head: Any) -> Data:
    """Rows as if a stage had made and sealed them."""
    draft = folder / "work" / name
    draft.mkdir(parents=True)
    write_rows(draft / "rows.jsonl", rows)
    key = (name.encode().hex() * 64)[:64]
    manifest = {
        "stage": name,
        "kind": "import",
        "version": 1,
        "produces": kind,
        "key": key,
        "seed": 3,
        "config": {},
        "inputs": {},
        "facts": {"rows": len(rows)},
        **head,
    }
    return Data(name, kind, seal(draft, folder / "artifacts" / f"{name}-{key[:12]}", manifest).path)


def export(folder: Path, splits: dict[str, Data], **fields: Any) -> Path:
    out = folder / f"export-{len(list(folder.iterdir()))}"
    out.mkdir(parents=True)
    config = Export.model_validate(
        {"kind": "export", "splits": {name: data.name for name, data in splits.items()}, **fields}
    )
    inputs = Inputs({f"splits.{name}": (data,) for name, data in splits.items()}, {}, {})
    stage("export").run(config, inputs, Work(out, folder, 1))
    return out


def front(path: Path) -> dict[str, Any]:
    text = (path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    block, _, rest = text[4:].partition("\n---\n")
    assert "\n---\n" not in rest, "nothing else looks like the end of the front matter"
    value: dict[str, Any] = yaml.safe_load(block)
    return value


@pytest.mark.parametrize("kind", [*RECORDS, "ratings"])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_what_is_exported_comes_back_as_it_was(tmp_path: Path, kind: str, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    rows = RECORDS["answers" if kind == "ratings" else kind]
    data = sealed(tmp_path, "mine", kind, rows)
    out = export(tmp_path, {"train": data}, format=form)
    assert list(read_file(out / "data", ROWS[kind])) == rows
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "README.md",
        f"data/train-00000-of-00001.{form}",
    ]
    again = export(tmp_path, {"train": data}, format=form)
    for path in sorted(out.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(out)).read_bytes(), (
                "the same bytes from the same rows"
            )


def test_what_no_row_says_has_no_column(tmp_path: Path) -> None:
    plain = [Chat(id="a", messages=(user("q"), said("a")))]
    out = export(tmp_path, {"train": sealed(tmp_path, "mine", "chats", list(plain))}, format="jsonl")
    row = json.loads((out / "data" / "train-00000-of-00001.jsonl").read_text())
    assert row == {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    out = export(tmp_path, {"train": sealed(tmp_path, "two", "chats", RECORDS["chats"])}, format="jsonl")
    rows = [json.loads(line) for line in (out / "data" / "train-00000-of-00001.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["id", "messages", "tools", "category"]] * 2
    call = rows[1]["messages"][1]["tool_calls"][0]
    assert call == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": CALL.arguments}}
    pairs = export(tmp_path, {"train": sealed(tmp_path, "pairs", "pairs", RECORDS["pairs"])}, format="jsonl")
    row = json.loads((pairs / "data" / "train-00000-of-00001.jsonl").read_text().splitlines()[1])
    assert (row["score_chosen"], row["score_rejected"]) == (4.5, 0.0)
    kto = export(tmp_path, {"train": sealed(tmp_path, "kto", "feedback", RECORDS["feedback"])}, format="jsonl")
    row = json.loads((kto / "data" / "train-00000-of-00001.jsonl").read_text().splitlines()[1])
    assert row["completion"] == [{"role": "assistant", "content": "b"}]
    assert row["label"] is False


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("kind", list(RECORDS))
def test_the_hubs_library_loads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, form: str
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    train, test = (sealed(tmp_path, name, kind, RECORDS[kind] * 3) for name in ("one", "two"))
    out = export(tmp_path, {"train": train, "test": test}, format=form, rows_per_file=2)
    assert len(list((out / "data").glob("train-*"))) == -(-len(RECORDS[kind]) * 3 // 2)
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    loaded = datasets.load_dataset(str(out))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": train_rows(kind), "test": train_rows(kind)}
    told = datasets.Features._from_yaml_list(front(out)["dataset_info"]["features"])
    assert loaded["train"].features == told, "the card's features are those of the files"
    (tmp_path / "back").mkdir()
    loaded["train"].to_parquet(tmp_path / "back" / "rows.parquet")
    assert list(read_file(tmp_path / "back" / "rows.parquet", ROWS[kind])) == RECORDS[kind] * 3


def train_rows(kind: str) -> int:
    return 3 * len(RECORDS[kind])


HOSTILE = [
    "a\n---\nlicense: mit",
    "# not | a `table` <script>alert(1)</script>",
    "]]>: {} ' \" & * ! % @ \\ ~ \u2028---\u2028",
    "\x1b[31mred\x00",
    "![x](http://tracker/x.png)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_breaks_the_card(tmp_path: Path, text: str) -> None:
    head = {
        "inputs": {
            "teacher": [{"name": "m", "key": "1", "model": {"endpoint": True, "name": text, "revision": text}}],
            "path": [{"name": text, "key": "ab" * 32}],
        },
        "facts": {"rows": 1, "dropped": {text: 3}},
        "config": {"licence": text, "hub": text},
    }
    data = sealed(tmp_path, "mine", "texts", [Text(id="a", text="b")], **head)
    out = export(tmp_path, {"train": data}, title=text, licence=text, notes=text, format="jsonl")
    card = front(out)
    assert card["license"] == "other"
    assert card["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.jsonl"}]}
    ]
    body = (out / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2]
    assert "<script" not in body
    assert not re.search(r"(?<!\\)!\[", body)
    assert "\x1b" not in body
    assert "\x00" not in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert cells <= {3, 4, 6, 7}, "no name adds a cell"
    assert "license: mit" not in body.splitlines()


@given(st.text(max_size=40))
def test_an_escaped_text_is_one_line_without_markup(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_|\[\]<>]", shown)


RECIPE = """
name: shared
servers: {w: {kind: miniature}}
models: {oracle: {endpoint: w, name: sage, revision: "7"}}
stages:
  seeds: {kind: import, path: seeds.jsonl, rows: prompts, licence: CC-BY-4.0, on_bad_row: skip}
  talk: {kind: "mine.py:answer", prompts: seeds, teacher: oracle}
  curated: {kind: curate, data: talk, max_repetition: 1}
  shared: {kind: export, splits: {train: curated, test: talk}, title: Small talk, licence: apache-2.0, language: [en]}
"""
OWN = """
from collections.abc import Iterator
from potstill.records import Chat, Message, Prompt
from potstill.teachers.base import Request, Teacher
def answer(prompts: Iterator[Prompt], teacher: Teacher) -> Iterator[Chat]:
    asked = list(prompts)
    for prompt, reply in zip(asked, teacher.complete(Request(p.messages, 60) for p in asked), strict=True):
        yield Chat(id=prompt.id, messages=(*prompt.messages, Message(role="assistant", content=reply.text)))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text(OWN)
    questions = [f"What is the colour of pot number {i}?" for i in range(3)]
    lines = [json.dumps({"prompt": question}) for question in questions]
    (tmp_path / "seeds.jsonl").write_text("\n".join([*lines, '{"prompt": 7}']))
    return tmp_path


def test_a_card_tells_the_whole_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert run(load_recipe("r.yaml"), here / "out")["shared"].facts["holds"] == "chats"
    folder = here / "out" / "shared"
    text = (folder / "README.md").read_text()
    card = front(folder)
    assert card["pretty_name"] == "Small talk"
    assert (card["license"], card["language"], card["size_categories"]) == ("apache-2.0", ["en"], ["n<1K"])
    assert card["tags"] == ["sft", "potstill"]
    lines = [re.sub(r"\\(.)", r"\1", line) for line in text.splitlines()]
    assert any(line.startswith("| seeds | import | seeds.jsonl | 3 prompts |") for line in lines)
    assert any(line.startswith("| oracle | sage | 7 | an endpoint | talk |") for line in lines)
    assert any(line.startswith("| talk | mine.py:answer | mine.py:answer, seeds, oracle |") for line in lines)
    assert "| seeds | bad_row | 1 |" in lines
    assert any(line.startswith("| seeds.jsonl | data | seeds | CC-BY-4.0 |") for line in lines)
    assert any(line.startswith("| mine.py:answer | function | talk |") for line in lines)
    assert "127.0.0.1" not in text
    assert str(here) not in text
    assert lines.index("## Models") < lines.index("## Licence")
    capsys.readouterr()
    assert main(["show", "out", "shared"]) == 0
    assert "datasets.load_dataset(" in capsys.readouterr().out
    (here / "back.yaml").write_text(
        "name: back\nstages: {again: {kind: import, path: out/shared/data/train-*, rows: chats}}"
    )
    again = run(load_recipe("back.yaml"), here / "out2")["again"]
    mine = list(read_rows(here / "out" / "curated" / "rows.jsonl", Chat))
    assert list(read_rows(again.path / "rows.jsonl", Chat)) == mine


def test_what_cannot_be_exported_is_one_clear_line(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE.replace("test: talk", "test: seeds"))
    with pytest.raises(DataError, match="train holds chats, test holds prompts; expected one kind of rows"):
        run(load_recipe("r.yaml"), here / "out")
    (here / "r.yaml").write_text(RECIPE.replace("test: talk", "test: seeds.jsonl"))
    with pytest.raises(RecipeError, match=r"r\.yaml:9: 'shared.splits.test' cannot be used: seeds.jsonl: it is a file"):
        make_plan(load_recipe("r.yaml"), Workspace(here / "no"), Hashes(here / "h"))
    (here / "r.yaml").write_text(RECIPE.replace("test: talk", "my-test: talk"))
    with pytest.raises(RecipeError, match="the split 'my-test' has no plain name"):
        load_recipe("r.yaml")


def test_without_pyarrow_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    data = sealed(tmp_path, "mine", "texts", [Text(id="a", text="b")])
    with pytest.raises(DataError, match=r"writing Parquet needs pyarrow.*potstill\[hub\]', or choose jsonl"):
        export(tmp_path, {"train": data})
    export(tmp_path, {"train": data}, format="jsonl")


@pytest.mark.parametrize("fields", [{"splits": {}}, {"language": ["English"]}, {"rows_per_file": 0}, {"licence": ""}])
def test_a_wrong_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Export.model_validate({"kind": "export", "splits": {"train": "x"}, **fields})


@pytest.mark.parametrize("row_type", sorted(set(ROWS.values()), key=lambda cls: cls.__name__))
def test_every_field_of_a_record_has_a_column(row_type: type[Record]) -> None:
    """A field that is added to a record is exported too."""
    assert len(layout_of(row_type)) == len(row_type.model_fields)


@pytest.mark.parametrize("kind", list(RECORDS))
def test_every_text_of_a_record_comes_back(kind: str) -> None:
    """One that is added to a record too."""
    record = RECORDS[kind][0]
    texts = [name for name, field in type(record).model_fields.items() if field.annotation is str]
    full = record.model_copy(update={name: f"some {name}" for name in texts})
    row = columns_of(full)
    shape = recognise([row])
    assert shape is not None
    assert shape.read(row, type(full), "default") == full


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "Who made this dataset does not say under what licence it stands."),
        ({"licence": "CC0-1.0"}, "puts it under this licence: CC0-1.0. Whether it may stand under it was not checked."),
    ],
)
def test_the_card_says_what_is_known_of_the_licence(tmp_path: Path, fields: dict[str, str], says: str) -> None:
    data = sealed(tmp_path, "mine", "texts", [Text(id="a", text="b")])
    card = (export(tmp_path, {"train": data}, format="jsonl", **fields) / "README.md").read_text()
    assert f"{says} Who publishes or uses it has to see to it" in card
