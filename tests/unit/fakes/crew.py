"""A model made by several workers, any of which can fail; what they tell each other goes through the run's folder."""

import json
import os
import signal
import time
from typing import Annotated, Literal

from potstill.artifact import write_json
from potstill.errors import ModelError, Stopped
from potstill.stages.base import Reference, Stage, StageConfig
from potstill.stages.training import TrainingConfig

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Crew(StageConfig):
    """Forge together."""

    kind: Literal["crew"]
    data: Annotated[str, Reference(("texts",))]
    """What it is made of."""
    sharding: Literal["none", "fsdp2"] = "none"
    """How it is shared."""
    seconds: float = 0.0
    """How long to take."""
    fail: Literal["", "known", "crash", "killed"] = ""
    """How the second worker is to end."""

    HOW = TrainingConfig.HOW


def run(config, inputs, work):
    """Note who is there, wait, and write something with a model's files."""
    rank = int(os.environ.get("RANK", 0)) if work.launched else 0
    told = {name: os.environ.get(name) for name in TOLD}
    write_json(work.workspace / f"told-{rank}", {**told, "pid": os.getpid()})
    print(f"worker {rank} was here")  # noqa: T201
    asked = work.workspace / "asked"
    with work.stoppable() as stopping:
        end = time.monotonic() + config.seconds
        while time.monotonic() < end:
            if rank == 1 and config.fail and (work.workspace / "told-0").exists():
                fail(config.fail)
            work.progress(1, 10, "steps")
            if stopping():
                asked.touch()
            if asked.exists():
                (work.workspace / f"checkpoint-{rank}").touch()
                while len(list(work.workspace.glob("checkpoint-*"))) < int(told["WORLD_SIZE"]):
                    time.sleep(0.01)  # as the loop does, which waits for everyone's
                raise Stopped("step 1 of 10", "training was asked to stop", "Run again to go on there")
            time.sleep(0.02)
    (work.path / "config.json").write_text(json.dumps({"architectures": ["Anvil"], "made_by": rank}))
    return {"workers": int(told["WORLD_SIZE"] or 1) if work.launched else 1}


def fail(how):
    """End this worker."""
    if how == "known":
        raise ModelError("the anvil", "it is cold", "Heat it")
    if how == "crash":
        raise ZeroDivisionError("hammer by nothing")
    os.kill(os.getpid(), signal.SIGKILL)


STAGE = Stage(config=Crew, produces="model", run=run, trains=True)
