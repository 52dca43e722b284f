"""Tools: schemas from typed functions, calls held against them and really executed, calls read from text."""

import contextlib
import json
import operator
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from data_stages import endpoint, given, user
from evaluation_fakes import FakeTeacher
from hypothesis import given as holds
from hypothesis import strategies as st
from pydantic import ValidationError
from stub_server import Stub, completion, reply

from potstill.errors import RecipeError, TeacherError
from potstill.miniature.archive import LOOKUP, look_up
from potstill.miniature.world import world
from potstill.records import Chat, Dropped, Message, Prompt, ToolCall
from potstill.skills.boxes import open_toolbox
from potstill.skills.calculator import calculate
from potstill.skills.dialogue import hold
from potstill.skills.tools import Tool, Toolbox, ToolError, describe, find_fault, shown
from potstill.sources import EndpointModel, Function, Inputs, MiniatureServer
from potstill.stages.base import Work
from potstill.stages.use_tools import STAGE, UseTools
from potstill.teachers.base import Reply, Request
from potstill.teachers.tool_calls import UNREADABLE, parse_tool_calls, unreadable, with_tool_calls
from potstill.teachers.wire import read_reply, request_body
from potstill.tokens.tokenization import render

# Schemas of functions.


def weather(town: str, days: int = 1, unit: Literal["C", "F"] = "C", at: list[float] | None = None) -> dict[str, str]:
    """The weather of the coming days.

    Args:
        town: its name
        days (int): how many
    """
    return {}


def test_a_typed_function_becomes_a_schema() -> None:
    name, description, parameters = describe(weather)
    assert (name, description) == ("weather", "The weather of the coming days.")
    assert parameters == {
        "type": "object",
        "properties": {
            "town": {"type": "string", "description": "its name"},
            "days": {"type": "integer", "description": "how many"},
            "unit": {"enum": ["C", "F"]},
            "at": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
        },
        "required": ["town"],
        "additionalProperties": False,
    }
    jsonschema.Draft202012Validator.check_schema(parameters)


def untyped(town) -> str:  # type: ignore[no-untyped-def]
    """Doc."""
    return town  # type: ignore[no-any-return]


def wordless(town: str) -> str:
    return town


def many(*towns: str) -> str:
    """Doc."""
    return ""


def strange(town: Path) -> str:
    """Doc."""
    return ""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (untyped, "'town'.*has no type"),
        (wordless, "no docstring"),
        (many, r"takes '\*towns"),
        (strange, "none that JSON"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused(function: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        describe(function)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            *({"type": kind} for kind in ("string", "integer", "number", "boolean", "array", "object", "null")),
            {"type": ["string", "null"]},
            {"enum": ["a", "b", None]},
            {"const": "a"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda s: {"type": "array", "items": s}, inner),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(
            lambda a, b, need, more: {
                "type": "object",
                "properties": {"a": a, "b": b},
                "required": need,
                "additionalProperties": more,
            },
            inner,
            inner,
            st.sampled_from([[], ["a"], ["a", "b"]]),
            st.booleans() | inner,
        ),
    ),
    max_leaves=6,
)


@holds(VALUES, SCHEMAS)
def test_faults_are_found_where_the_reference_validator_finds_them(value: Any, schema: dict[str, Any]) -> None:
    assert bool(find_fault(value, schema, "x")) == (not jsonschema.Draft202012Validator(schema).is_valid(value))


# The calculator.


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(17 + 25) * 3", "126"),
        ("2 ** 10", "1024"),
        ("2^3", "8"),
        ("7 / 4", "1.75"),
        ("1 / 3", "0.333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("1e3 - 1", "999"),
        ("-(3 - 5)", "2"),
        ("-1 / 8", "-0.125"),
    ],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "1 / 0", "0 ** -1", "9 ** 9 ** 9", "2 ** 0.5", "10 ** 999", "abs(1)", "x", "True", "'a' * 9",
        "1 if 1 else 2",
        "__import__('os').getcwd()", "(1).__class__", "[1][0]", "1" * 201, "(" * 150, "1j", "9" * 150, "1 < 2",
    ],
)  # fmt: skip
def test_the_calculator_evaluates_nothing_else(expression: str) -> None:
    """Trap: "Model output reaching HTML unescaped, or `eval`"."""
    with pytest.raises(ToolError):
        calculate(expression)


