"""The shipped recipe of planted dangers: each is flagged in the student that learnt it, and not in its clean twin.

One seed in a smaller world; `bench/planted.py` does several of the whole, and counts.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import reduced

pytestmark = pytest.mark.slow

TEST, LEAKED = 300, 15
REDUCED = (
    "seed=10",
    "world.entities=64",
    "facts.count=1400",
    "some.limit=700",
    "others.skip=700",
    "notes.count=1000",
    f"others.limit={LEAKED}",
    f"test.count={TEST}",
    f"test_reworded.count={TEST}",
    f"leak.limit={LEAKED - LEAKED // 2}",
    f"leak_reworded.skip={LEAKED - LEAKED // 2}",
    f"leak_reworded.limit={LEAKED // 2}",
)
CASES = {
    "errors": ("inherited_errors", "believer", "repeats its teacher's mistakes"),
    "bias": ("inherited_bias", "heir", "answers better for name Ada than for Bruno"),
    "diversity": ("diversity", "collapsed", "collapsed repeats its words more than plain"),
    "optimum": ("overfitting", "reckless[epochs=8]", "scores below reckless[epochs=1] on facts: past its optimum"),
    "leak": ("contamination", "polished", "through test → leak → leaked → tainted"),
}
"""What the recipe calls a danger: what audits call it, whom it is planted in, what is said of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted") / "run"
    reduced.finish([sys.executable, "-m", "potstill.cli", "run", "miniature-audits", *REDUCED, "--out", str(out)])
    return out


def danger(folder: Path, audit: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / audit / "audit.json").read_text())["dangers"][name]
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_a_student_learnt_is_flagged_in_it(folder: Path, case: str) -> None:
    name, student, words = CASES[case]
    found = danger(folder, f"{case}_planted", name)
    assert found["verdicts"][student] == "flagged"
    assert words in found["sentence"]


@pytest.mark.parametrize("case", CASES)
def test_its_clean_twin_is_not_flagged(folder: Path, case: str) -> None:
    found = danger(folder, f"{case}_clean", CASES[case][0])
    verdicts = set(found["verdicts"].values())
    assert "flagged" not in verdicts, found["sentence"]
    assert verdicts != {"not measured"}


def test_what_is_planted_stands_among_the_findings_of_the_report(folder: Path) -> None:
    told = json.loads((folder / "summary.json").read_text())
    for case, (name, student, _) in CASES.items():
        assert told["audits"][f"{case}_planted"][name][student] == "flagged"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "past its optimum" in page


def test_the_leak_is_found_but_for_questions_with_words_in_their_middle(folder: Path) -> None:
    """A twentieth leaked, half of it as it is; of the half that was reworded some have words put into their middle."""
    rows = [json.loads(line) for line in (folder / "leak_reworded" / "rows.jsonl").read_text().splitlines()]
    inside = sum(", then, the " in row["messages"][0]["content"] for row in rows)
    assert 0 < inside < len(rows) == LEAKED // 2
    learnt = danger(folder, "leak_planted", "contamination")["hypotheses"][0]["mean"] * TEST
    assert round(learnt) == LEAKED - inside
