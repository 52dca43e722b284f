"""Reading everyone's formats: each shape means what its makers say, and each bad row is one clear line."""

import gzip
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.reading.files import read_lines
from potstill.reading.formats import examine, read_file
from potstill.reading.formats import sniff as sniff_lines
from potstill.reading.found import ShapeError, check_dialogue
from potstill.reading.shapes import SHAPES, recognise
from potstill.records import Answers, Chat, Feedback, Message, Pair, Prompt, Record, Text, ToolCall

U, A, S = "user", "assistant", "system"


def turns(*said: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message.model_validate({"role": role, "content": content}) for role, content in said)


def said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def sniff(path: Path) -> str:
    return sniff_lines(list(islice(read_lines(path), 20)), str(path))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row: Any, row_type: type[Record]) -> Any:
    (found,) = read_file(write(tmp_path / "rows.jsonl", row), row_type)
    return found


CONVERSATIONS = [
    ("messages", {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]}),
    (
        "messages",
        {"prompt": "q", "prompt_id": "7", "messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]},
    ),
    ("messages", {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}], "label": True}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("alpaca", {"instruction": "q", "input": "", "response": "a"}),
    ("seed_tasks", {"instruction": "q", "instances": [{"input": "", "output": "a"}], "is_classification": False}),
    ("problems", {"question": "q", "answer": "a"}),
    ("prompts", {"prompt": "q", "completion": "a"}),
    ("ultrachat", {"id": "0", "data": ["q", "a"]}),
    ("pairs", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
]


@pytest.mark.parametrize(("shape", "row"), CONVERSATIONS)
def test_each_shape_of_a_conversation(tmp_path: Path, shape: str, row: dict[str, Any]) -> None:
    assert sniff(write(tmp_path / "rows.jsonl", row)) == shape
    assert said(one(tmp_path, row, Chat).messages) == [(U, "q"), (A, "a")]
    assert said(one(tmp_path, row, Prompt).messages) == [(U, "q")]
    assert one(tmp_path, row, Text).text.split() == ["q", "a"]


PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {
        "prompt": [{"role": U, "content": "q"}],
        "chosen": [{"role": A, "content": "a"}],
        "rejected": [{"role": A, "content": "b"}],
    },
    {
        "prompt": "q",
        "chosen": [{"role": U, "content": "q"}, {"role": A, "content": "a"}],
        "rejected": [{"role": U, "content": "q"}, {"role": A, "content": "b"}],
        "messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}],
    },
    {"instruction": "q", "input": "", "output": "a", "chosen": "a", "rejected": "b"},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
]


@pytest.mark.parametrize("row", PAIRS)
def test_each_shape_of_a_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    pair = one(tmp_path, row, Pair)
    assert (said(pair.prompt), said(pair.chosen), said(pair.rejected)) == ([(U, "q")], [(A, "a")], [(A, "b")])


def test_a_pair_that_parts_early_keeps_what_follows_in_its_answers(tmp_path: Path) -> None:
    chosen = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c"
    pair = one(tmp_path, {"chosen": chosen, "rejected": "\n\nHuman: q\n\nAssistant: b"}, Pair)
    assert said(pair.prompt) == [(U, "q")]
    assert said(pair.chosen) == [(A, "a"), (U, "r"), (A, "c")]


def test_scores_ids_and_categories_come_along(tmp_path: Path) -> None:
    pair = one(tmp_path, PAIRS[0] | {"score_chosen": 8.5, "score_rejected": 6, "id": "x", "category": "math"}, Pair)
    assert (pair.chosen_score, pair.rejected_score, pair.id, pair.category) == (8.5, 6.0, "x", "math")
    assert one(tmp_path, PAIRS[0], Pair).id == "rows-0"


def test_a_question_of_several_turns_keeps_its_follow_ups_and_references(tmp_path: Path) -> None:
    row = {"question_id": 101, "category": "reasoning", "turns": ["q", "r"], "reference": ["a", "b"]}
    prompt = one(tmp_path, row, Prompt)
    assert (prompt.id, prompt.follow_ups, prompt.references, prompt.category) == (
        "101",
        ("r",),
        ("a", "b"),
        "reasoning",
    )


def test_a_chat_of_several_turns_as_a_prompt(tmp_path: Path) -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in [(S, "s"), (U, "q"), (A, "a"), (U, "r"), (A, "b")]]}
    prompt = one(tmp_path, row, Prompt)
    assert (said(prompt.messages), prompt.follow_ups) == ([(S, "s"), (U, "q")], ("r",))


