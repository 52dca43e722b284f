"""Talking to a model on the terminal: it streams, remembers the conversation, and uses the model's own template."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from potstill.artifact import add_line
from potstill.errors import DataError, ModelError, PotstillError
from potstill.layouts import to_line
from potstill.reading.turns import as_json
from potstill.records import Message
from potstill.teachers.base import Request, request_seed
from potstill.terminal.console import clean, screen

HELP = """/retry          the same question again, for another answer
/model NAME     go on with another model of the run; without a name: which there are
/save FILE      add the conversation to a file of rows, as `import` reads them
/system TEXT    begin anew with this system prompt; without a text: with none
/reset          forget the conversation
/help           this
/exit           leave; so does Ctrl-D. Ctrl-C stops an answer; what was said by then stays"""

ROOM = 4
"""Of a context, an answer gets one of so many parts before old turns are kept: or all that it may have, if less."""


class Speaker(Protocol):
    """Whom one talks to: a model in this process, or one behind an endpoint."""

    name: str
    context: int
    """Tokens that it reads and writes at most."""
    written: int
    """Tokens of its last answer."""

    def length(self, request: Request) -> int:
        """Tokens of the prompt; 0 where only the other side can count them."""
        ...

    def stream(self, request: Request) -> Iterator[str]:
        """The answer, piece by piece."""
        ...

    def close(self) -> None:
        """Give back what it takes."""
        ...


Load = Callable[[str], Speaker]


@dataclass(frozen=True)
class Options:
    """How the model is asked. The defaults are those of `potstill chat`, and what the pages ask with."""

    system: str = ""
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    max_tokens: int = 256
    seed: int = 0


@dataclass
class Conversation:
    """What was said so far."""

    options: Options
    system: str
    turns: list[Message] = field(default_factory=list)
    asked: int = 0
    forgotten: int = 0
    """How many of the oldest turns the model no longer sees."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """All of it, the system's turn first."""
        first = (Message(role="system", content=self.system),) if self.system else ()
        return (*first, *self.turns)

    def request(self) -> Request:
        """The model's next turn."""
        self.asked += 1
        options = self.options
        return Request(
            self.messages,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=request_seed(options.seed, self.asked),
        )

    def reset(self) -> None:
        """Forget what was said, not who the model is told to be."""
        self.turns.clear()
        self.asked = self.forgotten = 0

    def take_back(self) -> str:
        """Forget the last question and its answer; returns the question, "" where there is none."""
        while self.turns:
            last = self.turns.pop()
            if last.role == "user":
                return last.content
        return ""


