"""A run's folder as a run leaves it, made by hand: rows of several kinds, a family of models, scores."""

import json
import math
import shutil
from pathlib import Path

from potstill.artifact import seal, write_json
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Observation
from potstill.records import Answers, Candidate, Chat, Dropped, Message, Pair, Prompt, Rating, Record
from potstill.runs.workspace import Workspace

HOSTILE = (
    "<script>alert(1)</script>",
    "</div></details><img src=x onerror=alert(1)>",
    "\"'><a href='https://evil.example' onclick=\"x()\">",
    "{{7*7}} {% raw %} &lt;b&gt; \x1b[31m\u202eabc",
)
MODELS = ["base", "sft", "dpo"]
CATEGORIES = ["writing", "math", "stem", "coding"]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **more: object) -> Message:
    return Message(role="assistant", content=text, **more)


def rows() -> dict[str, list[Record]]:
    """By stage."""
    prompts = [user(f"Question {i}: what of {HOSTILE[i % 4]}?") for i in range(60)]
    chats = [
        Chat(
            id=f"chat-{i}",
            messages=(prompts[i], assistant(f"unlearnt {i}", train=False), user("And?"), assistant(f"learnt {i}")),
            category=CATEGORIES[i % 4],
        )
        for i in range(60)
    ]
    rated = [
        Answers(
            id=f"rated-{i}",
            prompt=Prompt(id=f"rated-{i}", messages=(prompts[i],), category=CATEGORIES[i % 4]),
            candidates=(
                Candidate(model="sage", text=f"Zebrafinch {i}" if i == 41 else f"wise {i}",
                          ratings=(Rating(aspect="helpfulness", score=5, rationale=HOSTILE[i % 4]),)),
                Candidate(model="forger", text=f"false {i}", finish="length" if i == 7 else "stop",
                          ratings=(Rating(aspect="helpfulness", score=1 + i % 3, rationale="wrong"),)),
            ),
        )
        for i in range(60)
    ]  # fmt: skip
    pairs = [
        Pair(id=f"pair-{i}", prompt=(prompts[i],), chosen=(assistant(f"good {i}"),), rejected=(assistant(f"bad {i}"),),
             chosen_score=5, rejected_score=2)
        for i in range(30)
    ]  # fmt: skip
    return {"chats": chats, "rated": rated, "pairs": pairs}


DROPPED = [Dropped(id=f"d{i}", reason=("tie", "hedge")[i % 2], detail=f"because {HOSTILE[i % 4]}") for i in range(25)]


def suite(means: dict[str, float]) -> dict[str, object]:
    observed = {
        name: [
            Observation(f"q{i}", "1", mean + 0.3 * math.sin(i * (1 + j)), category=CATEGORIES[i % 4]) for i in range(24)
        ]
        for j, (name, mean) in enumerate(means.items())
    }
    return SuiteResult(Measure("mt_bench", (1.0, 10.0), True, unit="points"), observed).to_json()


def answers() -> list[dict[str, object]]:
    return [
        {
            "suite": "chat", "model": model, "id": f"q{i}", "category": CATEGORIES[i % 4],
            "turns": [{"user": f"Asked {i}?", "assistant": f"{model} says {HOSTILE[i % 4]}",
                       "score": 2.0 + 2 * j + (i % 5) * (j == 2), "judgment": f"judged {HOSTILE[(i + 1) % 4]}"}],
        }
        for j, model in enumerate(MODELS)
        for i in range(24)
    ]  # fmt: skip


CELL = {"mean": 0.25, "low": 0.1, "high": 0.4, "share": True}
POINTS = [{"at": at, "mean": 0.2 * at, "low": 0.1 * at, "high": 0.3 * at} for at in (1, 2, 3)]
AUDIT = {
    "hypotheses": 2, "teacher": "sage", "base": "base",
    "dangers": {
        "diversity": {
            "title": "Loss of diversity", "question": "Is it?", "sentence": f"It is: {HOSTILE[0]}",
            "source": "Nobody 2020",
            "verdicts": {"sft": "flagged", "dpo": "clean"}, "columns": ["model", "share"], "rows": [["sft", CELL]],
            "notes": [HOSTILE[1]],
            "plot": {"up": "share", "across": "steps", "zero": None, "series": [{"name": "sft", "points": POINTS}]},
        }
    },
}  # fmt: skip


