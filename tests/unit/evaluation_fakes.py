"""Teachers, a judge and a scorer that answer by rule, for the tests of evaluation and reporting."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifact import write_rows
from potstill.records import Message, Prompt, Record
from potstill.sources import Data, EndpointModel, Inputs, LocalModel, Model
from potstill.stages.base import Work
from potstill.teachers.base import Reply, Request

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


class FakeTeacher:
    """Answers with what `speak` makes of a request, and remembers what it was asked."""

    def __init__(self, name: str, speak: Callable[[Request], str | Reply]) -> None:
        self.name, self.speak, self.asked = name, speak, list[Request]()

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in list(requests):
            self.asked.append(request)
            said = self.speak(request)
            yield said if isinstance(said, Reply) else Reply(said)


class House:
    """What `connect` opens in a test: teachers by name."""

    def __init__(self, *teachers: FakeTeacher) -> None:
        self.teachers = {teacher.name: teacher for teacher in teachers}

    @contextmanager
    def connect(self, model: Model, workspace: Path) -> Iterator[FakeTeacher]:
        yield self.teachers[model.name]


def questions(count: int, follow_up: bool = True) -> list[Prompt]:
    """Questions over the eight categories, `count` of them."""
    return [
        Prompt(
            id=f"q{i}",
            messages=(Message(role="user", content=f"Question number {i}?"),),
            follow_ups=(f"And after {i}?",) if follow_up else (),
            references=(f"reference {i}",) if CATEGORIES[i % 8] == "math" else (),
            category=CATEGORIES[i % 8],
        )
        for i in range(count)
    ]


def judge_by_length(request: Request) -> str:
    """Grades the last assistant answer of an MT-Bench prompt, or the one text of an aspect prompt, by its words."""
    prompt = request.messages[-1].content
    if prompt.startswith("# Aspect"):
        words = len(re.findall(r"<text 1>\n(.*?)\n</text 1>", prompt, re.DOTALL)[-1].split())
        return f"Text 1\nRating: {min(5, 1 + words)}\nRationale: it has {words} words."
    words = len(re.findall(r"<assistant>\n(.*?)\n</assistant>", prompt, re.DOTALL)[-1].split())
    return f"It has {words} words. Rating: [[{min(10, 1 + words)}]]"


def local(name: str, path: str = "nowhere") -> Model:
    return Model(name, LocalModel(path=path))


def endpoint(name: str) -> Model:
    return Model(name, EndpointModel(endpoint="http://nowhere/v1", name=name), "http://nowhere/v1")


def data(folder: Path, name: str, kind: str, rows: Iterable[Record]) -> Data:
    """Rows as a sealed artifact has them."""
    path = folder / name
    path.mkdir(parents=True)
    write_rows(path / "rows.jsonl", rows)
    return Data(name, kind, path)


def work(folder: Path, seed: int = 1) -> Work:
    path = folder / "draft"
    path.mkdir(parents=True, exist_ok=True)
    return Work(path, folder, seed)


def inputs(data: dict[str, Any], models: dict[str, Any]) -> Inputs:
    """Inputs whose single values are written without a tuple."""
    tuples = lambda given: {k: v if isinstance(v, tuple) else (v,) for k, v in given.items()}  # noqa: E731
    return Inputs(tuples(data), tuples(models), {})
