"""The recipe on real input, at full size: from raw text to a preference-tuned model, and what its scores must show.

`docs/real-preferences.md` says what they come to. The bounds here are wider, so that rounding on another machine cannot
break them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"
SCRIPT = Path(sys.executable).with_name("potstill")
MINUTES = 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the real rows, is not here"),
]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one run of the recipe as it is."""
    out = tmp_path_factory.mktemp("real") / "run"
    command = [str(SCRIPT), "run", "real-preferences", f"data={DATA}", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MINUTES * 60)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("suite", ["answers_roleplay", "answers_code"])
def test_sft_lowers_the_loss_of_answers_it_never_saw(summary: dict[str, Any], suite: str) -> None:
    paired = summary["paired"][suite]["sft-base"]
    assert paired["high"] < 0
    for model in ("base", "sft", "dpo"):
        row = summary["scores"][suite][model]
        assert row["n"] == 128
        assert row["coverage"] == 1


@pytest.mark.parametrize(("suite", "pairs"), [("preference_harmless", 512), ("preference_written", 256)])
def test_preferences_are_scored_beside_the_baselines(summary: dict[str, Any], suite: str, pairs: int) -> None:
    rows = summary["scores"][suite]
    assert set(rows) == {"longer answer", "sft likelihood", "sft likelihood per token", "base", "dpo"}
    for row in rows.values():
        assert row["n"] == pairs
        assert row["coverage"] == 1
        assert 0 <= row["low"] < row["mean"] < row["high"] <= 1


def test_dpo_learns_held_out_preferences(summary: dict[str, Any]) -> None:
    written, harmless = (summary["scores"][f"preference_{part}"]["dpo"] for part in ("written", "harmless"))
    assert written["low"] > 0.5
    assert harmless["low"] > 0.5
    assert summary["paired"]["preference_written"]["dpo-sft likelihood"]["low"] > 0


def test_it_keeps_to_its_time(summary: dict[str, Any]) -> None:
    assert sum(stage["seconds"] for stage in summary["stages"].values()) < MINUTES * 60