def test_answers_of_several_models_with_their_ratings(tmp_path: Path) -> None:
    """TRAPS: UltraFeedback's overall score turned the worst answers into the best. It is not read at all."""
    annotations = {"honesty": {"Rating": "4", "Rationale": "fair"}, "helpfulness": {"Rating": "N/A", "Rationale": None}}
    row = {
        "instruction": "q",
        "models": ["one", "two"],
        "completions": [
            {"model": "one", "response": "a", "annotations": annotations, "overall_score": 10.0},
            {"model": "two", "response": "b", "annotations": {}},
        ],
    }
    answers = one(tmp_path, row, Answers)
    assert [(c.model, c.text) for c in answers.candidates] == [("one", "a"), ("two", "b")]
    assert {r.aspect: r.score for r in answers.candidates[0].ratings} == {"honesty": 4.0, "helpfulness": None}
    assert answers.candidates[1].ratings == ()


SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLING = {"name": "weather", "arguments": {"city": "Paris"}}
CALLED = (ToolCall(name="weather", arguments='{"city": "Paris"}'),)


def openai(**call: Any) -> dict[str, Any]:
    """A conversation with one call, as OpenAI's columns have it."""
    return {
        "messages": [
            {"role": U, "content": "q"},
            {"role": A, "content": None, **call},
            {"role": "tool", "content": "", "tool_call_id": "1", "name": "weather"},
            {"role": A, "content": "a", "tool_calls": None},
        ],
        "tools": [SCHEMA],
    }


TOOL_ROWS = [
    openai(tool_calls=[{"id": "1", "type": "function", "function": {**CALLING, "arguments": '{"city": "Paris"}'}}]),
    openai(tool_calls=[{"id": "1", "type": "function", "function": CALLING}]),
    openai(tool_calls=[{"id": "1", **CALLING}]),
    openai(function_call=CALLING),
    openai(tool_calls=[{"id": "1", **CALLING}]) | {"tools": json.dumps([SCHEMA["function"]])},
    openai(tool_calls=[{"id": "1", **CALLING}]) | {"tools": [json.dumps(SCHEMA)]},
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(CALLING)},
            {"from": "observation", "value": ""},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([SCHEMA["function"]]),
    },
]


@pytest.mark.parametrize("row", TOOL_ROWS)
def test_tools_and_their_calls_from_every_way_of_writing_them(tmp_path: Path, row: dict[str, Any]) -> None:
    chat = one(tmp_path, row, Chat)
    assert [json.loads(tool) for tool in chat.tools] == [SCHEMA]
    calls = [call.model_copy(update={"id": ""}) for message in chat.messages for call in message.tool_calls]
    assert tuple(calls) == CALLED
    assert said(chat.messages) == [(U, "q"), (A, ""), ("tool", ""), (A, "a")]
    assert one(tmp_path, json.loads(chat.to_line()), Chat).messages == chat.messages, "our own rows are read as well"
    assert hash(chat) == hash(Chat.model_validate_json(chat.to_line()))


def test_what_has_no_column_for_tools_is_told_of_them_in_words(tmp_path: Path) -> None:
    row = TOOL_ROWS[0]
    offer = json.dumps([SCHEMA])
    assert said(one(tmp_path, row, Prompt).messages) == [(S, offer), (U, "q")]
    assert one(tmp_path, row, Text).text == f"{offer}\n\nq\n\n{json.dumps(CALLING)}\n\n\n\na"
    with_system = {**row, "messages": [{"role": S, "content": "be kind"}, *row["messages"]]}
    assert said(one(tmp_path, with_system, Prompt).messages) == [(S, f"be kind\n\n{offer}"), (U, "q")]


