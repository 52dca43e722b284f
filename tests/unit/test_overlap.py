"""Nothing is scored on what it was trained on: exact overlaps are refused, before training where that can be known."""

import json
from pathlib import Path

import pytest

from potstill.errors import DataError, RecipeError
from potstill.recipe import load_recipe
from potstill.runs.overlap import refuse_overlap, refuse_shared
from potstill.runs.pipeline import run
from potstill.runs.plan import Plan, make_plan
from potstill.runs.workspace import Hashes, Workspace

RECIPE = """
name: r
servers: {w: {kind: miniature}}
models:
  base: {path: base}
  judge: {endpoint: w, name: sage}
stages:
  chats: {kind: import, path: chats.jsonl, rows: chats}
  questions: {kind: import, path: questions.jsonl, rows: prompts}
  sft: {kind: sft, model: base, data: chats}
  dpo: {kind: dpo, model: sft, data: pairs.jsonl}
  scores:
    kind: evaluate
    models: [base, dpo]
    judge: judge
    suites:
      bench: {protocol: mt_bench, questions: questions}
      held: {protocol: answer_loss, chats: held.jsonl}
      preferred: {protocol: preference, pairs: held_pairs.jsonl, reference: sft}
"""


def chat(name: str, *turns: str) -> dict[str, object]:
    said = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return {"id": name, "messages": said}


def pair(name: str, prompt: str) -> dict[str, object]:
    said = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    return {"id": name, "prompt": [{"role": "user", "content": prompt}], **said}


SOUND: dict[str, list[dict[str, object]]] = {
    "chats": [
        chat("a", "Where is the river?", "There.", "And the sea?", "Here."),
        chat("b", "Who is Osk?", "A smith."),
    ],
    "questions": [{"id": "q", "prompt": "What is the price of Borva?"}],
    "pairs": [pair("p", "Which way is north?")],
    "held": [chat("h", "Where is the river?", "There.", "And the hill?", "Yonder.")],
    "held_pairs": [pair("hp", "Which way is south?")],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path


def planned(here: Path, **changed: list[dict[str, object]]) -> tuple[Plan, dict]:
    for name, rows in {**SOUND, **changed}.items():
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe("r.yaml")
    sealed = {}
    for until in ("chats", "questions"):
        sealed |= run(recipe, here / "out", until=until)
    return make_plan(recipe, Workspace(here / "out"), Hashes(here / "hashes.json")), sealed


def check(plan: Plan, sealed: dict, *names: str) -> None:
    for name in names:
        refuse_overlap(plan, plan.steps[name], sealed)


def test_rows_that_only_begin_alike_do_not_overlap(here: Path) -> None:
    check(*planned(here), "chats", "sft", "dpo", "scores")


@pytest.mark.parametrize(
    ("changed", "stage", "says"),
    [
        (
            {"questions": [{"id": "q", "prompt": "who is OSK"}]},
            "sft",
            "chats: 'sft' trains on 1 rows that 'scores' evaluates on; the first is 'b', which asks what 'q' of",
        ),
        ({"questions": [{"id": "q", "prompt": "And the sea?"}]}, "sft", "the first is 'a', which asks what 'q' of"),
        ({"held": SOUND["chats"][:1]}, "sft", "the first is 'a', which asks what 'a' of 'held.jsonl' asks"),
        ({"held_pairs": SOUND["pairs"]}, "dpo", "pairs.jsonl: 'dpo' trains on 1 rows that 'scores' evaluates on"),
        ({"questions": [{"id": "q", "prompt": "Which way is north?"}]}, "dpo", "what 'q' of 'questions' asks"),
    ],
)
def test_what_is_trained_and_scored_on_is_refused(
    here: Path, changed: dict[str, list[dict[str, object]]], stage: str, says: str
) -> None:
    plan, sealed = planned(here, **changed)
    for step in (stage, "scores"):
        with pytest.raises(DataError) as caught:
            refuse_overlap(plan, plan.steps[step], sealed)
        assert says in str(caught.value)
        assert "decontaminate: evaluations" in str(caught.value)


def test_evaluation_rows_that_are_not_made_yet_are_compared_before_scoring(here: Path) -> None:
    plan, sealed = planned(here, questions=[{"id": "q", "prompt": "who is OSK"}])
    check(plan, {"chats": sealed["chats"]}, "sft")
    with pytest.raises(DataError, match="'sft' trains on 1 rows that 'scores' evaluates on"):
        check(plan, sealed, "scores")


def test_a_run_is_refused_before_anything_is_trained(here: Path) -> None:
    planned(here, questions=[{"id": "q", "prompt": "who is OSK"}])
    with pytest.raises(DataError, match="'sft' trains on 1 rows that 'scores' evaluates on"):
        run(load_recipe("r.yaml"), here / "out")
    assert not list((here / "out" / "artifacts").glob("sft*"))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("data: chats}\n  dpo", "'scores' evaluates on 'held.jsonl', which 'sft' trains on"),
        ("data: held.jsonl}\n  dpo", "'scores' evaluates on 'held.jsonl', which 'sft' trains on"),
    ],
)
def test_the_very_rows_are_refused_when_it_is_planned(here: Path, written: str, says: str) -> None:
    changed = RECIPE.replace("data: chats}\n  dpo", written)
    if written.startswith("data: chats"):
        changed, says = changed.replace("chats: held.jsonl", "chats: chats"), says.replace("held.jsonl", "chats")
    refuse_shared(planned(here)[0])
    (here / "r.yaml").write_text(changed)
    plan = make_plan(load_recipe("r.yaml"), Workspace(here / "out"), Hashes(here / "hashes.json"))
    with pytest.raises(RecipeError, match=says):
        refuse_shared(plan)
