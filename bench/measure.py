"""Rounds that alternate between the sides, and the row of results that comes of them.

Every benchmark prints one such row: question, hardware, versions, ours, peers, ratios, spread. Rates are rows (or
tokens) per second over all rounds that a side ran; a ratio is taken over the rounds, and so the rows, that both ran.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SLACK = 1.1
"""How much longer than last time a job may take, where a deadline is near."""

OURS = "ours"


@dataclass(frozen=True)
class Round:
    """Rows that every side trains on, one after the other."""

    rows: Path
    amount: int
    """In the unit of the question: pairs or tokens."""


@dataclass
class Results:
    """What each side measured in each round; None where it was left out for want of time."""

    rounds: Sequence[Round]
    by_side: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)

    def rate(self, side: str) -> float:
        """Amount per second over its rounds."""
        done = self._done(side)
        return sum(amount for amount, _ in done) / sum(seconds for _, seconds in done)

    def ratio(self, peer: str) -> float:
        """How many times faster ours was, over the rounds that both ran."""
        both = [(o, p) for o, p in zip(self.by_side[OURS], self.by_side[peer], strict=True) if o and p]
        return sum(p["seconds"] for _, p in both) / sum(o["seconds"] for o, _ in both)

    def spread(self, side: str) -> dict[str, float]:
        """Of the rates of single rounds."""
        return spread([amount / seconds for amount, seconds in self._done(side)])

    def peak(self, side: str) -> int:
        """Bytes, the most of any round."""
        return max(answer["peak_bytes"] for answer in self.by_side[side] if answer)

    def first(self, side: str) -> dict[str, Any]:
        """What it answered in the first round, which every side runs."""
        answer = self.by_side[side][0]
        assert answer is not None
        return answer

    def _done(self, side: str) -> list[tuple[int, float]]:
        pairs = zip(self.rounds, self.by_side[side], strict=True)
        return [(round_.amount, answer["seconds"]) for round_, answer in pairs if answer]


def spread(rates: Sequence[float]) -> dict[str, float]:
    """Least, median and most of them, and how many they are."""
    found = {"min": min(rates), "median": statistics.median(rates), "max": max(rates)}
    return {name: short(value) for name, value in found.items()} | {"rounds": len(rates)}


def alternate(
    sides: Mapping[str, Callable[[Round], dict[str, Any]]],
    rounds: Sequence[Round],
    leads: Sequence[str],
    deadline: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Results:
    """Each round by every side, in turns forwards and backwards, so that a machine that slows down favours no one.

    Where time runs out, sides that are not among `leads` are left out of a round first; then whole rounds.
    """
    results = Results(rounds, {name: [] for name in sides})
    cost: dict[str, float] = {}
    for number, round_ in enumerate(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        left = len(rounds) - number
        if number and not _fits(clock(), sum(cost[name] for name in leads), deadline):
            return Results(rounds[:number], results.by_side)
        spare = None if deadline is None else deadline - SLACK * left * sum(cost.get(name, 0.0) for name in leads)
        for name in order:
            if number and name not in leads and not _fits(clock(), cost[name], spare):
                results.by_side[name].append(None)
                continue
            begun = clock()
            answer = sides[name](round_)
            cost[name] = clock() - begun
            if spare is not None and name in leads:
                spare += SLACK * cost[name]
            results.by_side[name].append(answer)
            rate = round_.amount / answer["seconds"]
            say(f"round {number + 1} of {len(rounds)}: {name} {rate:.4g} a second ({cost[name]:.0f} s in all)")
    return results


def _fits(now: float, seconds: float, deadline: float | None) -> bool:
    return deadline is None or now + SLACK * seconds <= deadline


def summary(results: Results) -> dict[str, Any]:
    """Of one set: `ours`, `peers`, `ratios`, `spread`, peak memory, and what each side did."""
    peers = [name for name in results.by_side if name != OURS]
    return {
        "ours": short(results.rate(OURS)),
        "peers": {name: short(results.rate(name)) for name in peers},
        "ratios": {name: short(results.ratio(name)) for name in peers},
        "spread": {name: results.spread(name) for name in results.by_side},
        "peak_bytes": {name: results.peak(name) for name in results.by_side},
        "peak_ratios": {name: short(results.peak(OURS) / results.peak(name)) for name in peers},
        "amounts": {name: sum(amount for amount, _ in results._done(name)) for name in results.by_side},
        "rounds": len(results.rounds),
        "sides": {name: _of_side(results, name) for name in results.by_side},
    }


def _of_side(results: Results, name: str) -> dict[str, Any]:
    first = results.first(name)
    shown = {key: first.get(key) for key in ("loss", "chosen_logp", "facts", "peak_is_own")}
    done = [answer for answer in results.by_side[name] if answer]
    reference = sum(answer.get("reference_seconds", 0.0) for answer in done) / sum(a["seconds"] for a in done)
    cpu = {"cpu_seconds": short(sum(a["cpu_seconds"] for a in done))} if "cpu_seconds" in first else {}
    return {**shown, **cpu, "reference_share": short(reference)}


AGREEMENT = 0.02
"""Relative. The sides round differently; another token, mask or loss differs by far more."""


def disagreement(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """What shows that the sides did not train on the same thing, or nothing. They start from the same weights, and the
    learning rates are small: their mean loss and log-probability over the first epoch are alike."""
    ours = answers[OURS]
    for name, theirs in answers.items():
        for figure in ("loss", "chosen_logp"):
            a, b = ours.get(figure), theirs.get(figure)
            if a is not None and b is not None and abs(a - b) > AGREEMENT * abs(a):
                return f"{figure}: ours {a:.5g}, {name} {b:.5g}"
    return ""


def hardware() -> dict[str, Any]:
    """The machine, without its name."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["cpu"] = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        found["bfloat16"] = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
        memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        found["memory_bytes"] = int(memory.split()[1]) * 1024
    except (OSError, StopIteration):
        found["cpu"] = platform.processor()
    return found


def commit() -> dict[str, Any]:
    """Of this checkout, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench")
    return {"commit": git("rev-parse", "HEAD") or None, "uncommitted_changes": bool(changed)}


def short(value: float) -> float:
    """Four digits: more than the spread of any of these figures."""
    return float(f"{value:.4g}")