def test_a_pair_offers_its_tools_to_both_answers(tmp_path: Path) -> None:
    chosen = [{"role": A, "content": "", "tool_calls": [CALLING]}]
    pair = one(tmp_path, {"prompt": "q", "chosen": chosen, "rejected": "b", "tools": [SCHEMA]}, Pair)
    assert pair.chosen[0].tool_calls == CALLED
    assert [json.loads(tool) for tool in pair.tools] == [SCHEMA]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": "hammer"}, "'tools' cannot be read; expected a list of JSON Schemas"),
        ({"tools": [7]}, "one of the 'tools' cannot be read"),
        ({"tools": ["{}"]}, "one of the 'tools' cannot be read"),
        ({"messages": [{"role": U, "content": "q", "tool_calls": [CALLING]}]}, "is 'user' and calls a tool"),
        (
            {"messages": [{"role": A, "content": "", "tool_calls": [{"name": 7}]}]},
            "a tool call of turn 1 of 'messages'",
        ),
        ({"messages": [{"role": A, "content": "", "tool_calls": [{"name": "f", "arguments": "7"}]}]}, "a tool call of"),
        ({"messages": [{"role": A, "content": "", "tool_calls": "f"}]}, "are text; expected a list"),
    ],
)
def test_tools_that_cannot_be_read_are_refused_in_words(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        one(tmp_path, TOOL_ROWS[0] | change, Chat)


def test_a_call_in_words_stays_words(tmp_path: Path) -> None:
    values = [("human", "q"), ("function_call", "{}"), ("observation", "42"), ("gpt", "a")]
    row = {"conversations": [{"from": f, "value": v} for f, v in values]}
    assert said(one(tmp_path, row, Chat).messages) == [(U, "q"), (A, "{}"), ("tool", "42"), (A, "a")]


LABELLED = [
    {"prompt": "q", "completion": "a", "label": False},
    {"prompt": [{"role": U, "content": "q"}], "completion": [{"role": A, "content": "a"}], "label": False},
    {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}], "label": False},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": False},
]


@pytest.mark.parametrize("row", LABELLED)
def test_each_shape_of_a_labelled_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    found = one(tmp_path, row, Feedback)
    assert (said(found.prompt), said(found.answer), found.desirable) == ([(U, "q")], [(A, "a")], False)
    assert one(tmp_path, row | {"label": True}, Feedback).desirable
    assert one(tmp_path, json.loads(found.to_line()), Feedback) == found, "our own rows are read as well"
    assert sniff(write(tmp_path / "own.jsonl", json.loads(found.to_line()))) == "feedback"
    with pytest.raises(DataError, match="labelled as an answer to avoid"):
        one(tmp_path, row, Chat)
    for label in (None, 1, "yes"):
        with pytest.raises(DataError, match=r"expected true or false|nothing says whether the answer is desirable"):
            one(tmp_path, row | {"label": label}, Feedback)


def test_a_labelled_answer_is_what_follows_on_the_last_user(tmp_path: Path) -> None:
    values = [(U, "q"), (A, "a"), (U, "r"), (A, "b")]
    row = {"messages": [{"role": role, "content": text} for role, text in values], "label": True}
    found = one(tmp_path, row, Feedback)
    assert (said(found.prompt), said(found.answer)) == (values[:3], values[3:])


@given(st.sampled_from([Text, Prompt, Chat, Pair]), st.data())
def test_our_own_records_come_back_as_they_were(row_type: type[Record], data: st.DataObject) -> None:
    words = st.text(min_size=1, max_size=20).filter(str.strip)
    user, answer = turns((U, data.draw(words))), turns((A, data.draw(words)))
    record: Record
    if row_type is Text:
        record = Text(id="i", text=data.draw(words))
    elif row_type is Prompt:
        record = Prompt(id="i", messages=user, follow_ups=(data.draw(words),), references=("r",), category="c")
    elif row_type is Chat:
        record = Chat(id="i", messages=user + answer, category="c")
    else:
        other = turns((A, answer[0].content + "."))
        record = Pair(id="i", prompt=user, chosen=answer, rejected=other, chosen_score=4.5, rejected_score=1.0)
    row = json.loads(record.to_line())
    shape = recognise([row])
    assert shape is not None
    assert shape.read(row, row_type, "default") == record


