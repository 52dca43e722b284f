"""What a row was found to hold, and how that becomes a Text, Prompt, Chat, Answers, Pair or Feedback.

Whatever cannot be that record is a ShapeError in words.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from potstill.records import Answers, Candidate, Chat, Feedback, Message, Pair, Prompt, Record, Role, Text

R = TypeVar("R", bound=Record)


class ShapeError(ValueError):
    """A row is not what it should be: what is wrong; what was expected."""


@dataclass(frozen=True)
class Found:
    """What a row holds. `prompt` ends before the first thing that is `chosen`, `rejected` or an answer to compare."""

    prompt: tuple[Message, ...] = ()
    """For chats, the whole conversation."""
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    chosen_score: float | None = None
    rejected_score: float | None = None
    candidates: tuple[Candidate, ...] = ()
    follow_ups: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    text: str = ""
    tools: tuple[str, ...] = ()
    """JSON Schemas of what the assistant may call."""
    desirable: bool | None = None
    """What a row says of its own answer, if anything."""


def make_record(found: Found, row_type: type[R], name: str, category: str) -> R:
    """The record of that type, under that id; ShapeError, in words, where it cannot be one."""
    return cast(R, _MAKERS[row_type](found, name, category))


def _text(found: Found, name: str, category: str) -> Text:
    text = found.text or "\n\n".join(m.content for m in _in_words(found.prompt + found.chosen, found.tools))
    if not text.strip():
        raise ShapeError("the text is empty; expected words")
    return Text(id=name, text=text)


def _prompt(found: Found, name: str, category: str) -> Prompt:
    first = next((i for i, m in enumerate(found.prompt) if m.role == "assistant"), len(found.prompt))
    later = tuple(m.content for m in found.prompt[first:] if m.role == "user")
    messages = _in_words(found.prompt[:first], found.tools)
    check_dialogue(messages, "user", "the prompt")
    follow_ups = found.follow_ups or later
    return Prompt(id=name, messages=messages, follow_ups=follow_ups, references=found.references, category=category)


def _chat(found: Found, name: str, category: str) -> Chat:
    if found.desirable is False:
        raise ShapeError("the row is labelled as an answer to avoid; expected one to learn from")
    messages = found.prompt + found.chosen
    if not messages and found.text:
        raise ShapeError("the row is a plain text; expected a conversation")
    check_dialogue(messages, "assistant", "the conversation")
    return Chat(id=name, messages=messages, tools=found.tools, category=category)


def _pair(found: Found, name: str, category: str) -> Pair:
    check_pair(found.prompt, found.chosen, found.rejected)
    return Pair(
        id=name,
        prompt=found.prompt,
        chosen=found.chosen,
        rejected=found.rejected,
        tools=found.tools,
        chosen_score=found.chosen_score,
        rejected_score=found.rejected_score,
        category=category,
    )


def _answers(found: Found, name: str, category: str) -> Answers:
    if not found.candidates:
        raise ShapeError("there are no answers of several models; expected 'completions' or 'candidates'")
    return Answers(id=name, prompt=_prompt(found, name, category), candidates=found.candidates)


def _feedback(found: Found, name: str, category: str) -> Feedback:
    if found.desirable is None:
        raise ShapeError("nothing says whether the answer is desirable; expected a 'label' that is true or false")
    asked = max((i + 1 for i, m in enumerate(found.prompt) if m.role == "user"), default=0)
    prompt, answer = found.prompt[:asked], found.prompt[asked:]
    check_dialogue(prompt, "user", "the prompt")
    check_dialogue(found.prompt, "assistant", "the conversation")
    return Feedback(
        id=name, prompt=prompt, answer=answer, desirable=found.desirable, tools=found.tools, category=category
    )


def _in_words(messages: tuple[Message, ...], tools: Sequence[str]) -> tuple[Message, ...]:
    """The turns where there is no column for tools: what is offered stands in the system turn, a call is said."""
    said = [_said(message) for message in messages]
    if tools:
        offer = f"[{', '.join(tools)}]"
        system = "\n\n".join([*(m.content for m in said[:1] if m.role == "system"), offer])
        said = [Message(role="system", content=system), *(m for m in said if m.role != "system")]
    return tuple(said)


def _said(message: Message) -> Message:
    if not message.tool_calls:
        return message
    calls = [json.dumps({"name": c.name, "arguments": json.loads(c.arguments)}) for c in message.tool_calls]
    words = "\n".join([*([message.content] if message.content else []), *calls])
    return Message(role=message.role, content=words, train=message.train)


_MAKERS: dict[type[Record], Callable[[Found, str, str], Record]] = {
    Text: _text,
    Prompt: _prompt,
    Chat: _chat,
    Answers: _answers,
    Pair: _pair,
    Feedback: _feedback,
}


def check_record(record: Record) -> None:
    """ShapeError where a record that somebody made by hand is not what stages expect of its kind."""
    if isinstance(record, Text) and not record.text.strip():
        raise ShapeError("the text is empty; expected words")
    if isinstance(record, Answers):
        record = record.prompt
    if isinstance(record, Prompt):
        check_dialogue(record.messages, "user", "the prompt")
    elif isinstance(record, Chat):
        check_dialogue(record.messages, "assistant", "the conversation")
    elif isinstance(record, Feedback):
        check_dialogue(record.prompt, "user", "the prompt")
        check_dialogue(record.prompt + record.answer, "assistant", "the conversation")
    elif isinstance(record, Pair):
        check_pair(record.prompt, record.chosen, record.rejected)


def check_pair(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    """ShapeError unless the prompt ends with the user, both answers with the assistant, and they differ."""
    if not chosen or not rejected:
        raise ShapeError("there is no pair of answers; expected 'chosen' and 'rejected'")
    check_dialogue(prompt, "user", "the prompt")
    check_dialogue([*prompt, *chosen], "assistant", "'chosen'")
    check_dialogue([*prompt, *rejected], "assistant", "'rejected'")
    if chosen == rejected:
        raise ShapeError("'chosen' and 'rejected' are the same; expected two different answers")


def check_dialogue(messages: Sequence[Message], last: Role, what: str) -> None:
    """ShapeError unless: a system turn only first, then user and assistant in turn, none empty, ending with `last`.

    Tools' results may follow an assistant's turn, and an assistant's turn follows them.
    """
    if not messages:
        raise ShapeError(f"{what} has no messages; expected one or more")
    before = "system"
    for number, message in enumerate(messages, start=1):
        role = message.role
        expected = {
            "system": ("user",),
            "user": ("assistant",),
            "assistant": ("user", "tool"),
            "tool": ("assistant", "tool"),
        }
        if number == 1 and role == "system":
            continue
        if role not in expected[before]:
            where = f"turn {number} of {what} is {_named(role)}"
            raise ShapeError(f"{where}; expected {' or '.join(map(_named, expected[before]))} there")
        if not (message.content.strip() or message.tool_calls or role == "tool"):
            raise ShapeError(f"turn {number} of {what}, {_named(role)}, is empty; expected words")
        before = role
    if messages[-1].role != last:
        raise ShapeError(f"{what} ends with {_named(messages[-1].role)}; it must end with {_named(last)}")


def _named(role: str) -> str:
    return {"system": "a system turn", "user": "a user turn", "assistant": "an assistant turn"}.get(role, "a tool turn")
