"""The ablation, made small: every arm of the paper's table is there, the control takes as many steps as DPO, and each
ordering of the paper gets one of three answers with its interval."""

import json
from pathlib import Path

import pytest
import reduced

pytestmark = pytest.mark.slow

SFT = {"sft_1": 1, "sft_2": 2, "chosen_1": 1, "chosen_3": 3}
DPO = {"dpo_alone": 1, "dpo_1": 1, "dpo_2": 2, "dpo_3": 3, "dpo_after_2": 1}
SEED = "[seed=3]"
ORDER = ["dpo_alone", *SFT, "dpo_1", "dpo_2", "dpo_3", "dpo_after_2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ablation") / "run"
    printed = reduced.finish(reduced.ablation(out))
    (out / "printed").write_text(printed)
    return out


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def manifest(folder, stage):
    return json.loads((folder / stage / "manifest.json").read_text())


def test_the_control_takes_as_many_steps_as_dpo(folder):
    """On the answers that DPO prefers: so what DPO gains is not its having been trained longer."""
    steps = {name: manifest(folder, name + SEED)["facts"]["steps"] for name in (*SFT, *DPO)}
    assert (steps["chosen_1"], steps["chosen_3"]) == (steps["dpo_1"], steps["dpo_3"])
    assert steps["dpo_3"] == 3 * steps["dpo_1"] == 3 * steps["dpo_alone"] == 3 * steps["dpo_after_2"]
    assert steps["sft_2"] == 2 * steps["sft_1"]
    assert manifest(folder, "chosen")["facts"]["rows"] == manifest(folder, "pairs")["facts"]["rows"]


def test_each_arm_begins_where_the_papers_does(folder):
    begins = {"dpo_alone": "base", "dpo_after_2": "sft_2", "sft_1": "base", "sft_2": "base"}
    for name, epochs in {**SFT, **DPO}.items():
        config = manifest(folder, name + SEED)["config"]
        assert config["epochs"] == epochs
        assert config["model"].removesuffix(SEED) == begins.get(name, "sft_1"), name


def test_five_seeds_are_asked_for_and_every_arm_is_one_row(summary):
    for suite in ("chat", "wins"):
        assert list(summary["scores"][suite]) == ORDER
        for found in summary["scores"][suite].values():
            assert found["low"] <= found["mean"] <= found["high"]
    text = Path(__file__).parents[2].joinpath("recipes", "miniature-ablation.yaml").read_text()
    assert "runs: [0, 1, 2, 3, 4]" in text


def test_every_ordering_of_the_paper_is_answered(folder, summary):
    """As many claims as the recipe names, each with what decided it; those of Table 3 beside the paper's numbers."""
    found = summary["claims"]
    assert len(found) == 12
    for claim in found:
        difference = summary["paired"][claim["suite"]].get(f"{claim['better']}-{claim['worse']}")
        sign = 1 if difference else -1
        difference = difference or summary["paired"][claim["suite"]][f"{claim['worse']}-{claim['better']}"]
        assert claim["outcome"] in ("holds", "opposite", "cannot tell")
        if claim["outcome"] != "cannot tell":
            assert (sign * difference["mean"] > 0) == (claim["outcome"] == "holds")
            assert claim["p_adjusted"] < 0.05
    assert sum(claim["published"] is not None for claim in found) == 8
    printed, page = (folder / "printed").read_text(), (folder / "report.html").read_text()
    assert "Of 12 orderings that were looked for" in printed
    assert "7.00 against 6.64" in page
    assert "7.00 against 6.64" in printed
