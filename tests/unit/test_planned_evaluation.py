"""What a recipe alone shows of an evaluation that cannot be run, or would measure nothing: said by the plan."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_fakes import questions

from potstill.errors import RecipeError
from potstill.evaluation import published
from potstill.evaluation.sheets import Sheet, Turn
from potstill.recipe import load_recipe
from potstill.runs.plan import Plan, make_plan
from potstill.runs.workspace import Hashes, Workspace

RECIPE = """
name: planned
models:
  judge: {endpoint: "http://127.0.0.1:9/v1", name: judge}
  other: {endpoint: "http://127.0.0.1:9/v1", name: other}
  teacher: {endpoint: "http://127.0.0.1:9/v1", name: teacher}
  sft: {endpoint: "http://127.0.0.1:9/v1", name: sft}
  dpo: {endpoint: "http://127.0.0.1:9/v1", name: dpo}
  pool: [{endpoint: "http://127.0.0.1:9/v1", name: sage}, {endpoint: "http://127.0.0.1:9/v1", name: judge}]
stages:
  tried: {kind: try_judge, judge: [judge, other], data: rated.jsonl, protocol: grade, scale: [1, 5]}
  scores:
    kind: evaluate
    models: [teacher, sft, dpo, pool]
    judge: judge
    suites:
      chat: {protocol: mt_bench}
      wins: {protocol: alpaca_eval, baseline: teacher, recorded: {rec: rec.json}}
      sides: {protocol: aspects, aspects: [honesty]}
    trial: tried
    bar: {error: 2}
  again: {kind: evaluate, models: [sft, dpo], judge: judge, suites: {chat: {protocol: mt_bench}}}
  checks:
    kind: audit
    models: [sft, dpo]
    teacher: teacher
    base: teacher
    scores: [scores]
  report:
    kind: report
    scores: [scores, again]
    models: [sft, dpo]
    audits: [checks]
    teacher: sage
    claims:
      - {better: dpo, worse: sft, suite: wins/length_controlled}
      - {better: dpo, worse: sft, suite: "again: chat"}
      - {better: dpo, worse: sft, suite: sides/honesty}
    published: {source: x, scores: {dpo: {wins: [0.5, 0.1]}}}
