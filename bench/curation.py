"""How many documents a second does curation look for near duplicates in, how much memory, and which does it find?

    python bench/curation.py [--documents 20000] [--threshold 0.7] [--peers ...] [--record]

Against datatrove's MinHash pipeline and a MinHash with datasketch as text-dedup builds it, one process each, one core
each, over the same file, with the same bands of the same number of hashes. Every tenth document is a planted copy of
an earlier one with some words replaced; its exact Jaccard similarity is counted here, and so is who finds it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from documents import documents, similarity, write
from measure import OURS, ROOT, commit, hardware, short

from potstill.curation.minhash import bands, rows_per_band

PEERS = ("datatrove", "datasketch")
PYTHON = Path(os.environ.get("BENCH_DATATROVE_PYTHON", ROOT / ".venv-datatrove" / "bin" / "python")).absolute()


def main() -> None:
    """Make the documents, run each side, print the row."""
    parser = argparse.ArgumentParser(description="Near duplicates: ours against datatrove and datasketch")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--threshold", type=float, default=0.7, help="the Jaccard similarity of near duplicates")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="these alone; none: ours alone")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    chosen = parser.parse_args()
    if chosen.peers and not PYTHON.exists():
        raise SystemExit(f"{PYTHON}: the peers' environment is not there. Run `make peers-data`, or pass --peers alone")
    row = measure(chosen)
    if chosen.record:
        with (ROOT / "bench" / "results" / "curation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every side once a round, in turns."""
    made = list(documents(0, chosen.documents))
    planted = {str(d.number): similarity(d.text, made[d.of].text) for d in made if d.of >= 0}
    alike = {name for name, value in planted.items() if value >= chosen.threshold}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in (OURS, *chosen.peers)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        write(path, iter(made))
        for number in range(chosen.rounds):
            for name in answers if number % 2 == 0 else reversed(answers):
                answer = run(name, path, Path(folder) / f"{name}-{number}", chosen.threshold)
                answers[name].append(answer)
                say(name, chosen.documents, answer, alike)
    seconds = {name: min(answer["seconds"] for answer in done) for name, done in answers.items()}
    rates = {name: short(chosen.documents / value) for name, value in seconds.items()}
    return {
        "question": "curation",
        "unit": "documents_per_second",
        **commit(),
        "hardware": hardware(),
        "versions": {name: done[0]["versions"] for name, done in answers.items()},
        "config": {
            "documents": chosen.documents,
            "words": "60 to 100 by Zipf's law",
            "threshold": chosen.threshold,
            "bands": bands(chosen.threshold),
            "rows_per_band": rows_per_band(chosen.threshold),
            "planted": len(planted),
            "planted_over_threshold": len(alike),
            "rounds": chosen.rounds,
            "quick": False,
        },
        "ours": rates[OURS],
        "peers": {name: rates[name] for name in chosen.peers},
        "ratios": {name: short(seconds[name] / seconds[OURS]) for name in chosen.peers},
        "peak_bytes": {name: max(answer["peak_bytes"] for answer in done) for name, done in answers.items()},
        "found": {name: found(done[0]["dropped"], alike) for name, done in answers.items()},
    }


def run(name: str, path: Path, folder: Path, threshold: float) -> dict[str, Any]:
    """One side in a process of its own."""
    folder.mkdir()
    python = sys.executable if name == OURS else str(PYTHON)
    script = ROOT / "bench" / "curation_peer.py"
    numbers = [threshold, bands(threshold), rows_per_band(threshold)]
    command = [python, str(script), name, str(path), str(folder), *map(str, numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def found(dropped: list[str], alike: set[str]) -> dict[str, float]:
    """Recall: of the copies over the threshold, those that were dropped. Precision: of the dropped, those over it."""
    right = len(alike & set(dropped))
    return {
        "dropped": len(dropped),
        "recall": round(right / len(alike), 4) if alike else 1.0,
        "precision": round(right / len(dropped), 4) if dropped else 1.0,
    }


def say(name: str, count: int, answer: dict[str, Any], alike: set[str]) -> None:
    """For whoever watches."""
    figures = found(answer["dropped"], alike)
    sys.stderr.write(
        f"{name}: {count / answer['seconds']:,.0f} documents a second, {answer['peak_bytes'] / 1e6:.0f} MB, "
        f"recall {figures['recall']:.4f}, precision {figures['precision']:.4f}\n"
    )


if __name__ == "__main__":
    main()
