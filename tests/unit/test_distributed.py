"""Several workers are one: the same weights, curves and columns, whichever way they share the model.

Two processes with gloo run all cases of `workers` once for each way to share; the same cases then run here, alone.
"""

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workers
from torch.distributed.checkpoint.api import CheckpointException

from potstill.errors import StorageError
from potstill.training.distributed import shard_errors
from potstill.training.team import Team

HERE = Path(__file__).parent
TRAINED = ["sft", "tied", "padded", "dpo", "kto", "lora", "taught", "taught_capped", "taught_experts"]
Result = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_team(sharding: str, out: Path, size: int, *cases: str) -> None:
    """Run the cases in a team; rank 0 leaves each one's result in `out`."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # the workers import what this process does
    shared |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    members = []
    for rank in range(size):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(HERE / "workers.py"), sharding, str(out), *cases]
        with (out / f"log-{rank}").open("wb") as log:
            members.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    codes = [member.wait(timeout=300) for member in members]
    assert codes == [0] * size, (out / "log-0").read_text()[-3000:]


@pytest.fixture(scope="module", params=["fsdp2", "zero3"])
def team(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two workers left what they made."""
    out = tmp_path_factory.mktemp(request.param)
    run_team(request.param, out, 2)
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by one process."""
    out = tmp_path_factory.mktemp("alone")
    for name, case in workers.CASES.items():
        torch.manual_seed(0)
        torch.save(case(Team(), out / name), out / f"{name}.pt")
    return out


def result(folder: Path, name: str) -> Result:
    made: Result = torch.load(folder / f"{name}.pt", weights_only=False)
    return made


def assert_same_weights(ours: Result, theirs: Result, atol: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-5, atol=atol), name


def rows(folder: Path, name: str) -> list[Result]:
    return [json.loads(line) for line in (folder / name / "curves.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_make_the_weights_of_one(team: Path, alone: Path, name: str) -> None:
    """Trap: "Per-rank token counts not shared, so two workers do not equal one"; "projections absent from the
    optimizer (DistillKit 0.1)"."""
    ours, theirs = result(team, name), result(alone, name)
    assert ours["facts"] == theirs["facts"]
    # AdamW makes a step of rounding where a gradient is hardly more than that, as some of a lesson's are.
    assert_same_weights(ours["weights"], theirs["weights"], atol=1e-5 if name.startswith("taught") else 1e-6)
    if name.startswith("taught"):
        between = [ours["weights"][f"projections.0.linears.{layer}.weight"] for layer in (1, 2)]
        assert not any(torch.equal(weight, torch.eye(16)) for weight in between), "they began there"


@pytest.mark.parametrize("name", TRAINED)
def test_curves_count_the_rows_of_all_workers(team: Path, alone: Path, name: str) -> None:
    """Trap: "DPO metrics from rank 0 only (TRL 2468)". Every figure and the gradient's norm, step by step."""
    ours, theirs = rows(team, name), rows(alone, name)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=2e-4, abs=2e-5)


def test_the_reference_is_the_same_column(team: Path, alone: Path) -> None:
    """Trap: "Sharded models touched outside their wrapped forward". Before training, and what training made of it."""
    ours, theirs = result(team, "dpo"), result(alone, "dpo")
    for one, other in zip(ours["column"], theirs["column"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(ours["reference"], theirs["reference"], strict=True):
        for signal, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(signal, expected, atol=1e-5)


def test_only_the_adapter_is_gathered_where_one_is_trained(team: Path, alone: Path) -> None:
    ours, theirs = result(team, "lora")["adapter"], result(alone, "lora")["adapter"]
    assert ours
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in ours)
    assert_same_weights(ours, theirs)


def test_resumed_is_straight_to_the_last_bit(team: Path) -> None:
    """Noise is drawn on the way, so that every worker's random numbers have to go on as well."""
    made = result(team, "resumed")
    assert made["stopped"] == "step 2 of 4"
    straight, again = made["straight"], made["again"]
    assert straight["facts"] == again["facts"]
    assert all(torch.equal(again["weights"][name], weight) for name, weight in straight["weights"].items())
    curves = [(team / "resumed" / part / "curves.jsonl").read_bytes() for part in ("straight", ".")]
    assert curves[0] == curves[1]


def test_another_number_of_workers_goes_on_or_is_refused(team: Path, alone: Path) -> None:
    """FSDP2's shards fit any number of workers; ZeRO-3's one only, and it is said."""
    assert result(team, "left") == {"stopped": "step 2 of 4"}
    sharding = json.loads(next((team / "left" / "unfinished").glob("step-*/team.json")).read_text())["sharding"]
    run_team(sharding, team, 1, "taken")
    made = result(team, "taken")
    if sharding == "zero3":
        assert "checkpoint is of 2 workers with sharding: zero3, and this run has 1 worker with" in made["refused"]
    else:
        assert_same_weights(made["weights"], result(alone, "sft")["weights"])


def test_one_process_alone_takes_no_teams_checkpoint(team: Path, tmp_path: Path) -> None:
    checkpoint = next((team / "left" / "unfinished").glob("step-*"))
    with pytest.raises(StorageError, match="this run has 1 worker with sharding: none"):
        workers.prepared(Team(), "mistral").load(checkpoint)


def test_a_disk_that_another_worker_found_full_is_one_line(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="the disk is full"), shard_errors(tmp_path):
        raise CheckpointException("a worker failed", {1: (full, traceback.StackSummary())})
