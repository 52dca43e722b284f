"""The processes that are compared: one a side, each with its own memory; only one of them computes at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.environment import MEMORY, SPEED
from potstill.runs.launch import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
PEER = Path(os.environ.get("BENCH_PEER_PYTHON", ROOT / ".venv-peers" / "bin" / "python")).absolute()


class Side:
    """One process that answers jobs; see `serve`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        ours = name == "ours"
        python = sys.executable if ours else str(PEER)
        script = HERE / ("ours.py" if ours else "trl_peer.py")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(folder, ours),
                cwd=folder,
            )

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job and wait. Ends the benchmark where the side cannot."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended; {self.log.read_text()[-2000:]}"}
        if "error" in answer:
            raise SystemExit(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def environment(folder: Path, ours: bool) -> dict[str, str]:
    """All cores for each side; nothing from the network; caches that end with the run."""
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    named = {
        "OMP_NUM_THREADS": cores,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if ours:
        named |= {**SPEED, **MEMORY, **ALLOCATOR}  # as `potstill run` sets them for a training process
    return {**os.environ, **named}


def need_peers() -> None:
    """Say what is missing before anything is measured."""
    if not PEER.exists():
        raise SystemExit(f"{PEER}: the peers' environment is not there. Run `make peers`, or pass --peers alone")
