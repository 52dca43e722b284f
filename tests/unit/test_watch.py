"""Who follows a training run: the live file, trackers that read back, the guard against over-optimisation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import random_items, tiny_model

from potstill.errors import ModelError, Stopped
from potstill.stages.base import Work, no_warning
from potstill.training.batch import Item
from potstill.training.curves import FLUSH_STEPS, Pace
from potstill.training.loop import Desk, Settings, train
from potstill.training.scoring import Scorer
from potstill.training.tasks import likelihood
from potstill.training.team import Team
from potstill.training.watch import COLLAPSE_NATS, DRIFT_SHARE, RECENT_STEPS, Guard, everyone, live_file, trackers

ROWS = random_items([(0, 5 + n % 7) for n in range(24)])
TASK = likelihood([ROWS[n : n + 2] for n in range(0, 20, 2)] * 2, ROWS[20:])
SETTINGS = Settings(
    optimizer="adamw",
    learning_rate=1e-2,
    schedule="linear",
    warmup=0.0,
    weight_decay=0.0,
    beta2=0.99,
    clip=1.0,
    evaluations=2,
    keep="last",
    patience=None,
    micro_tokens=100,
)


def run(out: Path, **desk: Any) -> None:
    model = tiny_model(dtype=torch.float32)
    team = Team()
    team.prepare(Scorer(model), [torch.optim.AdamW(model.parameters())])
    train(team, TASK, SETTINGS, Desk(out, out / "unfinished", **desk))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_live_file_grows_as_rows_become_known(tmp_path: Path) -> None:
    """Line by line, and no later than a few steps behind; what is sealed is the same without its times."""
    live = tmp_path / "logs" / "made.curves.jsonl"
    seen: list[int] = []

    def look() -> bool:
        seen.append(len([row for row in lines(live) if row["split"] == "train"]))
        return False

    with live_file(live) as follow:
        run(tmp_path, follow=follow, stopping=look, pace=Pace(lambda item: 1e6 * item.tokens, 1e12))
    assert all(0 <= step - count <= FLUSH_STEPS for step, count in enumerate(seen, start=1))
    assert len(set(seen)) > 2
    told, sealed = lines(live), lines(tmp_path / "curves.jsonl")
    for row in told:
        assert (row["split"] == "train") == ("tokens_per_second" in row) == ("utilisation" in row)
    train_rows = [row for row in told if row["split"] == "train"]
    assert all(row["tokens_per_second"] > 0 for row in train_rows)
    for row in train_rows:  # a token costs a millionth of the peak
        assert row["utilisation"] == pytest.approx(row["tokens_per_second"] * 1e6 / 1e12, rel=1e-4)
    assert sealed == [{k: v for k, v in row.items() if k not in ("tokens_per_second", "utilisation")} for row in told]
    assert "second" not in (tmp_path / "curves.jsonl").read_text()


def test_without_a_peak_no_utilisation_is_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    run(tmp_path, follow=told.append)
    assert "tokens_per_second" in told[-2]
    assert not any("utilisation" in row for row in told)


# --- trackers -------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    for tag in accumulator.Tags()["scalars"]:
        found[tag] = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    return found


def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "out", tmp_path, 0, name="sft-0123")


def test_tensorboard_reads_every_figure_back(tmp_path: Path) -> None:
    config = {"kind": "sft", "learning_rate": 0.1, "patience": None, "new_tokens": ["<a>"], "adapter": {"rank": 4}}
    told: list[dict[str, Any]] = []
    with trackers(["tensorboard"], work(tmp_path), config) as follow:
        run(tmp_path, follow=everyone([told.append, follow]))
    found = scalars(tmp_path / "logs" / "sft-0123")
    for split in ("train", "held_out"):
        rows = [row for row in told if row["split"] == split]
        for name in rows[0].keys() - {"step", "split"}:
            steps, values = zip(*found[f"{split}/{name}"], strict=True)
            assert list(steps) == [row["step"] for row in rows]
            assert values == pytest.approx([row[name] for row in rows], rel=1e-5)
    assert {"train/loss", "train/grad_norm", "train/tokens_per_second", "held_out/loss"} <= found.keys()


def test_a_run_that_goes_on_goes_on_in_its_trackers(tmp_path: Path) -> None:
    asked = iter(range(1, 100))
    with (
        pytest.raises(Stopped),
        live_file(tmp_path / "live.jsonl") as live,
        trackers(["tensorboard"], work(tmp_path), {}) as follow,
    ):
        run(tmp_path, follow=everyone([live, follow]), stopping=lambda: next(asked) == 11)
    with (tmp_path / "live.jsonl").open("a") as file:  # killed later: steps that are done again
        file.write('{"step": 12, "split": "train", "loss": 9.0}\n{"step": 13, "sp')
    with trackers(["tensorboard"], work(tmp_path), {}) as follow:
        follow({"step": 12, "split": "train", "loss": 9.0})
    with live_file(tmp_path / "live.jsonl") as live, trackers(["tensorboard"], work(tmp_path), {}) as follow:
        run(tmp_path, follow=everyone([live, follow]), recall=everyone([live, follow]))
    found = scalars(tmp_path / "logs" / "sft-0123")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 21))
    told = [row for row in lines(tmp_path / "live.jsonl") if row["split"] == "train"]
    assert [row["step"] for row in told] == list(range(1, 21))
    assert all(row["tokens_per_second"] > 0 for row in told)


def test_a_run_that_goes_on_tells_its_followers_the_whole_curve(tmp_path: Path) -> None:
    """So that a guard knows what it warned of, and the manifest says the same as that of a run never stopped."""
    asked = iter(range(1, 100))
    with pytest.raises(Stopped):
        run(tmp_path, stopping=lambda: next(asked) == 11)
    recalled: list[dict[str, Any]] = []
    followed: list[dict[str, Any]] = []
    run(tmp_path, follow=followed.append, recall=recalled.append)
    assert [row["step"] for row in [*recalled, *followed] if row["split"] == "train"] == list(range(1, 21))


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    says = f"track: {name}: it is not installed. Run pip install {name}, or leave it out."
    with pytest.raises(ModelError) as caught, trackers([name], work(tmp_path), {}):
        pass
    assert str(caught.value) == says


# --- the guard ------------------------------------------------------------------------------------------------------


def pair(chosen: int, rejected: int) -> Item:
    def answer(length: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(length, dtype=np.int32), np.ones(length, dtype=np.bool_)

    return Item(f"{chosen}/{rejected}", np.zeros(3, dtype=np.int32), (answer(chosen), answer(rejected)))


PAIRS = [pair(10, 6), pair(4, 8), pair(6, 6), pair(20, 30)]
"""Of 10 chosen tokens on average; the chosen one is the longer in 1.5 of 4."""


def row(step: int, *, ratio: float = 0.0, longer: float = 0.375, split: str = "held_out") -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 0.5, "chosen_log_ratio": ratio, "longer": longer}


def test_a_collapse_is_told_once_with_its_step() -> None:
    """By nats a token of the chosen answers, so that long answers do not look worse."""
    told: list[str] = []
    guard = Guard(PAIRS, "held_out", told.append)
    limit = -10 * COLLAPSE_NATS
    for step, ratio in enumerate((0.0, 3.0, limit + 0.1, limit - 0.1, limit - 9, 0.0, limit - 9)):
        guard(row(step, ratio=ratio))
    assert guard.warnings == {"chosen_collapse": "step 3: chosen answers lost 0.51 nats a token against the reference"}
    assert told == [f"chosen collapse at {guard.warnings['chosen_collapse']}"]


def test_drift_to_longer_answers_is_told_against_how_often_they_are_chosen() -> None:
    guard = Guard(PAIRS, "held_out", no_warning)
    guard(row(0, longer=0.375 + DRIFT_SHARE - 0.01))
    assert guard.warnings == {}
    guard(row(5, longer=0.375 + DRIFT_SHARE + 0.01))
    assert guard.warnings.keys() == {"length_drift"}
    assert guard.warnings["length_drift"].startswith("step 5: 54% of the pairs moved towards their longer answer")
    assert guard.warnings["length_drift"].endswith("the chosen one in 38%")


def test_data_whose_chosen_answers_are_longer_is_no_drift() -> None:
    guard = Guard([pair(9, 3)] * 9 + [pair(3, 9)], "held_out", no_warning)
    guard(row(1, longer=1.0))
    assert guard.warnings == {}


def test_without_held_out_pairs_many_steps_stand_for_an_evaluation() -> None:
    """One step's few pairs say too little: their mean over the latest does."""
    guard = Guard(PAIRS, "train", no_warning)
    for step in range(1, RECENT_STEPS):
        guard(row(step, ratio=-100.0, split="train"))
    assert guard.warnings == {}
    guard(row(RECENT_STEPS, ratio=-100.0, split="held_out"))
    assert guard.warnings == {}
    guard(row(RECENT_STEPS, ratio=-100.0, split="train"))
    assert guard.warnings.keys() == {"chosen_collapse"}
    calm = Guard(PAIRS, "train", no_warning)
    for step in range(1, 4 * RECENT_STEPS):
        calm(row(step, ratio=-20.0 if step % 8 == 0 else 0.0, longer=float(step % 2 == 0), split="train"))
    assert calm.warnings == {}


def test_losses_without_a_reference_are_not_watched() -> None:
    guard = Guard(PAIRS, "held_out", no_warning)
    guard({"step": 1, "split": "held_out", "loss": 0.5, "margin": 3.0})
    assert guard.warnings == {}
