"""A teacher behind an OpenAI-compatible server: many requests in flight, replies in order and on disk before all else.

The openai client runs on an event loop in a thread of its own. `complete` reads its requests a bounded window ahead, so
neither a slow reply nor a long list of requests holds everything in memory, and nothing waits for a batch to end.
"""

import asyncio
import json
import os
import random
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError, StorageError, TeacherError
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request
from potstill.teachers.journal import JOURNAL, Entry, Journal, entry_key
from potstill.teachers.wire import Failure, failure, failures, read_reply, request_body

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_KEY = "none"  # servers on one's own machine want some key, whatever it is


@dataclass(frozen=True)
class Patience:
    """How long a client tries. Times in seconds."""

    attempts: int = 6
    """Tries of one request that fails in itself: 5xx, timeouts, cut connections, bodies that are no reply."""
    first_wait: float = 0.5
    """Doubled at each try, with jitter."""
    longest_wait: float = 30.0
    overload: float = 900.0
    """How long one request waits for a server that says it is overloaded (429). That uses up no attempts."""
    absent_attempts: int = 4
    """Tries while nobody listens at the address."""
    failures_in_a_row: int = 20
    """Requests that fail for good, one after another, until the whole endpoint is taken for broken."""


@dataclass
class _Job:
    request: Request
    body: dict[str, Any]
    key: str
    future: "Future[Reply]"


