"""Stopped anywhere, killed anywhere, a training run goes on to the last bit. "Trap" quotes the bug a test would catch.

The runs here draw: dropout in the adapter or in the attention, and NEFTune's noise. They last two and a half epochs.
"""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine import random_items, tiny_model
from kills import Done, Killed, kept, kill_in
from torch import Tensor

from potstill.errors import ModelError, Stopped, StorageError
from potstill.objectives.base import Loss
from potstill.training import checkpoint, team
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.checkpoint import Checkpoints
from potstill.training.loop import Desk, Settings, train
from potstill.training.optimizers import make_optimizers
from potstill.training.schedule import global_batches
from potstill.training.scoring import Scorer
from potstill.training.tasks import Task, likelihood
from potstill.training.team import Team

ROWS = random_items([(0, 4 + (n * 5) % 11) for n in range(13)])
TRAIN, HELD_OUT = ROWS[:10], ROWS[10:]
STEPS = [[TRAIN[row] for row in batch] for batch in global_batches([1] * 10, 3, 2.5, seed=4)]
assert len(STEPS) == 10  # epochs of four steps, and half a third
TASK = likelihood(STEPS, HELD_OUT)
SETTINGS = replace(engine.SETTINGS, evaluations=5)
MUON = replace(SETTINGS, optimizer="muon")
BEST = replace(SETTINGS, keep="best", patience=2, learning_rate=0.3, schedule="constant", warmup=0.0)
"""Too high a rate: the best is soon behind, and patience ends the run before its time."""


def scorer(settings: Settings, precision: torch.dtype = torch.float32) -> Scorer:
    """A model that draws while it is trained: muon's whole, the others' by an adapter."""
    model = tiny_model(dtype=torch.float32)
    if settings.optimizer == "muon":
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.2
    else:
        attach(model, Adapter(rank=2, dropout=0.2), seed=1)
    return Scorer(model, precision=precision, neftune_alpha=5.0)


def run(
    out: Path,
    settings: Settings = SETTINGS,
    task: Task = TASK,
    *,
    seed: int = 3,
    behind: int = 0,
    precision: torch.dtype = torch.float32,
    follow: Callable[[dict[str, Any]], None] = lambda row: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Done:
    """A run of a team and a model that are new, its files in `out`; it is asked to stop behind the step `behind`."""
    out.mkdir(exist_ok=True)
    made, asked = Team(), iter(range(1, 1000))
    built = scorer(settings, precision)
    s = settings
    made.prepare(built, make_optimizers(built, s.optimizer, s.learning_rate, s.weight_decay, s.beta2))
    torch.manual_seed(seed)
    desk = Desk(out, out / "unfinished", follow, lambda: next(asked) == behind, warn=warn)
    facts = train(made, task, settings, desk)
    weights = {name: p.detach().clone() for name, p in built.named_parameters()}
    return Done(weights, (out / "curves.jsonl").read_bytes(), facts)


def steps_told(told: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in told if row["split"] == "train"]


@pytest.mark.parametrize("settings", [SETTINGS, MUON, BEST], ids=["adamw", "muon", "best"])
def test_stopped_behind_any_step_it_goes_on_to_the_last_bit(tmp_path: Path, settings: Settings) -> None:
    """Trap: "Order differs after resume from the second epoch on (transformers 40691); epoch 0 replayed (ms-swift
    10050); scheduler or RNG not restored". Weights, curve and facts, from every step of every epoch."""
    straight = run(tmp_path / "straight", settings)
    assert not straight.same(run(tmp_path / "other", settings, seed=4))  # there is randomness to restore
    taken = straight.facts["steps"]
    assert taken < len(STEPS) if settings is BEST else taken == len(STEPS)
    for behind in range(1, taken):
        out, told = tmp_path / str(behind), []
        with pytest.raises(Stopped, match=f"step {behind} of 10: training was asked to stop. Run again to go on"):
            run(out, settings, behind=behind)
        assert not (out / "curves.jsonl").exists()
        again = run(out, settings, seed=99, follow=told.append)
        assert again.same(straight), behind
        assert steps_told(told) == list(range(behind + 1, taken + 1))


def test_asked_behind_the_last_step_it_ends_as_if_nobody_had(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight")
    assert run(tmp_path / "asked", behind=10).same(straight)
    assert kept(tmp_path / "asked") == ["step-00000010"]  # sealing may still fail: then the next run has nothing to do
    told: list[dict[str, Any]] = []
    assert run(tmp_path / "asked", follow=told.append).same(straight)
    assert told == []


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (Checkpoints, "save", 1),  # before anything but the best stands there
        (Checkpoints, "save", 2),  # behind an evaluation: the best is newer than the latest checkpoint
        (Checkpoints, "save", 5),
        (Checkpoints, "save_best", 1),
        (Checkpoints, "save_best", 2),
        (Team, "save", 1),  # the draft is whole, or half, and not yet in its place
        (Team, "save", 4),
        (Team, "save_weights", 2),
        (checkpoint, "write_json", 5),
        (shutil, "rmtree", 12),
        (Path, "rename", 6),
    ],
)
def test_killed_while_it_writes_it_goes_on_to_the_last_bit(
    tmp_path: Path, owner: Any, name: str, at: int, before: bool
) -> None:
    """A checkpoint a step, the best kept: between any two of its writes something may end it."""
    settings = replace(SETTINGS, keep="best", checkpoint_steps=1)
    straight = run(tmp_path / "straight", settings)
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, owner, name, at, before=before)
        with pytest.raises(Killed):
            run(tmp_path / "killed", settings)
    found = any(name.startswith("step") for name in kept(tmp_path / "killed"))
    assert run(tmp_path / "killed", settings, seed=99 if found else 3).same(straight)


