"""Accuracy by a checker: what counts as right, wrong and missing, with tools executed, and the paired interval."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_stages import assistant, user
from evaluation_fakes import FakeTeacher, House, data, endpoint, inputs, work
from pydantic import ValidationError

from potstill.errors import DataError
from potstill.evaluation.statistics import Observation, corrected, paired_difference, share_estimate
from potstill.records import Chat, Prompt, ToolCall
from potstill.reporting.findings import compare
from potstill.stages import evaluate
from potstill.stages.evaluate import Evaluate
from potstill.stages.suites import base
from potstill.teachers.base import Reply, Request

SUMS = [
    Prompt(
        id=f"q{i}", messages=user(f"What is {i} plus 1?"), references=(str(i + 1),), category="odd" if i % 2 else "even"
    )
    for i in range(20)
]


def run(folder: Path, house: House, rows: Any, monkeypatch: pytest.MonkeyPatch, **suite: Any) -> dict[str, Any]:
    monkeypatch.setattr(base, "connect", house.connect)
    kind = "chats" if isinstance(rows[0], Chat) else "prompts"
    fields = {"protocol": "exact", "questions": "q", **suite}
    config = Evaluate.model_validate({"kind": "evaluate", "models": list(house.teachers), "suites": {"s": fields}})
    given = inputs(
        {"suites.s.questions": data(folder, "q", kind, rows)},
        {"models": tuple(endpoint(name) for name in house.teachers)},
    )
    at = work(folder)
    facts = evaluate.run(config, given, at)
    lines = [json.loads(line) for line in (at.path / "answers.jsonl").read_text().splitlines()]
    return {"facts": facts, "lines": lines, **json.loads((at.path / "scores.json").read_text())}


def number(request: Request) -> int:
    return int(request.messages[0].content.split()[2])


def test_accuracy_and_the_paired_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = FakeTeacher("poor", lambda request: str(number(request) + (1 if number(request) < 5 else 0)))
    good = FakeTeacher("good", lambda r: f"<think>{number(r)} and one</think>Answer: {number(r) + (number(r) != 3)}")
    found = run(tmp_path, House(poor, good), SUMS, monkeypatch, checker="number")
    suite = found["suites"]["s"]
    right = {"poor": [i < 5 for i in range(20)], "good": [i != 3 for i in range(20)]}
    seen = {m: [Observation(f"q{i}", "1", float(v)) for i, v in enumerate(values)] for m, values in right.items()}
    assert suite["protocol"] == "exact"
    assert suite["models"] == {m: share_estimate(rows).to_json() for m, rows in seen.items()}
    assert suite["paired"]["good-poor"] == corrected({"": paired_difference(seen["good"], seen["poor"])})[""].to_json()
    assert suite["paired"]["good-poor"]["mean"] == (19 - 5) / 20
    assert suite["categories"]["odd"]["good"]["mean"] == 0.9
    assert found["facts"]["suites"]["s"] == {"questions": 20, "scored": 40}
    assert all(request.temperature == 0 for request in good.asked), "greedy: nothing is drawn"
    finding = compare("s", suite, "good", "poor")
    assert finding is not None
    assert "95.0% (76.4% to 99.1%) against 25.0% (11.2% to 46.9%) of questions" in finding.text
    assert [line["turns"][0]["judgment"] for line in found["lines"] if line["id"] == "q3"] == ["right", "wrong"]


def test_what_gives_no_answer_is_not_right_and_what_never_came_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: "A failed parse stored as 0": here it *is* the model under test that failed to answer, so 0 is the truth,
    and the reason stands beside it; a reply that the server never gave lowers the coverage instead."""
    replies = [Reply("1"), Reply("who knows"), Reply("3, I thi", "length", "cut"), Reply("", "error", "HTTP 500")]
    model = FakeTeacher("m", lambda request: replies[number(request)])
    found = run(tmp_path, House(model), SUMS[:4], monkeypatch, checker="number")
    estimate = found["suites"]["s"]["models"]["m"]
    assert (estimate["mean"], estimate["n"], estimate["coverage"]) == (1 / 3, 3, 0.75)
    turns = [line["turns"][0] for line in found["lines"]]
    assert [(turn["score"], turn["judgment"]) for turn in turns] == [
        (1.0, "right"),
        (0.0, "unread"),
        (0.0, "length"),
        (None, ""),
    ]
    assert turns[3]["reason"] == "HTTP 500"


def test_tools_are_executed_for_the_model_under_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(request: Request) -> Reply:
        results = [m.content for m in request.messages if m.role == "tool"]
        if results:
            return Reply(f"It is {results[-1]}.")
        call = ToolCall(name="calculator", arguments={"expression": f"{number(request)} + 1"})
        return Reply("", tool_calls=(call,))

    user_, loner = FakeTeacher("user", speak), FakeTeacher("loner", lambda request: "It is 9.")
    found = run(tmp_path, House(loner, user_), SUMS, monkeypatch, checker="number", tools=["calculator"])
    means = {name: row["mean"] for name, row in found["suites"]["s"]["models"].items()}
    assert means == {"loner": 0.05, "user": 1.0}
    assert found["suites"]["s"]["paired"]["user-loner"]["low"] > 0
    line = next(line for line in found["lines"] if line["model"] == "user")
    assert line["turns"][0]["judgment"] == 'right; calculator {"expression": "0 + 1"}'
    assert line["turns"][0]["assistant"] == "It is 1."


def test_of_chats_the_last_answer_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(
        id="c", messages=(*user("a"), *assistant("b"), *user("c"), *assistant("Text 1\nRating: 5\nRationale: x"))
    )
    model = FakeTeacher("m", lambda request: "Rating: 5" if len(request.messages) == 3 else "?")
    found = run(tmp_path, House(model), [chat], monkeypatch, checker="rating")
    assert found["suites"]["s"]["models"]["m"]["mean"] == 1.0


def test_questions_whose_reference_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*SUMS[:1], Prompt(id="bare", messages=user("why"))]
    with pytest.raises(DataError, match="can read no reference of 'bare'"):
        run(tmp_path, House(FakeTeacher("m", lambda request: "1")), rows, monkeypatch, checker="number")


def test_a_checker_or_tool_that_is_none_is_refused() -> None:
    for suite in ({"checker": "nmuber"}, {"tools": ["hammer"]}, {"tools": ["lookup"]}):
        fields = {"protocol": "exact", "questions": "q", **suite}
        with pytest.raises(ValidationError):
            Evaluate.model_validate({"kind": "evaluate", "models": ["m"], "suites": {"s": fields}})
