"""Evol-Instruct: each rule of the eliminator, how lineages go on, and that every drop is counted."""

import asyncio
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, assistant, endpoint, given, make, user
from hypothesis import given as holds
from hypothesis import strategies as st
from stub_server import Stub, completion, reply

from potstill.curation.eliminator import copied_words, declines, read_equal, read_evolved, says_nothing
from potstill.errors import DataError, TeacherError
from potstill.records import Prompt

PROMPTS = [Prompt(id=f"p{i}", messages=user(f"Tell me about subject {i}."), category="c") for i in range(8)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why is the sky blue at noon?", "Why is the sky blue at noon?"),
        ("New text: Why?", "Why?"),
        ("**Rewritten prompt:** Why?", "Why?"),
        ('"Why is that?"', "Why is that?"),
        ('"Yes" or "no"', '"Yes" or "no"'),
        ("<text 1>\nWhy?\n</text 1>", "Why?"),
        ("Message: this is a mail header", "Message: this is a mail header"),
        ("", ""),
    ],
)
def test_how_a_rewriting_is_read(text: str, expected: str) -> None:
    assert read_evolved(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("equal", True), ("Equal.", True), ("Not equal", False), ("**not equal**", False), ("not-equal", False),
     ("different", False), ("They are equal", None), ("", None), ("equality", None)],
)  # fmt: skip
def test_what_a_judge_does_not_clearly_say_is_unread(text: str, said: bool | None) -> None:
    assert read_equal(text) is said


@holds(st.text())
def test_readers_never_fail(text: str) -> None:
    assert read_evolved(text) == read_evolved(text).strip()
    assert read_equal(text) in (True, False, None)
    says_nothing(text)
    declines(text)


def test_each_rule_by_itself() -> None:
    assert says_nothing("And then? ... of the, to it!")
    assert says_nothing("")
    assert not says_nothing("And then the fox?")
    assert not says_nothing("为什么?")
    assert copied_words("Answer the given prompt in French.", "Answer in French.") == "given prompt"
    assert copied_words("Mend the given prompt in French.", "Mend the given prompt.") == ""
    assert declines("I'm sorry, but I cannot help with that.")
    assert declines("Sorry! That is beyond me.")
    assert not declines("She was sorry. " + "And so it went on for many years in that house. " * 8)
    assert not declines("The sky is blue.")


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def shown(body: dict[str, Any]) -> list[str]:
    return re.findall(r"<text \d>\n(.*?)\n</text \d>", text_of(body), re.S)


def good(body: dict[str, Any]) -> str:
    """Adds a condition each time, finds the two different, and answers."""
    if text_of(body).startswith("# Rewrite"):
        return f"{shown(body)[0]} Mind case {random.Random(body['seed']).randrange(10**6)}."
    if text_of(body).startswith("# Same"):
        return "not equal"
    return "Here is what is known of it."


def evolve(folder: Path, stub: Stub, prompts: list[Prompt] = PROMPTS, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"prompts": given(folder, "prompts", prompts, f"prompts{len(list(folder.iterdir()))}")}
    models = {"teacher": endpoint(stub.base_url), "judge": endpoint(stub.base_url, "examiner")}
    return make(folder, {"kind": "evolve", "teacher": "m", "prompts": "p", **fields}, data, models)


def test_a_lineage_grows_generation_by_generation(tmp_path: Path) -> None:
    with Stub(answer=good) as stub:
        made = evolve(tmp_path, stub, generations=3, operations=["constraints"], judge="examiner")
        asked = [json.loads(body) for body in stub.seen]
    assert [row.id for row in made.rows[:4]] == [
        "p0", "p0+constraints", "p0+constraints+constraints", "p0+constraints+constraints+constraints",
    ]  # fmt: skip
    texts = [row.messages[0].content for row in made.rows[:4]]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert {row.category for row in made.rows} == {"c"}
    assert made.facts["operations"] == {"constraints": {"asked": 24, "kept": 24}}
    assert {body["model"] for body in asked if text_of(body).startswith("# Same")} == {"examiner"}
    assert made.facts["judgments"] == made.facts["answers"] == {"stop": 24}
    with Stub(answer=good) as stub:
        bare = evolve(tmp_path / "bare", stub, generations=1, originals=False, answer_check=False)
        assert bare.facts["rows"] == 8
        assert stub.seen.total() == 16


