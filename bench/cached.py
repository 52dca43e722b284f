"""How much faster is an epoch from a captured signal than one with the teacher beside the student?

    python bench/cached.py [--teachers 4x 10x] [--rounds 4] [--record]

Each round is one optimizer step on the same rows by every side: `online`, whose teacher reads them too; `cached`, whose
signal is 50 draws a token from the disk; `sft`, which learns the rows by likelihood and asks no teacher; and `teacher`,
transformers' own forward pass of the teacher. The ceiling is (sft + teacher) / sft: what would be gained if a signal
cost nothing to read and to compare.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from capture import BATCHES, SHAPES, Side, bare, build, fastest, ours, profiled, rows_of, timed
from measure import ROOT, commit, hardware, short, spread

from potstill.objectives.divergence import Divergence
from potstill.signals.files import Reader
from potstill.training.batch import Batch, Item, collate
from potstill.training.lesson import Aims
from potstill.training.models import choose_device, choose_precision
from potstill.training.optimizers import make_optimizers
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tellers import Captured, Present, lessons

VOCABULARY = 32_000
ROWS = {"cpu": 8, "cuda": 64}
"""Of a step."""
DRAWS = 50


def learning(scorer: Scorer, teach: Callable[[Batch], Batch]) -> Side:
    """Optimizer steps of one micro-batch each."""
    (optimizer,) = make_optimizers(scorer, "adamw", 1e-5, 0.0, 0.999)

    def side(items: Sequence[Item]) -> None:
        with scorer.products():
            figures_FN = scorer(teach(collate(items).to(scorer.device)))
            figures_FN[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return side


def measure(chosen: argparse.Namespace, shape: str) -> dict[str, Any]:
    """All sides with one teacher."""
    device = choose_device(chosen.device)
    precision = choose_precision("auto", device)
    narrow = build(shape, VOCABULARY, device)
    teacher = build_scorer(deepcopy(narrow).float(), precision).narrow().eval()
    student = build_scorer(build("student", VOCABULARY, device).float().requires_grad_(True), precision).train()
    rounds = [rows_of(10 + number, VOCABULARY, ROWS[device.type]) for number in range(chosen.rounds + 1)]
    aims = Aims(Divergence("forward_kl", None, 1.0), VOCABULARY)
    plain = Aims(Divergence("forward_kl", None, 1.0), VOCABULARY, divergence_weight=0.0, likelihood_weight=1.0)
    with tempfile.TemporaryDirectory() as folder:
        capture = ours(teacher, Path(folder), draws=DRAWS)
        for items in rounds:
            capture(items)
        reader = Reader(Path(folder))
        ways = {f"bfloat16, {count} rows": lambda count=count: bare(narrow, count) for count in BATCHES[device.type]}
        how, passing = fastest(ways, rounds[0])
        sides = {
            "online": learning(student, lessons(aims, [Present(teacher, VOCABULARY)])),
            "cached": learning(student, lessons(aims, [Captured(reader)])),
            "sft": learning(student, lessons(plain, [])),
            "teacher": passing,
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number, items in enumerate(rounds):
            for name in list(sides) if number % 2 == 0 else reversed(sides):
                found = timed(sides[name], items)
                if number:
                    seconds[name].append(found)
                sys.stderr.write(f"{shape}, round {number}: {name} {found[0]:.2f} s, {found[1]:.2f} of processors\n")
        with profiled(chosen.profile):
            sides["cached"](rounds[0])
    return {"bare": how, **_figures(seconds, sum(item.tokens for item in rounds[0]))}


def _figures(seconds: Mapping[str, Sequence[tuple[float, float]]], tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rates": {n: spread([tokens / wall for wall, _ in s]) for n, s in seconds.items()}}
    for clock, prefix in ((0, ""), (1, "processor_")):
        sums = {name: sum(pair[clock] for pair in pairs) for name, pairs in seconds.items()}
        ratio, ceiling = sums["online"] / sums["cached"], (sums["sft"] + sums["teacher"]) / sums["sft"]
        found |= {f"{prefix}ratio": short(ratio), f"{prefix}ceiling": short(ceiling)}
        found |= {f"{prefix}share_of_ceiling": short(ratio / ceiling)}
        found |= {f"{prefix}seconds": {name: short(value / len(seconds[name])) for name, value in sums.items()}}
    return found


def main() -> None:
    """Measure, print the row, keep it where that is asked for."""
    parser = argparse.ArgumentParser(description="An epoch from captured signals against one with the teacher")
    parser.add_argument("--teachers", nargs="+", choices=SHAPES, default=["4x", "10x"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", action="store_true", help="one more cached step under torch's profiler")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    chosen = parser.parse_args()
    row = {
        "question": "cached",
        "unit": "tokens_per_second",
        **commit(),
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": {
            "student": SHAPES["student"],
            "teachers": {name: SHAPES[name] for name in chosen.teachers},
            "vocabulary": VOCABULARY,
            "draws": DRAWS,
            "threads": torch.get_num_threads(),
            "rounds": chosen.rounds,
            "quick": False,
        },
        "sets": {shape: measure(chosen, shape) for shape in chosen.teachers},
    }
    if chosen.record:
        with (ROOT / "bench" / "results" / "cached.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
