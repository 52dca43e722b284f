"""Calls that a model writes as text, in the form of Hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

A call that cannot be read stays a call, so that whoever runs the tools can say so to the model: it carries what was
written under `UNREADABLE`.
"""

import json
import re
from dataclasses import replace
from typing import Any

from potstill.records import ToolCall, whole_text
from potstill.teachers.base import Reply, Request

UNREADABLE = "unreadable_call"
"""The one argument of a call that is no JSON object with a name and arguments: what stood there."""

CALL = "<tool_call>"
"""What a call begins with."""

_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def parse_tool_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """What a text says besides its calls, and the calls in their order."""
    calls = tuple(_call(found, place) for place, found in enumerate(_BLOCK.finditer(text)))
    return (_BLOCK.sub("", text).strip(), calls) if calls else (text, ())


def with_tool_calls(reply: Reply, request: Request) -> Reply:
    """The reply with its calls read from its text, where tools were offered. One that was cut makes none."""
    if not request.tools or reply.finish != "stop" or reply.tool_calls:
        return reply
    text, calls = parse_tool_calls(reply.text)
    return replace(reply, text=text, tool_calls=calls)


def make_call(name: Any, arguments: Any, raw: str, id_: str = "") -> ToolCall:
    """A call as it was given, arguments as an object or as its JSON text; one that cannot be read says so."""
    try:
        if not isinstance(name, str) or not name:
            raise ValueError("no name")
        return ToolCall(name=whole_text(name), arguments=arguments, id=whole_text(id_))
    except (ValueError, RecursionError):
        named = whole_text(name) if isinstance(name, str) else ""
        return ToolCall(name=named, arguments=json.dumps({UNREADABLE: raw}, ensure_ascii=False), id=whole_text(id_))


def unreadable(call: ToolCall) -> str | None:
    """What stood in the place of a call that could not be read; None of one that could."""
    arguments = json.loads(call.arguments)
    return str(arguments[UNREADABLE]) if set(arguments) == {UNREADABLE} else None


def _call(found: re.Match[str], place: int) -> ToolCall:
    raw = found[1].strip()
    try:
        value = json.loads(raw) if found[0].endswith("</tool_call>") else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return make_call("", None, raw, f"call-{place}")
    return make_call(value.get("name"), value.get("arguments", {}), raw, f"call-{place}")
