"""Stage `use_tools`: a teacher answers with tools at hand; what it calls is executed, and what ended well is kept.

The calls are real: arguments are held against the tool's schema, the tool runs, and its result, or what went wrong, is
what the teacher reads next. A user's own tool is a typed Python function with a docstring; it runs in a process of its
own, because the recipe names it, and under a time limit.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from potstill.errors import DataError, TeacherError
from potstill.own import OwnOrWord
from potstill.records import Chat, Dropped, Message, Prompt
from potstill.skills.boxes import check_tools, open_toolbox
from potstill.skills.checkers import Checker, can_read, check_name, find_checker
from potstill.skills.dialogue import Dialogue, hold
from potstill.skills.tools import Toolbox
from potstill.sources import Inputs
from potstill.stages.asking import Asking
from potstill.stages.base import Expected, Facts, ModelName, Reference, ServerName, Stage, Work
from potstill.teachers.base import Reply, Request, Teacher, connect, remedy, request_seed

TOKENS_PER_ROUND = 400  # for forecasts
ROUNDS = 2
HELD_AT_ONCE = 1024
"""Dialogues in memory."""
REPLY_SHOWN = 400


class UseTools(Asking):
    """Have a teacher answer prompts with tools that are really executed."""

    PROMPTS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["use_tools"]
    teacher: ModelName
    """Who answers, and decides what to call."""
    prompts: Annotated[str, Reference(("prompts",))]
    """What is asked. The first reference of a prompt is what the checker confirms its answer by."""
    tools: tuple[OwnOrWord, ...] = Field(min_length=1)
    """What may be called: calculator, lookup (the miniature's archive; needs `server`), or mine.py:function, a function
    of your own with types and a docstring. It is run."""
    server: ServerName | None = None
    """The miniature server whose archive `lookup` reads."""
    system: str | None = None
    """A system turn for prompts that have none. The teacher sees it, and it stays in the chat."""
    max_calls: int = Field(default=8, ge=1, le=100)
    """The most calls in one dialogue."""
    tool_seconds: float = Field(default=10.0, gt=0)
    """How long one call of your own tools may take."""
    checker: OwnOrWord | None = None
    """How the answer is held against the reference, as in the stage `reason`. Unset: any answer ends well."""
    require_call: bool = True
    """Leave out dialogues in which no call succeeded."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the replies."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest reply."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str | None) -> str | None:
        return checker if checker is None else check_name(checker)

    @model_validator(mode="after")
    def _tools(self) -> "UseTools":
        check_tools(self.tools, self.server is not None)
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        calls = rows["prompts"] * ROUNDS
        return Expected(rows["prompts"], calls, calls * TOKENS_PER_ROUND)


@dataclass
class _Tally:
    """What came of all dialogues."""

    calls: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    dropped: list[Dropped] = field(default_factory=list)
    first_bad: Reply | None = None
    done: int = 0


def run(config: UseTools, inputs: Inputs, work: Work) -> Facts:
    """Hold the dialogues; keep those that ended well."""
    model, data, tally = inputs.model("teacher"), inputs.one("prompts"), _Tally()
    checker = find_checker(config.checker, inputs.functions.get("checker", ())) if config.checker else None
    total = sum(1 for _ in data.rows(Prompt))
    if not total:
        raise DataError(data.name, "there are no prompts", "Give it some")
    own, server = inputs.functions.get("tools", ()), inputs.servers.get("server")
    with (
        open_toolbox(config.tools, own, server, config.tool_seconds) as toolbox,
        connect(model, work.account) as teacher,
    ):
        count = work.keep(_chats(config, data.rows(Prompt), teacher, toolbox, checker, tally, work, total))
    work.drop(tally.dropped)
    if not count:
        bad = tally.first_bad or Reply("")
        said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
        reasons = ", ".join(f"{reason}: {n}" for reason, n in tally.ended.most_common())
        what = f"none of {total} dialogues ended well ({reasons}); the first ended: {said!r}"
        raise TeacherError(model.name, what, remedy(bad, "Use a teacher that can call tools", "max_tokens"))
    return {
        "rows": count,
        "dropped": dict(sorted(Counter(row.reason for row in tally.dropped).items())),
        "calls": {what: tally.calls[what] for what in ("made", "failed")},
        "ended": dict(sorted(tally.ended.items())),
    }


def _chats(
    config: UseTools,
    prompts: Iterator[Prompt],
    teacher: Teacher,
    toolbox: Toolbox,
    checker: Checker | None,
    tally: _Tally,
    work: Work,
    total: int,
) -> Iterator[Chat]:
    def tick() -> None:
        tally.done += 1
        work.progress(tally.done, total, "dialogues")

    while some := list(islice(prompts, HELD_AT_ONCE)):
        for row, dialogue in zip(some, _held(config, some, teacher, toolbox, work.seed, tick), strict=True):
            tally.calls += dialogue.calls
            fault = _fault(config, row, dialogue, checker)
            tally.ended[fault or "kept"] += 1
            if fault:
                assert dialogue.reply is not None
                detail = dialogue.reply.reason or dialogue.messages[-1].content[:REPLY_SHOWN]
                tally.dropped.append(Dropped(id=row.id, reason=fault, detail=detail))
                tally.first_bad = tally.first_bad or dialogue.reply
            else:
                yield Chat(id=row.id, messages=dialogue.learnable(), tools=toolbox.schemas, category=row.category)


def _held(
    config: UseTools, rows: Sequence[Prompt], teacher: Teacher, toolbox: Toolbox, seed: int, tick: Callable[[], None]
) -> list[Dialogue]:
    def ask(place: int, number: int, messages: tuple[Message, ...]) -> Request:
        return Request(
            messages=messages,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(seed, rows[place].id, "turn", number),
            attempts=1 + config.ask_again,
            accept=config.is_whole,
        )

    beginnings = [_beginning(config, row) for row in rows]
    return hold(teacher, beginnings, toolbox, ask, config.max_calls, tick, config.is_whole)


def _beginning(config: UseTools, row: Prompt) -> tuple[Message, ...]:
    if config.system is None or row.messages[0].role == "system":
        return row.messages
    return (Message(role="system", content=config.system), *row.messages)


def _fault(config: UseTools, row: Prompt, dialogue: Dialogue, checker: Checker | None) -> str:
    """Why a dialogue is left out, or nothing."""
    if dialogue.answer is None:
        return dialogue.ended
    if config.require_call and dialogue.calls["made"] == dialogue.calls["failed"]:
        return "no_call" if not dialogue.calls["made"] else "no_call_succeeded"
    if checker is None:
        return ""
    reference = row.references[0] if row.references else ""
    if not can_read(checker, reference):
        return "no_reference"
    verdict = checker.check(dialogue.answer, reference)
    return "" if verdict == "right" else verdict


STAGE = Stage(config=UseTools, produces="chats", run=run, version=2)
