"""Self-Instruct: what is asked, how replies are read, what is kept, and that novelty is exactly ROUGE-L."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user
from hypothesis import example, settings
from hypothesis import given as holds
from hypothesis import strategies as st
from stub_server import Stub, completion, refusal, reply

from potstill.curation.novelty import Novelty, common_subsequence, rouge_l, words
from potstill.errors import DataError, TeacherError
from potstill.records import Prompt
from potstill.stages.self_instruct import parse_tasks

SEEDS = [Prompt(id=f"s{i}", messages=user(f"seed number {i} asks about subject {i * 7}")) for i in range(10)]
NOUNS = [
    "anchors",
    "bells",
    "canyons",
    "drums",
    "elms",
    "ferns",
    "gates",
    "hats",
    "inns",
    "jars",
    "kites",
    "lamps",
    "mills",
    "nets",
    "oaks",
    "pans",
    "quays",
    "reeds",
]
VERBS = [
    "admire",
    "build",
    "copy",
    "doubt",
    "explain",
    "find",
    "guard",
    "hold",
    "invent",
    "judge",
    "know",
    "learn",
    "mend",
    "name",
    "order",
    "paint",
]


def writer(body: dict[str, Any]) -> str:
    """A teacher that continues the list with tasks that depend on what it was asked."""
    text = body["messages"][-1]["content"]
    first = int(re.findall(r"^Task (\d+):", text, re.M)[-1])
    wanted = int(re.search(r"(\d+) new tasks", text)[1])  # type: ignore[index]
    chance = random.Random(json.dumps(body))
    made = [f"{chance.choice(VERBS)} {' '.join(chance.sample(NOUNS, 4))}" for _ in range(wanted)]
    return "\n".join(f"Task {first + i}: {task}" for i, task in enumerate(made))


def run(folder: Path, stub: Stub, count: int = 50, **fields: Any) -> Made:
    folder.mkdir(exist_ok=True)
    seeds = given(folder, "prompts", SEEDS, f"seeds{len(list(folder.iterdir()))}")
    config = {"kind": "self_instruct", "teacher": "m", "seeds": "s", "count": count, "round_size": 4, **fields}
    return make(folder, config, {"seeds": seeds}, {"teacher": endpoint(stub.base_url)})


def test_as_many_as_asked_for_all_different_and_the_same_again_anywhere(tmp_path: Path) -> None:
    with Stub(answer=writer) as stub:
        one, other = run(tmp_path / "one", stub), run(tmp_path / "other", stub)
        calls = stub.seen.total()
        again = run(tmp_path / "one", stub)
        assert stub.seen.total() == calls, "the journal had every reply"
    tasks = [row.messages[0].content for row in one.rows]
    assert len(set(tasks)) == len(tasks) == one.facts["rows"] == 50
    assert one.files == other.files == again.files
    assert one.facts == other.facts
    assert one.facts["short_by"] == 0


def test_examples_are_seeds_first_and_then_also_what_was_made(tmp_path: Path) -> None:
    with Stub(answer=writer) as stub:
        made = run(tmp_path, stub)
        asked = [json.loads(body)["messages"][-1]["content"] for body in stub.seen]
    kept = {row.messages[0].content for row in made.rows}
    seeds = {seed.messages[0].content for seed in SEEDS}
    for number, text in enumerate(asked):
        assert re.findall(r"^Task (\d+):", text, re.M) == [str(i) for i in range(1, 10)]
        assert text.endswith("Task 9:")
        shown = re.findall(r"^Task \d+: (.*)$", text, re.M)
        own = [task for task in shown if task in kept]
        assert len(own) + sum(task in seeds for task in shown) == len(shown) == 8
        assert len(own) == (0 if number < 4 else 2)


def test_drops_are_counted_by_reason(tmp_path: Path) -> None:
    tasks = [
        "Name a river that flows north",
        "name a river that flows NORTH!",
        "Go on",
        "Describe the image above in two sentences",
        "word " * 151,
        "Name a river that always flows north",
        "seed number 3 asks about subject 21 now",
    ]
    text = "\n".join(f"Task {9 + i}: {task}" for i, task in enumerate(tasks))
    with Stub(answer=lambda body: text) as stub:
        made = run(tmp_path, stub, count=1, max_requests=1)
    assert [row.messages[0].content for row in made.rows] == ["Name a river that flows north"]
    assert made.facts["dropped"] == {"beyond_count": 6}
    with Stub(answer=lambda body: text) as stub:
        made = run(tmp_path / "more", stub, count=5, max_requests=1)
    assert made.facts["dropped"] == {
        "duplicate": 1, "forbidden_word": 1, "not_novel": 2, "too_long": 1, "too_short": 1,
    }  # fmt: skip
    assert len(made.dropped) == 6
    assert (made.facts["rows"], made.facts["short_by"], made.facts["requests"]) == (1, 4, 1)


def test_failed_and_cut_replies_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def sometimes(stub: Stub, body: dict[str, Any], before: int) -> Any:
        number = next(numbers)
        if number % 4 == 1:
            return refusal(400, "not this one")
        if number % 4 == 2:
            return reply(completion(writer(body), "length"))
        return reply(completion("I would rather not.")) if number % 4 == 3 else None

    with Stub(answer=writer, fault=sometimes) as stub:
        made = run(tmp_path, stub, count=20)
    assert made.facts["rows"] == 20
    replies, dropped = made.facts["replies"], made.facts["dropped"]
    assert sum(replies.values()) == made.facts["requests"]
    assert dropped["reply_error"] == replies["error"] > 0
    assert dropped["cut_off"] == replies["length"] > 0
    assert dropped["unread"] > 0


def test_a_teacher_without_a_single_task_is_an_error(tmp_path: Path) -> None:
    with Stub(answer=lambda body: "No.") as stub, pytest.raises(TeacherError, match="none of 8 replies held a task"):
        run(tmp_path, stub, max_requests=8)


def test_too_few_seeds_are_an_error(tmp_path: Path) -> None:
    with Stub() as stub, pytest.raises(DataError, match="10 seed tasks; expected at least 11"):
        run(tmp_path, stub, from_seeds=11)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Task 9: one\nTask 10: two", ["one", "two"]),
        ("one\nTask 10: two", ["one", "two"]),
        ("Sure, here you are:\nTask 9: one", ["one"]),
        ("**Task 9:** one\n- Task 10. two\n### Task 11) three", ["one", "two", "three"]),
        ("Task 9: one\nwith a second line\n\nI hope that helps!", ["one with a second line"]),
        ("Task 9:\nTask 10: two", ["two"]),
        ("I'm sorry, I can't.", []),
        ("", []),
    ],
)
def test_how_a_reply_is_read(text: str, expected: list[str]) -> None:
    assert parse_tasks(text, 9) == expected


def brute_force(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for i, y in enumerate(b):
            row.append(before[i] + 1 if x == y else max(before[i + 1], row[i]))
    return row[-1]


WORDS = st.lists(st.sampled_from("abcde"), max_size=80)


@holds(WORDS, WORDS)
@example(["a"], ["a"])
def test_the_subsequence_is_that_of_brute_force(a: list[str], b: list[str]) -> None:
    assert common_subsequence(a, b) == brute_force(a, b)


def test_rouge_l_by_hand() -> None:
    assert rouge_l(words("The cat sat on a mat."), words("The cat lay on the mat.")) == pytest.approx(2 * 4 / 12)
    assert rouge_l([], ["a"]) == 0
    assert words("Don't stop, NOW!") == ["don", "t", "stop", "now"]


@settings(max_examples=60)
@holds(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), min_size=2, max_size=25),
    st.sampled_from([0.3, 0.5, 0.7, 0.95, 1.0]),
)
def test_novelty_decides_as_brute_force_does(texts: list[list[str]], threshold: float) -> None:
    known, kept = Novelty(threshold), list[list[str]]()
    for text in texts:
        near = [i for i, k in enumerate(kept) if 2 * brute_force(k, text) / (len(k) + len(text)) > threshold]
        assert known.nearest(" ".join(text)) == (near[0] if near else None)
        if not near:
            known.add(" ".join(text))
            kept.append(text)
