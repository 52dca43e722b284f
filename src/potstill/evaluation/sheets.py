"""What models answered and what judges said of it: dialogues, graded turns, and the calls that make them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.errors import TeacherError
from potstill.evaluation.statistics import Observation
from potstill.records import Message, Prompt
from potstill.teachers.base import Reply, Request, Teacher, remedy, request_seed

Tick = Callable[[], None]
"""Called once for every reply, for whoever draws progress."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said of an answer beside another one, shown in one order."""

    model_first: bool
    share: float | None
    """Of the win, that of the sheet's own model. None: it could not be read."""
    judgment: str
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in answers.jsonl."""
        line = {"model_first": self.model_first, "share": self.share, "judgment": self.judgment}
        return {**line, "reason": self.reason} if self.reason else line


@dataclass(frozen=True)
class Turn:
    """A user's message and the model's answer to it, which a judge may have graded."""

    user: str
    assistant: str | None
    """None: no answer could be produced. An empty answer is an answer."""
    score: float | None = None
    judgment: str = ""
    reason: str = ""
    """Why there is no answer, or no score."""
    applies: bool = True
    """False: the judge was understood and said that there is nothing here to score."""
    verdicts: tuple[Verdict, ...] = ()
    """Of a comparison: one an order. The score is what they come to, as the model's share of the win."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in answers.jsonl."""
        line: dict[str, Any] = {
            "user": self.user,
            "assistant": self.assistant or "",
            "score": self.score,
            "judgment": self.judgment,
        }
        line |= {"verdicts": [verdict.to_json() for verdict in self.verdicts]} if self.verdicts else {}
        return {**line, "reason": self.reason} if self.reason else line


@dataclass(frozen=True)
class Sheet:
    """One model's dialogue over one question, as one suite graded it."""

    suite: str
    model: str
    prompt: Prompt
    turns: tuple[Turn, ...] = field(default=())

    def observations(self) -> list[Observation]:
        """One a turn that there is something to score in."""
        return [
            Observation(self.prompt.id, str(number), turn.score, category=self.prompt.category)
            for number, turn in enumerate(self.turns, start=1)
            if turn.applies
        ]

    def to_json(self) -> dict[str, Any]:
        """One line of answers.jsonl."""
        return {
            "suite": self.suite,
            "model": self.model,
            "id": self.prompt.id,
            "category": self.prompt.category,
            "turns": [turn.to_json() for turn in self.turns],
        }

    def conversation(self, turn: int) -> tuple[Message, ...]:
        """The messages up to the user's in that turn, counted from 0, with the model's own earlier answers."""
        messages = list(self.prompt.messages)
        for earlier, later in zip(self.turns[:turn], self.turns[1 : turn + 1], strict=True):
            messages.append(Message(role="assistant", content=earlier.assistant or ""))
            messages.append(Message(role="user", content=later.user))
        return tuple(messages)


def blank(prompt: Prompt) -> Sheet:
    """A dialogue in which nothing was answered yet but with silence: to see whether a judge could be asked of it."""
    return Sheet("", "", prompt, tuple(Turn(user, "") for user in (prompt.messages[-1].content, *prompt.follow_ups)))


def hold_dialogues(
    teacher: Teacher,
    asked: Sequence[tuple[Prompt, float]],
    max_tokens: int,
    seed: int,
    tick: Tick = lambda: None,
) -> list[Sheet]:
    """The model's answers to each prompt and its follow-ups; each turn sees the model's own earlier answers.

    `asked`: with the temperature of its answers. A dialogue whose turn could not be answered has no later turns either.
    """
    prompts, heats = [prompt for prompt, _ in asked], [temperature for _, temperature in asked]
    sheets = [Sheet("", teacher.name, p, (Turn(p.messages[-1].content, None),)) for p in prompts]
    for number in range(1 + max((len(p.follow_ups) for p in prompts), default=0)):
        for i, sheet in enumerate(sheets):
            if 0 < number <= len(sheet.prompt.follow_ups):
                reason = "" if sheet.turns[-1].assistant is not None else "an earlier turn has no answer"
                turn = Turn(sheet.prompt.follow_ups[number - 1], None, reason=reason)
                sheets[i] = replace(sheet, turns=(*sheet.turns, turn))
        open_ = [i for i, sheet in enumerate(sheets) if len(sheet.turns) == number + 1 and not sheet.turns[-1].reason]
        requests = (_answer_request(sheets[i], heats[i], max_tokens, seed) for i in open_)
        for i, reply in zip(open_, teacher.complete(requests), strict=True):
            sheets[i] = replace(sheets[i], turns=(*sheets[i].turns[:-1], _answered(sheets[i].turns[-1], reply)))
            tick()
    return sheets


