"""Our side: stages as a recipe runs them, on a folder of rows and models in Hugging Face layout.

The one file here that knows potstill. Timed is what trains, the reference's pass included; reading, tokenization,
loading and saving are not, on either side.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from cost import grouped, matrix_peak
from rows import body_tokens, read, scored_tokens, word
from serve import Job, Measured, serve, settle, versions
from torch.profiler import profile

from potstill.artifact import write_rows
from potstill.records import Chat, Message, Pair
from potstill.sources import Data, Inputs, LocalModel, Model
from potstill.stages import distill, dpo, sft
from potstill.stages.base import Work
from potstill.stages.session import Session

STAGES = {"distill": distill.STAGE, "dpo": dpo.STAGE, "sft": sft.STAGE}


def train(job: Job) -> Measured:
    """One run of a stage. `seconds` is all that is timed, `reference_seconds` the reference's part of it."""
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    given = read(job["rows"])
    stage = STAGES[job["kind"]]
    config = stage.config.model_validate(_config(job))
    model = Model("model", LocalModel(path=job["model"]))
    inputs = Inputs({"data": (_data(job["kind"], given, out),)}, {"model": (model,), **_teacher(job)}, {})
    seconds: dict[str, float] = {}
    cpu_seconds: list[float] = []
    profiler = profile(record_shapes=True) if job.get("profile") else None
    with _timed(seconds, cpu_seconds, profiler):
        facts = stage.run(config, inputs, Work(out, Path(job["workspace"]), seed=0, name=job["name"]))
    assert facts["tokens"] == sum(map(body_tokens, given)), "our side trained on other tokens"
    assert facts["learnt_tokens"] == sum(map(scored_tokens, given)), "our side learnt other tokens"
    curve = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    steps = [row for row in curve if row["split"] == "train"]
    first = steps[: len(steps) // job["epochs"]]  # behind it bfloat16 weights have learnt less than float32's
    shutil.rmtree(out)
    return {
        "seconds": sum(seconds.values()),
        "reference_seconds": seconds.get("reference", 0.0),
        "cpu_seconds": sum(cpu_seconds),
        "loss": fmean(row["loss"] for row in first),
        "last_loss": steps[-1]["loss"],
        "chosen_logp": fmean(row["chosen_logp"] for row in first) if job["kind"] == "dpo" else None,
        "facts": {name: facts[name] for name in ("device", "dtype", "layout", "steps") if name in facts},
        "profile": grouped(profiler, job["vocabulary"]) if profiler else None,
    }


def _config(job: Job) -> dict[str, Any]:
    shared = {"kind": job["kind"], "model": "model", "data": "data", "schedule": "constant", "warmup": 0.0}
    own = {name: job[name] for name in ("epochs", "learning_rate", "global_batch", "max_length", "device")}
    of_kind = {"dpo": {"beta": job["beta"]}, "distill": {"teacher": "teacher", "divergence": "jsd", "mix": job["beta"]}}
    return {**shared, **own, **of_kind.get(job["kind"], {})}


def _teacher(job: Job) -> dict[str, tuple[Model, ...]]:
    return {"teacher": (Model("teacher", LocalModel(path=job["teacher"])),)} if job["kind"] == "distill" else {}


def _data(kind: str, given: list[dict], out: Path) -> Data:
    folder = out.with_name(out.name + "-rows")
    folder.mkdir(exist_ok=True)
    if kind == "dpo":
        write_rows(folder / "rows.jsonl", (_pair(row) for row in given))
        return Data("data", "pairs", folder)
    write_rows(folder / "rows.jsonl", (_chat(row) for row in given))
    return Data("data", "chats", folder)


def _pair(row: dict) -> Pair:
    prompt, chosen, rejected = (
        (_message(role, row[part]),)
        for role, part in (("user", "prompt"), ("assistant", "chosen"), ("assistant", "rejected"))
    )
    return Pair(id=row["id"], prompt=prompt, chosen=chosen, rejected=rejected)


def _chat(row: dict) -> Chat:
    turns = enumerate(row["turns"])
    return Chat(id=row["id"], messages=tuple(_message(("user", "assistant")[n % 2], ids) for n, ids in turns))


def _message(role: str, ids: list[int]) -> Message:
    """The words that these ids are; the template writes the end token."""
    said = ids[:-1] if role == "assistant" else ids
    return Message.model_validate({"role": role, "content": " ".join(map(word, said))})


@contextmanager
def _timed(seconds: dict[str, float], cpu_seconds: list[float], profiler: Any) -> Iterator[None]:
    """Adds up the time inside the two parts of a session that compute; the profiler sees the training alone."""
    before = {"reference": Session.refer, "training": Session.train}

    def measured(phase: str) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            settle()
            begun, cpu_begun = time.perf_counter(), time.process_time()
            with profiler if profiler and phase == "training" else nullcontext():
                done = before[phase](*arguments)
            settle()
            # Held-out rows are no part of this, and there are none: their reference pass is an empty call.
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begun
            if phase == "training":
                cpu_seconds.append(time.process_time() - cpu_begun)
            return done

        return wrapper

    Session.refer, Session.train = measured("reference"), measured("training")  # type: ignore[method-assign]
    try:
        yield
    finally:
        Session.refer, Session.train = before["reference"], before["training"]  # type: ignore[method-assign]


def _versions(job: Job) -> Measured:
    return versions("potstill", "torch", "transformers")


if __name__ == "__main__":
    serve({"train": train, "peak": matrix_peak, "versions": _versions})
