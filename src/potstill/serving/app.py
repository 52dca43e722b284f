"""The application: OpenAI's routes over an engine, each request a mailbox to which its answers come."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from potstill.errors import ModelError
from potstill.serving.answer import Answer
from potstill.serving.bodies import DONE, Choice, Json, Style, sse
from potstill.serving.engine import Engine, Event, Overloaded, Ticket
from potstill.serving.prompt_odds import as_said, as_vllm_has_it, prompt_odds
from potstill.serving.protocol import Asked, BadRequest, error_body, read_body, read_chat, read_text
from potstill.teachers import base
from potstill.teachers.local import LocalTeacher
from potstill.training.decoding import Row
from potstill.training.models import rows_of

CLIENT_LEFT = 499
"""As nginx writes it down; nobody is there to read it."""


class Mailbox:
    """Where the answers to one request come in, on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, events: Sequence[Event]) -> None:
        """Called by the engine, from its thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def read(self, count: int) -> AsyncIterator[Event]:
        """The news of so many answers, until all have ended. What kept one from being written is raised."""
        while count:
            ticket, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            count -= event is None
            yield ticket, event


@dataclass
class Job:
    """One request on its way."""

    asked: Asked
    style: Style
    tickets: list[Ticket]
    choices: dict[Ticket, Choice]
    mailbox: Mailbox
    extras: dict[int, list[Any]]
    """By prompt: what is told of its tokens."""

    def used(self) -> str:
        """For the log."""
        ends = [choice.end for choice in self.choices.values() if choice.end is not None]
        read = max((end.prompt_tokens for end in ends), default=0)
        return f"{self.asked.model} {read}+{sum(end.completion_tokens for end in ends)} tokens"


class Service:
    """The models, and what is asked of them."""

    def __init__(self, teachers: Mapping[str, LocalTeacher], engine: Engine, created: int = 0) -> None:
        self._teachers, self._engine, self._created = teachers, engine, created
        self._encoding = threading.Lock()  # a tokenizer notes how it is used

    async def complete(self, request: Request, *, is_chat: bool) -> Response:
        """A chat or a plain completion, whole or as a stream."""
        asked = (read_chat if is_chat else read_text)(await read_body(request), self._teachers)
        mailbox = Mailbox()
        job = await asyncio.to_thread(self._prepare, asked, mailbox)
        try:
            self._engine.submit(job.tickets)
        except Overloaded:
            body = error_body("more is asked than can wait; try again", "overloaded_error", code="rate_limit_exceeded")
            return Json(body, 429, {"retry-after": "1"})
        if asked.stream:
            return _Stream(self._stream(request, job), self._engine, job)
        try:
            return await self._whole(request, job)
        finally:
            self._engine.cancel(job.tickets)

    def _prepare(self, asked: Asked, mailbox: Mailbox) -> Job:
        """Prompts as tokens, a ticket for each choice. BadRequest where a prompt cannot be read by the model."""
        teacher = self._teachers[asked.model]
        style = Style(asked.model, asked.is_chat, asked.logprobs, asked.with_usage)
        job = Job(asked, style, [], {}, mailbox, {})
        for place, prompt in enumerate(asked.prompts):
            with self._encoding:
                row = self._row(teacher, prompt)
                text = str(teacher.tokenizer.decode(row.prompt_ids.tolist())) if asked.echo and prompt.tokens else ""
            echoed = (prompt.opening or text) if asked.echo else ""
            if asked.prompt_logprobs is not None or (asked.echo and asked.logprobs):
                job.extras[place] = self._told_of_prompt(teacher, asked, row, prompt.top_logprobs)
            for number in range(asked.n):
                ticket = self._ticket(teacher, asked, prompt, row, number, mailbox)
                job.tickets.append(ticket)
                job.choices[ticket] = choice = Choice(place * asked.n + number, place, echoed)
                if asked.echo and asked.logprobs:
                    choice.said += job.extras[place]
        return job

    def _ticket(
        self, teacher: LocalTeacher, asked: Asked, prompt: base.Request, row: Row, number: int, mailbox: Mailbox
    ) -> Ticket:
        own = Row(
            row.prompt_ids,
            row.limit,
            prompt.temperature,
            prompt.top_p,
            prompt.top_k,
            base.request_seed(prompt.seed, number),
            told=row.limit if asked.logprobs else 0,
            listed=prompt.top_logprobs,
        )
        answer = Answer(
            own, teacher.tokenizer, frozenset(teacher.stops), asked.stop, bool(prompt.tools), reasons=asked.is_chat
        )
        return Ticket(asked.model, answer, mailbox.deliver)

    def _row(self, teacher: LocalTeacher, prompt: base.Request) -> Row:
        rows = rows_of(teacher.model.get_input_embeddings())
        if any(token >= rows for token in prompt.tokens):
            raise BadRequest(f"'prompt' holds a token that is none of the model's {rows:,}", "prompt")
        try:
            row = teacher.row(prompt)
        except ModelError as error:  # its template refuses the conversation
            raise BadRequest(f"{error.what}. {error.remedy}", "messages") from error
        if (fault := teacher.fault(row)) is not None:
            raise BadRequest(fault.reason, "messages" if prompt.messages else "prompt", code="context_length_exceeded")
        return row

    def _told_of_prompt(self, teacher: LocalTeacher, asked: Asked, row: Row, listed: int) -> list[Any]:
        odds = prompt_odds(teacher, row.prompt_ids, max(listed, asked.prompt_logprobs or 0))
        if asked.prompt_logprobs is not None:
            return as_vllm_has_it(teacher, odds)
        return list(as_said(teacher, row.prompt_ids, odds, listed))

    async def _whole(self, request: Request, job: Job) -> Response:
        """The reply once all its answers are there; nothing where the client has gone before."""
        writing = asyncio.create_task(self._collect(job))
        leaving = asyncio.create_task(_left(request))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                return Response(status_code=CLIENT_LEFT)
            writing.result()
        finally:
            writing.cancel()
            leaving.cancel()
        request.state.used = job.used()
        body = job.style.whole(list(job.choices.values()))
        if job.asked.prompt_logprobs is not None:
            for choice, said in zip(body["choices"], job.choices.values(), strict=True):
                choice["prompt_logprobs"] = job.extras[said.prompt]
        return Json(body)

    async def _collect(self, job: Job) -> None:
        async for ticket, piece in job.mailbox.read(len(job.tickets)):
            choice = job.choices[ticket]
            if piece is None:
                choice.end = ticket.answer.end
            elif not isinstance(piece, Exception):
                choice.add(piece)

    async def _stream(self, request: Request, job: Job) -> AsyncIterator[str]:
        """The events of a stream; a failure in its middle is one more event."""
        style, lengths = job.style, dict.fromkeys(job.tickets, 0)
        for choice in job.choices.values():
            yield style.opening(choice.index)
        try:
            async for ticket, piece in job.mailbox.read(len(job.tickets)):
                choice = job.choices[ticket]
                if piece is None:
                    choice.end = ticket.answer.end
                    assert choice.end is not None
                    yield style.ending(choice.index, choice.end)
                elif not isinstance(piece, Exception):
                    yield style.piece(choice.index, piece, lengths[ticket])
                    lengths[ticket] += len(piece.content)
        except Exception as error:
            yield sse(_failed(error)) + DONE
            return
        finally:
            request.state.used = job.used()
        yield style.closing(list(job.choices.values()))

    async def models(self, request: Request) -> Response:
        """What can be asked for."""
        listed = [self._model(name) for name in self._teachers]
        return Json({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self._teachers:
            what = f"the model '{name[:100]}' does not exist; expected one of: {', '.join(self._teachers)}"
            raise BadRequest(what, "model", 404, "model_not_found")
        return Json(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        told = {"id": name, "object": "model", "created": self._created, "owned_by": "potstill"}
        return {**told, "max_model_len": self._teachers[name].context}

    async def health(self, request: Request) -> Response:
        """It is there, and how much it has to do."""
        return Json({"status": "ok", "models": list(self._teachers), "answers_under_way": self._engine.busy})


class _Stream(StreamingResponse):
    """A stream whose answers are given up when it ends, however it ends."""

    def __init__(self, events: AsyncIterator[str], engine: Engine, job: Job) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._engine, self._job = engine, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.cancel(self._job.tickets)


async def _left(request: Request) -> None:
    """Ends when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed(error: Exception) -> dict[str, Any]:
    return error_body(f"the answer could not be written: {type(error).__name__}: {error}", "server_error")


def application(service: Service) -> Starlette:
    """The ASGI application."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, BadRequest)
        headers = {"connection": "close"} if error.status == 413 else None  # the rest of the body is not read
        return Json(error.body, error.status, headers)

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        what = f"unknown request URL: {request.method} {request.url.path}"
        return Json(error_body(what, "invalid_request_error", code="unknown_url"), status)

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    async def failed(request: Request, error: Exception) -> Response:
        return Json(_failed(error), 500)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", partial(service.complete, is_chat=True), methods=["POST"]),
            Route("/v1/completions", partial(service.complete, is_chat=False), methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/health", service.health),
        ],
        exception_handlers={BadRequest: refused, ClientDisconnect: left, 404: unknown, 405: unknown, Exception: failed},
    )
