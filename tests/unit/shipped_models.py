"""Small models and a run of them, sealed as the pipeline does, for tests of what leaves the house."""

import json
from pathlib import Path
from typing import Any

import torch

from potstill.artifact import Artifact, digest, seal, write_json, write_rows
from potstill.records import Chat, Message
from potstill.sources import LocalModel, Model
from potstill.tokens.tokenization import train_tokenizer
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach, save_trained
from potstill.training.making import make_model
from potstill.training.models import load_model, save_model
from potstill.training.size import Size

CPU = torch.device("cpu")
TEXTS = ["the cat sat on the mat. don't ask 12 cats!\n\nhello there, hello world\n", "a dog  is\tnot 3.14 cats\n"] * 8


def tokenizer(vocabulary: int = 320) -> Any:
    return train_tokenizer(TEXTS, vocabulary)


def small(folder: Path, family: str = "llama", words: Any = None, seed: int = 0, **changes: Any) -> Path:
    """A random model with its tokenizer, its weights large enough for answers to differ."""
    words = tokenizer() if words is None else words
    size = Size(layers=2, width=64, heads=4, kv_heads=2, context=128, tied=changes.pop("tied", True))
    model = make_model(family, size, words, seed, CPU)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for name, value in changes.items():
        setattr(model.config, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, words, folder)
    return folder


def logits(model: Any, words: Any) -> torch.Tensor:
    ids = torch.tensor([words("the cat sat on a mat 12\n\ndog", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        out: torch.Tensor = model.eval()(input_ids=ids).logits
    return out


class Run:
    """A run's folder with stages that were sealed by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages: dict[str, Any] = {}
        (path / "artifacts").mkdir(parents=True)

    def add(self, name: str, kind: str, produces: str, fill: Any, inputs: Any = None, **head: Any) -> Artifact:
        """`fill` writes the files; inputs: by field, names of stages, or what a manifest says of a model."""
        key = digest([name, kind])
        draft = self.path / f"draft-{name}"
        draft.mkdir()
        fill(draft)
        read = {
            field: [one if isinstance(one, dict) else {"name": one, "key": digest([one, self.stages[one]["kind"]])}
                    for one in group]
            for field, group in (inputs or {}).items()
        }  # fmt: skip
        manifest = {
            "stage": name, "kind": kind, "version": 1, "produces": produces, "key": key, "seed": 1,
            "config": {"kind": kind, **head.pop("config", {})}, "inputs": read, "facts": head.pop("facts", {}),
        }  # fmt: skip
        folder = f"{name}-{key[:12]}"
        self.stages[name] = {"kind": kind, "produces": produces, "folder": folder}
        write_json(
            self.path / "run.json", {"recipe": "r", "source": "gone.yaml", "overrides": [], "stages": self.stages}
        )
        (self.path / name).symlink_to(Path("artifacts") / folder)
        return seal(draft, self.path / "artifacts" / folder, manifest)


def finished_run(path: Path, family: str = "llama") -> Run:
    """base → sft with an adapter, chats, scores and an audit of sft."""
    run = Run(path)
    words = tokenizer()
    base = run.add("base", "pretrain", "model", lambda folder: small(folder, family, words), config={"layers": 2})
    chats = [Chat(id="1", messages=(Message(role="user", content="cat?"), Message(role="assistant", content="sat")))]
    teacher = {"name": "teacher", "key": "t" * 64, "model": {"endpoint": True, "name": "big-model", "revision": ""}}
    run.add(
        "chats", "converse", "chats", lambda folder: write_rows(folder / "rows.jsonl", chats), {"teacher": [teacher]},
        facts={"rows": 1, "dropped": {"empty": 2}}, config={"max_tokens": 128},
    )  # fmt: skip
    run.add(
        "sft", "sft", "model", lambda folder: adapted(base.path, folder), {"model": ["base"], "data": ["chats"]},
        facts={"rows": 1}, config={"epochs": 2.0, "adapter": {"kind": "lora", "rank": 4}},
    )  # fmt: skip
    row = {"mean": 6.5, "low": 6.0, "high": 7.0, "n": 80, "coverage": 0.95}
    suites = {"chat": {"protocol": "mt_bench", "unit": "points", "models": {"sft": row, "base": {**row, "mean": 1.0}}}}
    judge = {"name": "judge", "key": "j" * 64, "model": {"endpoint": True, "name": "strict", "revision": "3"}}
    run.add(
        "scores", "evaluate", "scores", lambda f: (f / "scores.json").write_text(json.dumps({"suites": suites})),
        {"models": ["base", "sft"], "judge": [judge]},
    )  # fmt: skip
    dangers = {"o": {"title": "Overfitting", "verdicts": {"sft": "flagged"}, "sentence": "It went on too long."}}
    run.add(
        "checks", "audit", "audit", lambda f: (f / "audit.json").write_text(json.dumps({"dangers": dangers})),
        {"models": ["sft"], "scores": ["scores"]},
    )  # fmt: skip
    return run


def adapted(base: Path, folder: Path) -> None:
    """What a stage leaves that trained an adapter: the merged model, the adapter beside it."""
    source, words = Model("base", LocalModel(path=str(base))), tokenizer()
    model = attach(load_model(source, words, CPU), Adapter(rank=4, dropout=0), seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    save_trained(model, source, words, folder)