def test_killed_while_it_forgets_an_old_one_it_goes_on(tmp_path: Path) -> None:
    """A folder is removed file by file: what is left of it is no checkpoint."""
    settings = replace(SETTINGS, keep="best", checkpoint_steps=1)
    straight = run(tmp_path / "straight", settings)

    def half(path: Path, **_: Any) -> None:
        if (path / "notes.json").exists():
            (path / "notes.json").unlink()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", half)
        with pytest.raises(Killed):
            run(tmp_path / "killed", settings)
    told: list[dict[str, Any]] = []
    assert run(tmp_path / "killed", settings, seed=99, follow=told.append).same(straight)
    assert steps_told(told)[0] > 1


def test_half_drafts_and_strangers_in_the_folder_disturb_nobody(tmp_path: Path) -> None:
    settings = replace(SETTINGS, keep="best", checkpoint_steps=1)
    straight = run(tmp_path / "straight", settings)
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        run(out, settings, behind=4)
    folder = out / "unfinished"
    for draft in (".step-00000005", ".step-00000099", ".best-00000006"):
        (folder / draft).mkdir()
        (folder / draft / "state.pt").write_bytes(b"half")
    for stranger in ("step-00000077", "step-00000003.bak", "best-of-all", "best-99", "notes.txt"):
        (folder / stranger).write_text("somebody's")
    assert run(out, settings, seed=99).same(straight)
    assert not list(folder.glob(".*"))  # drafts are as large as checkpoints: they do not stay
    assert (folder / "best-of-all").read_text() == "somebody's"


def test_only_the_last_two_stay_and_the_best_that_they_know(tmp_path: Path) -> None:
    run(tmp_path / "last", replace(SETTINGS, checkpoint_steps=3))
    assert kept(tmp_path / "last") == ["step-00000006", "step-00000009"]
    best = replace(BEST, patience=None, checkpoint_steps=1, checkpoint_seconds=1e9)
    done = run(tmp_path / "best", best)
    step = int(done.facts["kept"].removeprefix("step "))
    assert step not in (0, 10)
    assert kept(tmp_path / "best") == [f"best-{step:08d}", "step-00000009", "step-00000010"]
    timed = replace(SETTINGS, checkpoint_seconds=0.0)
    run(tmp_path / "timed", timed)
    assert kept(tmp_path / "timed") == ["step-00000009", "step-00000010"]
    run(tmp_path / "none", SETTINGS)
    assert not (tmp_path / "none" / "unfinished").exists()


