"""Stage `converse`: prompts become dialogues between a teacher and a simulated user (UltraChat, Ding et al. 2023).

Only the dialogues under way are held in memory: as one ends the next begins, and none waits for all the others to come
as far. What makes the prompts is another matter: see `topics`, `creation`, `material`, `self_instruct`, `magpie`.
"""

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from potstill.curation.filters import find_refusal
from potstill.curation.user_turns import END_SIGN, read_user_turn, runs, says_end, turn_fault
from potstill.errors import DataError, TeacherError
from potstill.records import Chat, Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.asking import Asking, Prompts, Tally
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.stages.conveyor import Ask, Talk, convey
from potstill.stages.domain import Domain, domain_text
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed

TOKENS_PER_TURN = 300  # for forecasts
MOST_TURNS = 1000


class Converse(Asking):
    """Have a teacher talk about each prompt with a simulated user.

    A dialogue ends before the first turn of which nothing came, and is left out where it then has fewer than the fewest
    turns. Turns that decline and turns that were cut count as such or not by `refusals` and `truncated`.
    """

    PROMPTS: ClassVar[tuple[str, ...]] = ("user_system", "user_next", "domain")

    kind: Literal["converse"]
    teacher: ModelName
    """Who answers."""
    prompts: Annotated[str, Reference(("prompts",))]
    """How each dialogue begins. A prompt's own follow-ups are what the user says next."""
    user: ModelName | None = None
    """Who plays the user. Default: the teacher."""
    turns: tuple[int, int] = (1, 3)
    """The fewest and the most assistant turns; each dialogue's own number is drawn between them."""
    may_end: bool = True
    """The simulated user may end a dialogue that has the fewest turns."""
    refusals: Literal["keep", "drop"] = "keep"
    """Answers that decline: part of the dialogue, or turns of which nothing came."""
    system: str | None = None
    """A system turn for dialogues whose prompt has none. The teacher sees it, and it stays in the dialogue. Default:
    that of the domain."""
    personas: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Who the simulated user may be; drawn for each dialogue, unless its prompt says who asks. Default: those of the
    domain."""
    domain: Domain | None = None
    """What it is about. Default: the recipe's."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the answers."""
    user_temperature: float = Field(default=0.9, ge=0)
    """Of the simulated user's turns."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer."""
    user_max_tokens: int = Field(default=256, ge=1)
    """The longest turn of the simulated user."""

    @field_validator("turns")
    @classmethod
    def _turns_in_order(cls, turns: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= turns[0] <= turns[1] <= MOST_TURNS:
            raise ValueError(f"turns must be [fewest, most] with 1 <= fewest <= most <= {MOST_TURNS}")
        return turns

    def expect(self, rows: Mapping[str, int]) -> Expected:
        turns = sum(self.turns) / 2
        calls = int(rows["prompts"] * (2 * turns - 1))
        tokens = rows["prompts"] * turns * turns * TOKENS_PER_TURN
        return Expected(rows["prompts"], calls, int(tokens))


@dataclass
class _Dialogue:
    """One conversation, as far as it came."""

    prompt: Prompt
    messages: list[Message]
    answered: int = 0
    """Assistant turns beyond those that the prompt came with."""
    fault: Dropped | None = None
    """Why it goes no further, where that was not meant."""
    failed: Reply | None = None
    """The reply at fault."""

    def stop(self, reply: Reply, reason: str, detail: str) -> "_Dialogue":
        self.fault, self.failed = Dropped(id=self.prompt.id, reason=reason, detail=detail), reply
        return self


@dataclass
class _Host:
    """Who holds the dialogues: what all of them share."""

    config: Converse
    prompts: Prompts
    seed: int
    answers: Tally = field(default_factory=Tally)
    users: Tally = field(default_factory=Tally)
    ended_by_user: int = 0

    def __post_init__(self) -> None:
        self._domain = domain_text(self.prompts, self.config.domain)
        told = self._user_messages([], "", may_end=True)
        self._told = runs(" ".join(message.content for message in told))

    def hold(self, prompt: Prompt) -> Talk[_Dialogue]:
        """One dialogue from its prompt to its end."""
        config, name = self.config, prompt.id
        dialogue = _Dialogue(prompt, self._opening(prompt))
        wished = random.Random(request_seed(self.seed, name, "turns")).randint(*config.turns)
        persona = self._persona(prompt)
        while dialogue.answered < wished:
            turn = dialogue.answered
            if 0 < turn <= len(prompt.follow_ups):
                dialogue.messages.append(Message(role="user", content=prompt.follow_ups[turn - 1]))
            elif turn:
                reply = self.users.add((yield Ask("user", self._user_request(dialogue, persona))))
                said = read_user_turn(reply.text)
                if config.is_whole(reply) and self._may_end(turn) and says_end(said):
                    self.ended_by_user += 1
                    break
                if reason := self._user_fault(dialogue, reply, said):
                    return dialogue.stop(reply, f"user_{reason}", reply.reason or reply.text[:200])
                dialogue.messages.append(Message(role="user", content=said))
            reply = self.answers.add((yield Ask("teacher", self._answer_request(dialogue))))
            if reason := self._answer_fault(reply):
                return dialogue.stop(reply, f"answer_{reason}", reply.reason or reply.text[:200])
            dialogue.messages.append(Message(role="assistant", content=reply.text.strip()))
            dialogue.answered += 1
        return dialogue

    def _opening(self, prompt: Prompt) -> list[Message]:
        domain = self.config.domain
        system = self.config.system if self.config.system is not None else domain and domain.system
        own = prompt.messages[0].role == "system"
        return [*([] if own or system is None else [Message(role="system", content=system)]), *prompt.messages]

    def _persona(self, prompt: Prompt) -> str:
        personas = self.config.personas or (self.config.domain.personas if self.config.domain else ())
        drawn = random.Random(request_seed(self.seed, prompt.id, "persona")).choice(personas) if personas else ""
        return prompt.persona or drawn

    def _may_end(self, turn: int) -> bool:
        return self.config.may_end and turn >= self.config.turns[0]

    def _user_fault(self, dialogue: _Dialogue, reply: Reply, said: str) -> str:
        if not self.config.is_whole(reply):
            return reply.finish
        earlier = [message.content for message in dialogue.messages if message.role == "user"]
        return turn_fault(said, earlier, self._told)

    def _answer_fault(self, reply: Reply) -> str:
        if not self.config.is_whole(reply):
            return reply.finish
        return "declined" if self.config.refusals == "drop" and _declines(reply) else ""

    def _answer_request(self, dialogue: _Dialogue) -> Request:
        config = self.config
        return Request(
            messages=tuple(dialogue.messages),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(self.seed, dialogue.prompt.id, "answer", dialogue.answered),
            attempts=config.ask_again + 1,
            accept=lambda reply: not self._answer_fault(reply),
        )

    def _user_request(self, dialogue: _Dialogue, persona: str) -> Request:
        config, turn = self.config, dialogue.answered
        spoken = [message for message in dialogue.messages if message.role != "system"]
        before = _Dialogue(dialogue.prompt, list(dialogue.messages), turn)  # as it stands now, for another thread
        return Request(
            messages=self._user_messages(spoken, persona, may_end=self._may_end(turn)),
            max_tokens=config.user_max_tokens,
            temperature=config.user_temperature,
            seed=request_seed(self.seed, dialogue.prompt.id, "user", turn),
            attempts=config.ask_again + 1,
            accept=lambda reply: not self._user_fault(before, reply, read_user_turn(reply.text)),
        )

    def _user_messages(self, spoken: list[Message], persona: str, *, may_end: bool) -> tuple[Message, ...]:
        sign = END_SIGN if may_end else ""
        system = self.prompts.render("user_system", persona=persona, domain=self._domain).strip()
        text = self.prompts.render("user_next", conversation=spoken, sign=sign).strip()
        return (Message(role="system", content=system), Message(role="user", content=text))


def run(config: Converse, inputs: Inputs, work: Work) -> Facts:
    """Hold the dialogues and write them down in the order of their prompts."""
    data = inputs.one("prompts")
    total = sum(1 for _ in data.rows(Prompt))  # so that a bad row is found before anything is asked
    if not total:
        raise DataError(data.name, "there are no prompts", "Give it some")
    host = _Host(config, Prompts(inputs), work.seed)
    lengths, shortened = Counter[int](), Counter[str]()
    first: _Dialogue | None = None
    with ExitStack() as stack:
        teacher = stack.enter_context(connect(inputs.model("teacher"), work.account))
        user = stack.enter_context(connect(inputs.model("user"), work.account)) if config.user else teacher
        harvest = stack.enter_context(work.harvest())
        dialogues = convey(map(host.hold, data.rows(Prompt)), {"teacher": teacher, "user": user})
        for done, dialogue in enumerate(dialogues, start=1):
            first = first or dialogue
            if dialogue.answered >= config.turns[0]:
                chat = _chat(dialogue)
                harvest.keep(chat)
                lengths[sum(message.role == "assistant" for message in chat.messages)] += 1
                shortened.update([dialogue.fault.reason] if dialogue.fault else [])
            else:
                assert dialogue.fault
                harvest.drop(dialogue.fault)
            work.progress(done, total, "dialogues")
    assert first
    if not harvest.rows:
        raise _nothing_held(config, inputs, first)
    return {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "assistant_turns": {str(n): lengths[n] for n in sorted(lengths)},
        "shortened": dict(sorted(shortened.items())),
        "ended_by_user": host.ended_by_user,
        "answers": host.answers.facts(),
        "user_turns": host.users.facts(),
    }


def _nothing_held(config: Converse, inputs: Inputs, first: _Dialogue) -> TeacherError:
    """What to say where every dialogue was dropped, by the first of them."""
    assert first.fault
    assert first.failed
    by_user = first.fault.reason.startswith("user")
    who = "user" if by_user and config.user else "teacher"
    what = f"no dialogue could be held ({first.fault.detail})"
    limit = "user_max_tokens" if by_user else "max_tokens"
    return TeacherError(inputs.model(who).name, what, remedy(first.failed, f"Use another {who}", limit))


def _declines(reply: Reply) -> bool:
    return find_refusal([Message(role="assistant", content=reply.text)]) is not None


def _chat(dialogue: _Dialogue) -> Chat:
    """Up to the last answer."""
    messages: list[Message] = dialogue.messages
    while messages[-1].role != "assistant":
        messages = messages[:-1]
    return Chat(id=dialogue.prompt.id, messages=tuple(messages), category=dialogue.prompt.category)


STAGE = Stage(config=Converse, produces="chats", run=run, version=2)
