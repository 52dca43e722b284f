"""A teacher behind OpenAI-compatible servers: many requests in flight, replies in order and on disk before all else.

The openai client runs on an event loop in a thread of its own. `complete` reads its requests a bounded window ahead, so
neither a slow reply nor a long list of requests holds everything in memory, and nothing waits for a batch to end.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from concurrent.futures import Future
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request
from potstill.teachers.dispatcher import Dispatcher, Patience, Who
from potstill.teachers.jobs import Job
from potstill.teachers.journal import JOURNAL, Journal
from potstill.teachers.scheduler import Bucket, Lane

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

MOST_BYTES = 64_000_000
"""Of the body of one reply; longer ones are given up."""
MOST_PACKED_BYTES = 1_000_000
"""Of a body that comes compressed although that was not asked for: it may unpack to a thousand times as much."""
NO_KEY = "none"  # servers on one's own machine want some key, whatever it is
LEAST_WINDOW = 2048
"""Requests read ahead of the oldest reply that is still awaited, so that a slow one holds nobody up for long."""


class Endpoint:
    """A Teacher. Use it as a context manager.

    Raises TeacherError where the server cannot be reached, refuses the key, does not know the model, or has failed
    many requests in a row; BudgetError where the ledger allows no further request. Anything that concerns one request
    alone becomes a Reply with finish "error" and a reason. Leaving the `with` block raises TeacherError where more
    requests than the recipe allows failed at every try, so that a stage is not sealed without them.
    """

    def __init__(self, model: Model, account: Account, patience: Patience | None = None) -> None:
        assert isinstance(model.spec, EndpointModel)
        self.name = model.name
        self._spec = model.spec
        urls = (model.base_url,) if model.base_url else model.spec.endpoints
        self._who = Who(model.name, model.spec, urls)
        self._who.check_key()
        self._account, self._patience = account, patience or Patience()
        self._asked = 0
        self._flying: dict[Hashable, Future[Reply]] = {}
        self._waiters: dict[Future[Reply], int] = {}
        self._window = max(LEAST_WINDOW, 16 * model.spec.concurrency)

    def __enter__(self) -> "Endpoint":
        self._clients = {url: self._make_client(url) for url in self._who.urls}
        self._journal = Journal(self._account.workspace / JOURNAL)
        self._journal.declare(self._spec.name, self._spec.revision, self._spec.endpoints)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"teacher {self.name}", daemon=True)
        self._thread.start()
        self._open = True
        self._dispatcher = asyncio.run_coroutine_threadsafe(self._make_dispatcher(), self._loop).result()
        return self

    def _make_client(self, url: str) -> "AsyncOpenAI":
        import httpx2
        from openai import AsyncOpenAI, DefaultAioHttpClient

        connections = self._spec.concurrency
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            return AsyncOpenAI(
                base_url=url,
                api_key=self._who.secret or NO_KEY,
                max_retries=0,  # retried here, where 429, absence and a bad row are told apart
                default_headers={"Accept-Encoding": "identity"},
                http_client=DefaultAioHttpClient(
                    timeout=self._spec.timeout_seconds,
                    limits=limits,
                    follow_redirects=False,  # a prompt goes to nobody whom the recipe does not name
                    event_hooks={"response": [_bound]},
                ),
            )
        except httpx2.InvalidURL as error:
            raise self._who.error(f"the endpoint is no URL: {error}", "Correct it and run again") from error

    async def _make_dispatcher(self) -> Dispatcher:
        lanes = [self._lane(url) for url in self._who.urls]
        return Dispatcher(self._who, lanes, self._send, self._journal, self._account, self._patience)

    def _lane(self, url: str) -> Lane:
        limits = (self._spec.requests_per_minute, self._spec.tokens_per_minute)
        requests, tokens = (None if limit is None else Bucket(limit) for limit in limits)
        return Lane(url, self._spec.concurrency, requests, tokens)

    async def _send(self, lane: Lane, body: dict[str, Any]) -> str:
        import httpx2

        path = "/completions" if "prompt" in body else "/chat/completions"
        async with asyncio.timeout(self._spec.timeout_seconds):  # the transport's own limit starts anew at each byte
            # Posted as it is: the client's typed method checks and copies each body, at twice the time of all the rest.
            answer = await self._clients[lane.url].post(path, cast_to=httpx2.Response, body=body)
        return bytes(answer.content).decode("utf-8", "replace")  # whatever its headers say

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._journal.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if error is None:
            self._check_served()

    async def _close(self) -> None:
        await self._dispatcher.close()
        for client in self._clients.values():
            await client.close()
        await asyncio.sleep(0)  # lets the transports say goodbye before the loop goes

    def _check_served(self) -> None:
        """TeacherError where more requests than may be failed at every try."""
        unserved, first = self._dispatcher.unserved, self._dispatcher.first_unserved
        if unserved > self._spec.max_unserved * self._asked:
            raise self._who.error(
                f"{unserved} of {self._asked} requests could not be served; the first: {first}",
                "Run again: replies that came are kept, and only the others are asked again. "
                "Or raise max_unserved to go on without them",
            )

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order. A request whose reply the journal holds costs no call."""
        waiting: deque[Future[Reply]] = deque()
        try:
            for request in requests:
                waiting.append(self.submit(request))
                while waiting and (len(waiting) >= self._window or waiting[0].done()):
                    yield waiting[0].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
        finally:
            if waiting and self._open:
                self._loop.call_soon_threadsafe(self._forsake, list(waiting))

    def submit(self, request: Request) -> "Future[Reply]":
        """Ask, and go on: the future has the reply once it is there. What is asked already is not asked twice."""
        job = Job(self._spec, request)
        key = (job.first_key, request.attempts, request.accept)
        flying = self._flying.get(key)
        if flying is not None and not flying.cancelled():
            self._waiters[flying] = self._waiters.get(flying, 0) + 1
            flying.add_done_callback(self._count)
            return flying
        self._flying[key] = job.future
        self._waiters[job.future] = 1
        self._asked += 1
        job.future.add_done_callback(lambda future: self._landed(key, future))
        job.future.add_done_callback(self._count)
        if not job.find(self._journal):
            self._loop.call_soon_threadsafe(self._dispatcher.start, job)
        return job.future

    def _forsake(self, futures: list["Future[Reply]"]) -> None:
        """Somebody no longer waits for these; those for which nobody does are given up."""
        for future in futures:
            if future in self._waiters:
                self._waiters[future] -= 1
                if self._waiters[future] <= 0:
                    future.cancel()
        self._dispatcher.abandon()

    def _landed(self, key: Hashable, future: "Future[Reply]") -> None:
        self._waiters.pop(future, None)
        if self._flying.get(key) is future:
            del self._flying[key]

    def _count(self, future: "Future[Reply]") -> None:
        """Once for each request, so that the sum is that of what was asked, whatever the journal held of it."""
        if not future.cancelled() and future.exception() is None:
            reply = future.result()
            self._account.meter.add(reply.prompt_tokens, reply.completion_tokens)


async def _bound(response: "httpx2.Response") -> None:
    """Called before a body is read: let it be no longer than we can hold, and UTF-8, whatever the headers say."""
    packed = response.headers.get("content-encoding", "identity") != "identity"
    length, most = response.headers.get("content-length", ""), MOST_PACKED_BYTES if packed else MOST_BYTES
    if not (length.isdecimal() and len(length) < 12 and int(length) <= most):  # no transport reads more than it says
        response.stream = _bounded()(response.stream, most)
    response.encoding = "utf-8"


@cache
def _bounded() -> Any:
    """The type of a body that ends with a ValueError where it is too long. Made late, for httpx2 is slow to import."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
            self._stream, self._most = stream, most

        async def __aiter__(self) -> AsyncIterator[bytes]:
            read = 0
            async for chunk in self._stream:
                read += len(chunk)
                if read > self._most:
                    raise ValueError(f"the body is longer than {self._most:,} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded
