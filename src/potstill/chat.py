"""Talking to a model on the terminal: it streams, remembers the conversation, and uses the model's own template."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.console import clean, screen
from potstill.errors import PotstillError
from potstill.records import Message
from potstill.sources import LocalModel, Model
from potstill.teachers.base import Request, request_seed

if TYPE_CHECKING:
    from potstill.teachers.local import LocalTeacher

HELP = """/reset          forget the conversation
/system TEXT    begin anew with this system prompt; without a text: with none
/help           this
/exit           leave; so does Ctrl-D. Ctrl-C stops an answer"""


@dataclass(frozen=True)
class Options:
    """How the model is asked."""

    system: str
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int


@dataclass
class Conversation:
    """What was said so far."""

    options: Options
    system: str
    turns: list[Message] = field(default_factory=list)
    asked: int = 0

    def request(self, text: str) -> Request:
        """The model's next turn after the user says this."""
        self.turns.append(Message(role="user", content=text))
        self.asked += 1
        first = (Message(role="system", content=self.system),) if self.system else ()
        options = self.options
        return Request(
            (*first, *self.turns),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=request_seed(options.seed, self.asked),
        )

    def reset(self) -> None:
        """Forget what was said, not who the model is told to be."""
        self.turns.clear()
        self.asked = 0


def chat(name: str, path: Path, options: Options) -> None:
    """Talk until the input ends. Where it is no terminal, only the answers are printed."""
    from potstill.teachers.local import LocalTeacher  # imports torch

    teacher = LocalTeacher(Model(name, LocalModel(path=str(path))))
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    conversation = Conversation(options, options.system)
    if terminal:
        _say(f"{name} listens. /help says what else there is.\n")
    with teacher:
        for text in _input(terminal):
            if text.startswith("/"):
                if text.split()[0] in ("/exit", "/quit"):
                    return
                _say(_command(text, conversation))
            elif text:
                _answer(teacher, conversation, text, terminal)


def _input(terminal: bool) -> Iterator[str]:
    """What the user types, line by line."""
    if not terminal:
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401  input() then edits lines and remembers them

    shown = screen()
    coloured = shown.color_system is not None and not shown.no_color
    prompt = "\n\001\033[1;36m\002›\001\033[0m\002 " if coloured else "\n› "
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            _say("")
            return


def _command(text: str, conversation: Conversation) -> str:
    """Do what a line that begins with a slash asks; returns what to say to it."""
    word, _, rest = text.partition(" ")
    if word == "/reset":
        conversation.reset()
        return "Forgotten."
    if word == "/system":
        conversation.reset()
        conversation.system = rest.strip()
        return f"It is told: {conversation.system}" if conversation.system else "It is told nothing beforehand."
    if word == "/help":
        return HELP
    return f"There is no {word}.\n{HELP}"


def _answer(teacher: "LocalTeacher", conversation: Conversation, text: str, terminal: bool) -> None:
    """Stream one answer. One that is stopped or fails is forgotten together with its question."""
    request, said = conversation.request(text), ""
    try:
        for piece in teacher.stream(request):
            said += piece
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not terminal:
            raise
        conversation.turns.pop()
        _say(" … stopped; forgotten")
    except PotstillError as error:
        if not terminal:
            raise
        conversation.turns.pop()
        _say(str(error))
    else:
        conversation.turns.append(Message(role="assistant", content=said))
        _say("")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