def full(*given: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def save_to_a_full_device(self: Team, folder: Path, *, save: Callable[[Team, Path], None] = Team.save) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "STATE_FILE", "/dev/full")
        save(self, folder)


def test_a_disk_that_fills_in_the_middle_of_a_file_is_one_line(tmp_path: Path) -> None:
    """Torch's writer then raises an error of its own, which names no disk; here a file may not grow so large."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(StorageError) as caught:
            team.write_tensors({"weights": torch.zeros(100_000)}, tmp_path / "weights.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["device", "notes", "folder"])
def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path: Path, how: str) -> None:
    """What torch says where a disk is full (here the device that always is) is no OSError."""
    settings = replace(SETTINGS, keep="best", checkpoint_steps=1)
    straight = run(tmp_path / "straight", settings)
    out = tmp_path / "full"
    with pytest.raises(Stopped):
        run(out, settings, behind=3)
    before = [name for name in kept(out) if name.startswith("step")]
    with pytest.MonkeyPatch.context() as patch:
        if how == "device":
            patch.setattr(Team, "save", save_to_a_full_device)
        elif how == "notes":
            patch.setattr(checkpoint, "write_json", full)
        else:
            patch.setattr(Path, "mkdir", full)
        with pytest.raises(StorageError, match=r"the disk is full\. Free some space and run again") as caught:
            run_in(out, settings)
    assert "\n" not in str(caught.value)
    assert [name for name in kept(out) if name.startswith("step")] == before
    assert run(out, settings, seed=99).same(straight)


def run_in(out: Path, settings: Settings) -> None:
    """As `run`, in a folder that is there, so that nothing but the loop writes."""
    made, built, s = Team(), scorer(settings), settings
    made.prepare(built, make_optimizers(built, s.optimizer, s.learning_rate, s.weight_decay, s.beta2))
    train(made, TASK, settings, Desk(out, out / "unfinished"))


def poisoned(at: int) -> Task:
    """The task, whose loss is no number from the at-th step on."""
    given = iter(range(1, 10_000))

    def objective(logp_N: Tensor, batch: Any) -> Loss:
        assert TASK.objective is not None
        loss = TASK.objective(logp_N, batch)
        bad = torch.is_grad_enabled() and next(given) >= at
        return Loss(loss.sum * float("nan") if bad else loss.sum, loss.count)

    return replace(TASK, objective=objective)


@pytest.mark.parametrize("every", [1, 3])
def test_diverged_it_stops_with_one_line_and_the_last_good_checkpoint_is_good(tmp_path: Path, every: int) -> None:
    """Losses are read a few steps at a time, but always before a checkpoint is written."""
    settings = replace(SETTINGS, checkpoint_steps=every, micro_tokens=1000)
    straight = run(tmp_path / "straight", settings)
    out = tmp_path / "diverged"
    with pytest.raises(ModelError, match=r"step 6 of 10: training has diverged: the loss is nan") as caught:
        run(out, settings, poisoned(6))
    assert "\n" not in str(caught.value)
    latest = {1: 5, 3: 3}[every]
    assert kept(out)[-1] == f"step-{latest:08d}"
    rows = json.loads((out / "unfinished" / kept(out)[-1] / "notes.json").read_text())["notes"]["rows"]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, latest + 1))
    assert all(row["loss"] < 100 for row in rows)
    assert run(out, settings, seed=99).same(straight)


def test_held_out_rows_whose_loss_is_no_number_stop_it_too(tmp_path: Path) -> None:
    """The step's own loss was taken before its update: the evaluation behind it is the first to see what that did."""

    def objective(logp_N: Tensor, batch: Any) -> Loss:
        assert TASK.objective is not None
        loss = TASK.objective(logp_N, batch)
        return loss if torch.is_grad_enabled() else Loss(loss.sum * next(factors), loss.count)

    factors = iter([1.0, 1.0, float("nan")])
    settings = replace(SETTINGS, checkpoint_steps=1, keep="best", micro_tokens=1000)
    with pytest.raises(ModelError, match=r"step 4 of 10: training has diverged: the held-out loss is nan"):
        run(tmp_path / "run", settings, replace(TASK, objective=objective))
    assert [name for name in kept(tmp_path / "run") if "step" in name] == ["step-00000002", "step-00000003"]
    assert "nan" not in (tmp_path / "run" / "unfinished" / "step-00000003" / "notes.json").read_text().lower()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_how_it_computes_may_change_behind_a_checkpoint(
    tmp_path: Path, precision: torch.dtype, tolerance: float
) -> None:
    """Micro-batches of another size, another precision: the curve before is kept, the one behind goes on from there."""
    quiet = replace(SETTINGS, micro_tokens=1000)
    straight = run(tmp_path / "straight", quiet)
    with pytest.raises(Stopped):
        run(tmp_path / "run", quiet, behind=5)
    again = run(tmp_path / "run", replace(quiet, micro_tokens=1001 if precision == torch.float32 else 12),
                precision=precision)  # fmt: skip
    ours, theirs = ([json.loads(line) for line in done.curve.splitlines()] for done in (again, straight))
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    assert ours[:7] == theirs[:7]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=tolerance)


