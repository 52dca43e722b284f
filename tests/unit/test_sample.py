"""The sample stage: who answers what, under which principle, and what becomes of answers that are no use."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, assistant, endpoint, given, make, user
from stub_server import Stub, completion, refusal, reply

from potstill.errors import DataError, TeacherError
from potstill.prompts import render_prompt
from potstill.records import Answers, Candidate, Chat, Message, Prompt
from potstill.sources import Data, Inputs, LocalModel, Model
from potstill.stages import sample as stage
from potstill.stages.base import Work
from potstill.stages.sample import PRINCIPLES, ULTRAFEEDBACK, Principles, Sample, draw_models, told
from potstill.teachers.base import Reply

PROMPTS = [Prompt(id=f"p{i}", messages=user(f"q{i}"), category="c") for i in range(12)]


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


POOL = ["a", "b", "c", "d", "e"]


def sample(folder: Path, stub: Stub, rows: list[Any], kind: str = "prompts", **fields: Any) -> Made:
    data = given(folder, kind, rows, f"prompts{len(list(folder.iterdir()))}")
    config = {"kind": "sample", "models": "pool", "prompts": "p", "per_prompt": 3, **fields}
    return make(folder, config, {"prompts": data}, {"models": [endpoint(stub.base_url, name) for name in POOL]})


def by_model(body: dict[str, Any]) -> str:
    return f"{body['model']} on {last(body)}"


def test_each_prompt_is_answered_by_different_models_drawn_by_its_name(tmp_path: Path) -> None:
    with Stub(answer=by_model) as stub:
        made = sample(tmp_path, stub, PROMPTS)
        assert sample(tmp_path, stub, PROMPTS).files == made.files
        assert sample(tmp_path, stub, PROMPTS[4:7]).rows == made.rows[4:7]
        assert stub.seen.total() == 36
    for row in made.rows:
        models = [c.model for c in row.candidates]
        assert len(set(models)) == 3
        assert [c.text for c in row.candidates] == [f"{m} on {row.prompt.messages[0].content}" for m in models]
    assert sum(made.facts["answers"][name]["stop"] for name in POOL) == 36


def test_every_model_is_drawn_about_as_often() -> None:
    drawn = [place for i in range(1000) for place in draw_models(5, 3, 0, f"p{i}")]
    assert all(550 < drawn.count(place) < 650 for place in range(5))


def test_a_chat_is_answered_at_its_first_or_last_turn(tmp_path: Path) -> None:
    chat = Chat(id="c", messages=user("q") + assistant("a") + user("r") + assistant("b"))
    with Stub(answer=by_model) as stub:
        (first,) = sample(tmp_path, stub, [chat], "chats").rows
        (final,) = sample(tmp_path, stub, [chat], "chats", turn="last").rows
    assert [m.content for m in first.prompt.messages] == ["q"]
    assert [m.content for m in final.prompt.messages] == ["q", "a", "r"]


def test_failed_answers_stay_with_their_reason_and_a_prompt_needs_two(tmp_path: Path) -> None:
    async def a_and_b_fail(stub: Stub, body: dict[str, Any], before: int) -> Any:
        if last(body) in ("q0", "q1") and body["model"] != "e":
            return refusal(400, "not me")
        return reply(completion("cut", "length")) if body["model"] == "a" else None

    with Stub(answer=by_model, fault=a_and_b_fail) as stub:
        made = sample(tmp_path, stub, PROMPTS, per_prompt=5)
    assert [row.id for row in made.rows] == [f"p{i}" for i in range(2, 12)]
    assert [(row.id, row.reason) for row in made.dropped] == [("p0", "too_few_answers"), ("p1", "too_few_answers")]
    assert made.dropped[0].detail.startswith("1 of 5 usable. a: HTTP 400: not me")
    assert made.rows[0].candidates[0] == Candidate(
        model="a", text="cut", finish="length", reason="the answer was cut at max_tokens"
    )


def test_a_cut_answer_is_used_where_that_is_wished(tmp_path: Path) -> None:
    async def cut(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply(completion("cut", "length")) if body["model"] == "a" else None

    with Stub(answer=by_model, fault=cut) as stub:
        made = sample(tmp_path, stub, PROMPTS, truncated="keep", per_prompt=5)
    kept = made.rows[0].candidates[0]
    assert (kept.finish, kept.reason, kept.usable) == ("length", "", True)
    assert made.facts["useless_models"] == []


def test_a_model_that_says_nothing_of_use_is_told(tmp_path: Path) -> None:
    async def a_fails(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply(completion("")) if body["model"] == "a" else None

    warned: list[str] = []
    with Stub(answer=by_model, fault=a_fails) as stub:
        data = given(tmp_path, "prompts", PROMPTS)
        (tmp_path / "out").mkdir()
        config = Sample.model_validate({"kind": "sample", "models": "pool", "prompts": "p"})
        models = tuple(endpoint(stub.base_url, name) for name in POOL)
        work = Work(tmp_path / "out", tmp_path, 1, warn=warned.append)
        facts = stage.run(config, Inputs({"prompts": (data,)}, {"models": models}, {}), work)
    assert facts["useless_models"] == ["a"]
    assert set(facts["answers"]["a"]) == {"empty"}
    assert warned == ["nothing that a said can be used"]
    with Stub(answer=lambda body: "") as stub, pytest.raises(TeacherError, match="no prompt got two usable answers"):
        sample(tmp_path / "out", stub, PROMPTS)


def test_several_samples_of_a_model_differ_in_seed(tmp_path: Path) -> None:
    with Stub(answer=lambda body: f"{body['model']} {body['seed']}") as stub:
        made = sample(tmp_path, stub, PROMPTS, per_prompt=2, samples_per_model=3)
        once = sample(tmp_path, stub, PROMPTS, per_prompt=2)
        alone = sample(tmp_path, stub, PROMPTS, per_prompt=1, samples_per_model=2)
    for row, first in zip(made.rows, once.rows, strict=True):
        assert len({c.text for c in row.candidates}) == 6
        assert [c.model for c in row.candidates] == sorted([c.model for c in first.candidates] * 3)
        assert first.candidates == row.candidates[::3], "the first sample is that of one"
    assert len(alone.rows[0].candidates) == 2
    with pytest.raises(ValueError, match="a judge needs two answers"):
        Sample.model_validate({"kind": "sample", "models": "m", "prompts": "p", "per_prompt": 1})


def test_answers_that_are_the_same_are_told(tmp_path: Path) -> None:
    with Stub(answer=lambda body: "so" if body["model"] in "abc" else str(body["model"])) as stub:
        made = sample(tmp_path, stub, PROMPTS[:4], per_prompt=5)
    assert made.facts["repeated"] == {"answers": 8, "rows": 4}


def test_temperatures_by_model(tmp_path: Path) -> None:
    with Stub(answer=by_model) as stub:
        sample(tmp_path, stub, PROMPTS, per_prompt=5, temperatures={"a": 0.0, "b": 1.2})
        asked = Counter((body["model"], body["temperature"]) for body in map(json.loads, stub.seen))
        assert asked == {("a", 0): 12, ("b", 1.2): 12, ("c", 0.7): 12, ("d", 0.7): 12, ("e", 0.7): 12}


# Principles.


def test_a_principle_is_told_to_the_model_and_to_the_row_but_not_kept_in_the_prompt(tmp_path: Path) -> None:
    own = Prompt(id="own", messages=(Message(role="system", content="Be brief."), *user("q")))
    with Stub(answer=lambda body: str(body["messages"][0]["content"])) as stub:
        made = sample(tmp_path, stub, [*PROMPTS, own], principles="ultrafeedback", per_prompt=5)
        assert sample(tmp_path, stub, [*PROMPTS, own], principles="ultrafeedback", per_prompt=5).files == made.files
        assert sample(tmp_path, stub, PROMPTS[3:5], principles="ultrafeedback", per_prompt=5).rows == made.rows[3:5]
    wordings = {name: render_prompt(f"principle_{name}").strip().split("\n\n") for name in PRINCIPLES}
    for row, prompt in zip(made.rows, [*PROMPTS, own], strict=True):
        assert row.prompt == prompt
        for candidate in row.candidates:
            heard = candidate.text.removeprefix("Be brief.\n\n")
            assert heard in wordings[candidate.principle]
            assert (heard != candidate.text) is (row.id == "own")
    assert len({c.principle for row in made.rows for c in row.candidates}) > 1
    assert sum(made.facts["principles"].values()) == 65


def test_principles_are_drawn_with_their_weights() -> None:
    class Plain:
        render = staticmethod(render_prompt)

    drawing = Principles(ULTRAFEEDBACK, Plain(), 0)  # type: ignore[arg-type]
    drawn = Counter(drawing.draw(f"p{i}", "m", 0) for i in range(20_000))
    for name, weight in ULTRAFEEDBACK.items():
        by_words = [count for (found, _), count in drawn.items() if found == name]
        assert sum(by_words) / 20_000 == pytest.approx(weight, abs=0.01)
        assert len(by_words) == len(render_prompt(f"principle_{name}").strip().split("\n\n")) > 1
        assert max(by_words) < 1.4 * min(by_words)
    half = Principles({"honesty": 1.0, "none": 1.0, "truthfulness": 0.0}, Plain(), 0)  # type: ignore[arg-type]
    names = Counter(half.draw(f"p{i}", "m", 0)[0] for i in range(2000))
    assert set(names) == {"honesty", ""}
    assert 900 < names[""] < 1100


def test_one_prompt_has_other_principles_for_other_models_and_samples() -> None:
    class Plain:
        render = staticmethod(render_prompt)

    drawing = Principles(dict.fromkeys(PRINCIPLES, 1.0), Plain(), 0)  # type: ignore[arg-type]
    assert len({drawing.draw("p", f"m{i}", 0)[0] for i in range(40)}) == 4
    assert len({drawing.draw("p", "m", i)[0] for i in range(40)}) == 4


def test_principles_of_ones_own_are_a_file_with_a_wording_a_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Say it in rhyme.\n\nSay it in verse.\n")
    data = given(tmp_path, "prompts", PROMPTS)

    def run(stub: Stub) -> Made:
        config = {"kind": "sample", "models": "pool", "prompts": "p", "principles": {"honesty": 1}}
        models = [endpoint(stub.base_url, name) for name in POOL]
        inputs = {"prompts": data, "prompt_files.principle_honesty": Data("mine.txt", "file", file)}
        return make(tmp_path, config, inputs, {"models": models})

    with Stub(answer=lambda body: str(body["messages"][0]["content"])) as stub:
        made = run(stub)
        assert {c.text for row in made.rows for c in row.candidates} == {"Say it in rhyme.", "Say it in verse."}
        file.write_text("\n \n")
        with pytest.raises(DataError, match="this prompt is empty"):
            run(stub)


def test_principles_that_nobody_knows_or_that_weigh_nothing_are_refused() -> None:
    base = {"kind": "sample", "models": "m", "prompts": "p"}
    with pytest.raises(ValueError, match="there is no principle 'kindness'; expected of: helpfulness"):
        Sample.model_validate({**base, "principles": {"kindness": 1}})
    with pytest.raises(ValueError, match="come to nothing"):
        Sample.model_validate({**base, "principles": {"honesty": 0}})


def test_told_nothing_is_told_nothing() -> None:
    assert told(user("q"), "") == user("q")


# Size, and models at hand.


class Counting:
    """Answers lazily, and knows how far what was asked ran ahead of what was taken."""

    def __init__(self, name: str) -> None:
        self.name, self.ahead, self.furthest = name, 0, 0

    def complete(self, requests: Any) -> Iterator[Reply]:
        for request in requests:
            self.ahead += 1
            self.furthest = max(self.furthest, self.ahead)
            yield Reply(f"{self.name} on {request.messages[-1].content}", "stop")
            self.ahead -= 1


def test_rows_are_read_as_they_are_needed_and_one_model_at_hand_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, open_now, most = dict[str, Counting](), set[str](), 0

    @contextmanager
    def connect(model: Model, account: Any) -> Iterator[Counting]:
        nonlocal most
        teacher = teachers.setdefault(model.name, Counting(model.name))
        if isinstance(model.spec, LocalModel):
            open_now.add(model.name)
            most = max(most, len(open_now))
        yield teacher
        open_now.discard(model.name)

    monkeypatch.setattr(stage, "connect", connect)
    many = [Prompt(id=f"p{i}", messages=user(f"q{i}")) for i in range(400)]

    def run(*local: str) -> Made:
        models = [Model(n, LocalModel(path="x")) if n in local else endpoint("http://nobody", n) for n in POOL]
        data = given(tmp_path, "prompts", many, f"prompts{len(list(tmp_path.iterdir()))}")
        return make(
            tmp_path, {"kind": "sample", "models": "pool", "prompts": "p"}, {"prompts": data}, {"models": models}
        )

    endpoints = run()
    assert max(teacher.furthest for teacher in teachers.values()) <= 1
    mixed, at_hand = run("b", "d"), run(*POOL)
    assert most == 1
    assert endpoints.files == mixed.files == at_hand.files, "how they are asked leaves no trace"
    assert sorted(mixed.files) == ["dropped.jsonl", "rows.jsonl"], "the files of models at hand are gone"
    assert all(isinstance(row, Answers) and len(row.candidates) == 4 for row in endpoints.rows)