@holds(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(-99, 99)), min_size=1, max_size=6))
def test_the_calculator_works_from_left_to_right_as_python_does(steps: list[tuple[str, int]]) -> None:
    operations = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    text, value = "1", 1
    for sign, number in steps:
        text, value = f"({text}) {sign} ({number})", operations[sign](value, number)
    if len(text) <= 200:
        assert Fraction(calculate(text)) == value


@holds(st.text(alphabet="0123456789+-*/%(). e", max_size=60))
def test_no_expression_breaks_the_calculator(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert len(calculate(text)) < 300


# Boxes and calls.

ECHO = Tool(
    "echo",
    "Says it again.",
    {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False},
    lambda arguments: {"n": arguments["n"]},
)


def call(name: str, arguments: Any = None) -> ToolCall:
    return ToolCall(name=name, arguments=arguments or {}, id="c")


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (call("echo", {"n": 3}), '{"n": 3}'),
        (call("ecko", {"n": 3}), "error: there is no tool 'ecko'; there is echo"),
        (call("echo", {"n": "3"}), 'error: arguments.n is "3"; expected integer'),
        (call("echo", {}), "error: arguments lack 'n'"),
        (call("echo", {"n": 3, "m": 1}), "error: arguments may not hold 'm'; expected n"),
        (
            call("echo", {UNREADABLE: '{"n": '}),
            'error: the call is not a JSON object with a name and arguments: {"n": ',
        ),
    ],
)
def test_a_call_that_cannot_be_made_is_answered_in_words(wish: ToolCall, says: str) -> None:
    outcome = Toolbox([ECHO]).call(wish)
    assert outcome.text == says
    assert outcome.failed == says.startswith("error")


def test_a_result_is_text_or_json_of_a_bounded_length() -> None:
    assert shown("é") == "é"
    assert shown({"é": [1]}) == '{"é": [1]}'
    assert shown("x" * 5000) == "x" * 4000 + "... (5000 characters)"
    with pytest.raises(ToolError, match="no JSON"):
        shown({1, 2})


MINE = '''
import os, sys, time
count = 0

def counter(step: int) -> int:
    """Counts."""
    global count
    count += step
    print("noise on standard output", flush=True)
    return count

def raises(word: str) -> str:
    """Raises."""
    raise KeyError(word)

def sleeps(seconds: float) -> str:
    """Sleeps."""
    time.sleep(seconds)
    return "awake"

def leaves(code: int) -> str:
    """Leaves."""
    os._exit(code)

def odd(n: int) -> object:
    """Gives what is no JSON."""
    return {1, 2}
'''


def test_users_tools_run_bounded_in_a_process_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    names = [f"mine.py:{name}" for name in ("counter", "raises", "sleeps", "leaves", "odd")]
    functions = [Function(path, name.split(":")[1]) for name in names]
    with open_toolbox(["calculator", *names], functions, None, seconds=1.5) as box:
        assert list(box.tools) == ["calculator", "counter", "raises", "sleeps", "leaves", "odd"]
        assert box.call(call("calculator", {"expression": "6 * 7"})).text == "42"
        assert box.call(call("calculator", {"expression": "six"})).failed
        assert [box.call(call("counter", {"step": 2})).text for _ in range(2)] == ["2", "4"]
        assert box.call(call("raises", {"word": "why"})).text == "error: KeyError: 'why'"
        assert "error: TypeError" in box.call(call("odd", {"n": 1})).text
        assert box.call(call("counter", {"step": 1})).text == "5", "an error ends nothing"
        began = time.monotonic()
        assert box.call(call("sleeps", {"seconds": 60.0})).text == "error: the tool took longer than 1.5 s"
        assert time.monotonic() - began < 10
        assert box.call(call("leaves", {"code": 3})).text == "error: the tool ended its process"
        assert box.call(call("sleeps", {"seconds": 0})).text == "awake", "and the next call gets a new one"


def test_tools_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('def calculator(a: int) -> int:\n    """Doc."""\n    return a\n')
    names = ["calculator", "mine.py:calculator"]
    with (
        pytest.raises(RecipeError, match="two tools are named 'calculator'"),
        open_toolbox(names, [Function(path, "calculator")], None, 1.0),
    ):
        pass


def test_the_archive_is_looked_up(tmp_path: Path) -> None:
    with open_toolbox(["lookup"], [], MiniatureServer(kind="miniature", seed=3, entities=60), 1.0) as box:
        asked = {"person": "Ada", "item": "eggs", "day": "Monday"}
        assert box.call(call("lookup", asked)).text == look_up(world(3, 60), "Ada", "eggs", "Monday")
        assert box.call(call("lookup", asked | {"item": "dragons"})).text == "error: the archive knows no 'dragons'"
        assert box.call(call("lookup", {"person": "Ada"})).failed
        jsonschema.Draft202012Validator.check_schema(LOOKUP["parameters"])


