"""The shipped miniature at full size, for three seeds: every step must be measured to help."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import reduced

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
MODELS = ["teacher", "base", "sft_raw", "sft", "dpo"]
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """All three runs, two at a time with one thread each: small models gain little from two."""
    home = tmp_path_factory.mktemp("miniature")

    def run(seed: int) -> Path:
        out = home / f"seed-{seed}"
        done = subprocess.run(
            [sys.executable, "-m", "potstill.cli", "run", "miniature", f"seed={seed}", "--out", str(out)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=reduced.environment(),
        )
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(SEEDS, pool.map(run, SEEDS), strict=True))


@pytest.fixture(params=SEEDS)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_every_step_helps_on_held_out_questions(summary):
    means = {name: row["mean"] for name, row in summary["scores"]["chat"].items()}
    assert means["base"] < means["sft"] < means["dpo"]
    gain = summary["paired"]["chat"]["dpo-sft"]
    assert gain["low"] > 0, gain
    assert summary["paired"]["chat"]["sft-base"]["low"] > 0


def test_what_is_said_does_not_become_less_true(summary):
    change = summary["paired"]["aspects/truthfulness"]["dpo-sft"]
    assert change["mean"] >= 0 or change["high"] > 0, change


def test_sft_was_taken_at_its_best_held_out_step(folder):
    for name in ("sft_raw", "sft"):
        manifest = json.loads((folder / name / "manifest.json").read_text())
        assert manifest["config"]["keep"] == "best"
        curve = [json.loads(line) for line in (folder / name / "curves.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in curve if row["split"] == "held_out"]
        assert len(losses) > 2
        assert min(losses) < losses[0]


def test_curated_stands_beside_raw_whichever_way_it_went(folder, summary):
    row = summary["paired"]["chat"]["sft-sft_raw"]
    assert row["n"] > 0
    assert row["low"] <= row["mean"] <= row["high"]
    assert any("sft_raw" in line and " sft " in f" {line} " for line in summary["headline"])
    page = (folder / "report.html").read_text()
    assert "sft_raw" in page
    assert "curated" in page


def test_the_summary_holds_what_it_promises(summary):
    assert summary["models"] == MODELS
    assert set(summary["scores"]) == {"chat", *(f"aspects/{aspect}" for aspect in ASPECTS)}
    for suite, (lowest, highest) in {"chat": (1, 10), **{f"aspects/{a}": (1, 5) for a in ASPECTS}}.items():
        assert list(summary["scores"][suite]) == MODELS
        for row in summary["scores"][suite].values():
            assert set(row) >= {"mean", "low", "high", "n", "coverage"}
            assert lowest <= row["low"] <= row["mean"] <= row["high"] <= highest
            assert 0 < row["coverage"] <= 1
        assert {"sft-base", "sft-sft_raw", "dpo-sft"} <= set(summary["paired"][suite])
    assert summary["scores"]["chat"]["dpo"]["coverage"] == 1
    assert all(set(stage) == {"seconds", "sealed_before"} for stage in summary["stages"].values())
    assert {"base", "sft", "dpo", "scores", "report"} <= set(summary["stages"])


def test_what_it_keeps_of_its_teacher_is_told_and_the_models_are_audited(folder, summary):
    means = {name: row["mean"] for name, row in summary["scores"]["chat"].items()}
    kept = {row["name"]: row["kept"].get("chat") for row in summary["footprint"]["models"]}
    assert 0 < kept["dpo"]["low"] <= kept["dpo"]["mean"] <= kept["dpo"]["high"]
    assert kept["dpo"]["mean"] == pytest.approx(means["dpo"] / means["teacher"], abs=0.02)
    assert kept["dpo"]["mean"] > kept["base"]["mean"]
    assert any(line.startswith("dpo keeps ") for line in summary["headline"])
    verdicts = {danger: found.get("dpo") for danger, found in summary["audits"]["checks"].items()}
    assert verdicts["contamination"] == "clean", "its questions are held out"
    assert "Audit checks" in "\n".join(summary["headline"])
    assert "What it keeps and what it costs" in (folder / "report.html").read_text()


def test_three_seeds_are_three_worlds(folders):
    seen = {(folder / "questions" / "rows.jsonl").read_bytes() for folder in folders.values()}
    assert len(seen) == len(SEEDS)
