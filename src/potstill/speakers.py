"""Whom `chat` and the arena talk to: models of a run or of folders, and models behind an endpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.errors import PotstillError, TeacherError
from potstill.sources import EndpointModel, LocalModel, Model
from potstill.teachers import wire
from potstill.teachers.base import Reply, Request
from potstill.teachers.dispatcher import Who

NO_KEY = "none"
UNBOUNDED = 1 << 62
"""The context of a model that nobody here can count the tokens of."""


def _spec(url: str, name: str, key_env: str | None) -> EndpointModel:
    """The endpoint. TeacherError where it is no URL, or the variable has no name."""
    fault = "this is no URL"
    try:
        spec = EndpointModel(endpoint=url, name=name, key_env=key_env)
        if spec.is_url:
            return spec
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        fault = cause.what if isinstance(cause, PotstillError) else error.errors()[0]["msg"]
    raise TeacherError("--endpoint", fault, "Write one such as http://localhost:8000/v1")


def _read(event: Any) -> tuple[str, str | None]:
    """The text of an event of a stream, and how the answer ended where it did. TypeError where it is of no text."""
    if not event.choices:
        return "", None
    choice = event.choices[0]
    piece = choice.delta.content if choice.delta is not None else None
    if not isinstance(piece, str | None):
        raise TypeError(f"its content is of the type {type(piece).__name__}")
    return piece or "", choice.finish_reason


class NearSpeaker:
    """A model in this process."""

    def __init__(self, name: str, path: Path) -> None:
        from potstill.teachers.local import LocalTeacher  # imports torch

        self._teacher = LocalTeacher(Model(name, LocalModel(path=str(path)))).__enter__()
        self.name, self.context, self.written = name, self._teacher.context, 0

    def length(self, request: Request) -> int:
        """Tokens of the prompt."""
        return self._teacher.length(request)

    def stream(self, request: Request) -> Iterator[str]:
        """The answer, piece by piece."""
        self.written = 0
        for piece, tokens in self._teacher.write(request):
            self.written = tokens
            if piece:
                yield piece

    def say(self, request: Request) -> Reply:
        """The whole answer, without what was thought before it."""
        return next(self._teacher.complete([request]))

    def close(self) -> None:
        """Give its memory back."""
        self._teacher.__exit__(None, None, None)


class FarSpeaker:
    """A model behind an OpenAI-compatible server. TeacherError where it cannot be reached, or refuses."""

    context = UNBOUNDED

    def __init__(self, url: str, name: str, key_env: str | None = None) -> None:
        self.name, self.written = name, 0
        self._spec = _spec(url, name, key_env)
        self._who = Who(name, self._spec, (url,))
        self._who.check_key()
        from openai import OpenAI

        self._client = OpenAI(
            base_url=url, api_key=self._who.secret or NO_KEY, max_retries=0, timeout=self._spec.timeout_seconds
        )

    def length(self, request: Request) -> int:
        """Nobody knows: only the server has the tokenizer. It says so where a prompt is too long."""
        return 0

    def stream(self, request: Request) -> Iterator[str]:
        """The answer, piece by piece."""
        self.written = 0
        body: dict[str, Any] = wire.request_body(self._spec, request) | {"stream": True}
        ended = False
        with self._told():
            for event in self._client.chat.completions.create(**body):
                piece, finish = _read(event)
                ended = ended or finish is not None
                if piece:
                    self.written += 1  # servers send a token at a time
                    yield piece
        if not ended:
            what = "its answer broke off before its end" if self.written else "what it answers is no stream of a chat"
            raise self._who.error(what, "Ask again, or name another endpoint")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except wire.failures() as error:
            failure = wire.failure(error, self._spec.timeout_seconds, self._who.redact)
            raise self._who.error(failure.reason, "Mend it, or name another endpoint") from error
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:  # whatever it sent
            what = f"what it sends is no stream of a chat ({type(error).__name__}: {str(error)[:100]})"
            raise self._who.error(what, "Mend it, or name another endpoint") from error

    def close(self) -> None:
        """Hang up."""
        self._client.close()
