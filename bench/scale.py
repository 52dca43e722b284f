"""Does the memory of the stage `curate` stay flat as dialogues grow in number, and how many does it examine a second?

    python bench/scale.py [--conversations 100000 1000000] [--backend local] [--record]

Dialogues of 60 to 100 words by Zipf's law, every tenth a changed copy, through the stage as a recipe runs it: all
filters with their defaults, near duplicates from 0.7, decontaminated against a hundred questions. Each number runs in
a process of its own; peak memory is the most that was resident in it, libraries and all.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from documents import documents
from measure import ROOT, commit, hardware, short

THRESHOLD = 0.7
QUESTION_WORDS = 15


def write(path: Path, count: int, seed: int = 0) -> None:
    """Dialogues as an artifact's rows."""
    path.mkdir()
    with (path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for document in documents(seed, count):
            words = document.text.split()
            said = " ".join(words[:QUESTION_WORDS]) + "?", " ".join(words[QUESTION_WORDS:]).capitalize() + "."
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
            file.write(json.dumps({"id": str(document.number), "messages": messages}) + "\n")


def write_questions(path: Path) -> None:
    """Questions that nobody asks."""
    path.mkdir()
    with (path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for document in documents(1, 100):
            row = {"id": str(document.number), "messages": [{"role": "user", "content": document.text}]}
            file.write(json.dumps(row) + "\n")


def curate(folder: Path, backend: str) -> dict[str, Any]:
    """Run the stage in this process."""
    from potstill.sources import Data, Inputs
    from potstill.stages.base import Work
    from potstill.stages.curate import Curate, run

    fields = {"kind": "curate", "data": "chats", "decontaminate": ["questions"], "deduplicate": THRESHOLD}
    data = {
        "data": (Data("chats", "chats", folder / "chats"),),
        "decontaminate": (Data("questions", "prompts", folder / "questions"),),
    }
    out = folder / "out"
    out.mkdir()
    begun, worked = time.perf_counter(), time.process_time()
    facts = run(Curate.model_validate({**fields, "backend": backend}), Inputs(data, {}, {}), Work(out, folder, 1))
    seconds, of_a_core = time.perf_counter() - begun, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts.pop("examples")
    return {"seconds": short(seconds), "core_seconds": short(of_a_core), "peak_bytes": peak, "facts": facts}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Each number in a process of its own."""
    curve = []
    for count in chosen.conversations:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            write(Path(folder) / "chats", count)
            write_questions(Path(folder) / "questions")
            command = [sys.executable, __file__, "--inside", folder, "--backend", chosen.backend]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode != 0:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        curve.append({"conversations": count, **found})
        rate, cost, peak = count / found["seconds"], found["core_seconds"], found["peak_bytes"] / 1e6
        sys.stderr.write(f"{count:,}: {rate:,.0f} a second, {cost:,.0f} s of a core, peak {peak:.1f} MB\n")
    return {
        "question": "scale",
        "unit": "conversations_per_second",
        **commit(),
        "hardware": hardware(),
        "config": {
            "words": "60 to 100 by Zipf's law",
            "threshold": THRESHOLD,
            "backend": chosen.backend,
            "quick": False,
        },
        "ours": short(curve[-1]["conversations"] / curve[-1]["seconds"]),
        "curve": curve,
        "peak_ratio": short(curve[-1]["peak_bytes"] / curve[0]["peak_bytes"]),
    }


def main() -> None:
    """Measure, print the row, keep it where that is asked for."""
    parser = argparse.ArgumentParser(description="Memory and speed of the stage curate")
    parser.add_argument("--conversations", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--backend", choices=("local", "ray"), default="local")
    parser.add_argument("--folder", help="where the dialogues and what lies on disk go; default: the system's")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        sys.stdout.write(json.dumps(curate(Path(chosen.inside), chosen.backend)) + "\n")
        return
    row = measure(chosen)
    if chosen.record:
        with (ROOT / "bench" / "results" / "scale.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
