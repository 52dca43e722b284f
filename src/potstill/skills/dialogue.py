"""Dialogues with tools: the model is asked, its calls are executed, and it is asked again, until it answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from potstill.records import Message
from potstill.skills.tools import Toolbox
from potstill.teachers.base import Reply, Request, Teacher, is_whole

Ask = Callable[[int, int, tuple[Message, ...]], Request]
"""(which dialogue, which round, its messages): the request for its next turn, without tools."""


@dataclass
class Dialogue:
    """One conversation on its way."""

    messages: list[Message]
    reply: Reply | None = None
    """The last one."""
    ended: str = ""
    """How: "answered", "too_many_calls", or what became of a reply that was of no use, such as "length"."""
    calls: Counter[str] = field(default_factory=Counter)
    """made, failed."""
    failed: set[str] = field(default_factory=set)
    """The ids of calls that failed."""

    @property
    def answer(self) -> str | None:
        """What it ended with."""
        return self.messages[-1].content if self.ended == "answered" else None

    def learnable(self) -> tuple[Message, ...]:
        """Its messages; turns whose every call failed are read, not learnt."""
        bad = [bool(m.tool_calls) and all(call.id in self.failed for call in m.tool_calls) for m in self.messages]
        return tuple(
            message.model_copy(update={"train": False}) if is_bad else message
            for message, is_bad in zip(self.messages, bad, strict=True)
        )


def hold(
    teacher: Teacher,
    beginnings: Sequence[tuple[Message, ...]],
    toolbox: Toolbox,
    ask: Ask,
    max_calls: int,
    tick: Callable[[], None] = lambda: None,
    is_whole: Callable[[Reply], bool] = is_whole,
) -> list[Dialogue]:
    """Every dialogue to its end; `max_calls` is how many calls one may make. `tick` is called as each ends.

    `is_whole` says whether a reply may be used. Calls in one that was cut are not made: half a call is none.
    """
    dialogues = [Dialogue(list(messages)) for messages in beginnings]
    for number in range(max_calls + 1):
        going = [i for i, dialogue in enumerate(dialogues) if not dialogue.ended]
        if not going:
            break
        requests = [replace(ask(i, number, tuple(dialogues[i].messages)), tools=toolbox.schemas) for i in going]
        for i, reply in zip(going, teacher.complete(requests), strict=True):
            if not is_whole(reply) or (reply.tool_calls and reply.finish != "stop"):
                dialogues[i].reply, dialogues[i].ended = reply, reply.finish
            else:
                _go_on(dialogues[i], reply, toolbox, max_calls, number)
            if dialogues[i].ended:
                tick()
    return dialogues


def _go_on(dialogue: Dialogue, reply: Reply, toolbox: Toolbox, max_calls: int, number: int) -> None:
    """Take a reply into the dialogue, and make the calls that it asks for."""
    dialogue.reply = reply
    if not reply.tool_calls:
        dialogue.messages.append(Message(role="assistant", content=reply.text.strip()))
        dialogue.ended = "answered"
        return
    if dialogue.calls["made"] + len(reply.tool_calls) > max_calls:
        dialogue.ended = "too_many_calls"
        return
    calls = tuple(
        call.model_copy(update={"id": f"call-{number}-{place}"}) for place, call in enumerate(reply.tool_calls)
    )
    dialogue.messages.append(Message(role="assistant", content=reply.text.strip(), tool_calls=calls))
    for call in calls:
        outcome = toolbox.call(call)
        dialogue.calls["made"] += 1
        if outcome.failed:
            dialogue.calls["failed"] += 1
            dialogue.failed.add(call.id)
        dialogue.messages.append(Message(role="tool", content=outcome.text, tool_call_id=call.id, name=call.name))
