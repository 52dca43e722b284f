"""The command line with real workers: under torchrun, killed on the way, gone on, and equal to one worker."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

WORDS = ["the", "cat", "sat", "on", "a", "mat", "hello", "there", "what", "is", "this", "dog", "ran", "far", "home"]
RECIPE = """\
name: shared
stages:
  texts: {kind: import, path: texts.jsonl, rows: texts}
  pairs: {kind: import, path: pairs.jsonl, rows: pairs}
  base: {kind: pretrain, data: texts, vocabulary: 270, layers: 2, width: 32, heads: 4, context: 64, tied: true}
  dpo:
    kind: dpo
    model: base
    data: pairs
    epochs: 8
    global_batch: 8
    learning_rate: 1.0e-3
    held_out: 6
    dtype: float32
    micro_batch_tokens: 128
    checkpoint_steps: 2
    sharding: fsdp2
"""
LAUNCH = ("--launch", "torchrun --nproc-per-node 2")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)

    def say(most):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, most)))

    texts = [{"text": say(30)} for _ in range(60)]
    pairs = [{"prompt": say(5), "chosen": say(9), "rejected": say(9)} for _ in range(40)]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


def potstill(*arguments):
    """The command, in a process that has no terminal."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("potstill")), "run", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process):
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def workers_in(folder):
    """The processes that work on a job of this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"potstill.runs.worker" in words and any(str(folder).encode() in word for word in words):
            found.append(int(entry.parent.name))
    return found


def wait_for(condition, process, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def curve(folder):
    rows = [json.loads(line) for line in (folder / "dpo" / "curves.jsonl").read_text().splitlines()]
    return [(row["split"], row["step"], pytest.approx(row["loss"], abs=1e-4)) for row in rows]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_two_workers_ended_on_the_way_make_the_weights_of_one(recipe, number):
    out, alone = Path("out").resolve(), Path("alone").resolve()
    first = potstill(recipe, "--out", out, *LAUNCH)
    wait_for(lambda: list(out.glob("unfinished/dpo-*/step-*")), first)
    first.send_signal(number)
    first.communicate(timeout=60)
    assert first.returncode == (-number if number == signal.SIGKILL else 143)
    deadline = time.monotonic() + 20
    while workers_in(out):
        assert time.monotonic() < deadline, "workers went on without the run"
        time.sleep(0.05)
    assert not (out / "dpo").exists()
    step = max(path.name for path in out.glob("unfinished/dpo-*/step-*"))
    finished(potstill(recipe, "--out", out, *LAUNCH))
    finished(potstill(recipe, "--out", alone))
    ours, theirs = (load_file(folder / "dpo" / "model.safetensors") for folder in (out, alone))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].allclose(weight, rtol=1e-4, atol=1e-5) for name, weight in theirs.items())
    assert curve(out) == [(split, at, loss.expected) for split, at, loss in curve(alone)]
    facts = json.loads((out / "dpo" / "manifest.json").read_text())["facts"]
    assert (facts["workers"], facts["sharding"]) == (2, "fsdp2")
    assert 0 < int(step.removeprefix("step-")) < facts["steps"]