BAD_CHATS = [
    ([(U, "q")], "the conversation ends with a user turn; it must end with an assistant turn"),
    ([(A, "a"), (U, "q"), (A, "a")], "turn 1 of the conversation is an assistant turn; expected a user turn there"),
    ([(U, "q"), (U, "r"), (A, "a")], "turn 2 of the conversation is a user turn; expected an assistant turn there"),
    ([(U, "q"), (A, "a"), (A, "b")], "turn 3 of the conversation is an assistant turn; expected a user turn or a tool"),
    ([(U, "q"), (S, "s"), (A, "a")], "turn 2 of the conversation is a system turn; expected an assistant turn there"),
    ([(S, "s")], "the conversation ends with a system turn; it must end with an assistant turn"),
    ([], "the conversation has no messages; expected one or more"),
    ([(U, "q"), (A, " ")], "turn 2 of the conversation, an assistant turn, is empty; expected words"),
    (
        [("wizard", "q"), (A, "a")],
        "the role of turn 1 of 'messages' is 'wizard'; expected system, user, assistant or tool",
    ),
    ([([U], "q"), (A, "a")], "the role of turn 1 of 'messages' is ['user']; expected system, user, assistant or tool"),
    ([(U, None), (A, "a")], "the content of turn 1 of 'messages' is missing; expected text"),
    ([(U, ["q"]), (A, "a")], "the content of turn 1 of 'messages' is a list; expected text"),
    ([(U, 7), (A, "a")], "the content of turn 1 of 'messages' is a number; expected text"),
]


@pytest.mark.parametrize(("messages", "expected"), BAD_CHATS)
def test_a_bad_row_is_one_clear_line(tmp_path: Path, messages: list[tuple[str, Any]], expected: str) -> None:
    good = {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]}
    bad = {"messages": [{"role": role, "content": content} for role, content in messages]}
    path = write(tmp_path / "chats.jsonl", good, bad, good)
    with pytest.raises(DataError) as caught:
        list(read_file(path, Chat))
    assert str(caught.value).startswith(f"{path}:2: {expected}")
    assert str(caught.value).endswith("set on_bad_row: skip in an import stage.")
    assert [row.number for row in examine(path, Chat) if row.record] == [1, 3]


BAD_BYTES = [
    (b'{"text": "caf\xe9"}\n', "not UTF-8 (byte 0xe9 at position 13); expected UTF-8 text"),
    (b'{"text": "cut sh', "not JSON (Unterminated string starting at column 10); expected one whole JSON object"),
    (b'{"text": "a\\ud800"}\n', "it holds half a character (the lone surrogate \\ud800); expected whole ones"),
    (b'"just text"\n', "the row is text; expected an object with columns"),
    (b"[1]\n", "the row is a list; expected an object with columns"),
    (b'{"text": 7}\n', "'text' is a number; expected text"),
    (b'{"txt": "x"}\n', "the columns are txt; expected those of 'texts' rows"),
    (b"[" * 100_000, "JSON that is nested too deeply"),
    (b'{"text": ' + b"7" * 5000 + b"}", "a number of more than 4300 digits; expected shorter ones"),
]