def fitted(speaker: Speaker, request: Request) -> tuple[Request, int]:
    """The request without its oldest turns where they would leave no room for an answer, and how many are left out.

    ModelError where the last turn alone is too long.
    """
    first = 1 if request.messages[0].role == "system" else 0
    room, left_out = min(request.max_tokens, speaker.context // ROOM), 0
    while (length := speaker.length(request)) + room > speaker.context and len(request.messages) > first + 1:
        request = replace(request, messages=(*request.messages[:first], *request.messages[first + 2 :]))
        left_out += 2
    if length >= speaker.context:
        what = f"this alone has {length:,} tokens, and the model reads {speaker.context:,}"
        raise ModelError(speaker.name, what, "Say it in fewer words")
    return request, left_out


class Talk:
    """A conversation at a terminal, or with a program that writes lines and reads answers."""

    def __init__(
        self, speaker: Speaker, options: Options, load: Load | None = None, names: tuple[str, ...] = ()
    ) -> None:
        """`load` finds another model of `names`, where there are others."""
        self.speaker, self.conversation = speaker, Conversation(options, options.system)
        self._load, self._names = load, names
        self.on_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Talk until the input ends."""
        if self.on_terminal:
            _say(f"{self.speaker.name} listens. /help says what else there is.\n")
        for text in _input(self.on_terminal):
            if text.split()[:1] in (["/exit"], ["/quit"]):
                return
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self.ask(text)

    def ask(self, text: str) -> None:
        """Stream one answer. Off a terminal, what fails is raised."""
        conversation, before = self.conversation, self.conversation.forgotten
        conversation.turns.append(Message(role="user", content=text))
        said: list[str] = []
        try:
            request, conversation.forgotten = fitted(self.speaker, conversation.request())
            if conversation.forgotten > before:
                self._note(f"The {conversation.forgotten} oldest turns no longer fit: it does not see them any more.")
            self._answer(request, said)
        except KeyboardInterrupt:
            if not self.on_terminal:
                conversation.take_back()
                raise
            _say(" … stopped" if said else " … stopped; forgotten")
        except PotstillError as error:
            if not self.on_terminal:
                conversation.take_back()
                raise
            said.clear()
            _say(str(error))
        if answer := "".join(said):
            conversation.turns.append(Message(role="assistant", content=answer))
        else:
            conversation.take_back()

    def _answer(self, request: Request, said: list[str]) -> None:
        began = time.perf_counter()
        for piece in self.speaker.stream(request):
            said.append(piece)
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
        _say("")
        written, seconds = self.speaker.written, time.perf_counter() - began
        if not said:
            self._note("It says nothing.")
        elif self.on_terminal and written:
            room = self.speaker.context - self.speaker.length(request)
            cut = ", cut there: the context is full" if written >= room else ""
            cut = ", cut there: --max-tokens sets how many" if written >= request.max_tokens else cut
            self._note(f"{written:,} tokens, {written / max(seconds, 1e-9):,.1f}/s{cut}")

    def _note(self, text: str) -> None:
        """A word from us, not from the model."""
        if self.on_terminal:
            _say(f"\033[2m{text}\033[0m")
        else:
            sys.stderr.write(text + "\n")

    def _obey(self, text: str) -> None:
        """Do what a line that begins with a slash asks."""
        word, _, rest = text.partition(" ")
        commands = {"/reset": self._reset, "/system": self._system, "/save": self._save, "/model": self._model}
        try:
            if word == "/retry":
                if question := self.conversation.take_back():
                    self.ask(question)
                else:
                    _say("Nothing was asked yet.")
            elif word in commands:
                _say(commands[word](rest.strip()))
            else:
                _say(HELP if word == "/help" else f"There is no {word}.\n{HELP}")
        except PotstillError as error:
            if not self.on_terminal:
                raise
            _say(str(error))

    def _reset(self, _: str) -> str:
        self.conversation.reset()
        return "Forgotten."

    def _system(self, told: str) -> str:
        self.conversation.reset()
        self.conversation.system = told
        return f"It is told: {told}" if told else "It is told nothing beforehand."

    def _save(self, name: str) -> str:
        if not name:
            return "Name a file: /save chats.jsonl"
        if not self.conversation.turns:
            return "Nothing was said yet."
        rows = save(Path(name).expanduser(), self.conversation.messages)
        return f"Saved; {name} holds {rows} {'conversation' if rows == 1 else 'conversations'}."

    def _model(self, name: str) -> str:
        if self._load is None or not name:
            return f"There are: {', '.join(self._names) or self.speaker.name}. This is {self.speaker.name}."
        other = self._load(name)
        self.speaker.close()
        self.speaker = other
        return f"{other.name} listens, and knows what was said."


def save(path: Path, messages: tuple[Message, ...]) -> int:
    """Add a conversation to a file as a row of `messages`; returns how many rows it holds.

    DataError where the file holds anything else: it would be spoilt.
    """
    row = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    lines: list[str] = []
    if path.is_dir():
        raise DataError(str(path), "this is a folder; expected a file", "Name another")
    if path.exists():
        lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        if any(not isinstance(found := as_json(line), dict) or "messages" not in found for line in lines):
            raise DataError(str(path), "this file holds something other than conversations", "Name a new one")
    add_line(path, to_line(row))
    return len(lines) + 1


def _input(on_terminal: bool) -> Iterator[str]:
    """What the user types, line by line. Ctrl-C twice, with nothing between, leaves."""
    if not on_terminal:
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401  input() then edits lines and remembers them

    shown, warned = screen(), False
    coloured = shown.color_system is not None and not shown.no_color
    prompt = "\n\001\033[1;36m\002›\001\033[0m\002 " if coloured else "\n› "
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            _say("")
            return
        except KeyboardInterrupt:
            if warned:
                raise
            warned = True
            _say("\nCtrl-C again leaves; so do Ctrl-D and /exit.")
            continue
        warned = False
        yield text


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
