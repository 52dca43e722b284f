"""Instances of tasks: how they are read from replies, the filters one by one, and how they become dialogues."""

from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user
from hypothesis import given as holds
from hypothesis import strategies as st
from stub_server import Stub, completion, reply

from potstill.curation.instances import Instance, instance_faults, read_choosing, read_instances
from potstill.errors import TeacherError
from potstill.records import Prompt

WORDS = st.lists(st.sampled_from(["some", "words", "of", "no", "weight"]), min_size=1, max_size=6).map(" ".join)


@holds(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), st.booleans())
def test_what_is_written_in_the_form_is_read_back(pairs: list[tuple[str, str]], label_first: bool) -> None:
    blocks = []
    for number, (given_, output) in enumerate(pairs, start=1):
        parts = [f"Input: {given_}", f"Label: {output}" if label_first else f"Output: {output}"]
        blocks.append("\n".join([f"Example {number}", *(reversed(parts) if label_first else parts)]))
    found = read_instances("\n\n".join(blocks), label_first=label_first)
    assert found == [Instance(given_, output) for given_, output in pairs]
    assert read_instances("\n\n".join(blocks), label_first=not label_first) == [], "the other form is another thing"


@holds(st.text(), st.booleans())
def test_reading_never_fails_and_never_invents(text: str, label_first: bool) -> None:
    for instance in read_instances(text, label_first=label_first):
        assert instance.input in text
        assert instance.output in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Input: none\nOutput: a", [Instance("", "a")]),
        ("Input: N/A\nOutput: a\nb", [Instance("", "a\nb")]),
        ("Input: <none>\nOutput: a", [Instance("", "a")]),
        ("**Example 1**\n**Input:** x\n**Output:** y", [Instance("x", "y")]),
        ("Here you are:\n\nExample 1\nInput: x\n\nOutput: y", [Instance("x", "y")]),
        ("Example 1\nInput: x\n\nExample 2\nInput: z\nOutput: y", [Instance("z", "y")]),
        ("Example 1\nInput: x\nOutput: y\nOutput: z", []),
        ("I would rather not.", []),
        ("", []),
    ],
)
def test_forms_of_replies(text: str, expected: list[Instance]) -> None:
    assert read_instances(text, label_first=False) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("yes", True), ("No.", False), ("Choosing: yes", True), ("**No**, because", False), ("Perhaps", None), ("", None),
     ("It is not one of choosing: no", None), ("yesterday", None)],
)  # fmt: skip
def test_what_is_not_clearly_said_is_unread(text: str, said: bool | None) -> None:
    assert read_choosing(text) is said


def test_each_filter() -> None:
    found = [
        Instance("x", "y"),
        Instance("X ", "y"),
        Instance("a", "b"),
        Instance("a", "c"),
        Instance("same", "Same"),
        Instance("u", ""),
        Instance("", "one"),
        Instance("", "two"),
    ]
    assert instance_faults(found, label_first=False) == [
        "", "repeated", "conflict", "conflict", "copy", "empty", "", "",
    ]  # fmt: skip
    assert instance_faults(found, label_first=True)[-2:] == ["empty", "empty"], "a label of nothing"


SEEDS = [Prompt(id=f"s{i}", messages=user(f"seed number {i} asks about subject {i * 7}")) for i in range(6)]
TASKS = [
    "Sort mail into spam or not",
    "Write a verse about the sea",
    "Name rivers of the north",
    "Tell good from bad news",
]


def teacher(body: dict[str, Any]) -> str:
    text = body["messages"][-1]["content"]
    if "continue the list below" in text:
        return "\n".join(f"Task {7 + i}: {task}" for i, task in enumerate(TASKS))
    if text.startswith("# Kind"):
        return "maybe" if "rivers" in text else "yes" if "spam" in text or "good" in text else "no"
    if text.startswith("# Examples for each label"):
        return "Example 1\nLabel: spam\nInput: Buy now\n\nExample 2\nLabel: fine\nInput: Dear aunt"
    return "Example 1\nInput: none\nOutput: Blue and wide"


def run(folder: Path, stub: Stub, **fields: Any) -> Made:
    folder.mkdir(exist_ok=True)
    seeds = given(folder, "prompts", SEEDS, f"seeds{len(list(folder.iterdir()))}")
    config = {"kind": "self_instruct", "teacher": "m", "seeds": "s", "count": 4, "round_size": 1, "from_generated": 0}
    return make(folder, {**config, **fields}, {"seeds": seeds}, {"teacher": endpoint(stub.base_url)})


def test_each_kind_of_task_in_its_own_order(tmp_path: Path) -> None:
    """Self-Instruct: tasks of choosing label first, others input first; what kind a task is must be said."""
    with Stub(answer=teacher) as stub:
        made = run(tmp_path, stub, instances="by_kind")
    assert made.produces == "chats"
    assert [(row.id, row.messages[0].content, row.messages[1].content) for row in made.rows] == [
        ("task-0-0", "Sort mail into spam or not\n\nBuy now", "spam"),
        ("task-0-1", "Sort mail into spam or not\n\nDear aunt", "fine"),
        ("task-1-0", "Write a verse about the sea", "Blue and wide"),
        ("task-3-0", "Tell good from bad news\n\nBuy now", "spam"),
        ("task-3-1", "Tell good from bad news\n\nDear aunt", "fine"),
    ]
    assert [(row.id, row.reason, row.detail) for row in made.dropped] == [("task-2", "kind_unread", "maybe")]
    assert made.facts["orders"] == {"input_first": 1, "label_first": 2, "unread": 1}
    assert made.facts["tasks"] == 4


def test_one_order_for_all_asks_no_kind(tmp_path: Path) -> None:
    with Stub(answer=teacher) as stub:
        made = run(tmp_path, stub, instances="input_first")
        assert stub.seen.total() == 1 + 4
    assert made.facts["rows"] == 4


def test_of_a_reply_that_was_cut_the_last_instance_is_left_out(tmp_path: Path) -> None:
    async def cut(stub: Stub, body: dict[str, Any], before: int) -> Any:
        text = body["messages"][-1]["content"]
        return reply(completion(teacher(body), "length")) if text.startswith("# Examples for") else None

    with Stub(answer=teacher, fault=cut) as stub:
        made = run(tmp_path / "drop", stub, instances="label_first")
        kept = run(tmp_path / "keep", stub, instances="label_first", truncated="keep")
    assert made.facts["dropped"] == {"cut_off": 4}
    assert {row.messages[1].content for row in made.rows} == {"spam"}
    assert kept.facts["rows"] == 8


def test_no_instance_at_all_is_an_error(tmp_path: Path) -> None:
    def lazy(body: dict[str, Any]) -> str:
        return teacher(body) if "continue the list" in body["messages"][-1]["content"] else "Well, no."

    with (
        Stub(answer=lazy) as stub,
        pytest.raises(TeacherError, match=r"held an instance to keep \(4 instances_unread\)"),
    ):
        run(tmp_path, stub, instances="input_first")
