"""How far off is `potstill plan --hardware cpu`? Memory and time of real training, predicted before it begins.

    python bench/plan.py [--quick] [--record] [--cases sft-60m,...]

Each case is a stage over rows of made-up tokens and a model with random weights. First `potstill plan` predicts in a
process of its own; then the stage trains in another, which is timed while it trains (the reference's pass with it) and
whose memory the kernel measures (its highest resident set). An idle machine is what it is for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import ROOT, commit, hardware, short
from rows import ARCHITECTURES, Lengths, chats, pairs, save_model, word

MEMORY_TOLERANCE, TIME_TOLERANCE = 0.15, 0.25
"""What is promised: relative to what was measured."""


@dataclass(frozen=True)
class Case:
    """One stage to predict."""

    kind: str
    model: str
    rows: int
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""

    def config(self) -> dict[str, Any]:
        """Its part of a recipe."""
        data = "pairs.jsonl" if self.kind == "dpo" else "chats.jsonl"
        teacher = {"teacher": "teacher"} if self.teacher else {}
        return {"kind": self.kind, "model": "student", "data": data, **teacher, **self.options}


LORA = {"adapter": {"kind": "lora", "rank": 16}}
CASES = {
    "sft-5m": Case("sft", "5m", 384, {"global_batch": 64}),
    "sft-60m": Case("sft", "60m", 48, {"global_batch": 16}),
    "sft-lora-60m": Case("sft", "60m", 48, {"global_batch": 16, **LORA}),
    "sft-128k": Case("sft", "56m-128k", 48, {"global_batch": 16}),
    "sft-recomputed-60m": Case("sft", "60m", 32, {"global_batch": 16, "activation_checkpointing": True}),
    "dpo-5m": Case("dpo", "5m", 192, {"global_batch": 32}),
    "dpo-60m": Case("dpo", "60m", 24, {"global_batch": 8}),
    "distill-60m": Case("distill", "5m-32k", 32, {"global_batch": 16, "divergence": "jsd"}, teacher="60m"),
}
QUICK = ("sft-5m", "sft-lora-60m", "dpo-5m", "distill-60m")


def main() -> None:
    """Predict, train, compare, for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four cases, and a third of their rows")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results/plan.jsonl")
    parser.add_argument("--cases", default="", help="names, between commas")
    parser.add_argument("--train", metavar="JOB", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        sys.stdout.write(json.dumps(train(json.loads(Path(chosen.train).read_text()))) + "\n")
        return
    names = [name for name in chosen.cases.split(",") if name] or (QUICK if chosen.quick else list(CASES))
    found = {name: compare(name, CASES[name], 3 if chosen.quick else 1) for name in names}
    config = {"quick": chosen.quick, "tolerances": {"memory": MEMORY_TOLERANCE, "time": TIME_TOLERANCE}}
    row = {"question": "plan", **commit(), "hardware": hardware(), "config": config, "cases": found}
    line = json.dumps(row)
    if chosen.record:
        with (ROOT / "bench" / "results" / "plan.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    sys.stdout.write(line + "\n")


def compare(name: str, case: Case, fewer: int = 1) -> dict[str, Any]:
    """Predicted and measured, and how far they are apart."""
    with tempfile.TemporaryDirectory(prefix="plan-") as made:
        folder = Path(made)
        prepare(folder, case, max(4, case.rows // fewer))
        predicted = predict(folder)
        measured = run(folder, case)
    found = {
        "predicted": {key: predicted[key] for key in ("peak_bytes", "own_bytes", "seconds", "settings")},
        "measured": measured,
        "memory_error": short(predicted["peak_bytes"] / measured["peak_bytes"] - 1),
        "own_memory_error": short(_grown(predicted) / _grown(measured) - 1),
        "time_error": short(predicted["seconds"] / measured["seconds"] - 1),
    }
    sys.stderr.write(
        f"{name}: memory {found['memory_error']:+.1%} (without the framework {found['own_memory_error']:+.1%}), "
        f"time {found['time_error']:+.1%}\n"
    )
    return found


def _grown(found: Mapping[str, Any]) -> float:
    return float(found["peak_bytes"] - found["own_bytes"])


def prepare(folder: Path, case: Case, count: int) -> None:
    """The models, rows and recipe."""
    ARCHITECTURES.setdefault("5m", _small(4096))
    ARCHITECTURES.setdefault("5m-32k", _small(32_000))
    size = save_model(folder / "student", case.model)
    if case.teacher:
        save_model(folder / "teacher", case.teacher, seed=1)
    if case.kind == "dpo":
        rows = pairs(1, count, size.vocabulary, Lengths(175, 600, 0.6), Lengths(140, 500, 0.6), Lengths(130, 500, 0.6))
        lines = [
            {name: _text(row[name], name != "prompt") for name in ("prompt", "chosen", "rejected")} for row in rows
        ]
        _write(folder / "pairs.jsonl", lines)
    else:
        talks = chats(1, count, size.vocabulary, Lengths(400, 1500, 0.5), exchanges=2)
        _write(folder / "chats.jsonl", [{"messages": _messages(row["turns"])} for row in talks])
    models = {"student": {"path": "./student"}, **({"teacher": {"path": "./teacher"}} if case.teacher else {})}
    recipe = {"name": "planned", "models": models, "stages": {"stage": case.config()}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # which is YAML too


def _small(vocabulary: int) -> Any:
    from rows import Architecture

    return Architecture("llama", vocabulary, layers=4, width=256, heads=4, kv_heads=2, intermediate=704)


def _messages(turns: list[list[int]]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": _text(ids, n % 2 == 1)} for n, ids in enumerate(turns)]


def _text(ids: list[int], answers: bool) -> str:
    """The words that these ids are; the template writes the end token."""
    return " ".join(map(word, ids[:-1] if answers else ids))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _environment() -> dict[str, str]:
    from potstill.environment import MEMORY, SPEED
    from potstill.runs.launch import ALLOCATOR

    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    named = {"OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1", **SPEED, **MEMORY, **ALLOCATOR}
    return {**named, **os.environ}


def predict(folder: Path) -> dict[str, Any]:
    """What `potstill plan` says of the stage, before it has ever run."""
    command = [
        sys.executable,
        "-m",
        "potstill.cli",
        "plan",
        "recipe.yaml",
        "--out",
        "out",
        "--hardware",
        "cpu",
        "--json",
    ]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    (stage,) = json.loads(done.stdout)["stages"]
    if "unknown" in stage:
        raise SystemExit(stage["unknown"])
    seconds = stage["seconds"] - stage["starting_seconds"]
    return {**stage, "seconds": short(seconds), "own_bytes": stage["memory_bytes"]["framework"]}


def run(folder: Path, case: Case) -> dict[str, Any]:
    """Train, in a process of its own."""
    job = folder / "job.json"
    teacher = str(folder / "teacher") if case.teacher else ""
    job.write_text(json.dumps({"folder": str(folder), "config": case.config(), "teacher": teacher}))
    command = [sys.executable, str(Path(__file__).resolve()), "--train", str(job)]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    """The stage, as a run has it; in the child."""
    from potstill import stages
    from potstill.sources import Data, Inputs, LocalModel, Model
    from potstill.stages import session
    from potstill.stages.base import Work

    folder, config = Path(job["folder"]), job["config"]
    stage = stages.stage(config["kind"])
    models = {"model": (Model("student", LocalModel(path=str(folder / "student"))),)}
    if job["teacher"]:
        models["teacher"] = (Model("teacher", LocalModel(path=job["teacher"])),)
    data = Data(config["data"], "file", folder / config["data"])
    out = folder / "sealed"
    out.mkdir()
    own = _resident("VmRSS:")
    seconds: list[float] = []
    peaks: list[int] = []
    with _timed(session.Session, seconds, peaks):
        facts = stage.run(
            stage.config.model_validate(config),
            Inputs({"data": (data,)}, models, {}),
            Work(out, folder / "run", seed=0),
        )
    kept = {
        name: facts[name] for name in ("steps", "tokens", "micro_batch_tokens", "activation_checkpointing", "dtype")
    }
    return {
        "peak_bytes": _resident("VmHWM:"),
        "training_peak_bytes": max(peaks),  # sealing loads libraries that training does not
        "own_bytes": own,
        "seconds": short(sum(seconds)),
        "facts": kept,
    }


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


@contextmanager
def _timed(session: Any, seconds: list[float], peaks: list[int]) -> Iterator[None]:
    """Adds up what a session's two computing parts take, and notes the most that was resident by their end."""
    before = session.refer, session.train

    def measured(part: Any) -> Any:
        def wrapper(*arguments: Any) -> Any:
            begun = time.perf_counter()
            done = part(*arguments)
            seconds.append(time.perf_counter() - begun)
            peaks.append(_resident("VmHWM:"))
            return done

        return wrapper

    session.refer, session.train = map(measured, before)
    try:
        yield
    finally:
        session.refer, session.train = before


if __name__ == "__main__":
    main()
