"""How many requests a second does each side make against a server that answers at once, and in how much memory?

    python bench/synthesis.py [--quick] [--memory] [--record]

Ours with its journal on disk, distilabel and curator as they come, each in a process of its own with the server beside
it on the same machine, in turns. The peers live in environments of their own: `make peers-data`. `--memory` asks
10,000 and then a million times, ours alone: a quarter of an hour.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contest import finish, say
from measure import OURS, ROOT, commit, hardware, short, spread

HERE = Path(__file__).resolve().parent
SIDES = (OURS, "distilabel", "curator")
COUNTS = {OURS: 20_000, "distilabel": 5_000, "curator": 5_000}
"""As many as take each some tens of seconds."""


def python(side: str) -> Path:
    """The interpreter that has the side's library."""
    if side == OURS:
        return Path(sys.executable)
    return Path(os.environ.get(f"BENCH_{side.upper()}_PYTHON", ROOT / f".venv-{side}" / "bin" / "python"))


class Server:
    """The stub, for as long as it is asked."""

    def __enter__(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, str(HERE / "stub.py"), str(port)], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return f"http://127.0.0.1:{port}/v1"

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def measure(side: str, count: int) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    with Server() as url:
        command = [str(python(side)), str(HERE / "synthesis_side.py"), side, url, str(count)]
        environment = {k: v for k, v in os.environ.items() if side == OURS or k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{side}: {(done.stderr or done.stdout)[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if answer["rows"] != count:
        raise SystemExit(f"{side}: {answer['rows']} of {count} rows came")
    rate = count / answer["seconds"]
    say(f"{side}: {count:,} requests, {rate:,.0f} a second, peak {answer['peak_bytes'] / 1e6:,.0f} MB")
    return answer | {"rate": rate}


def versions() -> dict[str, str]:
    """Of each side's library."""
    names = {OURS: "potstill", "distilabel": "distilabel", "curator": "bespokelabs-curator"}
    program = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    return {
        side: subprocess.run(
            [str(python(side)), "-c", program, name], capture_output=True, text=True, check=True
        ).stdout.strip()
        for side, name in names.items()
        if python(side).exists()
    }


def contest(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every side in turns."""
    counts = {side: count // (5 if chosen.quick else 1) for side, count in COUNTS.items()}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(1 if chosen.quick else 3):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            found[side].append(measure(side, counts[side]))
    rates = {side: statistics.median(answer["rate"] for answer in answers) for side, answers in found.items()}
    return {
        "question": "synthesis",
        "unit": "requests_per_second",
        "config": {"quick": chosen.quick, "requests": counts, "concurrency": 64},
        "ours": short(rates[OURS]),
        "peers": {side: short(rate) for side, rate in rates.items() if side != OURS},
        "ratios": {side: short(rates[OURS] / rate) for side, rate in rates.items() if side != OURS},
        "spread": {side: spread([answer["rate"] for answer in answers]) for side, answers in found.items()},
        "peak_bytes": {side: max(answer["peak_bytes"] for answer in answers) for side, answers in found.items()},
    }


def memory(chosen: argparse.Namespace) -> dict[str, Any]:
    """Ours alone, few requests and many."""
    counts = (10_000, 100_000 if chosen.quick else 1_000_000)
    few, many = (measure(OURS, count) for count in counts)
    return {
        "question": "synthesis_memory",
        "unit": "requests_per_second",
        "config": {"quick": chosen.quick, "requests": counts, "concurrency": 64},
        "ours": short(many["rate"]),
        "peers": {},
        "ratios": {},
        "peak_bytes": {str(count): answer["peak_bytes"] for count, answer in zip(counts, (few, many), strict=True)},
        "peak_ratio": short(many["peak_bytes"] / few["peak_bytes"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the requests, once")
    parser.add_argument("--memory", action="store_true", help="ours at 10,000 and at a million requests")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    options = parser.parse_args()
    begun = time.monotonic()
    row = memory(options) if options.memory else contest(options)
    head = {**commit(), "hardware": hardware(), "versions": versions(), "seconds": round(time.monotonic() - begun, 1)}
    finish({"question": row["question"], **head, **row}, options)