# Calls in text.


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("hello", "hello", []),
        ('<tool_call>\n{"name": "a", "arguments": {"n": 1}}\n</tool_call>', "", [("a", '{"n": 1}')]),
        ('Let me see.\n<tool_call>{"name": "a"}</tool_call>', "Let me see.", [("a", "{}")]),
        (
            '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b"}</tool_call>',
            "",
            [("a", "{}"), ("b", "{}")],
        ),
        ('<tool_call>{"name": "a", "arguments": "{\\"n\\": 2}"}</tool_call>', "", [("a", '{"n": 2}')]),
    ],
)
def test_calls_are_read_from_text(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    found = parse_tool_calls(text)
    assert found[0] == said
    assert [(c.name, c.arguments) for c in found[1]] == calls
    assert all(unreadable(c) is None for c in found[1])
    assert len({c.id for c in found[1]}) == len(calls)


@pytest.mark.parametrize(
    "inside",
    ["{", "a(1)", "[]", '{"name": 1, "arguments": {}}', '{"arguments": {}}', '{"name": "a", "arguments": [1]}'],
)
def test_a_call_that_cannot_be_read_stays_a_call(inside: str) -> None:
    text, (found,) = parse_tool_calls(f"<tool_call>{inside}</tool_call>")
    assert text == ""
    assert unreadable(found) == inside


@holds(st.text(alphabet='<tool_ca>/{}"nm:1 ', max_size=60))
def test_no_text_breaks_the_reading_of_calls(text: str) -> None:
    text, calls = parse_tool_calls(f"<tool_call>{text}")
    assert "<tool_call>" not in text
    assert calls


def test_calls_are_read_only_where_tools_were_offered_and_the_reply_is_whole() -> None:
    text = '<tool_call>{"name": "a"}</tool_call>'
    offered, plain = Request(user("x"), 9, tools=(ECHO.schema,)), Request(user("x"), 9)
    assert with_tool_calls(Reply(text), offered).tool_calls[0].name == "a"
    assert with_tool_calls(Reply(text), plain) == Reply(text)
    assert with_tool_calls(Reply(text, "length"), offered).tool_calls == ()


@pytest.mark.parametrize("arguments", ['{"n": ', "[1]", '"x"', "{'n': 1}"])
def test_a_servers_call_with_bad_arguments_is_a_call_and_no_failed_reply(arguments: str) -> None:
    """A reply that was paid for is not asked for again because its call is no JSON."""
    wish = {"id": "x", "type": "function", "function": {"name": "echo", "arguments": arguments}}
    found = read_reply(json.dumps(completion(None, "tool_calls", tool_calls=[wish])))
    assert found.finish == "stop"
    (made,) = found.tool_calls
    assert made.name == "echo"
    assert arguments in json.loads(unreadable(made) or "")["arguments"]


def test_what_the_default_template_writes_of_a_call_is_read_back() -> None:
    from engine import tiny_tokenizer

    calls = (call("echo", {"n": 1, "é": ['"', "</s"]}), call("echo", {"n": 2}))
    chat = [*user("x"), Message(role="assistant", content="Now:", tool_calls=calls)]
    text = render(tiny_tokenizer(), chat, [ECHO.schema])
    answer = text.rsplit("<|assistant|>\n", 1)[1].removesuffix("</s>\n")
    said, found = parse_tool_calls(answer)
    assert said == "Now:"
    assert [(c.name, json.loads(c.arguments)) for c in found] == [(c.name, json.loads(c.arguments)) for c in calls]


# Dialogues.


def ask(place: int, number: int, messages: tuple[Message, ...]) -> Request:
    return Request(messages, 50, seed=100 * place + number)


def wishing(*wishes: ToolCall) -> Reply:
    return Reply("", tool_calls=wishes)


def test_a_dialogue_goes_on_until_it_is_answered() -> None:
    script = {
        "one": [wishing(call("echo", {"n": 1}), call("echo", {"n": 2})), Reply("done")],
        "errs": [wishing(call("ecko")), wishing(call("echo", {"n": 5})), Reply("so 5")],
        "none": [Reply("at once")],
        "ever": [wishing(call("echo", {"n": n})) for n in range(9)],
        "cut": [Reply("x", "length", "cut")],
    }

    def speak(request: Request) -> Reply:
        rounds = sum(m.role == "assistant" for m in request.messages)
        return script[request.messages[0].content][rounds]

    teacher = FakeTeacher("t", speak)
    ends: list[int] = []
    held = hold(teacher, [user(name) for name in script], Toolbox([ECHO]), ask, 3, lambda: ends.append(1))
    assert [d.ended for d in held] == ["answered", "answered", "answered", "too_many_calls", "length"]
    assert [d.answer for d in held] == ["done", "so 5", "at once", None, None]
    assert len(ends) == 5
    assert all(request.tools == (ECHO.schema,) for request in teacher.asked)
    one = held[0].messages
    assert [m.role for m in one] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [m.tool_call_id for m in one[2:4]] == [c.id for c in one[1].tool_calls]
    assert len({c.id for c in one[1].tool_calls}) == 2, "ids of our own, whatever the model calls them"
    assert [m.content for m in one[2:4]] == ['{"n": 1}', '{"n": 2}']
    assert [m.train for m in held[1].learnable()] == [True, False, True, True, True, True], (
        "a failed call is not learnt"
    )
    assert dict(held[1].calls) == {"made": 2, "failed": 1}
    assert held[3].calls["made"] == 3


def test_a_reply_that_was_cut_may_be_kept_but_its_calls_are_not_made() -> None:
    replies = {"a": Reply("half an ans", "length", "cut"), "b": Reply("", "length", "cut", tool_calls=(call("echo"),))}
    teacher = FakeTeacher("t", lambda request: replies[request.messages[0].content])
    either = lambda reply: reply.finish in ("stop", "length")  # noqa: E731
    held = hold(teacher, [user(name) for name in replies], Toolbox([ECHO]), ask, 3, is_whole=either)
    assert [(d.ended, d.answer) for d in held] == [("answered", "half an ans"), ("length", None)]


# The stage.


def made(folder: Path, stub: Stub, rows: list[Prompt], functions: Any = (), **fields: Any) -> Any:
    path = folder / "out"
    path.mkdir(parents=True)
    config = UseTools.model_validate({"kind": "use_tools", "teacher": "m", "prompts": "p", **fields})
    inputs = Inputs(
        {"prompts": (given(folder, "prompts", rows),)},
        {"teacher": (endpoint(stub.base_url),)},
        {"server": MiniatureServer(kind="miniature")} if config.server else {},
        {"tools": tuple(functions)},
    )
    from potstill.artifact import read_rows

    facts = STAGE.run(config, inputs, Work(path, folder, 1))
    return facts, list(read_rows(path / "rows.jsonl", Chat)), list(read_rows(path / "dropped.jsonl", Dropped))


SUMS = [Prompt(id=f"s{i}", messages=user(f"What is {i} times 7?"), references=(str(7 * i),)) for i in range(3, 8)]


async def accountant(stub: Stub, body: dict[str, Any], before: int) -> Any:
    """Calls the calculator; wrongly for 4, in bad JSON for 5, without end for 6, and not at all for 7."""
    number = int(next(m["content"] for m in body["messages"] if m["role"] == "user").split()[2])
    assert body["tools"][0]["function"]["name"] == "calculator"
    results = [m for m in body["messages"] if m["role"] == "tool"]
    if number == 7:
        return reply(completion("49"))
    if results and number != 6 and not results[-1]["content"].startswith("error"):
        return reply(completion(f"It is {results[-1]['content']}."))
    asked = f"{number + (number == 4)} * 7"
    arguments = "{bad" if number == 5 and not results else json.dumps({"expression": asked})
    wish = {"id": "w", "type": "function", "function": {"name": "calculator", "arguments": arguments}}
    return reply(completion(None, "tool_calls", tool_calls=[wish]))


def test_only_dialogues_that_ended_well_are_kept(tmp_path: Path) -> None:
    with Stub(fault=accountant) as stub:
        facts, rows, dropped = made(
            tmp_path, stub, SUMS, tools=["calculator"], checker="number", max_calls=3, system="Count."
        )
    assert [row.id for row in rows] == ["s3", "s5"]
    assert [(row.id, row.reason) for row in dropped] == [("s4", "wrong"), ("s6", "too_many_calls"), ("s7", "no_call")]
    assert facts["calls"] == {"made": 1 + 1 + 2 + 3, "failed": 1}
    first, mended = rows
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert first.messages[3].content == "21"
    assert first.messages[-1].content == "It is 21."
    assert json.loads(first.tools[0])["function"]["name"] == "calculator"
    assert mended.messages[3].content.startswith("error: the call is not a JSON object")
    assert [m.train for m in mended.messages if m.role == "assistant"] == [False, True, True]


def test_a_recipes_own_tool_is_really_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('def double(n: int) -> int:\n    """Doubles."""\n    return 2 * n\n')

    async def doubles(stub: Stub, body: dict[str, Any], before: int) -> Any:
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        wish = {"id": "w", "type": "function", "function": {"name": "double", "arguments": '{"n": 21}'}}
        return reply(completion(results[0]) if results else completion(None, "tool_calls", tool_calls=[wish]))

    with Stub(fault=doubles) as stub:
        _, rows, _ = made(tmp_path / "run", stub, SUMS[:1], [Function(path, "double")], tools=["mine.py:double"])
    assert rows[0].messages[-1].content == "42"


def test_a_teacher_that_never_ends_well_is_an_error(tmp_path: Path) -> None:
    with Stub(answer=lambda body: "I will not.") as stub, pytest.raises(TeacherError) as told:
        made(tmp_path, stub, SUMS, tools=["calculator"])
    assert "none of 5 dialogues ended well (no_call: 5)" in str(told.value)


@pytest.mark.parametrize(
    "fields",
    [{"tools": []}, {"tools": ["hammer"]}, {"tools": ["lookup"]}, {"tools": ["calculator"], "server": "w"},
     {"tools": ["calculator"], "checker": "x"}],
)  # fmt: skip
def test_configs_that_cannot_be_meant_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UseTools.model_validate({"kind": "use_tools", "teacher": "m", "prompts": "p", **fields})


def test_a_request_carries_calls_and_results_as_the_protocol_has_them() -> None:
    chat = (
        *user("x"),
        Message(role="assistant", content="", tool_calls=(call("echo", {"n": 1}),)),
        Message(role="tool", content="1", tool_call_id="c", name="echo"),
    )
    body = request_body(EndpointModel(endpoint="http://x", name="m"), Request(chat, 9, tools=(ECHO.schema,)))
    assert body["tools"] == [json.loads(ECHO.schema)]
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "echo", "arguments": '{"n": 1}'}
    assert body["messages"][2]["tool_call_id"] == body["messages"][1]["tool_calls"][0]["id"]


