"""Some steps of a stage, taken on this machine: how long they last, and what its process takes beyond its tensors.

They are taken in a process of their own that has a training process's libraries, threads and allocator. What a tally of
tensors cannot see is measured so: blocks that the allocator keeps between uses, code that oneDNN makes for each shape,
threads' buffers. It is `python -m potstill.estimates.trying`, which reads a pickled `Job` from its standard input and
answers with a line of JSON.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from potstill.estimates.models import tokenizer_of
from potstill.estimates.rows import renamed
from potstill.estimates.training import Trainer, Variant, signalled
from potstill.runs.launch import child_environment
from potstill.training import memory
from potstill.training.adapters import attach, hold_base
from potstill.training.batch import Item
from potstill.training.loop import Settings, learn
from potstill.training.memory import free_bytes
from potstill.training.optimizers import make_optimizers
from potstill.training.peak import PeakMemory
from potstill.training.rehearsal import Cast, Takes, build, company, layers_of, rehearse, scorer_of, with_layers
from potstill.training.team import Team

LAYERS = (8, 4, 2)
"""A deeper model is tried with so many of its layers, the most that are small enough."""
PARAMETERS = 400_000_000
"""Of what is tried at most: more takes too long, and too much memory."""
MICRO_BATCHES = 6
"""Of a step that is tried, at most. They differ in their shapes, as a stage's do: by that memory is broken up."""
STEPS = 2
ENOUGH_SECONDS = 20.0
"""Behind this no further step is begun."""
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Job:
    """What is tried: a stage, with few layers."""

    trainer: Trainer
    cast: Cast
    warm: Sequence[Item]
    """A micro-batch, not timed: its first computation of a kind imports and compiles."""
    steps: Sequence[Sequence[Item]]
    micro_tokens: int


@dataclass(frozen=True)
class Tried:
    """What came of it."""

    own_bytes: int
    """Resident before there is a model."""
    factor: float
    """Times as long as the roofline says."""
    kept: float
    """Bytes beyond the tensors', for each byte of tensors that come and go."""


def tried(trainer: Trainer, variant: Variant) -> Tried | None:
    """None where it cannot be: it would need more memory than there is, or takes too long, or fails."""
    cast = trainer.cast(trainer.config, variant.checkpointed)
    items = signalled(trainer.config, variant.items)
    small, takes = cast, Takes()
    for most in LAYERS:
        small = _cut(replace(cast, accumulates=variant.pieces > 1), most)
        takes = rehearse(small, items, trainer.play(trainer.config), trainer.pace.roof)
        if takes.parameters <= PARAMETERS:
            break
    if takes.parameters > PARAMETERS or takes.peak > memory.HEADROOM * free_bytes(torch.device("cpu")):
        return None
    tokens = sum(item.tokens for item in variant.items)
    each = min(variant.pieces, MICRO_BATCHES) * tokens
    draw = np.random.default_rng(0)
    steps = [signalled(trainer.config, _drawn(trainer, each, draw)) for _ in range(STEPS)]
    warm = signalled(trainer.config, _drawn(trainer, min(each, tokens), draw))
    answer = _asked(Job(trainer, small, warm, steps, variant.micro_tokens))
    if answer is None:
        return None
    seconds, own, grown = answer
    read = sum(item.tokens for step in steps[: len(seconds)] for item in step)
    said = takes.seconds * read / tokens + takes.step_seconds * len(seconds)
    return Tried(own, sum(seconds) / said, max(0.0, grown - takes.standing - takes.worst) / takes.worst)


def _cut(cast: Cast, most: int) -> Cast:
    """With so many layers at most, teachers likewise."""
    configs = [with_layers(one, min(most, layers_of(one))) for one in (cast.config, *cast.teachers)]
    return replace(cast, config=configs[0], teachers=tuple(configs[1:]))


def _drawn(trainer: Trainer, tokens: float, draw: np.random.Generator) -> list[Item]:
    """Rows of the stage by chance, of about so many tokens together."""
    items, found, size = trainer.lot.sample.items, list[Item](), 0
    while not found or size < tokens:
        item = items[int(draw.integers(len(items)))]
        if found and size + item.tokens / 2 > tokens:
            break
        found.append(renamed(item, f"row{len(found)}"))
        size += item.tokens
    return found


def _asked(job: Job) -> tuple[list[float], int, int] | None:
    """Seconds of each step, bytes before the model, bytes that it grew by."""
    command = [sys.executable, "-m", "potstill.estimates.trying"]
    try:
        done = subprocess.run(
            command, input=pickle.dumps(job), env=child_environment(()), capture_output=True, timeout=PATIENCE_SECONDS
        )
        found = json.loads(done.stdout.splitlines()[-1])
    # A class of the model's own code cannot be pickled; the child may be killed for its memory, or say nothing.
    except (pickle.PicklingError, AttributeError, TypeError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None
    return (found["seconds"], found["own_bytes"], found["grown_bytes"]) if done.returncode == 0 else None


def main() -> None:
    """In the child."""
    job = pickle.load(sys.stdin.buffer)  # its own parent wrote it
    from potstill import stages

    stages.stage(job.trainer.config.kind)  # imports what the stage does
    tokenizer = tokenizer_of(job.trainer.model)
    peak = PeakMemory(torch.device("cpu"))
    seconds = _steps(job, peak)
    del tokenizer
    sys.stdout.write(json.dumps({"seconds": seconds, "own_bytes": peak.before, "grown_bytes": peak.bytes}) + "\n")


def _steps(job: Job, peak: PeakMemory) -> list[float]:
    """Seconds of each, after one that is not counted."""
    cast, config = job.cast, job.trainer.config
    model = build(cast.config)
    if cast.adapter is not None:
        attach(model, cast.adapter, 0)
    scorer = scorer_of(model, cast)
    task = job.trainer.play(config)(scorer, company(cast, [layers_of(one) for one in cast.teachers]))
    settings: Settings = replace(cast.settings, micro_tokens=job.micro_tokens)
    optimizers = make_optimizers(scorer, settings.optimizer, 0.0, settings.weight_decay, settings.beta2)
    if cast.adapter is not None and cast.precision == torch.bfloat16:
        hold_base(model, cast.held)
    team = Team()
    team.prepare(scorer, optimizers)
    scorer.train()
    scorer.checkpoint(cast.checkpoint)
    found: list[float] = []
    with scorer.products():
        for number, items in enumerate((job.warm, *job.steps)):
            begun = time.perf_counter()
            learn(team, task, items, settings, number, 0.0)
            found.append(time.perf_counter() - begun)
            peak.look()
            if number and sum(found) > ENOUGH_SECONDS:
                break
    return found[1:]


if __name__ == "__main__":
    from potstill.estimates import trying  # the job was pickled as that module's

    trying.main()
