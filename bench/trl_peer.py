"""TRL's side, in the peers' environment: its own trainers, `trainer.train()`, on the token ids that our side gets too.

Timed is from `on_train_begin` to `on_train_end`, and the precomputation of the reference where that is asked for; not
building the trainer, loading and preparing rows.
"""

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from datasets import Dataset, disable_progress_bars, load_from_disk
from rows import read
from serve import Job, Measured, serve, settle, versions
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

disable_progress_bars()


class Clock(TrainerCallback):
    """Seconds of the training loop."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        settle()
        self.begun, self.cpu_begun = time.perf_counter(), time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        settle()
        self.seconds = time.perf_counter() - self.begun
        self.cpu_seconds = time.process_time() - self.cpu_begun


class PairTrainer(DPOTrainer):
    """DPO as it is, but for rows that are token ids already, and with a clock around the reference's first pass."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, *args, **kwargs):
        settle()
        begun = time.perf_counter()
        done = super()._precompute_ref_logps(*args, **kwargs)
        settle()
        self.reference_seconds += time.perf_counter() - begun
        return done


def train(job: Job) -> Measured:
    """One run of a trainer. `options` are those of its config; what they do not name stays at TRL's default."""
    options = dict(job["options"])
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    per_device = options.setdefault("per_device_train_batch_size", min(8, job["global_batch"]))
    dtype = options.pop("dtype", None)
    named = {
        "output_dir": str(out),
        "max_length": job["max_length"],
        "num_train_epochs": job["epochs"],
        "learning_rate": job["learning_rate"],
        "gradient_accumulation_steps": max(1, job["global_batch"] // per_device),
        "lr_scheduler_type": "constant",
        "model_init_kwargs": None if dtype is None else {"dtype": dtype},
        "use_cpu": job["device"] == "cpu",
        "seed": 0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    clock = Clock()
    trainer = _maker(job["kind"])(job, {**named, **options}, clock)
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    first = steps[: len(steps) // job["epochs"]]
    reference = getattr(trainer, "reference_seconds", 0.0)
    shutil.rmtree(out, ignore_errors=True)
    return {
        "seconds": clock.seconds + reference,
        "reference_seconds": reference,
        "cpu_seconds": clock.cpu_seconds,
        "loss": fmean(row["loss"] for row in first),
        "last_loss": steps[-1]["loss"],
        "chosen_logp": fmean(row["logps/chosen"] for row in first) if job["kind"] == "dpo" else None,
        "facts": {"steps": trainer.state.global_step, "resolved": _resolved(trainer)},
    }


def _maker(kind: str):
    """Who makes the trainer. What distils is TRL's experimental part, which costs memory to import."""
    if kind == "distill":
        from distill_peer import distillation

        return distillation
    return {"dpo": _dpo, "sft": _sft}[kind]


def _dpo(job: Job, config: dict, clock: Clock) -> DPOTrainer:
    rows = [{f"{part}_ids": row[part] for part in ("prompt", "chosen", "rejected")} for row in read(job["rows"])]
    longest = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows)
    assert longest <= job["max_length"], "TRL would cut rows that our side trains on whole"
    return PairTrainer(
        job["model"],
        args=DPOConfig(beta=job["beta"], **config),
        train_dataset=_on_disk(rows, Path(job["workspace"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )


def _on_disk(rows: list[dict], folder: Path) -> Dataset:
    """TRL caches a precomputed reference beside the rows, if they are on disk: a sweep then computes it once."""
    if not folder.exists():
        Dataset.from_list(rows).save_to_disk(folder)
    return load_from_disk(folder)


def _sft(job: Job, config: dict, clock: Clock) -> SFTTrainer:
    rows = []
    for row in read(job["rows"]):
        ids = [index for turn in row["turns"] for index in turn]
        labels = [index if n % 2 else -100 for n, turn in enumerate(row["turns"]) for index in turn]
        assert len(ids) <= job["max_length"], "TRL would cut rows that our side trains on whole"
        rows.append({"input_ids": ids, "labels": labels})
    trainer = SFTTrainer(
        job["model"],
        args=SFTConfig(**config),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    kept = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert kept == sum(len(row["input_ids"]) for row in rows), "packing lost tokens"
    return trainer


def _resolved(trainer) -> dict:
    """What the options became, and what the defaults are here."""
    args = trainer.args
    found = {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "weights": str(trainer.model.dtype).removeprefix("torch."),
        "bf16": args.bf16,
        "gradient_checkpointing": args.gradient_checkpointing,
        "attention": trainer.model.config._attn_implementation,
        "optim": str(getattr(args.optim, "value", args.optim)),
    }
    for name in ("max_length", "precompute_ref_log_probs", "packing", "lmbda", "beta", "temperature"):
        if hasattr(args, name):
            found[name] = getattr(args, name)
    return json.loads(json.dumps(found))


def _versions(job: Job) -> Measured:
    liger = ["liger-kernel"] if find_spec("liger_kernel") else []
    return versions("trl", "torch", "transformers", "accelerate", "datasets", *liger)


if __name__ == "__main__":
    serve({"train": train, "versions": _versions})
