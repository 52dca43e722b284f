"""Killed at random moments, again and again, a run ends with the bytes of one that nobody disturbed.

Compared is every file but these: the journal (its pages depend on which replies came in together), logs, times.json,
speed.json, progress.json and lock (what they are for), summary.json and report.html (sealed results with the seconds
that stages took and what was measured of models; the summary is compared without them).
"""

import fnmatch
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import reduced

pytestmark = pytest.mark.slow

KILLS = 20
AHEAD = 2  # a kill falls at a random moment of the start-up and so many of the stages that are still to run
IGNORED = (
    "journal.sqlite*",
    "logs/*",
    "times.json",
    "speed.json",
    "progress.json",
    "lock",
    "summary.json",
    "report.html",
)


def hashes(folder: Path) -> dict[str, str]:
    """Every file by its hash, every link by its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def summary(folder: Path) -> dict[str, object]:
    """Without what the stages and the models took."""
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in ("stages", "footprint")}


def seconds_by_stage(folder: Path) -> dict[str, float]:
    """In the order in which they ran."""
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return {name: stage["seconds"] for name, stage in stages.items()}


def killed_run(folder: Path, seconds: float) -> bool:
    """Start the run and kill its whole process group after a while; False where it had ended before."""
    process = subprocess.Popen(
        reduced.command(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=reduced.environment(),
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, said
    return False


def test_twenty_kills_leave_no_trace(calm, tmp_path):
    took, chance = seconds_by_stage(calm.folder), random.Random(0)
    start_up = calm.seconds - sum(took.values())
    landed, folders, at = 0, [tmp_path / "killed-0"], []
    while landed < KILLS:
        folder = folders[-1]
        to_run = [name for name in took if not (folder / name).is_symlink()]
        delay = chance.uniform(0.05, start_up + sum(took[name] for name in to_run[:AHEAD]))
        if killed_run(folder, delay):
            landed += 1
            at.append(to_run[0] if to_run else "end")
        else:  # it got through: the rest of the kills go to another
            folders.append(tmp_path / f"killed-{len(folders)}")
    assert len(set(at)) >= 4, f"the kills came only around {set(at)}"
    expected = hashes(calm.folder)
    assert sum("artifacts/" in name and name.endswith("manifest.json") for name in expected) == len(took)
    for folder in folders:
        reduced.run(folder)
        assert hashes(folder) == expected
        assert summary(folder) == summary(calm.folder)
        assert list((folder / "work").iterdir()) == []


@pytest.fixture
def copy(calm, tmp_path) -> Path:
    """The undisturbed run, to go on with."""
    return Path(shutil.copytree(calm.folder, tmp_path / "copy", symlinks=True))


def test_a_second_run_takes_no_time_and_changes_nothing(copy):
    before = {name: path.stat().st_mtime_ns for name in hashes(copy) if not (path := copy / name).is_symlink()}
    contents = hashes(copy)
    began = time.monotonic()
    output = reduced.run(copy)
    seconds = time.monotonic() - began
    assert seconds < 5
    assert f"{len(seconds_by_stage(copy))} stages, all sealed" in output
    assert "starts" not in output
    assert hashes(copy) == contents
    assert {name: (copy / name).stat().st_mtime_ns for name in before} == before
    assert all(stage["sealed_before"] for stage in json.loads((copy / "summary.json").read_text())["stages"].values())


def test_another_beta_runs_only_dpo_and_what_reads_it(copy):
    before = hashes(copy)
    output = reduced.run(copy, "dpo.beta=0.05")
    started = [line.split()[-2].rstrip(":") for line in output.splitlines() if line.endswith(": starts")]
    assert started == ["dpo", "scores", "checks", "report"]
    after = hashes(copy)
    sealed = {name: stamp for name, stamp in before.items() if name.startswith("artifacts/")}
    assert {name: after.get(name) for name in sealed} == sealed
    new = {name.split("/")[1].split("-")[0] for name in after.keys() - before.keys() if name.startswith("artifacts/")}
    assert new == {"dpo", "scores", "checks", "report"}
