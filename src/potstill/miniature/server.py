"""The miniature's voices behind an OpenAI-compatible HTTP server on loopback, in a process of its own.

It sees the protocol's fields only. Standard input is its lifeline: when whoever started it goes, it goes too.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.environment import time_limit_unheard
from potstill.errors import TeacherError
from potstill.miniature.mind import call, label_odds, reply
from potstill.miniature.voices import VOICES
from potstill.miniature.world import World, world
from potstill.serving.protocol import BadRequest, Range, check_numbers, read_body
from potstill.sources import MiniatureServer

START_SECONDS = 30
TOKEN = re.compile(r"\s*(?:\w{1,6}|[^\w\s])")
"""What counts as a token for usage and max_tokens: at most six letters, or a sign, with the space before it."""


def complete(known: World, body: Any) -> dict[str, Any]:
    """The answer to one chat completion request; BadRequest where it is not one."""
    messages, model, limit = _validated(body)
    temperature, seed, count = body.get("temperature", 1.0), body.get("seed"), body.get("n") or 1
    choices, written = [], 0
    for index in range(count):
        seed_here = seed if not index else (seed or 0) + index
        tooled = call(known, model, messages, temperature, seed_here) if _offers_lookup(body) else None
        text, wish = tooled or (reply(known, model, messages, temperature, seed_here), None)
        tokens = TOKEN.findall(text)
        finish = "tool_calls" if wish else "stop" if limit is None or len(tokens) <= limit else "length"
        tokens = tokens[:limit]
        written += len(tokens)
        said: dict[str, Any] = {"role": "assistant", "content": "".join(tokens)}
        if wish:
            said["tool_calls"] = [{"id": f"call-{len(messages)}", "type": "function", "function": wish}]
        odds = label_odds(known, model, messages, temperature, seed_here) if body.get("logprobs") else None
        told = _logprobs(tokens, odds, body.get("top_logprobs") or 0) if body.get("logprobs") else None
        choices.append({"index": index, "message": said, "finish_reason": finish, "logprobs": told})
    read = sum(len(TOKEN.findall(message["content"])) + 3 for message in messages)
    return {
        "id": "chatcmpl-miniature",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": choices,
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _logprobs(tokens: list[str], odds: dict[str, float] | None, top: int) -> dict[str, Any]:
    """What the protocol tells of each token. A voice is sure of every word but the label of a comparison."""

    def one(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = []
    for place, token in enumerate(tokens):
        known = odds if odds and not place else {token: 0.0}
        listed = [one(name, logprob) for name, logprob in list(known.items())[:top]]
        content.append({**one(token, known.get(token, 0.0)), "top_logprobs": listed})
    return {"content": content}


def go_on(known: World, body: Any) -> dict[str, Any]:
    """The answer to a request for a plain completion: the voices read its text as they would a user's turn."""
    if isinstance(body, dict) and not isinstance(body.get("prompt"), str):
        raise BadRequest("'prompt' must be a string", "prompt")
    asked = {**body, "messages": [{"role": "user", "content": body["prompt"]}]} if isinstance(body, dict) else body
    answer = complete(known, asked)
    choices = [
        {"index": c["index"], "text": c["message"]["content"], "finish_reason": c["finish_reason"], "logprobs": None}
        for c in answer["choices"]
    ]
    return {**answer, "id": "cmpl-miniature", "object": "text_completion", "choices": choices}


def _offers_lookup(body: Any) -> bool:
    return any(tool["function"].get("name") == "lookup" for tool in body.get("tools") or ())


def _only_calls(message: dict[str, Any]) -> bool:
    """An assistant's turn may be nothing but calls."""
    return message.get("content") is None and message.get("role") == "assistant" and bool(message.get("tool_calls"))


_ROLES = ("system", "developer", "user", "assistant", "tool")
_RANGES: tuple[Range, ...] = (
    ("temperature", (int, float), 0, 2),
    ("top_p", (int, float), 0, 1),
    ("n", int, 1, 16),
    ("seed", int, -(2**63), 2**63 - 1),
    ("max_tokens", int, 1, 2**31),
    ("max_completion_tokens", int, 1, 2**31),
    ("top_logprobs", int, 0, 20),
)


