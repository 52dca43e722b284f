"""Stages that make prompts: how lists are read, filters, topics, kinds of text, material, one's own prompts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make
from hypothesis import given as holds
from hypothesis import strategies as st
from stub_server import Stub, completion, refusal, reply

from potstill import prompts as prompt_files
from potstill import stages
from potstill.errors import DataError, TeacherError
from potstill.records import Text
from potstill.sources import Data
from potstill.stages.asking import Asking
from potstill.stages.prompting import Sieve, read_list

VOCABULARY = ("some", "words", "of", "no", "weight", "12", "x")
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6).map(" ".join)


@holds(
    st.lists(WORDS, min_size=1, max_size=12), st.sampled_from(["{}. {}", "{}) {}", "**{}.** {}", "- {1}", "  {}: {}"])
)
def test_a_list_is_read_back_as_it_was_written(items: list[str], form: str) -> None:
    lines = [form.format(number, item) for number, item in enumerate(items, start=1)]
    assert read_list("Here they are:\n\n" + "\n".join(lines) + "\n\nI hope that helps!") == items


@holds(st.text())
def test_reading_a_list_never_fails(text: str) -> None:
    assert all(item and "\n" not in item for item in read_list(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. one\n   - a detail\n   - another\n2. two", ["one", "two"]),
        ("1. one\nthat goes on\n2. two", ["one that goes on", "two"]),
        ("1.\n2. two", ["two"]),
        ("In 1999. That was long ago", []),
        ("1999. was a year", []),
        ("No.", []),
        ("", []),
    ],
)
def test_what_is_an_item(text: str, expected: list[str]) -> None:
    assert read_list(text) == expected


def test_the_sieve_rule_by_rule() -> None:
    sieve = Sieve(0.7, 3, 6, ("image",))
    sieve.add("Name a river that flows north")
    for text, reason in (
        ("Go on", "too_short"),
        ("one two three four five six seven", "too_long"),
        ("Describe the image above", "forbidden_word"),
        ("Describe the imagery above", ""),
        ("name a river that flows NORTH!", "duplicate"),
        ("Name a river that flows south", "not_novel"),
        ("Which hill is the highest?", ""),
    ):
        assert sieve.fault(text)[0] == reason, text
    assert Sieve(None, 1, 9).fault("Name a river that flows north")[0] == ""


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def subject(text: str) -> str:
    return re.search(r"Topic: (.+)", text)[1]  # type: ignore[index]


def listing(*items: str) -> str:
    return "\n".join(f"{i}. {item}" for i, item in enumerate(items, start=1))


def teacher(body: dict[str, Any]) -> str:
    """Topics T1.., parts of them, people, names, and questions that tell all that they were asked with."""
    text = text_of(body)
    if text.startswith("# Topics"):
        path = re.search(r"the topic (.+?), each", text)
        return listing(*(f"{path[1].split(' > ')[-1]}{i}" if path else f"T{i}" for i in (1, 2, 2, 3, 4)))
    if text.startswith("# People"):
        return listing("a baker", "a sailor")
    if text.startswith("# Names"):
        return listing("Thebes", "Troy")
    if text.startswith("# Questions\n"):
        who = re.search(r"Who asks: (.+)", text)
        what = re.search(r"In particular: (.+)", text)
        known = f"{subject(text)} {what[1] if what else ''} {who[1] if who else ''}"
        return listing(*(f"word{body['seed']}x{i} about {known} for you" for i in range(3)))
    raise AssertionError(text)


def topics(folder: Path, stub: Stub, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    models = {"teacher": endpoint(stub.base_url)}
    return make(folder, {"kind": "topics", "teacher": "m", "novelty": None, **fields}, None, models)


def test_a_tree_is_grown_level_by_level(tmp_path: Path) -> None:
    with Stub(answer=teacher) as stub:
        made = topics(tmp_path, stub, branching=[3, 2, 2], questions=3)
        asked = [text_of(json.loads(body)) for body in stub.seen]
    assert (made.facts["topics"], made.facts["parts"]) == (3, 12)
    assert {subject(text) for text in asked if text.startswith("# Questions")} == {
        f"T{a} > T{a}{b} > T{a}{b}{c}" for a in (1, 2, 3) for b in (1, 2) for c in (1, 2)
    }
    assert made.facts["rows"] == 36
    assert {row.category for row in made.rows} == {"T1", "T2", "T3"}


def test_what_the_domain_names_is_not_asked_for(tmp_path: Path) -> None:
    domain = {"name": "law", "topics": {"contracts": ["formation", "breach"], "torts": []}, "avoid": ["tax"]}
    with Stub(answer=teacher) as stub:
        made = topics(tmp_path, stub, branching=[9, 3], domain=domain)
        asked = [text_of(json.loads(body)) for body in stub.seen]
    assert {subject(text) for text in asked if text.startswith("# Questions")} == {
        "contracts > formation", "contracts > breach", "torts > torts1", "torts > torts2", "torts > torts3",
    }  # fmt: skip
    assert sum(text.startswith("# Topics") for text in asked) == 1
    assert all("The field is law." in text and "tax" in text for text in asked)
    assert {row.category for row in made.rows} == {"contracts", "torts"}
    with Stub(answer=teacher) as stub:
        flat = topics(tmp_path / "flat", stub, branching=[9], domain=domain)
        assert flat.facts["parts"] == 3, "one level wished: torts stays whole"


def test_people_ask_about_things_that_have_a_name(tmp_path: Path) -> None:
    domain = {"name": "history", "topics": ["Egypt", "Greece"], "personas": ["a child"]}
    with Stub(answer=teacher) as stub:
        made = topics(tmp_path, stub, branching=[2], domain=domain, entities=2, personas=1, askers=2, questions=3)
    assert made.facts["entities"] == 4
    assert made.facts["rows"] == (2 + 4) * 2 * 3
    for row in made.rows:
        assert row.messages[0].content.endswith(f"{row.persona} for you")
    assert {row.persona for row in made.rows} == {"a child", "a baker"}
    assert sum("Troy" in row.messages[0].content for row in made.rows) == 12


def test_replies_of_no_use_are_dropped_and_counted(tmp_path: Path) -> None:
    """Every way in which a request for questions can fail, and the rest goes on."""

    async def odd(stub: Stub, body: dict[str, Any], before: int) -> Any:
        text = text_of(body)
        if not text.startswith("# Questions"):
            return None
        kinds = {"T1": reply(completion("No.")), "T2": refusal(400, "too long")}
        kinds["T3"] = reply(completion(teacher(body), "length"))
        return kinds.get(subject(text))

    with Stub(answer=teacher, fault=odd) as stub:
        made = topics(tmp_path, stub, branching=[4])
        assert made.facts["dropped"] == {"cut_off": 1, "reply_error": 1, "unread": 1}
        assert made.facts["rows"] == 2 + 3
        assert made.facts["replies"] == {"error": 1, "length": 1, "stop": 3}
        kept = topics(tmp_path / "keep", stub, branching=[4], truncated="keep")
    assert kept.facts["rows"] == 3 + 3
    with (
        Stub(answer=lambda body: "No.") as stub,
        pytest.raises(TeacherError, match=r"none of 2 replies held a question to keep \(2 unread\)"),
    ):
        topics(tmp_path / "none", stub, domain={"name": "law", "topics": ["torts"]}, branching=[1, 2])


def creation(folder: Path, stub: Stub, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    return make(folder, {"kind": "creation", "teacher": "m", **fields}, None, {"teacher": endpoint(stub.base_url)})


def author(body: dict[str, Any]) -> str:
    text = text_of(body)
    if text.startswith("# Writing tasks"):
        wanted = int(re.search(r"Write (\d+) instructions", text)[1])  # type: ignore[index]
        return listing(*(f"Write piece {body['seed']}a{i} number {i * 7} of it" for i in range(wanted)))
    said = re.search(r"<text 1>\n(.+)\n</text 1>", text)
    assert said is not None
    return f"{said[1]}, and make it {'long ' * (200 if 'number 14 ' in said[1] else 1)}"


def test_kinds_of_text_become_instructions_some_with_detail(tmp_path: Path) -> None:
    with Stub(answer=author) as stub:
        made = creation(tmp_path, stub, texts=["a poem", "a letter"], per_text=25, per_request=10, novelty=None)
        lists = [text_of(json.loads(body)) for body in stub.seen if "# Writing" in body]
    assert [sum(f"Write {n} instr" in text for text in lists) for n in (10, 5)] == [4, 2]
    long = made.facts["dropped"]["too_long"]
    assert made.facts["rows"] + long == 50
    assert 0 < long <= 6
    detailed = [row for row in made.rows if "and make it" in row.messages[0].content]
    assert made.facts["detailed"] == len(detailed)
    assert 30 <= len(detailed) + long <= 48, "about 80%"
    assert {row.category for row in made.rows} == {"a poem", "a letter"}
    with Stub(answer=author) as stub:
        plain = creation(tmp_path / "plain", stub, texts=["a poem"], per_text=5, detailed=0, novelty=None)
        assert plain.facts["detailed"] == 0
        assert stub.seen.total() == 1


TEXTS = [Text(id=f"t{i}", text=f"Text {i}. " + "It goes on. " * 30) for i in range(8)]


def material(folder: Path, stub: Stub, texts: list[Text] = TEXTS, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"texts": given(folder, "texts", texts, f"texts{len(list(folder.iterdir()))}")}
    for name in fields.get("prompt_files", {}):
        data[f"prompt_files.{name}"] = Data(f"{name}.txt", "file", folder / f"{name}.txt")
    config = {"kind": "material", "teacher": "m", "texts": "t", **fields}
    return make(folder, config, data, {"teacher": endpoint(stub.base_url)})


def reader(body: dict[str, Any]) -> str:
    return listing(*(f"Sum up part {i} of it in {i + 2} lines" for i in range(9)), "Sum up part 0 of it in 2 lines")


def test_a_text_stands_in_the_first_turn_with_one_question(tmp_path: Path) -> None:
    """At most so many questions each, whatever the teacher lists; a text that is too long is not cut."""
    with Stub(answer=reader) as stub:
        made = material(tmp_path, stub, [*TEXTS, Text(id="long", text="x" * 9000), Text(id="short", text="x")])
        assert stub.seen.total() == 8
    assert made.facts["dropped"] == {"beyond_count": 40, "text_too_long": 1, "text_too_short": 1}
    assert made.facts["rows"] == 40
    for row in made.rows:
        number, place = row.id[1:].split("-")
        parts = [part.strip() for part in row.messages[0].content.split("\n\n")]
        assert sorted(parts) == sorted(
            [TEXTS[int(number)].text.strip(), f"Sum up part {place} of it in {int(place) + 2} lines"]
        )
    with Stub(answer=reader) as stub, pytest.raises(DataError, match="no text has 1000 to 8000 characters"):
        material(tmp_path / "none", stub, min_characters=1000)


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    """Both what is asked and how the turn is laid out can be replaced by files."""
    (tmp_path / "material.txt").write_text("{{ wanted }} questions about: {{ text[:6] }}")
    (tmp_path / "material_turn.txt").write_text("{{ question }} <<{{ text }}>>")
    with Stub(answer=reader) as stub:
        files = {"material": "material.txt", "material_turn": "material_turn.txt"}
        made = material(tmp_path, stub, TEXTS[:1], prompt_files=files)
        assert [text_of(json.loads(body)) for body in stub.seen] == ["5 questions about: Text 0"]
    assert made.rows[0].messages[0].content.startswith("Sum up part 0 of it in 2 lines <<Text 0.")


def test_every_prompt_is_a_file() -> None:
    """So that whatever a stage asks can be read, and replaced under the name of its file."""
    files = {path.stem for path in Path(prompt_files.__file__).parent.glob("*.txt")}
    configs = [stages.stage(kind).config for kind in stages.MODULES]
    assert {name for config in configs if issubclass(config, Asking) for name in config.PROMPTS} <= files


@pytest.mark.parametrize(
    ("text", "says"),
    [(" \n", "this prompt is empty"), ("{{" + "(" * 5000 + ")" * 5000 + "}}", "its brackets are nested too deeply")],
)
def test_a_prompt_file_that_says_nothing_or_too_much_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=f"mine.txt: {says}"):
        prompt_files.compile_prompt(text, "mine.txt")