class Maker:
    """Seals stages into a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stages = folder, {}

    def seal(self, name: str, kind: str, produces: str, files: dict[str, object], reads=(), facts=None) -> Path:
        draft = self.folder / "work" / name
        draft.mkdir(parents=True)
        for file, value in files.items():
            if isinstance(value, Path):
                shutil.copy(value, draft / file)
            elif isinstance(value, list):
                lines = (one.to_line() if isinstance(one, Record) else json.dumps(one) + "\n" for one in value)
                (draft / file).write_text("".join(lines), encoding="utf-8")
            else:
                write_json(draft / file, value)
        key = f"{len(self.stages):x}{name.encode().hex()}".ljust(64, "0")[:64]
        inputs = {"data": [{"name": one, "key": "0" * 64} for one in reads]} if reads else {}
        folder = self.folder / "artifacts" / f"{name}-{key[:12]}"
        head = {"stage": name, "kind": kind, "version": 1, "produces": produces, "key": key, "seed": 1,
                "config": {"kind": kind, "data": list(reads), "beta": 0.1}, "inputs": inputs,
                "facts": facts or {}}  # fmt: skip
        seal(draft, folder, head)
        self.asked(name, kind, produces, folder.name, reads)
        return folder

    def asked(self, name: str, kind: str, produces: str, folder: str, reads=()) -> None:
        self.stages[name] = {"kind": kind, "produces": produces, "folder": folder, "reads": list(reads)}

    def finish(self) -> Workspace:
        described = {"recipe": "tiny", "source": "tiny.yaml", "overrides": [], "stages": self.stages}
        write_json(self.folder / "run.json", described)
        (self.folder / "logs").mkdir(exist_ok=True)
        return Workspace(self.folder)


def make_run(folder: Path) -> Workspace:
    """The whole of it; `waiting` is not sealed."""
    maker, made = Maker(folder), rows()
    counted = {"dropped": {"tie": 13, "hedge": 12}}
    maker.seal("chats", "converse", "chats", {"rows.jsonl": made["chats"], "dropped.jsonl": DROPPED}, (),
               {"rows": 60, **counted})  # fmt: skip
    maker.seal("rated", "judge", "ratings", {"rows.jsonl": made["rated"]}, ("chats",), {"rows": 60})
    maker.seal("pairs", "binarize", "pairs", {"rows.jsonl": made["pairs"]}, ("rated",), {"rows": 30})
    curves = [{"step": s, "split": "train", "loss": 3.0 - s / 9} for s in range(1, 9)]
    for seed in range(2):
        name = f"dpo[seed={seed}]"
        folder_of = maker.seal(f"dpo{seed}", "dpo", "model", {"curves.jsonl": curves}, ("pairs",), {"steps": 8})
        maker.stages[name] = {**maker.stages.pop(f"dpo{seed}"), "folder": folder_of.name}
    scores = {"models": MODELS, "suites": {"chat": suite({"base": 3.0, "sft": 6.0, "dpo": 7.0})}}
    maker.seal("scores", "evaluate", "scores", {"scores.json": scores, "answers.jsonl": answers()},
               ("dpo[seed=0]", "dpo[seed=1]"), {})  # fmt: skip
    maker.seal("checks", "audit", "audit", {"audit.json": AUDIT}, ("scores",), {})
    maker.asked("waiting", "report", "report", "waiting-0123456789ab", ("scores",))
    return maker.finish()


REPORT = {
    "title": "", "models": MODELS, "members": {}, "against": None, "claims": [], "published": None,
    "suites": {"chat": suite({"base": 3.0, "sft": 6.0, "dpo": 7.0})}, "footprint": {}, "answers": [], "failed": {},
    "curves": {"dpo": {"train": {"loss": [[1, 3.0], [2, 2.0]]}}}, "stages": {}, "controlled": [],
}  # fmt: skip
"""What a report of it holds."""
