"""Stages whose workers a launcher starts: who they are, who is heard, and how all of them end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest

from potstill.artifact import find
from potstill.errors import ModelError, PotstillError, RecipeError
from potstill.recipe import load_recipe
from potstill.runs.pipeline import Silent, run
from potstill.runs.worker import crash, first_host, take_place
from potstill.runs.workspace import Workspace
from potstill.stages.sft import SftConfig

SRUN = [sys.executable, str(Path(fakes.__file__).with_name("slurm.py")), "2", "python"]
RECIPE = """\
name: shared
stages:
  first: {kind: words, text: pot, count: 4}
  made: {kind: crew, data: first, sharding: fsdp2}
"""


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "shared.yaml").write_text(RECIPE)


def load(*overrides):
    return load_recipe("shared.yaml", overrides)


def told(rank):
    return json.loads(Path(f"out/told-{rank}").read_text())


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def start(*overrides):
    """The command line with these stages, its workers at work."""
    command = [sys.executable, "-m", "fakes", "run", "shared.yaml", *overrides, "--out", "out"]
    process = subprocess.Popen(
        [*command, "--launch", shlex.join(SRUN)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: Path("out/told-0").exists() and Path("out/told-1").exists())
    wait_for(lambda: Path("out/told-0").read_text() and Path("out/told-1").read_text())
    return process, [told(rank)["pid"] for rank in (0, 1)]


def test_workers_know_their_place_from_slurm_and_the_first_alone_is_sealed():
    class Heard(Silent):
        steps = 0

        def progress(self, step, done, total, unit, figures):
            self.steps += 1

    heard = Heard()
    sealed = run(load("made.seconds=0.3"), Path("out"), heard, launcher=SRUN)
    assert sealed["made"].facts == {"workers": 2}
    assert heard.steps
    assert json.loads((sealed["made"].path / "config.json").read_text())["made_by"] == 0
    places = [{name: value for name, value in told(rank).items() if name != "pid"} for rank in (0, 1)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "gpu07", "MASTER_PORT": str(20000 + (712 * 32 + 3) % 20000)}
    assert places == [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    log = Path("out/logs/made.log").read_text()
    assert all(line in log for line in ("srun: a line of its own", "worker 0 was here", "worker 1 was here"))
    assert list(Path("out/work").iterdir()) == []


def test_how_a_model_is_shared_is_no_part_of_a_key():
    sealed = run(load("made.sharding=none"), Path("out"))
    assert sealed["made"].facts == {"workers": 1}
    again = run(load(), Path("out"), launcher=SRUN)
    assert again["made"] == sealed["made"]
    assert not Path("out/told-1").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [({"optimizer": "muon"}, "muon needs whole matrices"), ({"adapter": {"kind": "qlora"}}, "4-bit weights cannot be")],
)
def test_what_cannot_be_cut_is_refused(option, message):
    shared = {"kind": "sft", "model": "m", "data": "d"}
    SftConfig.model_validate({**shared, **option})
    with pytest.raises(ValueError, match=message):
        SftConfig.model_validate({**shared, **option, "sharding": "zero3"})


def test_a_launcher_that_nothing_is_started_by_is_refused():
    with pytest.raises(RecipeError, match=r"no stage shares its model .* Add made\.sharding=fsdp2"):
        run(load("made.sharding=none"), Path("out"), launcher=SRUN)
    one_behind_it_that_nobody_could_share = RECIPE + "  raw: {kind: smith, data: first}\n"
    Path("more.yaml").write_text(one_behind_it_that_nobody_could_share)
    with pytest.raises(RecipeError, match=r"Add made\.sharding=fsdp2"):
        run(load_recipe("more.yaml", ["made.sharding=none"]), Path("out"), launcher=SRUN)
    with pytest.raises(PotstillError, match="--launch torchrunn: there is no such program"):
        run(load(), Path("out"), launcher=["torchrunn", "--nproc-per-node", "2"])
    with pytest.raises(PotstillError, match="RANK is not in its environment"):
        run(load(), Path("out"), launcher=["python"])


def test_an_error_of_any_worker_comes_back_as_itself():
    with pytest.raises(ModelError) as caught:
        run(load("made.fail=known", "made.seconds=60"), Path("out"), launcher=SRUN)
    assert (caught.value.where, caught.value.what, caught.value.remedy) == ("the anvil", "it is cold", "Heat it")
    assert not alive(told(0)["pid"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("[/x/gloo/pair.cc:537] Read error [10.0.0.1]: Connection reset by peer GLHF!"), "lost another"),
        (RuntimeError("[/x/gloo/pair.cc:547] Connection closed by peer [10.0.0.1]:9"), "lost another"),
        (ValueError("a gloomy day"), "worker 3 ended with ValueError: a gloomy day"),
    ],
)
def test_a_worker_that_lost_another_says_so(error, says):
    assert says in crash("3", error)


@pytest.mark.parametrize(
    ("fail", "message"),
    [("crash", "worker 1 ended with ZeroDivisionError: hammer by nothing"), ("killed", "was ended with exit code 9")],
)
def test_when_one_worker_dies_all_do_and_it_is_said_in_one_line(fail, message):
    began = time.monotonic()
    with pytest.raises(PotstillError) as caught:
        run(load(f"made.fail={fail}", "made.seconds=60"), Path("out"), launcher=SRUN)
    assert caught.value.where.endswith("logs/made.log")
    assert message in str(caught.value)
    assert not alive(told(0)["pid"])
    assert time.monotonic() - began < 20


def test_when_the_parent_is_killed_every_worker_ends():
    process, workers = start("made.seconds=60")
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in workers))
    wait_for(lambda: Workspace(Path("out")).holder() == 0)
    assert find(Path("out/made")) is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_asked_to_end_every_worker_writes_its_checkpoint_first(number, code):
    """The launcher hears nothing of it: many would kill their workers. SIGUSR1 is sent to every process, as Slurm does,
    and only the run heeds it."""
    process, workers = start("made.seconds=60")
    if number == signal.SIGUSR1:
        for worker in (os.getpgid(workers[0]), *workers):
            os.kill(worker, number)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"--launch {shlex.quote(shlex.join(SRUN))}" in stderr
    assert not any(alive(pid) for pid in workers)
    assert Path("out/checkpoint-0").exists()
    assert Path("out/checkpoint-1").exists()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-007,12],login1", "gpu003"), ("a1,b2", "a1"), ("n[1,4]-x", "n1-x"), ("alone", "alone")],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_host(nodes) == first


def test_what_torchrun_says_stands():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "MASTER_ADDR": "here"}
    assert take_place(environment) == 3
    assert environment["MASTER_ADDR"] == "here"