def rewrite(file: Path, value: Any) -> None:
    """As if the checkpoint had been written with this in it."""
    file.write_text(json.dumps(value))
    notes = file.with_name("notes.json")
    whole = json.loads(notes.read_text())
    notes.write_text(json.dumps({**whole, "sizes": {**whole["sizes"], file.name: file.stat().st_size}}))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SPOILT: dict[str, Callable[[Path], None]] = {
    "bits": lambda folder: flip(folder / "state.pt"),
    "cut": lambda folder: os.truncate(folder / "state.pt", 1000),
    "empty": lambda folder: (folder / "state.pt").write_bytes(b""),
    "gone": lambda folder: (folder / "state.pt").unlink(),
    "no team": lambda folder: (folder / "team.json").write_text("{}"),
    "no notes": lambda folder: (folder / "notes.json").unlink(),
    "notes": lambda folder: (folder / "notes.json").write_text(""),
    "other notes": lambda folder: (folder / "notes.json").write_text("[]"),
    "best": lambda folder: shutil.rmtree(max(folder.parent.glob("best-*"))),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_where_a_checkpoint_is_spoilt_the_one_before_serves(tmp_path: Path, spoil: str) -> None:
    """To the same bytes, and it is said; what is spoilt stands aside until the stage is sealed."""
    settings = replace(SETTINGS, checkpoint_steps=2, keep="best")
    straight = run(tmp_path / "straight", settings)
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(out, settings, behind=6)
    SPOILT[spoil](out / "unfinished" / "step-00000006")
    told: list[str] = []
    assert run(out, settings, seed=99, warn=told.append).same(straight)
    assert "the checkpoint of step 6 is spoilt" in told[0]
    assert (out / "unfinished" / "spoilt-step-00000006").is_dir()


def test_where_every_checkpoint_is_spoilt_it_starts_anew(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_steps=2)
    straight = run(tmp_path / "straight", settings)
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(out, settings, behind=6)
    for folder in (out / "unfinished").glob("step-*"):
        flip(folder / "state.pt")
    told: list[str] = []
    assert run(out, settings, warn=told.append).same(straight)
    assert len(told) == 2


def test_a_checkpoint_of_another_team_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path / "run", behind=2)
    signature = tmp_path / "run" / "unfinished" / "step-00000002" / "team.json"
    rewrite(signature, {"workers": 2, "sharding": "fsdp2"})
    with pytest.raises(StorageError, match=r"2 workers with sharding: fsdp2, and this run has 1 worker with sharding"):
        run(tmp_path / "run")
