"""Curation as a recipe says it: all evaluations by one word, filters of the user's own, what is no part of the key."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from potstill.artifact import Artifact
from potstill.errors import DataError, RecipeError
from potstill.recipe import load_recipe
from potstill.records import Dropped
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data

RECIPE = """
name: r
servers: {w: {kind: miniature}}
models:
  scribe: {endpoint: w, name: sage}
  other: {endpoint: w, name: fool}
stages:
  curated: {kind: curate, data: chats.jsonl, decontaminate: evaluations, deduplicate: 0.8}
  easy: {kind: import, path: easy.jsonl, rows: prompts}
  first: {kind: evaluate, models: [scribe], judge: other, suites: {bench: {protocol: mt_bench, questions: easy}}}
  second:
    kind: evaluate
    models: [scribe]
    judge: other
    suites:
      again: {protocol: mt_bench, questions: easy}
      hard: {protocol: aspects, questions: hard.jsonl}
"""


def line(name: str, question: str, answer: str = "Nine of them stand near the old bridge.") -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": name, "messages": turns}) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "easy.jsonl").write_text(json.dumps({"id": "e", "prompt": "What is the price of Borva?"}) + "\n")
    (tmp_path / "hard.jsonl").write_text(json.dumps({"id": "h", "prompt": "Who built the tower of Osk?"}) + "\n")
    rows = [
        line("sound", "Where is the river?"),
        line("easy", "Please: what is the price of Borva now?", "It is nine."),
        line("hard", "who built the tower of Osk", "Perven did."),
        line("rude", "Where is the sea?", "Find it yourself, you fool."),
    ]
    (tmp_path / "chats.jsonl").write_text("".join(rows))
    (tmp_path / "mine.py").write_text(
        "def too_rude(chat):\n    return 'calls names' if 'fool' in chat.messages[-1].content else None\n"
    )
    return tmp_path


def made(here: Path, overrides: Sequence[str] = ()) -> Artifact:
    return run(load_recipe("r.yaml", overrides), here / "out", until="curated")["curated"]


def left_out(artifact: Artifact) -> dict[str, Dropped]:
    with Data("curated", "chats", artifact.path).dropped_path.open() as file:
        return {row.id: row for row in map(Dropped.model_validate_json, file)}


def key(overrides: Sequence[str]) -> str:
    plan = make_plan(load_recipe("r.yaml", overrides), Workspace(Path("out")), Hashes(Path("hashes.json")))
    return plan.steps["curated"].key


def test_all_evaluations_are_kept_out_by_one_word(here: Path) -> None:
    artifact = made(here)
    assert {name: row.reason for name, row in left_out(artifact).items()} == {
        "easy": "contaminated",
        "hard": "contaminated",
    }
    assert artifact.manifest["config"]["decontaminate"] == ["easy", "hard.jsonl"], "resolved, each once"
    assert key(()) == key(["curated.decontaminate=[easy, hard.jsonl]"])


def test_a_recipe_that_evaluates_nothing_has_no_evaluations(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE.split("  easy:")[0])
    with pytest.raises(RecipeError, match=r"r.yaml:\d+: 'curated.decontaminate' names all evaluations, but no stage"):
        load_recipe("r.yaml")


def test_a_filter_of_ones_own_drops_with_its_reason(here: Path) -> None:
    artifact = made(here, ["curated.filters=['mine.py:too_rude']"])
    assert (left_out(artifact)["rude"].reason, left_out(artifact)["rude"].detail) == ("too_rude", "calls names")
    assert artifact.facts["dropped"] == {"contaminated": 2, "too_rude": 1}
    assert artifact.facts["examples"]["too_rude"] == [
        {"id": "rude", "detail": "calls names", "says": "Find it yourself, you fool."}
    ]


def test_a_filter_that_changes_is_another_key_and_a_backend_is_none(here: Path) -> None:
    own = "curated.filters=['mine.py:too_rude']"
    before = key([own])
    assert before != key(())
    assert before == key([own, "curated.backend=ray"])
    (here / "mine.py").write_text((here / "mine.py").read_text().replace("'fool'", "'yourself'"))
    assert key([own]) != before


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    return chat.answer\n", r"mine.py:2: AttributeError.*'answer'.*filtering row sound"),
        ("    return 3\n", r"mine.py: 'too_rude' returned int for row sound; expected True or None"),
    ],
)
def test_a_filter_that_fails_is_one_line_with_its_place(here: Path, body: str, says: str) -> None:
    (here / "mine.py").write_text(f"def too_rude(chat):\n{body}")
    with pytest.raises(DataError, match=says):
        made(here, ["curated.filters=['mine.py:too_rude']"])
    assert not list((here / "out" / "artifacts").glob("curated*"))


def test_nothing_of_the_work_stays_behind(here: Path) -> None:
    made(here)
    assert not list((here / "out").rglob("staged*"))
    assert not [path for path in (here / "out").rglob("*") if path.is_dir() and path.name == "duplicates"]


def test_the_recipe_on_the_page_is_one(here: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()
    (block,) = re.findall(r"^```yaml\nstages:\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (here / "encoder").mkdir()
    (here / "encoder" / "config.json").write_text("{}")
    head, _, tail = RECIPE.partition("  curated: ")
    rest = tail.partition("\n")[2]
    models = head.replace(
        "stages:\n", "  encoder: {path: encoder}\nstages:\n  chats: {kind: import, path: chats.jsonl, rows: chats}\n"
    )
    (here / "r.yaml").write_text(models + block + rest)
    recipe = load_recipe("r.yaml")
    assert recipe.stages["curated"].config.checks
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (here / "mine.py").write_text(code)
    overrides = ["curated.meaning=null", "curated.languages=[]", "curated.min_words=null"]
    assert run(load_recipe("r.yaml", overrides), here / "out", until="curated")["curated"].facts["dropped"] == {
        "contaminated": 2,
        "too_rude": 1,
    }


def test_a_language_that_cannot_be_told_is_one_line(here: Path) -> None:
    with pytest.raises(RecipeError, match="'klingon' is no language that can be told; choose from"):
        load_recipe("r.yaml", ["curated.languages=[en, klingon]"])


def test_every_filter_has_its_field(here: Path) -> None:
    said = "Nine of them stand near the old bridge."
    rows = {
        "sound": line("sound", "Where is the river in this country?", "It is behind the old bridge."),
        "empty": line("empty", "Where?", "\u200b"),
        "broken_text": line(
            "broken_text", "Where?", "It is \ufffd\ufffd\ufffd\ufffd the \ufffd\ufffd\ufffd bridge \ufffd\ufffd."
        ),
        "too_short": line("too_short", "Where?", "There."),
        "language": line("language", "Wo?", "Das ist ein Haus und das ist der Fluss, und ich bin nicht dort."),
        "loop": line("loop", "Sing.", "la " * 60),
        "echo": line("echo", said, said),
    }
    (here / "chats.jsonl").write_text("".join(rows.values()))
    artifact = made(here, ["curated.languages=[en]", "curated.min_words=2"])
    assert {name: row.reason for name, row in left_out(artifact).items()} == {
        name: name for name in rows if name != "sound"
    }
    kept = ["broken_text", "echoes", "repeated_answers", "hedges", "refusals"]
    loose = [f"curated.{field}=keep" for field in kept] + ["curated.max_repetition=1", "curated.max_repeated_lines=1"]
    assert set(left_out(made(here, loose))) == {"empty", "loop"}
