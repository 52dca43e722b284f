"""Training processes killed at random moments, or asked to end: the next run goes on, and seals what nobody disturbed.

A recipe of its own: rows from files, a mixture, adapters, every stage with a checkpoint a step.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reduced import environment
from test_kill_sweep import hashes

pytestmark = pytest.mark.slow

KILLS = 8
ANIMALS = ["cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow"]
SOUNDS = ["purrs", "barks", "hoots", "yelps", "clucks", "hums", "clicks", "moos"]
RECIPE = """\
name: toy
stages:
  pre:
    kind: pretrain
    data: texts.jsonl
    vocabulary: 300
    layers: 1
    width: 32
    heads: 2
    context: 128
    epochs: 2
    batch_tokens: 400
    learning_rate: 0.01
    held_out: 8
    checkpoint_steps: 1
  tuned:
    kind: sft
    model: pre
    data: [chats.jsonl, {from: more.jsonl, weight: 0.5}]
    adapter: {rank: 4, dropout: 0.1}
    neftune_alpha: 5
    new_tokens: ["<think>"]
    epochs: 2.5
    learning_rate: 0.01
    global_batch: 4
    held_out: 6
    keep: best
    checkpoint_steps: 1
  better:
    kind: dpo
    model: tuned
    data: pairs.jsonl
    epochs: 2.5
    learning_rate: 0.002
    global_batch: 4
    held_out: 8
    checkpoint_steps: 1
"""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(RECIPE)
    told = [(f"what does the {ANIMALS[n % 8]} do? {n}", f"the {ANIMALS[n % 8]} {SOUNDS[n % 8]}.") for n in range(48)]

    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    write(
        folder / "texts.jsonl",
        [{"id": str(n), "text": f"{question} {answer}"} for n, (question, answer) in enumerate(told)],
    )
    chats = [{"id": str(n), "messages": said(*each)} for n, each in enumerate(told)]
    write(folder / "chats.jsonl", chats[:32])
    write(folder / "more.jsonl", chats[32:])
    wrong = [f"{answer[:-1]}, i think." for _, answer in told]
    pairs = [
        {"id": str(n), "prompt": said(*each)[:1], "chosen": said(*each)[1:], "rejected": said("", other)[1:]}
        for n, (each, other) in enumerate(zip(told, wrong, strict=True))
    ]
    write(folder / "pairs.jsonl", pairs)
    return folder / "toy.yaml"


def start(recipe: Path, out: Path, *overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "potstill.cli", "run", str(recipe), *overrides, "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )


def finish(recipe: Path, out: Path, *overrides: str) -> None:
    process = start(recipe, out, *overrides)
    _, said = process.communicate()
    assert process.returncode == 0, said


@pytest.fixture(scope="session")
def undisturbed(recipe: Path) -> tuple[Path, float]:
    out, began = recipe.parent / "undisturbed", time.monotonic()
    finish(recipe, out)
    return out, time.monotonic() - began


def sealed(out: Path) -> dict[str, str]:
    """Every sealed file; the caches beside them are compared by what is made with them."""
    return {name: found for name, found in hashes(out).items() if name.startswith("artifacts/")}


def live(out: Path, stage: str) -> list[int]:
    """The steps that a stage trained, in the order in which they were; a line may have been torn by a kill."""
    steps = []
    for path in (out / "logs").glob(f"{stage}-*.curves.jsonl"):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            steps += [row["step"]] if row["split"] == "train" else []
    return steps


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return found


def checkpoints(out: Path, stage: str) -> list[Path]:
    return sorted((out / "unfinished").glob(f"{stage}-*/step-*"))


def test_the_toy_uses_what_it_is_to_test(undisturbed: tuple[Path, float]) -> None:
    out, _ = undisturbed
    manifest = json.loads((out / "tuned" / "manifest.json").read_text())
    assert manifest["facts"]["sources"]["more.jsonl"]["rows_per_epoch"] == 8
    assert (out / "tuned" / "adapter" / "adapter_model.safetensors").is_file()
    assert "<think>" in json.loads((out / "tuned" / "tokenizer.json").read_text())["added_tokens"][-1]["content"]
    assert live(out, "tuned") == list(range(1, manifest["facts"]["steps"] + 1))
    assert list((out / "unfinished").iterdir()) == []


def test_killed_at_random_moments_it_seals_the_same_bytes(recipe: Path, undisturbed: tuple[Path, float]) -> None:
    calm, seconds = undisturbed
    chance, landed, sooner = random.Random(1), 0, 1.0
    while landed < 2:  # on a machine that has become faster, it ends before it is killed twice
        out, landed, sooner = recipe.parent / f"killed-{sooner}", 0, sooner / 2
        while landed < KILLS and not (out / "better").is_symlink():
            process = start(recipe, out)
            try:
                process.communicate(timeout=chance.uniform(0.6, 1.2) * sooner * seconds)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                landed += 1
        assert landed >= 2 or sooner > 0.1, f"killed {landed} times"
    finish(recipe, out)
    assert sealed(out) == sealed(calm)
    assert list((out / "unfinished").iterdir()) == []


@pytest.mark.parametrize("stage", ["pre", "tuned", "better"])
def test_a_training_process_killed_between_any_two_steps(
    recipe: Path, undisturbed: tuple[Path, float], stage: str
) -> None:
    """Trap: "epoch 0 replayed (ms-swift 10050)": the live file says where the second run began."""
    calm, _ = undisturbed
    out = recipe.parent / f"cut-{stage}"
    process = start(recipe, out)
    wait_for(lambda: len(checkpoints(out, stage)) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    latest = int(checkpoints(out, stage)[-1].name[5:])
    before = len(live(out, stage))
    finish(recipe, out)
    assert live(out, stage)[before:][0] == latest + 1 > 1
    assert sealed(out) == sealed(calm)


def child_of(process: "subprocess.Popen[str]") -> int:
    """The training process of a run."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in found if b"potstill.runs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return workers[0] if workers else 0


@pytest.mark.parametrize("who", ["parent", "child", "both"])
def test_sigterm_ends_it_in_order_and_it_goes_on(recipe: Path, undisturbed: tuple[Path, float], who: str) -> None:
    """As schedulers send it: exit code 143, how to go on, and a checkpoint of the step that it stood at."""
    calm, _ = undisturbed
    out = recipe.parent / f"asked-{who}"
    process = start(recipe, out, "tuned.checkpoint_steps=null")
    wait_for(lambda: len(live(out, "tuned")) >= 3, process)
    child = child_of(process)
    if who in ("child", "both"):
        os.kill(child, signal.SIGTERM)
    if who in ("parent", "both"):
        os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "potstill run" in said or "Run again to go on" in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{child}").exists()
    latest = int(checkpoints(out, "tuned")[-1].name[5:])
    before = live(out, "tuned")
    assert before[-1] == latest >= 3
    finish(recipe, out)
    assert live(out, "tuned") == list(range(1, max(live(out, "tuned")) + 1))  # none twice, none left out
    assert sealed(out) == sealed(calm)
