"""A model from texts, made in a child process that can fail in every way."""

import hashlib
import json
import os
import signal
import sys
import time
from typing import Annotated, Literal

from potstill.errors import ModelError
from potstill.records import Text
from potstill.stages.base import ModelName, Reference, Stage, StageConfig


class Smith(StageConfig):
    """Forge a model."""

    kind: Literal["smith"]
    data: Annotated[str | tuple[str, ...], Reference(("texts",))]
    """What it is made of."""
    model: ModelName | None = None
    """What it starts from."""
    heat: float = 1.0
    """How hot."""
    seconds: float = 0.0
    """How long to take."""
    fail: Literal["", "known", "crash", "killed", "full"] = ""
    """How to end."""


def run(config, inputs, work):
    """Write something with a model's files."""
    work.warn("the iron is cold")
    print("printed by the stage")  # noqa: T201
    rows = [row for data in inputs.data["data"] for row in data.rows(Text)]
    for step in range(10):
        work.progress(step + 1, 10, "steps", loss=1 / (step + 1))
        (work.path / "model.safetensors").write_bytes(b"cold" * step)
        (work.path / "model.safetensors").chmod(0o600)  # as safetensors leaves it
        (work.workspace / "heartbeat").write_text(str(os.getpid()))
        time.sleep(config.seconds / 10)
    if config.fail == "known":
        raise ModelError("the anvil", "it is cold", "Heat it")
    if config.fail == "crash":
        raise ZeroDivisionError("hammer by nothing")
    if config.fail == "full":
        raise OSError(28, "No space left on device")
    if config.fail == "killed":
        sys.stderr.write("going down\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    body = hashlib.sha256("".join(row.text for row in rows).encode() + str(config.heat).encode()).hexdigest()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (work.path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body[:24].encode())
    (work.path / "config.json").write_text(json.dumps({"architectures": ["Anvil"], "hidden_size": 3}))
    points = [{"step": i, "split": "train", "loss": 1 / (i + 1)} for i in range(40)]
    (work.path / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (work.workspace / "heartbeat").unlink()
    return {"steps": 10, "threads": bool(os.environ.get("OMP_NUM_THREADS"))}


STAGE = Stage(config=Smith, produces="model", run=run, trains=True)