def test_every_operation_is_drawn_and_says_what_it_wants(tmp_path: Path) -> None:
    prompts = [Prompt(id=f"p{i}", messages=user(f"Tell me about subject {i}.")) for i in range(40)]
    with Stub(answer=good) as stub:
        made = evolve(tmp_path, stub, prompts, generations=2)
        wanted = {text_of(json.loads(body)).split("<text 1>")[0] for body in stub.seen}
    assert set(made.facts["operations"]) == {"constraints", "deepen", "concretise", "reasoning", "input", "broaden"}
    assert len({text for text in wanted if text.startswith("# Rewrite")}) == 6
    assert sum(count["asked"] for count in made.facts["operations"].values()) == 80


def test_each_failure_is_dropped_with_its_reason_and_its_parent_tried_again(tmp_path: Path) -> None:
    """Of nine prompts, one for each rule; the second generation rewrites the original once more."""
    first: set[str] = set()
    faults = {
        "0": "...", "1": "Answer the given prompt.", "2": "Tell me about subject 2.", "3": "Why?",
        "4": "word " * 301, "5": "", "6": "Tell me all about subject 6 now.", "7": "Tell me all about subject 7 now.",
    }  # fmt: skip

    def fails_once(body: dict[str, Any]) -> str:
        text = text_of(body)
        subject = re.search(r"subject (\d)", text)
        assert subject is not None
        number = subject[1]
        if text.startswith("# Rewrite") and number not in first:
            first.add(number)
            return faults.get(number, good(body))
        if text.startswith("# Same") and "all about subject 6" in text:
            return "equal"
        if text == "Tell me all about subject 7 now.":
            return "I'm sorry, I can't help with that."
        return good(body)

    with Stub(answer=fails_once) as stub:
        made = evolve(tmp_path, stub, generations=2, operations=["deepen"])
    assert {row.id: row.reason for row in made.dropped} == {
        "p0+deepen@1": "says_nothing", "p1+deepen@1": "copied_words", "p2+deepen@1": "unchanged",
        "p3+deepen@1": "says_nothing", "p4+deepen@1": "too_long", "p5+deepen@1": "reply_empty",
        "p6+deepen@1": "nothing_new", "p7+deepen@1": "answer_declines",
    }  # fmt: skip
    assert [row.id for row in made.rows] == [name for i in range(8) for name in (f"p{i}", f"p{i}+deepen")]
    assert made.facts["operations"] == {"deepen": {"asked": 16, "kept": 8}}


def test_a_judge_who_says_nothing_clear_and_what_is_said_twice(tmp_path: Path) -> None:
    def odd(body: dict[str, Any]) -> str:
        if text_of(body).startswith("# Rewrite"):
            return "Explain how tides come about near the coast."
        return "It depends." if text_of(body).startswith("# Same") and "subject 0" in text_of(body) else good(body)

    with Stub(answer=odd) as stub:
        made = evolve(tmp_path, stub, generations=1, operations=["broaden"])
    assert made.facts["dropped"] == {"duplicate": 6, "equality_unread": 1}
    assert made.facts["operations"] == {"broaden": {"asked": 8, "kept": 1}}


def test_a_cut_rewriting_follows_the_policy(tmp_path: Path) -> None:
    async def cut(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply(completion(good(body), "length")) if text_of(body).startswith("# Rewrite") else None

    with Stub(answer=good, fault=cut) as stub:
        with pytest.raises(TeacherError, match=r"none of 8 replies held .* \(8 reply_length"):
            evolve(tmp_path / "drop", stub, generations=1)
        assert evolve(tmp_path / "keep", stub, generations=1, truncated="keep").facts["rows"] == 16


def test_only_prompts_of_one_turn_are_rewritten(tmp_path: Path) -> None:
    long = Prompt(id="long", messages=user("One.") + assistant("Two.") + user("Three, and go on."))
    with Stub(answer=good) as stub:
        made = evolve(tmp_path, stub, [long, PROMPTS[0]], generations=1)
        assert [row.id for row in made.rows][0:2] == ["long", "p0"]
        assert made.facts["not_rewritten"] == 1
        with pytest.raises(DataError, match="no prompt has one user turn alone"):
            evolve(tmp_path / "none", stub, [long])


def test_timing_changes_nothing(tmp_path: Path) -> None:
    async def late(stub: Stub, body: dict[str, Any], before: int) -> Any:
        await asyncio.sleep(chance.random() * 0.02)

    made = []
    for seed in (1, 2):
        chance = random.Random(seed)
        with Stub(answer=good, fault=late) as stub:
            made.append(evolve(tmp_path / str(seed), stub, judge="examiner"))
    assert made[0].files == made[1].files
    assert made[0].facts == made[1].facts