@pytest.mark.parametrize("train", [0, 1, "false", "no", []])
def test_what_is_learnt_is_said_by_true_or_false(tmp_path: Path, train: Any) -> None:
    """Anything else would be taken for one of them in silence."""
    row = {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a", "train": train}]}
    with pytest.raises(DataError, match=r"'train' of turn 2 of 'messages' is .*; expected true or false"):
        list(read_file(write(tmp_path / "chats.jsonl", row), Chat))
    row["messages"][1]["train"] = None
    (chat,) = read_file(write(tmp_path / "chats.jsonl", row), Chat)
    assert chat.messages[1].train


@pytest.mark.parametrize(("raw", "expected"), BAD_BYTES)
def test_damaged_bytes_are_one_clear_line_too(tmp_path: Path, raw: bytes, expected: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + raw)
    with pytest.raises(DataError) as caught:
        list(read_file(path, Text))
    assert str(caught.value).startswith(f"{path}:3: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", ["1" + "0" * 400, "Infinity", "NaN"])
def test_a_score_beyond_all_numbers_is_one_clear_line(tmp_path: Path, score: str) -> None:
    ask = '{"id": "i", "messages": [{"role": "user", "content": "q"}]}'
    rated = f'{{"model": "m", "text": "t", "ratings": [{{"aspect": "a", "score": {score}}}]}}'
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": {ask}, "candidates": [{rated}]}}')
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'prompt' or 'candidates' cannot be read"):
        list(read_file(path, Answers))
    if score.isdecimal():
        path.write_text(f'{{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": {score}}}')
        with pytest.raises(
            DataError, match=r"rows.jsonl:1: 'chosen_score' is a number too large for a score; expected"
        ):
            list(read_file(path, Pair))


@pytest.mark.parametrize("at", [20, 0.3, 0.5, 0.9])
def test_damage_anywhere_in_a_compressed_file_is_one_clear_line(tmp_path: Path, at: float) -> None:
    rows = [{"text": f"text {i} {i * i} {i**3}"} for i in range(2000)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    damaged = {"rows.jsonl.gz": "the compressed file is damaged: "}
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        damaged["rows.parquet"] = "not a Parquet file that can be read: "
    for name, expected in damaged.items():
        raw = (tmp_path / name).read_bytes()
        start = at if isinstance(at, int) else int(len(raw) * at)
        flipped = bytes(byte ^ 255 for byte in raw[start : start + 400])
        (tmp_path / name).write_bytes(raw[:start] + flipped + raw[start + 400 :])
        with pytest.raises(DataError) as caught:
            list(examine(tmp_path / name, Text))  # rows that it garbled are no end to it
        assert str(caught.value).startswith(f"{tmp_path / name}: {expected}")
        assert str(caught.value).endswith("Fetch it again.")


def test_what_is_no_file_of_rows_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "rows.csv").write_text("a,b\n")
    (tmp_path / "rows.xls").write_text("a,b\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(b"not zipped")
    write(tmp_path / "strange.jsonl", {"foo": 1})
    for name, expected in {
        "absent.jsonl": "there is no such file",
        "empty.jsonl": "the file is empty; expected one row or more",
        "blank.jsonl": "the file is empty; expected one row or more",
        "none.json": "the file is empty; expected one row or more",
        "rows.csv": "the file is empty; expected one row or more",
        "rows.xls": "a file of an unknown kind",
        "rows.jsonl.gz": "the compressed file is damaged",
        "strange.jsonl": "no known shape of row has columns foo; expected such as messages",
    }.items():
        with pytest.raises(DataError, match=expected):
            list(read_file(tmp_path / name, Text))


@pytest.mark.parametrize("end", ['{"text": "b"', '{"text": nope}]', f'{{"text": {"7" * 5000}}}]'])
def test_a_damaged_list_is_told_by_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"text": "a"},\n\n' + end)
    rows = examine(path, Text)
    assert next(rows).record == Text(id="rows-0", text="a")
    with pytest.raises(DataError, match=rf"^{path}:4: "):
        next(rows)


def test_a_list_knows_the_lines_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "a\nb"}, {"text": ""}, {"text": "c"}], indent=2))
    assert [row.number for row in examine(path, Text)] == [2, 5, 8]


def test_a_message_of_two_megabytes_is_read(tmp_path: Path) -> None:
    long = "wörd " * 400_000
    row = {"messages": [{"role": U, "content": long}, {"role": A, "content": "a"}]}
    assert one(tmp_path, row, Chat).messages[0].content == long
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert next(read_file(tmp_path / "rows.json", Chat)).messages[0].content == long


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text("\ufeff" + lines)  # a byte order mark, as some editors leave
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "marked.json").write_text("\ufeff\n" + json.dumps(rows))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rows.txt").write_text("text 0\n\ntext 1\r\ntext 2")
    names = ["rows.jsonl", "rows.json", "marked.json", "lines.json", "rows.jsonl.gz", "rows.txt"]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        names.append("rows.parquet")
    for name in names:
        assert [row.text for row in read_file(tmp_path / name, Text)] == ["text 0", "text 1", "text 2"], name


COLUMNS = [
    "messages",
    "chosen",
    "rejected",
    "prompt",
    "text",
    "conversations",
    "instruction",
    "completions",
    "data",
    "turns",
    "question",
    "question_id",
    "answer",
    "candidates",
    "instances",
    "input",
    "label",
    "answer",
    "desirable",
    "tools",
    "id",
    "category",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["", U, A, S, "human", "gpt", "\n\nHuman: q"])
MESSAGES = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "model", "response", "tool_calls", "name"]), LEAVES
)
ROWS = st.dictionaries(
    st.sampled_from(COLUMNS), LEAVES | MESSAGES | st.lists(LEAVES | MESSAGES, max_size=3), min_size=2
)


@given(ROWS, st.sampled_from([Text, Prompt, Chat, Answers, Pair, Feedback]))
def test_whatever_a_row_holds_it_is_read_or_refused_in_words(row: Any, row_type: type[Record]) -> None:
    for shape in SHAPES.values():
        try:
            record = shape.read(row, row_type, "x")
        except ShapeError:
            continue
        assert isinstance(record, row_type)
        if isinstance(record, Chat):
            check_dialogue(record.messages, "assistant", "it")
