"""The shipped miniature of skills at full size: each skill must be measured to beat its base on held-out tasks."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reduced

from potstill.miniature.archive import look_up
from potstill.miniature.drills import read_story
from potstill.miniature.reading import understand
from potstill.miniature.world import world

pytestmark = pytest.mark.slow

KNOWN = world(0, 150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("skills") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "potstill.cli", "run", "miniature-skills", "--out", str(out)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=reduced.environment(),
    )
    assert done.returncode == 0, done.stderr
    return out


def rows(folder: Path, stage: str, file: str = "rows.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / stage / file).read_text().splitlines()]


def facts(folder: Path, stage: str) -> Any:
    return json.loads((folder / stage / "manifest.json").read_text())["facts"]


@pytest.mark.parametrize(
    ("scores", "suite", "base", "skilled", "at_least"),
    [
        ("label_scores", "labels", "base", "labeller", 0.8),
        ("reason_scores", "reasoning", "base", "solver", 0.4),
        ("reason_scores", "reasoning", "guesser", "solver", 0.4),
        ("tool_scores", "tools", "base", "caller", 0.3),
        ("judge_scores", "judging", "base", "small_judge", 0.5),
    ],
)
def test_each_skill_beats_its_base_with_an_interval(
    folder: Path, scores: str, suite: str, base: str, skilled: str, at_least: float
) -> None:
    found = json.loads((folder / scores / "scores.json").read_text())["suites"][suite]
    assert found["models"][skilled]["coverage"] == 1
    assert found["paired"][f"{skilled}-{base}"]["low"] > 0, found["models"]
    assert found["models"][skilled]["low"] > at_least, "and not only because the base says nothing of the kind"


def test_votes_leave_fewer_wrong_labels_than_the_teacher_gives(folder: Path) -> None:
    labelled = rows(folder, "labelled")
    wrong = 0
    for row in labelled:
        ask = understand(KNOWN, [row["messages"][0]["content"]])
        assert ask is not None
        wrong += row["messages"][-1]["content"] != ask.category
    assert wrong / len(labelled) < 0.15 / 2, "the tutor is wrong 15% of the time"
    assert facts(folder, "labelled")["krippendorff_alpha"] < 1


def test_reasoning_that_was_kept_is_right_and_what_was_refused_was_wrong(folder: Path) -> None:
    stories = {row["id"]: read_story(row["messages"][0]["content"]) for row in rows(folder, "problems")}

    def result(text: str) -> int:
        return int(re.findall(r"Answer: (-?\d+)", text)[-1])

    for row in rows(folder, "reasons"):
        story = stories[row["id"]]
        assert story is not None
        text = row["messages"][-1]["content"]
        assert result(text) == story.result
        assert story.derivation()[0] in text, "a slip always shows in this world's results"
    refused = [row for row in rows(folder, "reasons", "dropped.jsonl") if row["reason"] == "wrong"]
    for row in refused:
        story = stories[row["id"].split("/")[0]]
        assert story is not None
        assert result(row["detail"]) != story.result
    samples = facts(folder, "reasons")["samples"]
    assert samples["wrong"] == len(refused)
    assert 0.2 < len(refused) / sum(samples.values()) < 0.3, "the tutor slips in a quarter of them"


def test_tools_were_really_called_and_what_was_kept_is_true(folder: Path) -> None:
    kept = rows(folder, "calls")
    for row in kept:
        (call,) = row["messages"][1]["tool_calls"]
        asked = json.loads(call["arguments"])
        assert row["messages"][2]["content"] == look_up(KNOWN, asked["person"], asked["item"], asked["day"])
        assert row["messages"][2]["content"] in row["messages"][3]["content"]
    ended = facts(folder, "calls")["ended"]
    assert ended["kept"] == len(kept)
    assert ended["no_call_succeeded"] > 0
    assert ended["wrong"] > 0
    skilled = [row for row in rows(folder, "tool_scores", "answers.jsonl") if row["model"] == "caller"]
    assert all("lookup" in row["turns"][0]["judgment"] for row in skilled if row["turns"][0]["score"] == 1)


def test_the_small_judge_judges(folder: Path) -> None:
    """Named as the judge of an evaluation, it can be read, and tells who keeps to the form from who does not."""
    found = json.loads((folder / "judged_by_it" / "scores.json").read_text())["suites"]["form/instruction_following"]
    assert all(found["models"][name]["coverage"] > 0.8 for name in ("maverick", "sage")), found["models"]
    assert found["paired"]["sage-maverick"]["low"] > 0, found
