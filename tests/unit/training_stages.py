"""A toy that pretrain, sft and dpo learn in seconds, and a bench that runs them in this process."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from engine import say

from potstill.artifact import write_rows
from potstill.records import Chat, Pair, Record, Text
from potstill.sources import Data, Inputs, LocalModel, Model
from potstill.stages.base import Work

ANIMALS = ["cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow"]
SOUNDS = ["purrs", "barks", "hoots", "yelps", "clucks", "hums", "clicks", "moos"]
TEXTS = [Text(id=str(n), text=f"the {ANIMALS[n % 8]} {SOUNDS[n % 8]} all day.") for n in range(64)]
CHATS = [
    Chat(id=str(n), messages=say(f"user: what does the {a} do? {n}", f"assistant: the {a} {s}."))
    for n, (a, s) in enumerate(zip(ANIMALS * 6, SOUNDS * 6, strict=True))
]
PAIRS = [
    Pair(
        id=str(n),
        prompt=say(f"user: what does the {a} do? {n}"),
        chosen=say(f"assistant: the {a} {SOUNDS[ANIMALS.index(a)]}."),
        rejected=say(f"assistant: the {a} {SOUNDS[(n + 3) % 8 if (n + 3) % 8 != n % 8 else 0]}, i think."),
    )
    for n, a in enumerate(ANIMALS * 6)
]
PRETRAIN: dict[str, Any] = {
    "data": "texts", "vocabulary": 300, "layers": 1, "width": 32, "heads": 2, "context": 128, "epochs": 8,
    "batch_tokens": 400, "learning_rate": 1e-2, "held_out": 8,
}  # fmt: skip
SFT: dict[str, Any] = {
    "model": "base", "data": "chats", "epochs": 12, "learning_rate": 1e-2, "global_batch": 8, "held_out": 6,
    "keep": "best",
}  # fmt: skip
DPO: dict[str, Any] = {
    "model": "sft", "data": "pairs", "epochs": 6, "learning_rate": 2e-3, "global_batch": 8, "held_out": 16,
}  # fmt: skip


class Bench:
    """Runs stages in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.warnings: list[str] = []
        self.told: list[str] = []
        """What stages said that they did, and "step" for each report of one."""

    def data(self, name: str, kind: str, rows: Sequence[Record]) -> Data:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        write_rows(folder / "rows.jsonl", rows)
        return Data(name, kind, folder)

    def run(
        self,
        stage: Any,
        out: str,
        config: dict[str, Any],
        data: Data | Sequence[Data],
        model: Model | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Any:
        """The model and the facts. What an earlier run of that name left is not finished: it is removed."""
        sources = (data,) if isinstance(data, Data) else tuple(data)
        inputs = Inputs({"data": sources}, {} if model is None else {"model": (model,)}, {})
        return self._run(stage, out, config, inputs, stopping)

    def _run(
        self,
        stage: Any,
        out: str,
        config: dict[str, Any],
        inputs: Inputs,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Any:
        folder = self.root / out
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind = stage.__name__.rsplit(".", 1)[-1]
        work = Work(
            folder, self.root, seed=3, name=out, warn=self.warnings.append, stoppable=lambda: nullcontext(stopping),
            doing=self.told.append, progress=lambda done, total, unit, **figures: self.told.append(f"{unit} {done}"),
        )  # fmt: skip
        facts = stage.STAGE.run(stage.STAGE.config(kind=kind, **config), inputs, work)
        return Model(out, LocalModel(path=str(folder))), facts

    def teach(
        self, stage: Any, out: str, config: dict[str, Any], data: Data, student: Model | None, teacher: Model | Data
    ) -> Any:
        """As `run`, for a stage that has a teacher: a model, or what was captured of one."""
        models = {} if student is None else {"model": (student,)}
        sources: dict[str, tuple[Data, ...]] = {"data": (data,)}
        if isinstance(teacher, Data):
            sources["teacher"] = (teacher,)
        else:
            models["teacher"] = (teacher,)
        return self._run(stage, out, config, Inputs(sources, models, {}))

    def hashes(self, out: str) -> dict[str, str]:
        """Of all that a stage left, by name."""
        files = [file for file in sorted((self.root / out).rglob("*")) if file.is_file()]
        return {
            file.relative_to(self.root / out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }


def curve(model: Model, split: str) -> list[dict[str, Any]]:
    lines = (Path(model.local.path) / "curves.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["split"] == split]