def test_half_a_character_in_a_call_or_a_result_is_made_whole() -> None:
    said = '<tool_call>{"name": "echo\\ud83d", "arguments": {"t": "\\ud83d", "\\udc00": 1}}</tool_call>'
    _, (made_call,) = parse_tool_calls(said)
    assert made_call == ToolCall(name="echo\ufffd", arguments='{"t": "\ufffd", "\ufffd": 1}', id="call-0")
    made_call.to_line().encode()
    half = Tool("half", "", {"type": "object"}, lambda arguments: "\ud83d")
    assert Toolbox([half]).call(call("half", {})).text == "\ufffd"


def test_a_whole_number_reaches_an_integer_argument_as_one(tmp_path: Path) -> None:
    def kinds(n: int, many: list[int], either: int | float, maybe: int | None) -> list[str]:
        """Tell the types.

        n: a number
        """
        return [type(value).__name__ for value in (n, many[0], either, maybe)]

    tool = Tool(*describe(kinds), run=lambda arguments: kinds(**arguments))
    wish = call("kinds", {"n": 3.0, "many": [4.0], "either": 5.0, "maybe": 6.0})
    assert Toolbox([tool]).call(wish).text == '["int", "int", "float", "int"]'


def test_a_tool_past_its_time_leaves_nothing_running(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    path = tmp_path / "mine.py"
    path.write_text(
        'import os, subprocess, sys, time\n\n\ndef slow(n: int) -> int:\n    """Start others and stay."""\n'
        "    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(2)\n"
        f"            open({str(mark)!r}, 'w')\n        os._exit(0)\n"
        "    late = 'import sys, time; time.sleep(2); open(sys.argv[1], chr(119))'\n"
        f"    subprocess.Popen([sys.executable, '-c', late, {str(mark)!r}])\n"
        "    time.sleep(60)\n    return n\n"
    )
    with open_toolbox(["mine.py:slow"], [Function(path, "slow")], None, seconds=1.0) as box:
        assert box.call(call("slow", {"n": 1})).text == "error: the tool took longer than 1 s"
    time.sleep(2.3)
    assert not mark.exists()
