"""From prompts to ratings: dialogues, answers of a pool, and a judge who may talk rubbish."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user
from stub_server import Stub, completion, refusal, reply

from potstill.errors import TeacherError
from potstill.records import Message, Prompt
from potstill.stages.converse import Converse

PROMPTS = [Prompt(id=f"p{i}", messages=user(f"q{i}"), category="c") for i in range(12)]


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def talker(body: dict[str, Any]) -> str:
    """Answers, and plays the user where it is shown a conversation."""
    if "[Conversation]" in last(body):
        return f"User: and then, after {last(body).count('User: ')}?"
    return f"re {last(body)}"


def converse(folder: Path, stub: Stub, prompts: list[Prompt], **fields: Any) -> Made:
    data = given(folder, "prompts", prompts, f"prompts{len(list(folder.iterdir()))}")
    config = {"kind": "converse", "teacher": "m", "prompts": "p", **fields}
    models = {"teacher": endpoint(stub.base_url), "user": endpoint(stub.base_url, "player")}
    return make(folder, config, {"prompts": data}, models)


def test_a_dialogue_of_teacher_and_simulated_user(tmp_path: Path) -> None:
    with Stub(answer=talker) as stub:
        made = converse(tmp_path, stub, PROMPTS, turns=[2, 2], user="player")
        asked = [json.loads(body) for body in stub.seen]
    assert [(m.role, m.content) for m in made.rows[3].messages] == [
        ("user", "q3"),
        ("assistant", "re q3"),
        ("user", "and then, after 1?"),
        ("assistant", "re and then, after 1?"),
    ]
    assert made.rows[3].category == "c"
    players = [body for body in asked if body["model"] == "player"]
    assert len(players) == 12
    assert [m["role"] for m in players[0]["messages"]] == ["system", "user"]
    shown = [last(body) for body in players]
    assert any(text.startswith("[Conversation]\nUser: q3\nAssistant: re q3\n[End of conversation]\n") for text in shown)


def test_a_prompts_own_follow_ups_come_first(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=user("q"), follow_ups=("own",))
    with Stub(answer=talker) as stub:
        (chat,) = converse(tmp_path, stub, [prompt], turns=[3, 3]).rows
    assert [m.content for m in chat.messages if m.role == "user"] == ["q", "own", "and then, after 2?"]


def test_lengths_are_drawn_by_seed_and_name(tmp_path: Path) -> None:
    prompts = [Prompt(id=f"p{i}", messages=user(f"q{i}")) for i in range(60)]
    with Stub(answer=talker) as stub:
        made = converse(tmp_path, stub, prompts, turns=[1, 3])
        some = converse(tmp_path, stub, prompts[10:20], turns=[1, 3])
    assert set(made.facts["assistant_turns"]) == {"1", "2", "3"}
    assert sum(made.facts["assistant_turns"].values()) == 60
    assert some.rows == made.rows[10:20]


def test_a_system_turn_stays_unless_the_prompt_has_one(tmp_path: Path) -> None:
    own = Prompt(id="own", messages=(Message(role="system", content="Mine."), *user("q")))
    with Stub(answer=talker) as stub:
        one, other = converse(tmp_path, stub, [PROMPTS[0], own], system="Be brief.", turns=[1, 1]).rows
    assert [m.content for m in one.messages] == ["Be brief.", "q0", "re q0"]
    assert [m.content for m in other.messages] == ["Mine.", "q", "re q"]


def test_a_turn_that_failed_drops_its_dialogue_with_the_reason(tmp_path: Path) -> None:
    async def some_fail(stub: Stub, body: dict[str, Any], before: int) -> Any:
        text = last(body)
        if "[Conversation]" in text:
            return reply(completion("Assistant: I am the assistant now.")) if "q4" in text else None
        kinds = {"q1": completion("cut", "length"), "q2": completion(""), "q3": completion(None, "content_filter")}
        return refusal(400, "too long") if text == "q0" else reply(kinds[text]) if text in kinds else None

    with Stub(answer=talker, fault=some_fail) as stub:
        made = converse(tmp_path, stub, PROMPTS, turns=[2, 2])
    assert {row.id: row.reason for row in made.dropped} == {
        "p0": "answer_error", "p1": "answer_length", "p2": "answer_empty", "p3": "answer_filter", "p4": "user_unread",
    }  # fmt: skip
    assert made.dropped[0].detail == "HTTP 400: too long"
    assert [row.id for row in made.rows] == [f"p{i}" for i in range(5, 12)]
    assert made.facts["dropped"] == {
        "answer_empty": 1,
        "answer_error": 1,
        "answer_filter": 1,
        "answer_length": 1,
        "user_unread": 1,
    }


def test_no_dialogue_at_all_is_an_error(tmp_path: Path) -> None:
    with (
        Stub(answer=lambda body: "") as stub,
        pytest.raises(TeacherError, match="no dialogue could be held"),
    ):
        converse(tmp_path, stub, PROMPTS)


def test_turns_must_be_a_range() -> None:
    for turns in ([0, 1], [3, 2]):
        with pytest.raises(ValueError, match="turns must be"):
            Converse.model_validate({"kind": "converse", "teacher": "t", "prompts": "p", "turns": turns})
