"""The miniature's drills: what is true, what is held out, and teachers whose slips a checker can find."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.miniature.archive import LOOKUP, look_up
from potstill.miniature.drills import (
    DRILLS,
    SLOT,
    Story,
    drills,
    label_reply,
    problem_reply,
    read_story,
    reworded,
    tool_reply,
)
from potstill.miniature.mind import reply
from potstill.miniature.reading import understand
from potstill.miniature.server import MiniatureProcess
from potstill.miniature.tasks import DAYS, GOODS, PEOPLE
from potstill.miniature.world import COLOURS, world
from potstill.prompts import render_prompt
from potstill.sources import Inputs, MiniatureServer
from potstill.stages.base import Work
from potstill.stages.miniature_data import STAGE, Miniature

KNOWN = world(0, 150)
LABELS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")

STORIES = st.builds(
    Story,
    st.sampled_from(PEOPLE),
    st.sampled_from(GOODS),
    st.integers(1, 9),
    st.lists(st.integers(-9, 9).filter(bool), min_size=2, max_size=4).map(tuple),
)


@given(STORIES)
def test_a_story_is_read_as_it_was_told_and_derived_step_by_step(story: Story) -> None:
    assert read_story(story.text()) == story
    words, result = story.derivation()
    assert result == story.result == story.start + sum(story.steps)
    value = story.start
    for (left, sign, by, after), step in zip(
        re.findall(r"(-?\d+) (plus|minus) (\d+) is (-?\d+)\.", words), story.steps, strict=True
    ):
        assert int(left) == value
        assert int(by) * (1 if sign == "plus" else -1) == step
        value += step
        assert int(after) == value
    for at in range(len(story.steps)):
        assert story.derivation(2, at)[1] == result + 2, "a slip is carried on to the end"


@pytest.mark.parametrize("part", DRILLS)
def test_both_sides_have_nothing_in_common_and_truth_as_reference(part: str) -> None:
    train, test = (list(drills(KNOWN, part, held_out, 150)) for held_out in (False, True))
    assert len({asked for asked, _, _ in (*train, *test)}) == 300
    for asked, answer, _ in (*train, *test):
        if part == "labels":
            ask = understand(KNOWN, [asked])
            assert ask is not None
            assert ask.category == answer
        elif part == "problems":
            story = read_story(asked)
            assert story is not None
            assert str(story.result) == answer
        elif part in ("facts", "notes", "paired"):
            ask = understand(KNOWN, [asked.replace(SLOT, "Ada")])
            assert ask is not None
            assert ask.style == ask.persona == ""
            assert ask.task.statement() == answer
        else:
            assert answer == f"They are in the {look_up(KNOWN, *_entry(asked))} box."
    contents = [{_content(part, asked) for asked, _, _ in side} for side in (train, test)]
    assert contents[0].isdisjoint(contents[1])


def _content(part: str, asked: str) -> object:
    if part == "paired":  # whoever sells
        return asked.partition(SLOT)[2].partition(". ")[0]
    if part in ("labels", "facts", "notes"):
        ask = understand(KNOWN, [asked])
        assert ask is not None
        return ask.task.content()
    story = read_story(asked)
    return _entry(asked) if story is None else story.content()


def _entry(asked: str) -> tuple[str, str, str]:
    item, person, day = re.findall(r"the (\w+) that (\w+) left on (\w+)", asked)[0]
    return person, item, day


@pytest.mark.parametrize("number", range(3))
def test_reworded_questions_are_the_same_questions(number: int) -> None:
    for asked, answer, _ in drills(KNOWN, "facts", True, 50):
        said = reworded(asked, number)
        ask = understand(KNOWN, [said])
        assert said != asked
        assert ask is not None
        assert ask.task.statement() == answer


def test_reworded_is_for_facts_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reworded is for facts alone"):
        Miniature.model_validate({"kind": "miniature", "server": "world", "part": "notes", "reworded": True})


def test_the_archive_holds_an_entry_of_every_person_item_and_day() -> None:
    entries = [(person, item, day) for person in PEOPLE for item in GOODS for day in DAYS]
    boxes = Counter(look_up(KNOWN, *entry) for entry in entries)
    assert set(boxes) == set(COLOURS)
    assert max(boxes.values()) < len(entries) / 4, "no box is a good guess"
    assert boxes != Counter(look_up(world(1, 150), *entry) for entry in entries)
    for entry in (("Zoe", "eggs", "Monday"), ("Ada", "dragons", "Monday"), ("Ada", "eggs", "today")):
        with pytest.raises(LookupError):
            look_up(KNOWN, *entry)


def test_a_tutor_slips_as_often_as_is_said_and_its_slips_show_in_the_result() -> None:
    chance = random.Random(1)
    story = Story("Ada", "eggs", 5, (3, -2, 6))
    said = [problem_reply("tutor", story.text(), chance) or "" for _ in range(2000)]
    results = Counter(int(text.rsplit("Answer: ", 1)[1]) for text in said)
    assert abs(results[story.result] / 2000 - 0.75) < 0.04
    assert set(results) == {story.result + slip for slip in (-2, -1, 0, 1, 2)}
    assert problem_reply("sage", story.text(), chance) == (
        "<think>\n5 plus 3 is 8. 8 minus 2 is 6. 6 plus 6 is 12.\n</think>\nAnswer: 12"
    )
    asked = render_prompt("label", instruction="Name it.", labels=LABELS, schema="", text="What is 2 plus 2?")
    labels = Counter(label_reply(KNOWN, "tutor", asked, chance) for _ in range(2000))
    assert abs(labels["Label: math"] / 2000 - 0.85) < 0.04
    assert set(labels) == {f"Label: {label}" for label in LABELS}


@settings(max_examples=30)
@given(st.sampled_from(["What is 2 plus 2?", "Write one sentence about x.", "no question"]), st.integers(0, 99))
def test_other_requests_are_answered_as_ever(text: str, seed: int) -> None:
    """What stands in the middle of another request makes no drill of it."""
    assert label_reply(KNOWN, "tutor", text, random.Random(seed)) is None
    assert problem_reply("tutor", f"Say: {Story('Ada', 'eggs', 5, (1, 2)).text()}", random.Random(seed)) is None
    assert tool_reply("tutor", [{"role": "user", "content": text}], random.Random(seed)) is None
    assert reply(KNOWN, "tutor", [{"role": "user", "content": text}], 0.0, seed)


# Over the protocol.


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with MiniatureProcess(MiniatureServer(kind="miniature"), tmp_path_factory.mktemp("server") / "log") as server:
        yield server.base_url


def post(url: str, messages: list[dict[str, Any]], **more: Any) -> Any:
    tools = [{"type": "function", "function": LOOKUP}]
    body = {"model": "sage", "messages": messages, "tools": tools, "max_tokens": 200, **more}
    return httpx2.post(f"{url}/chat/completions", json=body)


def test_a_call_and_its_result_in_openais_protocol(url: str) -> None:
    asked = [{"role": "user", "content": "Ask the archive for the eggs that Ada left on Monday."}]
    choice = post(url, asked).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "lookup"
    assert json.loads(call["function"]["arguments"]) == {"person": "Ada", "item": "eggs", "day": "Monday"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "grey"}
    wish = {"role": "assistant", "content": None, "tool_calls": choice["message"]["tool_calls"]}
    choice = post(url, [*asked, wish, result]).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "They are in the grey box.")
    assert "tool_calls" not in post(url, asked, tools=[]).json()["choices"][0]["message"], "only where it is offered"
    lines = post(url, asked, stream=True).text
    assert '"tool_calls": [{"index": 0' in lines


@pytest.mark.parametrize("tools", [7, [7], [{"type": "function"}]])
def test_tools_that_are_none_are_refused(url: str, tools: Any) -> None:
    assert post(url, [{"role": "user", "content": "x"}], tools=tools).status_code == 400


def test_more_drills_than_there_are_is_an_error(tmp_path: Path) -> None:
    config = Miniature(kind="miniature", server="w", part="problems", count=100_000)
    inputs = Inputs({}, {}, {"server": MiniatureServer(kind="miniature")})
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match=r"different training drills of the part 'problems'; expected 100000"):
        STAGE.run(config, inputs, Work(tmp_path / "out", tmp_path, 1))
