"""An OpenAI-compatible server for tests, in a thread of this process, that fails in whatever way a test asks for."""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], str]
Fault = Callable[["Stub", dict[str, Any], int], Awaitable[Response | None]]


def completion(text: str | None, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers, "application/json")


def refusal(status: int, words: str, headers: dict[str, str] | None = None, code: str | None = None) -> Response:
    return reply({"error": {"message": words, "type": "t", "code": code}}, status, headers)


async def hang(seconds: float = 30) -> Response | None:
    await asyncio.sleep(seconds)
    return None


def cut_body() -> Response:
    """A body shorter than its length says."""

    async def chunks() -> Any:
        yield b'{"id": "c", "choices": [{"mes'
        raise ConnectionResetError

    return StreamingResponse(chunks(), media_type="application/json", headers={"content-length": "5000"})


def page() -> Response:
    return PlainTextResponse("<html>Bad gateway, try later</html>", media_type="text/html")


class Stub:
    """Answers by `answer`, after `fault` (stub, body, how often this request was seen before) had its say."""

    def __init__(self, answer: Answer | None = None, fault: Fault | None = None, port: int = 0) -> None:
        self.port = port  # 0 takes a free one
        self.answer = answer or (lambda body: f"echo {body['messages'][-1]['content']}")
        self.fault = fault
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.released = threading.Event()

    async def _complete(self, request: Request) -> Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = await request.json()
            self.headers.append(dict(request.headers))
            key = json.dumps(body, sort_keys=True)
            before = self.seen[key]
            self.seen[key] += 1
            fault = await self.fault(self, body, before) if self.fault else None
            if fault is not None:
                return fault
            self.answered[key] += 1
            if "prompt" in body:
                whole = completion(None)
                return reply(
                    {**whole, "choices": [{"text": f"goes on from {body['prompt']}", "finish_reason": "stop"}]}
                )
            return reply(completion(self.answer(body)))
        finally:
            self.in_flight -= 1

    def routes(self) -> list[Route]:
        """What it serves."""
        paths = ("/v1/chat/completions", "/v1/completions")
        return [Route(path, self._complete, methods=["POST"]) for path in paths]

    def __enter__(self) -> "Stub":
        app = Starlette(routes=self.routes())
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
