"""Dangers planted in real models of the miniature's world: the audit finds them where they are, and nowhere else.

`leaky` read a page with a twentieth of the questions; `stuck`, made of it, learnt one answer to everything; `overdone`
went over fifty dialogues thirty times; `sft` did as one should.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reduced import environment

from potstill.artifact import read_json

pytestmark = pytest.mark.slow

SIZE = (
    "vocabulary: 512, layers: 2, width: 64, heads: 2, kv_heads: 1, expansion: 3, tied: true, context: 256, "
    "block_length: 128, batch_tokens: 1024, optimizer: muon, learning_rate: 7.0e-3, held_out: 8, epochs: 1"
)
TUNING = "global_batch: 8, max_length: 256"
RECIPE = f"""
name: planted
seed: 0
servers:
  world: {{kind: miniature, seed: 0, entities: 60}}
models:
  teacher: {{endpoint: world, name: scribe}}
  judge: {{endpoint: world, name: judge}}
stages:
  articles: {{kind: miniature, server: world, part: articles, editions: 2}}
  seeds: {{kind: miniature, server: world, part: seeds, per_category: 8}}
  questions: {{kind: miniature, server: world, part: questions, per_category: 5}}
  base: {{kind: pretrain, data: articles, {SIZE}}}
  leaky: {{kind: pretrain, data: [articles, leak.jsonl], {SIZE}}}
  chats: {{kind: converse, teacher: teacher, prompts: seeds, turns: [1, 1], max_tokens: 64}}
  sft: {{kind: sft, model: base, data: chats, epochs: 3, learning_rate: 2.0e-3, {TUNING}, held_out: 12,
        evaluations: 8, keep: best}}
  stuck: {{kind: sft, model: leaky, data: same.jsonl, epochs: 8, learning_rate: 3.0e-3, {TUNING}}}
  overdone: {{kind: sft, model: base, data: chats, epochs: 30, learning_rate: 4.0e-3, {TUNING}, held_out: 12,
             evaluations: 12}}
  scores:
    kind: evaluate
    models: [teacher, sft, stuck, overdone]
    judge: judge
    max_tokens: 48
    suites: {{chat: {{protocol: mt_bench, questions: questions}}}}
  checks:
    kind: audit
    models: [sft, stuck, overdone]
    teacher: teacher
    scores: [scores]
    files: [leak.jsonl, same.jsonl]
    samples: {{prompts: questions, each: 3, max_tokens: 32}}
  report: {{kind: report, scores: [scores], models: [sft, stuck, overdone], audits: [checks]}}
"""


def run(folder: Path, *more: str) -> str:
    """Run the recipe, or show what it left."""
    done = subprocess.run(
        [sys.executable, "-m", "potstill.cli", *more],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(COLUMNS="200"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    (file,) = (folder / "out" / "artifacts").glob(f"{stage}-*/rows.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("planted")
    (found / "recipe.yaml").write_text(RECIPE)
    write(found / "leak.jsonl", [{"id": "x", "text": "to come"}])
    write(found / "same.jsonl", [{"id": "x", "messages": [{"role": "user", "content": "Well?"},
                                                          {"role": "assistant", "content": "Well."}]}])  # fmt: skip
    for stage in ("questions", "seeds"):
        run(found, "run", "recipe.yaml", "--until", stage, "--out", "out")
    asked = [row["messages"][-1]["content"] for row in rows(found, "questions")]
    write(found / "leak.jsonl", [{"id": f"leak-{i}", "text": f"A page of a quiz. {text} Nobody knew."}
                                 for i, text in enumerate(asked[::20])])  # fmt: skip
    answer = {"role": "assistant", "content": "That is a very good question, my friend, and I am glad you ask."}
    write(found / "same.jsonl", [{"id": f"same-{i}", "messages": [row["messages"][-1], answer]}
                                 for i, row in enumerate(rows(found, "seeds"))])  # fmt: skip
    run(found, "run", "recipe.yaml", "--out", "out")
    return found


def test_what_is_planted_in_real_models_is_found_where_it_is(folder):
    (file,) = (folder / "out" / "artifacts").glob("checks-*/audit.json")
    dangers = read_json(file)["dangers"]
    assert dangers["overfitting"]["verdicts"]["overdone"] == "flagged"
    assert dangers["overfitting"]["verdicts"]["sft"] != "flagged"
    assert dangers["diversity"]["verdicts"]["stuck"] == "flagged"
    assert dangers["diversity"]["verdicts"]["overdone"] != "flagged"
    assert dangers["contamination"]["verdicts"] == {"sft": "clean", "stuck": "flagged", "overdone": "clean"}
    assert "learnt 2 of the 40 questions of chat, through leak.jsonl → leaky" in dangers["contamination"]["sentence"]


def test_it_is_shown_in_the_terminal_on_the_page_and_in_the_summary(folder):
    shown = run(folder, "show", "out", "checks")
    assert "▼ stuck: flagged" in shown
    assert "leak.jsonl → leaky" in shown
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert '<section id="audits">' in page
    told = read_json(folder / "out" / "summary.json")
    assert told["audits"]["checks"]["contamination"]["stuck"] == "flagged"
    assert any(line.startswith("Contamination: stuck learnt 2") for line in told["headline"])
