"""The recipe of a model that instructs itself, made small: two rounds of its own answers, judged and preferred.

What it comes to at full size is reported, not demanded: a gain is no part of what must hold.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reduced

pytestmark = pytest.mark.slow

ROUNDS = ("1", "2")
OVERRIDES = (
    "articles.editions=2",
    "seeds.per_category=2",
    "questions.per_category=2",
    "base.layers=2",
    "base.width=64",
    "base.heads=2",
    "base.kv_heads=1",
    "base.block_length=128",
    "prompts.count=64",
    "sft.epochs=2",
    "sft.held_out=8",
    "sft.evaluations=1",
    *(f"own_{number}.samples_per_model=3" for number in ROUNDS),
    *(f"self_{number}.held_out=4" for number in ROUNDS),
    "scores.max_tokens=24",
)


def potstill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=reduced.environment(), timeout=900
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("self") / "run"
    done = potstill("run", "miniature-self", *OVERRIDES, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / stage / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("number", "model"), [("1", "sft"), ("2", "self_1")])
def test_each_round_judges_what_its_own_model_says(folder: Path, number: str, model: str) -> None:
    candidates = [one for row in rows(folder, f"own_{number}") for one in row["candidates"]]
    assert {one["model"] for one in candidates} == {model}
    assert len({one["text"] for one in candidates}) > 1
    assert rows(folder, f"rated_{number}")
    assert rows(folder, f"pairs_{number}")


def test_the_second_round_answers_anew(folder: Path) -> None:
    """Other answers to the same prompts, and so other pairs."""
    first, second = ({row["id"]: row["candidates"] for row in rows(folder, f"own_{number}")} for number in ROUNDS)
    shared = first.keys() & second.keys()
    assert shared
    assert any([one["text"] for one in first[key]] != [one["text"] for one in second[key]] for key in shared)
    assert rows(folder, "pairs_1") != rows(folder, "pairs_2")


def test_both_rounds_stand_beside_their_start(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["models"] == ["sft", "self_1", "self_2"]
    for suite in ("chat", "aspects/truthfulness"):
        assert {"self_1-sft", "self_2-self_1"} <= summary["paired"][suite].keys()
        for row in summary["paired"][suite].values():
            assert row["low"] <= row["mean"] <= row["high"]


def test_it_may_be_its_own_judge() -> None:
    """The recipe takes any model as the instructor, the one that is being trained as well."""
    done = potstill("plan", "miniature-self", "instructor=sft")
    assert done.returncode == 0, done.stderr
    assert "rated_2" in done.stdout
