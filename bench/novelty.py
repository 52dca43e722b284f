"""Does the novelty filter decide as brute force does, and what does it cost as what was kept grows?

    python bench/novelty.py [--instructions 1000000] [--compare 20000] [--record]

Instructions of 8 to 24 words by Zipf's law, every fifth an earlier one with up to seven words replaced. The first
`--compare` of them are also decided by ROUGE-L against every kept one, 64 cells at a time in numpy. Seconds are those
of the processor, of one core.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from measure import ROOT, commit, hardware, short

from potstill.curation.novelty import Novelty

VOCABULARY = 60_000
SHORTEST, LONGEST = 8, 24
MARKS = (1_000, 10_000, 100_000, 1_000_000)
"""After so many instructions the cost is told."""


def instructions(seed: int, count: int) -> Iterator[list[int]]:
    """Words as numbers."""
    chance = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    ladder = np.cumsum(shares / shares.sum())
    recent: list[np.ndarray] = []
    for number in range(count):
        if number % 5 == 4:
            words = recent[int(chance.integers(len(recent)))].copy()
            replaced = chance.integers(0, len(words), int(chance.integers(0, 8)))
            words[replaced] = chance.integers(0, VOCABULARY, len(replaced))
        else:
            words = np.searchsorted(ladder, chance.random(int(chance.integers(SHORTEST, LONGEST + 1))))
            recent = [*recent[-99:], words]
        yield words.tolist()


class BruteForce:
    """ROUGE-L F against every kept instruction, all of them at once (Hyyrö 2004, in 64 bits)."""

    def __init__(self, threshold: float, most: int) -> None:
        self._threshold = threshold
        self._kept = np.full((LONGEST, most), VOCABULARY, np.int32)  # by place, so that a step reads a row
        self._sizes = np.zeros(most, np.int64)
        self._count = 0
        self._places = np.zeros(VOCABULARY + 1, np.uint64)

    def add(self, words: list[int]) -> None:
        """Keep one."""
        self._kept[: len(words), self._count] = words
        self._sizes[self._count] = len(words)
        self._count += 1

    def nearest(self, words: list[int]) -> int | None:
        """The first kept one over the threshold."""
        for place, word in enumerate(words):
            self._places[word] |= np.uint64(1 << place)
        column = np.full(self._count, (1 << len(words)) - 1, np.uint64)
        for row in self._kept[:, : self._count]:
            met = column & self._places[row]
            column = (column + met) | (column - met)
        self._places[words] = 0
        common = len(words) - np.bitwise_count(column & np.uint64((1 << len(words)) - 1)).astype(np.int64)
        near = np.flatnonzero(2 * common / (len(words) + self._sizes[: self._count]) > self._threshold)
        return int(near[0]) if len(near) else None


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Decide all, the first ones twice."""
    known, plain = Novelty(chosen.threshold), BruteForce(chosen.threshold, chosen.compare)
    curve: list[dict[str, Any]] = []
    spent = plainly = before = 0.0
    different = 0
    for number, words in enumerate(instructions(0, chosen.instructions), start=1):
        text = " ".join(f"w{word}" for word in words)
        begun = time.process_time()
        near = known.nearest(text)
        if near is None:
            known.add(text)
        spent += time.process_time() - begun
        if number <= chosen.compare:
            begun = time.process_time()
            expected = plain.nearest(words)
            if expected is None:
                plain.add(words)
            plainly += time.process_time() - begun
            different += near != expected
        if number in MARKS or number == chosen.instructions:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            curve.append({"instructions": number, "kept": len(known), "seconds": short(spent), "peak_bytes": peak})
            since = number - (curve[-2]["instructions"] if len(curve) > 1 else 0)
            sys.stderr.write(
                f"{number:,} instructions, {len(known):,} kept: {spent:,.1f} s of a core in all, "
                f"{(spent - before) / max(since, 1) * 1e6:,.0f} µs each since the line before, {peak / 1e6:,.0f} MB\n"
            )
            before = spent
        if number == chosen.compare:
            sys.stderr.write(f"of {number:,} decisions {different} differ from brute force ({plainly:,.1f} s)\n")
    return {
        "question": "novelty",
        "unit": "instructions_per_second",
        **commit(),
        "hardware": hardware(),
        "config": {
            "instructions": chosen.instructions,
            "words": f"{SHORTEST} to {LONGEST} by Zipf's law",
            "threshold": chosen.threshold,
            "quick": False,
        },
        "ours": short(chosen.instructions / spent),
        "curve": curve,
        "brute_force": {"instructions": chosen.compare, "different": different, "seconds": short(plainly)},
    }


def main() -> None:
    """Measure, print the row, keep it where that is asked for."""
    parser = argparse.ArgumentParser(description="The novelty filter: its decisions and what they cost")
    parser.add_argument("--instructions", type=int, default=1_000_000)
    parser.add_argument("--compare", type=int, default=20_000, help="as many are decided by brute force too")
    parser.add_argument("--threshold", type=float, default=0.7, help="refuse over this ROUGE-L F")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    row = measure(chosen := parser.parse_args())
    if chosen.record:
        with (ROOT / "bench" / "results" / "novelty.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")
    if row["brute_force"]["different"]:
        raise SystemExit("the filter decided otherwise than brute force")


if __name__ == "__main__":
    main()