def _answer_request(sheet: Sheet, temperature: float, max_tokens: int, seed: int) -> Request:
    number = len(sheet.turns)
    return Request(
        sheet.conversation(number - 1),
        max_tokens,
        temperature,
        seed=request_seed(seed, sheet.prompt.id, "answer", number),
    )


def _answered(turn: Turn, reply: Reply) -> Turn:
    """An answer cut at its limit is judged as it stands; one that was refused or broke is missing."""
    if reply.finish in ("stop", "length"):
        return replace(turn, assistant=reply.text)
    return replace(turn, reason=reply.reason or f"no answer: {reply.finish}")


Ask = Callable[[Sheet, int], Request]
"""The request that has a judge grade that turn of a sheet, counted from 0."""
Read = Callable[[Turn, str], Turn]
"""The turn with what the judge's reply says of it."""


def grade(
    judge: Callable[[], Teacher],
    sheets: Sequence[Sheet],
    ask: Ask,
    read: Read,
    tick: Tick = lambda: None,
    ask_again: int = 0,
) -> list[Sheet]:
    """Every answered turn of the sheets that has no score yet, graded.

    `judge` is called where there is something to ask; a reply that cannot be read is asked for `ask_again` times more.
    A judge of whom nothing at all can be read raises TeacherError.
    """
    places = ungraded(sheets)
    graded = [list(sheet.turns) for sheet in sheets]
    if not places:
        return list(sheets)
    asker = judge()
    requests = (_until_read(ask(sheets[i], t), sheets[i].turns[t], read, ask_again) for i, t in places)
    first: Reply | None = None
    for (i, t), reply in zip(places, asker.complete(requests), strict=True):
        first = first or reply
        graded[i][t] = _graded(graded[i][t], reply, read)
        tick()
    found = [graded[i][t] for i, t in places]
    if first and not any(map(_was_read, found)):
        raise unreadable(asker.name, len(found), found[0].reason, first)
    return [replace(sheet, turns=tuple(turns)) for sheet, turns in zip(sheets, graded, strict=True)]


def ungraded(sheets: Sequence[Sheet]) -> list[tuple[int, int]]:
    """What there is to grade: the sheet and the turn, each by its place."""
    turns = [(i, t, turn) for i, sheet in enumerate(sheets) for t, turn in enumerate(sheet.turns)]
    return [(i, t) for i, t, turn in turns if turn.assistant is not None and turn.score is None]


def _until_read(request: Request, turn: Turn, read: Read, ask_again: int) -> Request:
    if not ask_again:
        return request
    return replace(request, attempts=1 + ask_again, accept=lambda reply: _was_read(_graded(turn, reply, read)))


def _was_read(turn: Turn) -> bool:
    return turn.score is not None or not turn.applies


def _graded(turn: Turn, reply: Reply, read: Read) -> Turn:
    if reply.finish in ("stop", "length"):
        return read(turn, reply.text)
    return replace(turn, judgment=reply.text, reason=reply.reason or f"no judgment: {reply.finish}")


class UnreadableError(TeacherError):
    """Nothing could be read of all that a judge said, though it answered."""


def unreadable(judge: str, asked: int, why: str, first: Reply) -> UnreadableError:
    """What to say where nothing could be read of all that a judge said."""
    return UnreadableError(
        f"judge {judge}",
        f"none of its {asked} judgments could be read ({why}); the first: {first.text[:80]!r}",
        remedy(
            first, "Use a judge that keeps to the asked format, or give its replies more room with judge_max_tokens"
        ),
    )


def observations(sheets: Iterable[Sheet]) -> Iterator[Observation]:
    """Those of all sheets, in order."""
    for sheet in sheets:
        yield from sheet.observations()
