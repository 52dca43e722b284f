"""What evaluations left behind: each model's answers, by suite, question and turn, as audits read them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Said:
    """One answer of a model to one turn of a question."""

    suite: str
    model: str
    question: str
    turn: int
    category: str
    user: str
    text: str | None
    """None: there is no answer."""
    score: float | None
    judgment: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        """What pairs it with another model's answer."""
        return self.question, self.turn, self.user


def read_said(path: Path) -> Iterator[Said]:
    """The answers in answers.jsonl of a stage that evaluates; suites in which nobody speaks have none."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield from _turns(json.loads(line))


def _turns(line: Mapping[str, Any]) -> Iterator[Said]:
    for number, turn in enumerate(line["turns"], start=1):
        if turn["user"] or turn["assistant"]:
            gone = not turn["assistant"] and bool(turn.get("reason"))
            yield Said(
                line["suite"],
                line["model"],
                line["id"],
                number,
                line["category"],
                turn["user"],
                None if gone else turn["assistant"],
                turn["score"],
                turn["judgment"],
            )


def once(answers: Iterable[Said]) -> list[Said]:
    """Each answer once, though several suites graded it: those of a question in the same words are one."""
    seen: dict[tuple[str, str, int, str, str | None], Said] = {}
    for said in answers:
        seen.setdefault((said.model, said.question, said.turn, said.user, said.text), said)
    return list(seen.values())


def paired(one: Sequence[Said], other: Sequence[Said]) -> list[tuple[Said, Said]]:
    """Answers of two models to the same turn, where both answered."""
    there = {said.place: said for said in other if said.text is not None}
    return [(said, there[said.place]) for said in one if said.text is not None and said.place in there]
