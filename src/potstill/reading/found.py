"""What a row was found to hold, and how that becomes a Text, Prompt, Chat, Answers, Pair or Feedback.

Whatever cannot be that record is a ShapeError in words.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from potstill.records import Answers, Candidate, Chat, Feedback, Message, Pair, Prompt, Record, Role, Text

R = TypeVar("R", bound=Record)


BAD_ROW = "bad_row"


class ShapeError(ValueError):
    """A row cannot be what was asked for: what is wrong; what was expected."""

    def __init__(self, words: str, reason: str = BAD_ROW) -> None:
        self.reason = reason
        """Anything but "bad_row" where nothing is wrong with the row, such as "tie" where pairs are asked for."""
        super().__init__(words)


SILENT = ("empty", "one of the answers says nothing; expected two that do")
"""Why a row makes no pair, as a reason and in words."""


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
    asked: Prompt | None = None
    """The prompt as it is, assistant's turns included, where it does not end at the first of them."""
    question: str = ""
    """The id of the prompt, where that stands in another file; `prompt` then holds what was said to it."""
    no_pair: tuple[str, str] | None = None
    """Why no answer is preferred, as a reason and in words, of a row that might have said so."""
    category: str = ""
    counterpart: str = ""
    """The prompt with one attribute of its people changed."""


def make_record(
    found: Found, row_type: type[R], name: str, category: str, questions: Mapping[str, Prompt] | None = None
) -> R:
    """The record of that type, under that id; ShapeError, in words, where it cannot be one.

    `questions`: prompts by their ids, for rows that only name theirs.
    """
    if found.question and (row_type is not Text or questions):
        found = _joined(found, questions)
    return cast(R, _MAKERS[row_type](found, name, category or found.category))


def _joined(found: Found, questions: Mapping[str, Prompt] | None) -> Found:
    """With the question that the row names, and what was said between its turns."""
    if questions is None:
        what = f"the row names its question ({found.question}) without its words"
        raise ShapeError(f"{what}; expected the file of the questions too, in an import stage's 'questions'")
    prompt = questions.get(found.question)
    if prompt is None:
        raise ShapeError(f"its question {found.question!r} is not among the 'questions'; expected one that is")
    said, turns = found.prompt, (Message(role="user", content=text) for text in prompt.follow_ups)
    if len(said) > 1 + len(prompt.follow_ups):
        raise ShapeError(f"{len(said)} answers to {1 + len(prompt.follow_ups)} user turns; expected no more than those")
    dialogue = [*prompt.messages, *said[:1]]
    for turn, answer in zip(turns, said[1:], strict=False):
        dialogue += [turn, answer]
    candidates = found.candidates if len(said) == 1 else ()
    return replace(found, prompt=tuple(dialogue), candidates=candidates, asked=prompt, category=prompt.category)


def _text(found: Found, name: str, category: str) -> Text:
    text = found.text or "\n\n".join(m.content for m in _in_words(found.prompt + found.chosen, found.tools))
    if not text.strip():
        raise ShapeError("the text is empty; expected words")
    return Text(id=name, text=text)


def _prompt(found: Found, name: str, category: str) -> Prompt:
    if found.asked is not None:
        check_dialogue(found.asked.messages, "user", "the prompt")
        asked = found.asked
        return asked.model_copy(update={"id": asked.id or name, "category": asked.category or category})
    first = next((i for i, m in enumerate(found.prompt) if m.role == "assistant"), len(found.prompt))
    later = tuple(m.content for m in found.prompt[first:] if m.role == "user")
    messages = _in_words(found.prompt[:first], found.tools)
    if not messages and found.text:  # a file of plain lines
        messages = (Message(role="user", content=found.text),)
    check_dialogue(messages, "user", "the prompt")
    follow_ups = found.follow_ups or later
    return Prompt(
        id=name,
        messages=messages,
        follow_ups=follow_ups,
        references=found.references,
        category=category,
        counterpart=found.counterpart,
    )


def _chat(found: Found, name: str, category: str) -> Chat:
    if found.desirable is False:
        raise ShapeError("the row is labelled as an answer to avoid; expected one to learn from", "undesirable")
    if found.no_pair is not None and not found.chosen:
        raise ShapeError(found.no_pair[1], found.no_pair[0])
    messages = found.prompt + found.chosen
    if not messages and found.text:
        raise ShapeError("the row is a plain text; expected a conversation")
    check_dialogue(messages, "assistant", "the conversation")
    return Chat(id=name, messages=messages, tools=found.tools, category=category)


def _pair(found: Found, name: str, category: str) -> Pair:
    if found.no_pair is not None:
        raise ShapeError(found.no_pair[1], found.no_pair[0])
    if found.chosen and found.chosen == found.rejected:
        raise ShapeError("'chosen' and 'rejected' are the same; expected two different answers", "identical")
    ends = [side[-1] for side in (found.chosen, found.rejected) if side]
    if any(not (end.content.strip() or end.tool_calls) for end in ends if end.role == "assistant"):
        raise ShapeError(SILENT[1], SILENT[0])
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