"""
RATED = {"prompt": "Which?", "chosen": "This.", "rejected": "That."}


def planned(folder: Path, changes: Mapping[str, Any]) -> Plan:
    """The plan of the recipe with those values in place of its own, by their way."""
    recipe = copy.deepcopy(yaml.safe_load(RECIPE))
    for way, value in changes.items():
        at, *steps = recipe["stages"], *way.split(".")
        for step in steps[:-1]:
            at = at[int(step) if isinstance(at, list) else step]
        at[int(steps[-1]) if isinstance(at, list) else steps[-1]] = value
    (folder / "planned.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "rated.jsonl").write_text(json.dumps(RATED) + "\n")
    (folder / "rec.json").write_text("[]")
    rows = {"flat": {"prompt": "Help me."}, "slots": {"prompt": "Help {name}."}}
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    loaded, out = load_recipe(str(folder / "planned.yaml")), Workspace(folder / "out")
    return make_plan(loaded, out, Hashes(out.path / "hashes.json"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checks.paired": {"prompts": "shipped:paired"}},
        {"checks.paired": {"prompts": "slots.jsonl", "attributes": {"name": ["Anna", "Zora"]}}},
        # Whoever is asked by the audit itself needs no scores.
        {"checks.samples": {"prompts": "flat.jsonl"}, "checks.teacher": "other"},
        {"checks.samples": {"prompts": "flat.jsonl"}, "checks.models": ["sft", "other"]},
    ],
)
def test_what_can_be_run_is_planned(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "report" in planned(tmp_path, changes).steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # Reports.
        ({"report.claims.0.suite": "nope"}, "'report.claims.0': 'nope' is a suite that none of the scores has"),
        ({"report.claims.0.suite": ""}, "'report.claims.0': '' is a suite that none of the scores has"),
        ({"report.claims.1.suite": "chat"}, "'report.claims.1': 'chat' is a suite that none"),  # two have one
        ({"report.claims.2.suite": "sides"}, r"'report.claims.2': 'sides' is a suite that none .*sides/honesty"),
        (
            {"report.models": ["sft", "dpo", "other"], "report.claims.0.worse": "other"},
            r"'report.claims.0': 'other' is a model that none of the scores has.*evaluate it",
        ),
        ({"report.published.scores": {"dpo": {"nope": 1}}}, "'report.published.scores.dpo.nope': 'nope' is a suite"),
        ({"report.teacher": "other"}, "'report.teacher': 'other' is a model that none of the scores has"),
        ({"report.teacher": "checks"}, "'report.teacher': 'checks' is a model that none of the scores has"),
        ({"report.scores": ["scores", "scores"]}, "'report.scores' names 'scores' twice"),
        ({"report.audits": ["checks", "checks"]}, "'report.audits' names 'checks' twice"),
        # Audits.
        ({"checks.base": "other"}, "'checks.base': 'other' is in none of the scores, so nothing can be set against it"),
        ({"checks.teacher": "other"}, "'checks.teacher': 'other' is in none of the scores"),
        ({"checks.models": ["sft", "other"]}, "'checks.models': 'other' is in none of the scores and made by no stage"),
        ({"checks.models": ["other", "judge"]}, "'checks.models': 'other' is in none of the scores and made by no"),
        ({"checks.paired": {"prompts": "flat.jsonl"}}, r"'checks.paired.prompts' cannot be used: .*no prompt stands"),
        (
            {"checks.paired": {"prompts": "flat.jsonl", "attributes": {"name": ["Anna", "Zora"]}}},
            r"'checks.paired.prompts' cannot be used: .*no prompt holds the slot \{name\}",
        ),
        # Judges.
        ({"tried.judge": []}, "'tried.judge' is a list: nobody is on trial"),
        ({"tried.judge": ["judge", "judge"]}, "'tried.judge': 'judge' is on trial twice"),
        ({"tried.judge": ["judge", "pool"]}, "'tried.judge': 'judge' is on trial twice"),
        ({"scores.bar": {"error": 9}}, "'scores.bar.error' is 9: input should be less than 9"),
    ],
)
def test_what_cannot_be_run_is_said_by_the_plan(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=rf"planned.yaml:\d+: {words}"):
        planned(tmp_path, changes)


def test_the_line_is_that_of_the_field(tmp_path: Path) -> None:
    claims = [{"better": "dpo", "worse": "sft", "suite": suite} for suite in ("wins", "nope")]
    scores = {"dpo": {"wins": 0.5, "none": 1}}
    changes = {"report.claims": claims}, {"report.published.scores": scores}
    for change, line in zip(changes, ("- better: dpo", "none: 1"), strict=True):
        with pytest.raises(RecipeError) as caught:
            planned(tmp_path, change)
        text = (tmp_path / "planned.yaml").read_text().splitlines()
        said = int(caught.value.where.rpartition(":")[2])
        assert text[said - 1].strip() == line
        assert text[: said - 1].count(text[said - 1]) == (change is changes[0]), "of two claims the second"


def test_models_of_others_names_become_files_that_can_be(tmp_path: Path) -> None:
    """A baseline's name comes from the file of its answers."""
    prompt = questions(1, follow_up=False)[0]
    names = ("../../up", "a\0b", "x" * 300, "ü" * 300, "..")
    sheets = [Sheet("chat", name, prompt, (Turn("Well?", "Yes."),)) for name in names]
    published.write_dialogues(tmp_path / "in", sheets)
    written = list((tmp_path / "in" / "model_answer").iterdir())
    assert len(written) == len(names)
    assert [one.name for one in tmp_path.iterdir()] == ["in"]
