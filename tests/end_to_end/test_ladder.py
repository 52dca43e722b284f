"""The ladder, made small: every rung is there, all with equal steps, and what differs in its seed alone is one row."""

import json
from pathlib import Path

import pytest
import reduced

pytestmark = pytest.mark.slow

RUNGS = ("text", "logits", "hidden", "both", "on_policy", "dpo")
STARTS = ("start[model=random]", "start[model=inherited]")
SEEDS = ["0", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ladder") / "run"
    printed = reduced.finish(reduced.ladder(out))
    (out / "printed").write_text(printed)
    return out


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def facts(folder, stage):
    return json.loads((folder / stage / "manifest.json").read_text())["facts"]


def test_every_rung_took_the_same_steps_on_as_many_rows_a_step(folder, summary):
    rows = {row["name"]: row for row in summary["side_by_side"]}
    assert list(rows) == ["teacher", "student", *RUNGS, *STARTS]
    assert {rows[name]["steps"] for name in (*RUNGS, *STARTS)} == {6}
    for name in (*RUNGS, *STARTS):
        assert rows[name]["seeds"] == SEEDS
        for member in summary["members"][name]:
            config = json.loads((folder / member / "manifest.json").read_text())["config"]
            assert config["global_batch"] == 16
            assert config["learning_rate"] == (5e-5 if name == "dpo" else 1e-3)


def test_what_differs_in_its_seed_alone_is_one_row_with_an_interval(summary):
    for suite in ("chat", "loss"):
        for name in (*RUNGS, *STARTS):
            found = summary["scores"][suite][name]
            members = found["members"]
            assert list(members) == summary["members"][name]
            whole = 1e-9 if found["coverage"] == 1 else 0.05  # what one seed has no grade for counts in the other alone
            assert found["mean"] == pytest.approx(sum(members.values()) / len(members), abs=whole)
            assert found["low"] <= found["mean"] <= found["high"]
        paired = summary["paired"][suite]["logits-text"]
        assert list(paired["members"]) == SEEDS
        assert paired["mean"] == pytest.approx(sum(paired["members"].values()) / len(SEEDS), abs=0.05)


def test_seeds_are_draws_and_the_teacher_is_one(folder):
    for name in RUNGS:
        one, other = (folder / f"{name}[seed={seed}]" / "model.safetensors" for seed in SEEDS)
        assert one.read_bytes() != other.read_bytes(), name
    assert facts(folder, "random[seed=0]")["parameters"] == facts(folder, "inherited")["parameters"]


def test_each_rung_says_what_it_learns_from(summary):
    rows = {row["name"]: row for row in summary["side_by_side"]}
    each = {name: rows[name]["bytes_per_token"] for name in RUNGS}
    assert each["on_policy"] == 0  # the teacher itself is asked, of what nobody has written before
    assert each["text"] < each["logits"] < each["hidden"] < each["both"]
    assert all(rows[name]["seconds"] > 0 for name in RUNGS)


def test_what_came_out_is_said_of_every_rung(folder, summary):
    said = "\n".join(summary["headline"])
    page = (folder / "report.html").read_text()
    printed = (folder / "printed").read_text()
    for name in (*RUNGS[1:], *STARTS):
        assert f"{name} does " in said or f"Whether {name} does " in said
        assert name in page
        assert name in printed
    assert summary["headline"][0].startswith("Of 9 set against text on chat")
    assert "Side by side, against text" in page