class Endpoint:
    """A Teacher. Use it as a context manager.

    Raises TeacherError where the server cannot be reached, refuses the key, does not know the model, or has failed
    many requests in a row. Anything that concerns one request alone becomes a Reply with finish "error" and a reason.
    """

    def __init__(self, model: Model, account: Account, patience: Patience | None = None) -> None:
        assert isinstance(model.spec, EndpointModel)
        self.name = model.name
        self._spec = model.spec
        self._url = model.base_url or model.spec.endpoint
        self._where = f"{model.name} ({self._url})"
        self._patience = patience or Patience()
        self._workspace = account.workspace
        self._secret = self._read_key()
        self._window = 16 * model.spec.concurrency
        self._tasks: dict[asyncio.Task[None], _Job] = {}
        self._fatal: PotstillError | None = None
        self._resume_at = 0.0  # loop time before which an overloaded server is left alone
        self._failed_in_a_row = 0
        self._jitter = random.Random()  # decides when, never what

    def _read_key(self) -> str | None:
        name = self._spec.key_env
        if name is None:
            return None
        if fault := self._spec.key_fault():
            raise TeacherError(
                self._where, f"the environment variable {name} {fault}", f"Set it first: export {name}=YOUR-KEY"
            )
        return os.environ[name]

    def __enter__(self) -> "Endpoint":
        self._client, self._failures = self._make_client(), failures()
        self._journal = Journal(self._workspace / JOURNAL)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"teacher {self.name}", daemon=True)
        self._thread.start()
        self._slots = asyncio.Semaphore(self._spec.concurrency)
        return self

    def _make_client(self) -> "AsyncOpenAI":
        import httpx2
        from openai import AsyncOpenAI, DefaultAioHttpClient

        connections = self._spec.concurrency
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            return AsyncOpenAI(
                base_url=self._url,
                api_key=self._secret or NO_KEY,
                max_retries=0,  # retried here, where 429, absence and a bad row are told apart
                http_client=DefaultAioHttpClient(timeout=self._spec.timeout_seconds, limits=limits),
            )
        except httpx2.InvalidURL as error:
            raise TeacherError(self._where, f"the endpoint is no URL: {error}", "Correct it and run again") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._journal.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        await asyncio.sleep(0)  # lets the transports say goodbye before the loop goes

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order. A request whose reply the journal holds costs no call."""
        waiting: deque[_Job] = deque()
        asked: dict[str, Future[Reply]] = {}
        try:
            for request in requests:
                waiting.append(self._submit(request, asked))
                while waiting and (len(waiting) >= self._window or waiting[0].future.done()):
                    yield self._take(waiting, asked)
            while waiting:
                yield self._take(waiting, asked)
        finally:
            if waiting:
                self._loop.call_soon_threadsafe(self._abandon, [job.future for job in waiting])

    def _take(self, waiting: deque[_Job], asked: dict[str, "Future[Reply]"]) -> Reply:
        reply = waiting[0].future.result()
        asked.pop(waiting.popleft().key, None)
        return reply

    def _submit(self, request: Request, asked: dict[str, "Future[Reply]"]) -> _Job:
        """Ask, unless the journal knows the reply or the same thing is being asked already."""
        body = request_body(self._spec.name, request, structured=self._spec.structured)
        key = entry_key(body, endpoint=self._spec.endpoint, revision=self._spec.revision, sample=request.sample)
        job = _Job(request, body, key, asked.get(key) or Future())
        if key in asked:
            return job
        kept = self._journal.get(key)
        if kept is not None:
            try:
                job.future.set_result(read_reply(kept))
            except ValueError as error:
                raise self._journal.unusable(error) from error
            return job
        asked[key] = job.future
        self._loop.call_soon_threadsafe(self._start, job)
        return job

    # What follows runs on the loop's thread.

    def _start(self, job: _Job) -> None:
        if self._fatal is not None:
            _settle(job.future, self._fatal)
            return
        task = self._loop.create_task(self._serve(job))
        self._tasks[task] = job
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        if not task.cancelled() and task.exception() is not None:  # a bug; let it be seen where the reply is awaited
            _settle(job.future, task.exception())

    def _abandon(self, futures: list["Future[Reply]"]) -> None:
        for task, job in list(self._tasks.items()):
            if job.future in futures:
                task.cancel()

    def _stop(self, error: PotstillError) -> None:
        """Nothing more can come from this endpoint: everything that waits learns of it now."""
        self._fatal = self._fatal or error
        for task, job in list(self._tasks.items()):
            _settle(job.future, self._fatal)
            if task is not asyncio.current_task():
                task.cancel()

    async def _serve(self, job: _Job) -> None:
        attempts, began = 0, self._loop.time()
        while True:
            try:
                async with self._slots:
                    await self._wait_for_overload()
                    raw = await self._ask(job.body)
                    reply = read_reply(raw)
                    self._failed_in_a_row = 0
                    # Within the slot: so a kill can never cost more replies than may be in flight.
                    await self._keep(job, raw, reply)
                    return
            except self._failures as error:
                failed = self._without_secret(failure(error, self._spec.timeout_seconds))
            attempts += failed.kind != "wait"
            if self._give_up(job, failed, attempts, self._loop.time() - began):
                return
            await self._pause(failed, attempts)

    async def _ask(self, body: dict[str, Any]) -> str:
        """One try; the body of a reply with status 200."""
        async with asyncio.timeout(self._spec.timeout_seconds):  # the transport's own limit starts anew at each byte
            answer = await self._client.chat.completions.with_raw_response.create(**body)
        return str(answer.http_response.text)

    async def _keep(self, job: _Job, raw: str, reply: Reply) -> None:
        """Put a reply into the journal; once it is there, hand it out."""
        entry = Entry(
            model=self._spec.name,
            revision=self._spec.revision,
            endpoint=self._spec.endpoint,
            sample=job.request.sample,
            request=json.dumps(job.body, ensure_ascii=False),
            reply=self._redact(raw),
        )
        settled = asyncio.Event()

        def settle(outcome: Reply | StorageError) -> None:  # on the journal's thread
            _settle(job.future, outcome)
            self._loop.call_soon_threadsafe(settled.set)

        self._journal.put(job.key, entry, lambda: settle(reply), settle)
        await settled.wait()

    def _give_up(self, job: _Job, failed: Failure, attempts: int, seconds: float) -> bool:
        """Whether this request has had its last try; then its reply, or the end of the endpoint, is settled."""
        patience = self._patience
        if failed.kind == "stop":
            self._stop(TeacherError(self._where, f"the server says {failed.reason}", self._remedy(failed.status)))
        elif failed.kind == "absent" and attempts >= patience.absent_attempts:
            self._stop(self._nobody(failed))
        elif failed.kind == "row":
            self._failed_in_a_row = 0  # it answers
            _settle(job.future, Reply("", "error", failed.reason, origin="nobody"))
        elif attempts >= patience.attempts or (failed.kind == "wait" and seconds > patience.overload):
            self._fail(job, failed, attempts)
        else:
            return False
        return True

    def _fail(self, job: _Job, failed: Failure, attempts: int) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._patience.failures_in_a_row:
            self._stop(
                TeacherError(
                    self._where,
                    f"{self._failed_in_a_row} requests in a row could not be served; the last: {failed.reason}",
                    "See to the server and run again; replies that came are kept",
                )
            )
        reason = f"{failed.reason} (after {max(attempts, 1)} tries)"
        _settle(job.future, Reply("", "error", reason, origin="nobody"))

    def _nobody(self, failed: Failure) -> TeacherError:
        """What to say where nobody listens, which of a server of the recipe's own means that it has ended."""
        what, first = f"no server answers at {self._url} ({failed.reason})", "Start it or correct the endpoint,"
        if not self._spec.is_url:
            what = f"the recipe's own server '{self._spec.endpoint}' has ended"
            first = f"Read {self._workspace / 'logs' / self._spec.endpoint}.log"
        return TeacherError(self._where, what, f"{first} and run again; replies that came are kept")

    async def _pause(self, failed: Failure, attempts: int) -> None:
        patience = self._patience
        wait = min(patience.longest_wait, patience.first_wait * 2 ** max(0, attempts - 1))
        wait *= self._jitter.uniform(0.5, 1.0)
        if failed.after is not None:
            wait = max(wait, min(failed.after, patience.overload) * self._jitter.uniform(1.0, 1.1))
        if failed.kind == "wait":
            self._resume_at = max(self._resume_at, self._loop.time() + wait)
        await asyncio.sleep(wait)

    async def _wait_for_overload(self) -> None:
        while (wait := self._resume_at - self._loop.time()) > 0:
            await asyncio.sleep(wait)

    def _remedy(self, status: int) -> str:
        if status == 404:
            return f"Check the endpoint's URL and that it serves a model named {self._spec.name!r}"
        if self._spec.key_env is None:
            return "Name the environment variable that holds the API key as the model's key_env"
        return f"Check the key in {self._spec.key_env} and what it may be used for"

    def _redact(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text

    def _without_secret(self, failed: Failure) -> Failure:
        return Failure(failed.kind, self._redact(failed.reason), failed.status, failed.after)


def _settle(future: "Future[Reply]", outcome: Reply | BaseException | None) -> None:
    """Give a future its outcome, unless it has one."""
    try:
        if isinstance(outcome, Reply):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
    except InvalidStateError:
        pass
