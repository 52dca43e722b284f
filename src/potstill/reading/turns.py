"""One turn of a conversation, and the tools it may call, in everybody's columns."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from potstill.reading.found import ShapeError
from potstill.records import Message, Role, ToolCall

Columns = Mapping[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def kind_of(value: object) -> str:
    """What a value is, as a person says it."""
    names = {type(None): "missing", list: "a list", dict: "an object", bool: "true or false", str: "text"}
    other = "a number" if isinstance(value, int | float | Decimal) else f"of the type {type(value).__name__}"
    return names.get(type(value), other)


def string(row: Columns, column: str) -> str:
    """The text in a column; ShapeError where there is none."""
    value = row.get(column)
    if not isinstance(value, str):
        raise ShapeError(f"{column!r} is {kind_of(value)}; expected text")
    return value


def strings(value: Any, what: str) -> tuple[str, ...]:
    """A text, or a list of texts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ShapeError(f"{what} is {kind_of(value)}; expected a list of texts")
    return tuple(value)


def user(text: str) -> tuple[Message, ...]:
    """What a user says."""
    return (Message(role="user", content=text),)


def assistant(text: str) -> tuple[Message, ...]:
    """What an assistant says."""
    return (Message(role="assistant", content=text),)


def read_messages(value: Any, what: str) -> tuple[Message, ...]:
    """A list of turns, or one, or JSON of them."""
    if isinstance(value, str):
        value = as_json(value)
        if not isinstance(value, list | Mapping):
            raise ShapeError(f"{what} is text; expected a list of messages")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ShapeError(f"{what} is {kind_of(value)}; expected a list of messages")
    return tuple(read_message(item, f"turn {number} of {what}") for number, item in enumerate(value, start=1))


def read_message(value: Any, what: str) -> Message:
    """A turn in OpenAI's columns (role, content) or ShareGPT's (from, value)."""
    if not isinstance(value, Mapping):
        raise ShapeError(f"{what} is {kind_of(value)}; expected an object with role and content")
    role_column, content_column = ("role", "content") if "role" in value else ("from", "value")
    role, content = value.get(role_column), _words(value.get(content_column), what)
    if not isinstance(role, str) or role not in ROLES:
        raise ShapeError(f"the role of {what} is {role!r}; expected system, user, assistant or tool")
    calls = tuple(_tool_calls(value, what))
    if role == "function_call" and isinstance(content, str) and not calls:
        calls = written_calls(content)
        content = None if calls else content
    if calls and content is None:
        content = ""
    if not isinstance(content, str):
        raise ShapeError(f"the content of {what} is {kind_of(content)}; expected text")
    if calls and ROLES[role] != "assistant":
        raise ShapeError(f"{what} is {role!r} and calls a tool; expected that of an assistant only")
    return Message(
        role=ROLES[role],
        content=content,
        tool_calls=calls,
        tool_call_id=_word(value, "tool_call_id"),
        name=_word(value, "name") if ROLES[role] == "tool" else "",
        train=_train(value, what),
    )


def _words(content: Any, what: str) -> Any:
    """The text of a content that comes in parts, as OpenAI's may. Anything but text cannot be kept."""
    if not isinstance(content, list | tuple) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    for part in content:
        if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise ShapeError(f"{what} holds a part of the type {part.get('type')!r}; expected parts of text only")
    return "".join(part["text"] for part in content)


def _train(value: Columns, what: str) -> bool:
    """Whether it is learnt: our own `train`, or the weight 0 or 1 of OpenAI's files for fine-tuning."""
    train, weight = value.get("train"), value.get("weight")
    if not isinstance(train, bool | None):
        raise ShapeError(f"'train' of {what} is {train!r}; expected true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ShapeError(f"the weight of {what} is {weight!r}; expected 0 or 1")
    return train is not False and weight != 0


def _word(value: Columns, column: str) -> str:
    word = value.get(column)
    return word if isinstance(word, str) else ""


def _tool_calls(message: Columns, what: str) -> Iterator[ToolCall]:
    """OpenAI's columns: `tool_calls`, or the older `function_call`."""
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list | tuple):
        raise ShapeError(f"the tool_calls of {what} are {kind_of(listed)}; expected a list")
    for call in [*listed, *filter(None, [message.get("function_call")])]:
        found = _call(call)
        if found is None:
            raise ShapeError(f"a tool call of {what} cannot be read; expected a name and arguments, a JSON object")
        yield found


def _call(value: Any) -> ToolCall | None:
    function = value.get("function") or value if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    try:
        return ToolCall(name=function["name"], arguments=function.get("arguments") or {}, id=_word(value, "id"))
    except ValueError:
        return None


def written_calls(content: str) -> tuple[ToolCall, ...]:
    """A call, or a list of them, in JSON; nothing where it is plain words."""
    value = as_json(content)
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(call for call in calls if call) if all(calls) else ()


def as_json(text: str) -> Any:
    """The value that a text is the JSON of, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_tools(row: Columns) -> tuple[str, ...]:
    """What a row offers its assistant: schemas, or JSON of them; bare functions are wrapped as templates expect."""
    value = row.get("tools") or row.get("functions") or []
    if isinstance(value, str):
        value = as_json(value) if value.strip() else []
    if not isinstance(value, list | tuple):
        raise ShapeError("'tools' cannot be read; expected a list of JSON Schemas")
    tools = []
    for item in value:
        tool = as_json(item) if isinstance(item, str) else item
        if not isinstance(tool, Mapping) or not ("name" in tool or isinstance(tool.get("function"), Mapping)):
            raise ShapeError("one of the 'tools' cannot be read; expected the JSON Schema of a function with a name")
        whole = tool if "function" in tool else {"type": "function", "function": tool}
        tools.append(json.dumps(whole, ensure_ascii=False))
    return tuple(tools)
