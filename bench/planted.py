"""Whether audits find what was planted: the recipe miniature-audits over several seeds, danger by danger.

    python bench/planted.py --seeds 0 1 2 3 --at-once 2 --record

Real small models are trained for each seed, some minutes of one core. A case is one danger of one seed: planted, where
it has to be flagged, and in a clean twin, where it must not be.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from measure import ROOT, commit, hardware

RESULTS = ROOT / "bench" / "results" / "planted.jsonl"
RECIPE = "miniature-audits"
CASES = {
    "errors": "inherited_errors",
    "bias": "inherited_bias",
    "diversity": "diversity",
    "optimum": "overfitting",
    "leak": "contamination",
}
"""What the recipe calls a danger, and what audits call it."""
KINDS = ("planted", "clean")
FLAGGED = "flagged"


def main() -> None:
    """Run, count, say, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "planted", help="a folder a seed; runs go on there")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="how many seeds side by side, a core each")
    parser.add_argument("--record", action="store_true", help=f"keep the row in {RESULTS.relative_to(ROOT)}")
    chosen = parser.parse_args()
    with ThreadPoolExecutor(chosen.at_once) as pool:
        seconds = dict(zip(map(str, chosen.seeds), pool.map(partial(run, chosen.out), chosen.seeds), strict=True))
    found = {str(seed): verdicts(chosen.out / str(seed)) for seed in chosen.seeds}
    row = {
        "question": "planted",
        "unit": "cases",
        **commit(),
        "hardware": hardware(),
        "config": {"recipe": RECIPE, "seeds": chosen.seeds, "at_once": chosen.at_once, "quick": False},
        "seconds": seconds,
        "verdicts": found,
        "corrected_p": {seed: least_p(chosen.out / seed) for seed in found},
        "flagged": {case: {kind: count(found, case, kind) for kind in KINDS} for case in CASES},
        "beside": beside(chosen.out, chosen.seeds),
    }
    sys.stdout.write(json.dumps(row) + "\n")
    if chosen.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def run(out: Path, seed: int) -> float:
    """One seed of the recipe, to its end, in a folder of its own; the seconds that its stages took."""
    folder = out / str(seed)
    command = [sys.executable, "-m", "potstill.cli", "run", RECIPE, f"seed={seed}", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"seed {seed}: the run ended with {done.returncode}")
    times = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    return round(sum(stage["seconds"] for stage in times.values()), 1)


def verdicts(folder: Path) -> dict[str, dict[str, str]]:
    """By danger and kind: flagged, where any of the audit's models is; else the verdict of the last of them."""
    found: dict[str, dict[str, str]] = {}
    for case, danger in CASES.items():
        for kind in KINDS:
            said = list(audit(folder, case, kind)["dangers"][danger]["verdicts"].values())
            found.setdefault(case, {})[kind] = FLAGGED if FLAGGED in said else said[-1]
    return found


def least_p(folder: Path) -> dict[str, dict[str, float | None]]:
    """By danger and kind: the least p of its hypotheses, corrected for all of the audit; None where none was tested."""
    found: dict[str, dict[str, float | None]] = {}
    for case, danger in CASES.items():
        for kind in KINDS:
            tested = [one["corrected_p"] for one in audit(folder, case, kind)["dangers"][danger]["hypotheses"]]
            known = [p for p in tested if p is not None]
            found.setdefault(case, {})[kind] = float(f"{min(known):.2g}") if known else None
    return found


def count(found: Mapping[str, Mapping[str, Mapping[str, str]]], case: str, kind: str) -> int:
    """In how many seeds it is flagged."""
    return sum(seed[case][kind] == FLAGGED for seed in found.values())


def beside(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, int]]:
    """By audit: which other dangers are flagged in it, in how many seeds."""
    found: dict[str, dict[str, int]] = {}
    for seed in seeds:
        for case, danger in CASES.items():
            for kind in KINDS:
                for name, told in audit(out / str(seed), case, kind)["dangers"].items():
                    if name != danger and FLAGGED in told["verdicts"].values():
                        told_of = found.setdefault(f"{case}_{kind}", {})
                        told_of[name] = told_of.get(name, 0) + 1
    return found


def audit(folder: Path, case: str, kind: str) -> dict[str, Any]:
    """What an audit of the recipe found."""
    text = (folder / f"{case}_{kind}" / "audit.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value


if __name__ == "__main__":
    main()
