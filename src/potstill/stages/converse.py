"""Stage `converse`: prompts become dialogues between a teacher and a simulated user (UltraChat, Ding et al. 2023).

Round by round over all dialogues: every assistant turn of a round is asked for before the users of the next one speak.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from potstill.errors import DataError, TeacherError
from potstill.prompts import render_prompt
from potstill.records import Chat, Dropped, Message, Prompt
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, StageConfig, Work
from potstill.teachers.base import Reply, Request, Teacher, connect, remedy, request_seed

TOKENS_PER_TURN = 300  # for forecasts
MOST_TURNS = 1000


class Converse(StageConfig):
    """Have a teacher talk about each prompt with a simulated user."""

    kind: Literal["converse"]
    teacher: ModelName
    """Who answers."""
    prompts: Annotated[str, Reference(("prompts",))]
    """How each dialogue begins. A prompt's own follow-ups are what the user says next."""
    user: Annotated[str | None, Reference(("model",))] = None
    """Who plays the user. Default: the teacher."""
    turns: tuple[int, int] = (1, 3)
    """The fewest and the most assistant turns; each dialogue's own number is drawn between them."""
    system: str | None = None
    """A system turn for dialogues whose prompt has none. The teacher sees it, and it stays in the dialogue."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the answers."""
    user_temperature: float = Field(default=0.9, ge=0)
    """Of the simulated user's turns."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest answer. A dialogue with an answer cut there is dropped."""
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
    """One conversation on its way."""

    prompt: Prompt
    messages: list[Message]
    turns: int
    """Assistant turns that it is to have."""
    fault: Dropped | None = None
    failed: Reply | None = None
    """The reply at fault."""

    def drop(self, reply: Reply, reason: str, detail: str) -> None:
        self.fault, self.failed = Dropped(id=self.prompt.id, reason=reason, detail=detail), reply

    @property
    def answered(self) -> int:
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def open(self) -> bool:
        return self.fault is None and self.answered < self.turns


def run(config: Converse, inputs: Inputs, work: Work) -> Facts:
    """Hold the dialogues; those with a turn that failed are dropped with the reason."""
    dialogues = [_begin(config, prompt, work.seed) for prompt in inputs.one("prompts").rows(Prompt)]
    if not dialogues:
        raise DataError(inputs.one("prompts").name, "there are no prompts", "Give it some")
    total, done = sum(dialogue.turns for dialogue in dialogues), 0
    with ExitStack() as stack:
        teacher = stack.enter_context(connect(inputs.model("teacher"), work.account))
        user = stack.enter_context(connect(inputs.model("user"), work.account)) if config.user else teacher
        for turn in range(config.turns[1]):
            if turn:
                _ask_users(config, user, [d for d in dialogues if d.open], turn, work.seed)
            going = [d for d in dialogues if d.open]
            for dialogue, reply in zip(going, _answers(config, teacher, going, turn, work.seed), strict=True):
                if reply.finish == "stop":
                    dialogue.messages.append(Message(role="assistant", content=reply.text.strip()))
                else:
                    dialogue.drop(reply, f"answer_{reply.finish}", reply.reason)
                done += 1
                work.progress(done, total, "answers")
    dropped = [dialogue.fault for dialogue in dialogues if dialogue.fault]
    if len(dropped) == len(dialogues):
        raise _nothing_held(config, inputs, dialogues[0])
    count = work.keep(_chats(dialogues))
    work.drop(dropped)
    lengths = Counter(dialogue.answered for dialogue in dialogues if not dialogue.fault)
    return {
        "rows": count,
        "dropped": dict(sorted(Counter(row.reason for row in dropped).items())),
        "assistant_turns": {str(n): lengths[n] for n in sorted(lengths)},
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


def _begin(config: Converse, prompt: Prompt, seed: int) -> _Dialogue:
    messages = list(prompt.messages)
    if config.system is not None and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=config.system))
    turns = random.Random(request_seed(seed, prompt.id, "turns")).randint(*config.turns)
    # A prompt that comes with earlier answers brings them beyond the turns that are asked for here.
    turns += sum(message.role == "assistant" for message in messages)
    return _Dialogue(prompt, messages, turns)


def _answers(
    config: Converse, teacher: Teacher, dialogues: Iterable[_Dialogue], turn: int, seed: int
) -> Iterator[Reply]:
    return teacher.complete(
        Request(
            messages=tuple(dialogue.messages),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(seed, dialogue.prompt.id, "answer", turn),
        )
        for dialogue in dialogues
    )


def _ask_users(config: Converse, user: Teacher, dialogues: list[_Dialogue], turn: int, seed: int) -> None:
    """Give each dialogue its next user turn: the prompt's own follow-up, or what the simulated user says."""
    asked = []
    for dialogue in dialogues:
        if turn <= len(dialogue.prompt.follow_ups):
            dialogue.messages.append(Message(role="user", content=dialogue.prompt.follow_ups[turn - 1]))
        else:
            asked.append(dialogue)
    requests = (
        Request(
            messages=_user_prompt(dialogue.messages),
            max_tokens=config.user_max_tokens,
            temperature=config.user_temperature,
            seed=request_seed(seed, dialogue.prompt.id, "user", turn),
        )
        for dialogue in asked
    )
    for dialogue, reply in zip(asked, user.complete(requests), strict=True):
        said = read_user_turn(reply.text) if reply.finish == "stop" else ""
        if said:
            dialogue.messages.append(Message(role="user", content=said))
        elif reply.finish == "stop":
            dialogue.drop(reply, "user_unread", reply.text[:200])
        else:
            dialogue.drop(reply, f"user_{reply.finish}", reply.reason)


def _user_prompt(messages: list[Message]) -> tuple[Message, ...]:
    spoken = [message for message in messages if message.role != "system"]
    return (
        Message(role="system", content=render_prompt("user_system").strip()),
        Message(role="user", content=render_prompt("user_next", conversation=spoken).strip()),
    )


def read_user_turn(text: str) -> str:
    """What the simulated user says, without a label before it or the answer that some models go on to write."""
    text = re.sub(r"\A\s*\**user\**\s*:\**\s*", "", text, flags=re.IGNORECASE)
    return re.split(r"^\s*\**(?:assistant|user)\**\s*:", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[
        0
    ].strip()


def _chats(dialogues: list[_Dialogue]) -> Iterator[Chat]:
    for dialogue in dialogues:
        if not dialogue.fault:
            prompt = dialogue.prompt
            yield Chat(id=prompt.id, messages=tuple(dialogue.messages), category=prompt.category)


STAGE = Stage(config=Converse, produces="chats", run=run)