def _validated(body: Any) -> tuple[list[dict[str, str]], str, int | None]:
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", None)
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str):
        raise BadRequest("you must provide a model parameter", "model")
    if model not in VOICES:
        raise BadRequest(f"The model '{model}' does not exist", "model", 404, "model_not_found")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list of at least one message", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise BadRequest(f"messages[{number}] has no known role", f"messages[{number}].role")
        if not isinstance("" if _only_calls(message) else message.get("content"), str):
            raise BadRequest(f"messages[{number}].content must be a string", f"messages[{number}].content")
    check_numbers(body, _RANGES)
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        raise BadRequest("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    if not isinstance(body.get("stream_options"), dict | None):
        raise BadRequest("'stream_options' must be an object", "stream_options")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(
        isinstance(t, dict) and isinstance(t.get("function"), dict) for t in tools
    ):
        raise BadRequest("'tools' must be a list of functions", "tools")
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    plain = [{"role": str(message["role"]), "content": message.get("content") or ""} for message in messages]
    return plain, model, limit


async def _events(answer: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events: the same answer, token by token."""
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": 0, "model": answer["model"]}

    def event(index: int, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    for choice in answer["choices"]:
        yield event(choice["index"], {"role": "assistant", "content": ""})
        for token in TOKEN.findall(choice["message"]["content"]):
            yield event(choice["index"], {"content": token})
            await asyncio.sleep(0)
        for place, wish in enumerate(choice["message"].get("tool_calls", ())):
            yield event(choice["index"], {"tool_calls": [{"index": place, **wish}]})
        yield event(choice["index"], {}, choice["finish_reason"])
    if with_usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': answer['usage']})}\n\n"
    yield "data: [DONE]\n\n"


def application(known: World) -> Any:
    """The ASGI application: completions of chats and of plain text, and the list of models."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        try:
            body = await read_body(request)
            answer = complete(known, body)
        except BadRequest as bad:
            return JSONResponse(bad.body, bad.status)
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(answer, with_usage), media_type="text/event-stream")
        return JSONResponse(answer)

    async def plain(request: Request) -> Response:
        try:
            return JSONResponse(go_on(known, await read_body(request)))
        except BadRequest as bad:
            return JSONResponse(bad.body, bad.status)

    async def models(request: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "miniature"} for name in VOICES]
        return JSONResponse({"object": "list", "data": listed})

    async def unknown(request: Request, error: Exception) -> Response:
        bad = BadRequest(f"Unknown request URL: {request.method} {request.url.path}", None, 404, "unknown_url")
        return JSONResponse(bad.body, bad.status)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", plain, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
        ],
        exception_handlers={404: unknown, 405: unknown},
    )


class MiniatureProcess:
    """The server while a `with` block lasts."""

    def __init__(self, spec: MiniatureServer, log: Path) -> None:
        self.spec, self.log = spec, log
        self.base_url = ""

    def __enter__(self) -> "MiniatureProcess":
        command = [sys.executable, "-m", "potstill.miniature.server", f"--seed={self.spec.seed}"]
        command.append(f"--entities={self.spec.entities}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log, time_limit_unheard():
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        silence = threading.Timer(START_SECONDS, self._process.kill)
        silence.start()
        try:
            line = self._process.stdout.readline()
            if not line:
                raise TeacherError("the miniature's server", "it did not start", f"Read {self.log}")
        except BaseException:  # Ctrl-C too: no `with` block has begun that would end the process
            self.__exit__(None, None, None)
            raise
        finally:
            silence.cancel()
        self.base_url = f"http://127.0.0.1:{int(line)}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.terminate()
        self._process.wait()


def main() -> None:
    """Serve until standard input ends; the port is the first and only line on standard output."""
    import socket

    import uvicorn

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--entities", type=int, default=150)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    args = parser.parse_args()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", args.port))
    listener.listen(2048)  # whoever reads the port may come before the server has begun
    config = uvicorn.Config(application(world(args.seed, args.entities)), log_level="warning", timeout_keep_alive=75)
    server = uvicorn.Server(config)

    def lifeline() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=lifeline, daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201  the line that whoever started us waits for
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
