"""Dialogues: who plays the user, how they end, what is dropped, and that timing and kills change nothing."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user
from stub_server import Stub, completion, refusal, reply

from potstill.curation.user_turns import END_SIGN
from potstill.errors import DataError, TeacherError
from potstill.records import Message, Prompt
from potstill.sources import Data
from potstill.stages.converse import Converse

PROMPTS = [Prompt(id=f"p{i}", messages=user(f"q{i}"), category="c") for i in range(12)]


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def is_user(body: dict[str, Any]) -> bool:
    return last(body).startswith("[Conversation]")


def talker(body: dict[str, Any]) -> str:
    return f"and then, after {last(body).count('User: ')}?" if is_user(body) else f"re {last(body)}"


def converse(folder: Path, stub: Stub, prompts: list[Prompt] = PROMPTS, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"prompts": given(folder, "prompts", prompts, f"prompts{len(list(folder.iterdir()))}")}
    for name in fields.get("prompt_files", {}):
        data[f"prompt_files.{name}"] = Data(f"{name}.txt", "file", folder / f"{name}.txt")
    config = {"kind": "converse", "teacher": "m", "prompts": "p", **fields}
    models = {"teacher": endpoint(stub.base_url), "user": endpoint(stub.base_url, "player")}
    return make(folder, config, data, models)


def systems(stub: Stub) -> list[str]:
    """What each simulated user was told."""
    bodies = [json.loads(body) for body in stub.seen]
    return [body["messages"][0]["content"] for body in bodies if is_user(body)]


@pytest.mark.parametrize("fields", [{}, {"user": "player"}])
def test_timing_changes_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Replies that come in any order, from one model or two, leave the same bytes."""
    prompts = [Prompt(id=f"p{i}", messages=user(f"q{i}")) for i in range(60)]

    async def late(stub: Stub, body: dict[str, Any], before: int) -> Any:
        await asyncio.sleep(chance.random() * 0.02)

    made = []
    for seed in (1, 2):
        chance = random.Random(seed)
        with Stub(answer=talker, fault=late) as stub:
            made.append(converse(tmp_path / str(seed), stub, prompts, turns=[1, 4], **fields))
    assert made[0].files == made[1].files
    assert made[0].facts == made[1].facts
    assert [row.id for row in made[0].rows] == [prompt.id for prompt in prompts]


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    """The server breaks down in the middle; the run that follows pays for what is missing and ends the same."""
    prompts = [Prompt(id=f"p{i}", messages=user(f"q{i}")) for i in range(20)]
    with Stub(answer=talker) as stub:
        whole = converse(tmp_path / "whole", stub, prompts, turns=[3, 3])
        needed = stub.answered.total()

    async def dies(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(401, "gone") if stub.answered.total() >= 37 else None

    with Stub(answer=talker, fault=dies) as stub, pytest.raises(TeacherError):
        converse(tmp_path / "killed", stub, prompts, turns=[3, 3])
    paid = stub.answered.total()
    with Stub(answer=talker) as stub:
        again = converse(tmp_path / "killed", stub, prompts, turns=[3, 3])
    assert 37 <= paid < needed
    twice = stub.answered.total() - (needed - paid)
    assert 0 <= twice <= len(prompts), "no more twice than was in flight: one request a dialogue"
    assert again.files == whole.files


def test_a_user_may_end_a_dialogue_that_has_the_fewest_turns(tmp_path: Path) -> None:
    def leaves(body: dict[str, Any]) -> str:
        if is_user(body) and END_SIGN in last(body) and "User: q1\n" in last(body):
            return f"Thank you! {END_SIGN}"
        return talker(body)

    with Stub(answer=leaves) as stub:
        made = converse(tmp_path, stub, turns=[2, 4])
        asked = [last(json.loads(body)) for body in stub.seen if is_user(json.loads(body))]
    lengths = {row.id: sum(m.role == "assistant" for m in row.messages) for row in made.rows}
    assert lengths["p1"] == 2
    assert made.facts["ended_by_user"] == 1
    assert max(lengths.values()) == 4
    assert made.rows[1].messages[-1].role == "assistant"
    assert not any(END_SIGN in message.content for row in made.rows for message in row.messages)
    for text in asked:
        assert (END_SIGN in text) == (text.count("Assistant: ") >= 2), "told of it only once it may"
    with Stub(answer=leaves) as stub:
        made = converse(tmp_path, stub, turns=[2, 4], may_end=False)
    assert made.facts["ended_by_user"] == 0


def test_a_dialogue_ends_before_the_turn_of_which_nothing_came(tmp_path: Path) -> None:
    """With fewer than the fewest turns it is dropped; else it is kept as far as it came, and that is counted."""

    def falls_out(body: dict[str, Any]) -> str:
        if is_user(body):
            turn = last(body).count("User: ")
            if "User: q1\n" in last(body):
                return "You're welcome!" if turn == 1 else talker(body)
            if "User: q2\n" in last(body) and turn == 3:
                return "You're welcome!"
            if "User: q3\n" in last(body) and turn == 3:
                return "and then, after 1?"
        return talker(body)

    with Stub(answer=falls_out) as stub:
        made = converse(tmp_path, stub, turns=[3, 9])
    assert [(row.id, row.reason, row.detail) for row in made.dropped] == [("p1", "user_assistant", "You're welcome!")]
    lengths = {row.id: sum(m.role == "assistant" for m in row.messages) for row in made.rows}
    assert lengths["p2"] == lengths["p3"] == 3
    assert max(lengths.values()) > 4
    assert made.facts["shortened"] == {"user_assistant": 1, "user_repeats": 1}
    assert made.rows[1].messages[-1].role == "assistant"


def test_ask_again_brings_another_reply_where_one_is_of_no_use(tmp_path: Path) -> None:
    def at_first_not(body: dict[str, Any]) -> str:
        seed = random.Random(body["seed"])
        return "You're welcome!" if is_user(body) and seed.random() < 0.5 else talker(body)

    with Stub(answer=at_first_not) as stub:
        once = converse(tmp_path / "once", stub, turns=[2, 2])
        again = converse(tmp_path / "again", stub, turns=[2, 2], ask_again=20)
    assert 0 < once.facts["rows"] < 12
    assert once.facts["dropped"] == {"user_assistant": 12 - once.facts["rows"]}
    assert again.facts["rows"] == 12


def test_refusals_are_kept_or_end_the_dialogue(tmp_path: Path) -> None:
    def declines(body: dict[str, Any]) -> str:
        return "I'm sorry, but I can't help with that." if last(body) == "q4" else talker(body)

    with Stub(answer=declines) as stub:
        kept = converse(tmp_path / "kept", stub, turns=[1, 1])
        made = converse(tmp_path / "dropped", stub, turns=[1, 1], refusals="drop")
    assert kept.facts["rows"] == 12
    assert made.facts["dropped"] == {"answer_declined": 1}
    assert made.dropped[0].detail == "I'm sorry, but I can't help with that."


def test_how_replies_end_follows_the_policy_and_is_counted(tmp_path: Path) -> None:
    """Trap: HTTP 429 handled as a failure of the row; truncation (finish_reason: length) retried ten times at full
    price. A cut answer is asked for once, and dropped or kept as the recipe says."""

    async def ends(stub: Stub, body: dict[str, Any], before: int) -> Any:
        kinds = {
            "q1": completion("cut", "length"),
            "q2": completion(None, refusal="no"),
            "q3": completion("", "content_filter"),
            "q5": completion(" "),
        }
        return reply(kinds[last(body)]) if last(body) in kinds else None

    with Stub(answer=talker, fault=ends) as stub:
        made = converse(tmp_path / "drop", stub, turns=[1, 1])
        assert stub.seen.total() == 12
        kept = converse(tmp_path / "keep", stub, turns=[1, 1], truncated="keep")
    assert made.facts["answers"] == {"empty": 1, "filter": 1, "length": 1, "refusal": 1, "stop": 8}
    assert made.facts["dropped"] == {
        "answer_empty": 1, "answer_filter": 1, "answer_length": 1, "answer_refusal": 1,
    }  # fmt: skip
    assert [m.content for m in kept.rows[1].messages] == ["q1", "cut"]
    assert kept.facts["dropped"] == {"answer_empty": 1, "answer_filter": 1, "answer_refusal": 1}


def test_who_the_user_is(tmp_path: Path) -> None:
    """The prompt's own persona, else one of the stage's, drawn for each dialogue, else one of the domain's."""
    domain = {"name": "law", "personas": ["a judge"], "system": "Be exact.", "avoid": ["tax"], "language": "French"}
    prompts = [*PROMPTS[:8], Prompt(id="own", messages=user("mine"), persona="a locksmith")]
    with Stub(answer=talker) as stub:
        made = converse(tmp_path / "a", stub, prompts, turns=[2, 2], personas=["a baker", "a sailor"], domain=domain)
        told = systems(stub)
    assert sum("a locksmith" in text for text in told) == 1
    assert sum("a baker" in text for text in told) + sum("a sailor" in text for text in told) == 8
    assert any("a baker" in text for text in told)
    assert any("a sailor" in text for text in told)
    assert all("The field is law." in text and "tax" in text and "Write in French." in text for text in told)
    assert all(row.messages[0] == Message(role="system", content="Be exact.") for row in made.rows)
    with Stub(answer=talker) as stub:
        converse(tmp_path / "b", stub, prompts, turns=[2, 2], domain=domain, system="Mine.")
        told = systems(stub)
    assert sum("a judge" in text for text in told) == 8
    with Stub(answer=talker) as stub:
        converse(tmp_path / "c", stub, turns=[2, 2])
        told = systems(stub)
    assert not any("You are this person" in text or "field" in text for text in told)


def test_a_users_own_prompt_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "user_system.txt").write_text("Play {{ persona or 'somebody' }}.")
    with Stub(answer=talker) as stub:
        converse(tmp_path, stub, turns=[2, 2], prompt_files={"user_system": "user_system.txt"})
        assert set(systems(stub)) == {"Play somebody."}
    (tmp_path / "user_system.txt").write_text("Play {{ person }}.")
    with Stub(answer=talker) as stub, pytest.raises(DataError, match=r"user_system.txt: .*'person' is undefined"):
        converse(tmp_path, stub, turns=[2, 2], prompt_files={"user_system": "user_system.txt"})


def test_no_prompts_is_an_error(tmp_path: Path) -> None:
    with Stub() as stub, pytest.raises(DataError, match="there are no prompts"):
        converse(tmp_path, stub, [])


def test_an_unknown_prompt_file_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no prompt 'user_sytem' here"):
        Converse.model_validate(
            {"kind": "converse", "teacher": "t", "prompts": "p", "prompt_files": {"user_sytem": "x"}}
        )
