"""A teacher behind OpenAI-compatible servers: many requests in flight, replies in order and on disk before all else.

The openai client runs on an event loop in a thread of its own. `complete` reads its requests a bounded window ahead, so
neither a slow reply nor a long list of requests holds everything in memory, and nothing waits for a batch to end. When
and where a request goes out is decided by `scheduler`; what may be spent by the account's ledger.
"""

import asyncio
import datetime
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace
from math import isinf
from types import TracebackType
from typing import TYPE_CHECKING, Any

from potstill.errors import BudgetError, PotstillError, StorageError, TeacherError
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request, request_seed
from potstill.teachers.journal import JOURNAL, Entry, Journal, entry_key
from potstill.teachers.scheduler import Bucket, Lane, choose
from potstill.teachers.wire import Failure, failure, failures, most_prompt_tokens, read_reply, request_body, used_tokens

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_KEY = "none"  # servers on one's own machine want some key, whatever it is
LEAST_WINDOW = 2048
"""Requests read ahead of the oldest reply that is still awaited, so that a slow one holds nobody up for long."""
PURSE_SECONDS = 0.2
"""How often to look whether another teacher's replies left money over."""


@dataclass(frozen=True)
class Patience:
    """How long a client tries. Times in seconds."""

    attempts: int = 8
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


@dataclass(eq=False)
class _Job:
    """One request on its way, through all its tries."""

    request: Request
    body: dict[str, Any]
    key: str
    future: "Future[Reply]"
    attempt: int = 0
    """How many replies were not accepted."""
    tries: int = 0
    """Of the present attempt."""
    first_try: float = 0.0
    """Loop time."""
    prompt_most: int = 0
    """Tokens of the prompt, at most."""
    reserved: float | None = None
    """Money set aside for it, while it is in flight."""
    failed_at: Lane | None = None


@dataclass
class _Kept:
    """A reply that came and is not on disk yet."""

    job: _Job
    lane: Lane
    reply: Reply
    entry: Entry


@dataclass
class _Counts:
    served: int = 0
    unserved: int = 0
    first: str = ""
    """Why the first that was not served was not."""
    in_a_row: int = 0
    refused_in_a_row: int = 0


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
        self._urls = (model.base_url,) if model.base_url else model.spec.endpoints
        self._where = f"{model.name} ({', '.join(self._urls)})"
        self._patience = patience or Patience()
        self._account = account
        self._secret = self._read_key()
        self._window = max(LEAST_WINDOW, 16 * model.spec.concurrency)
        self._lanes = [self._lane(url) for url in self._urls]
        self._ready: deque[_Job] = deque()
        self._tasks: dict[asyncio.Task[None], _Job] = {}
        self._jobs: set[_Job] = set()
        self._unkept: list[_Kept] = []
        self._keeping: asyncio.Task[None] | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._fatal: PotstillError | None = None
        self._open = True
        self._counts = _Counts()
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

    def _lane(self, url: str) -> Lane:
        limits = (self._spec.requests_per_minute, self._spec.tokens_per_minute)
        requests, tokens = (None if limit is None else Bucket(limit) for limit in limits)
        return Lane(url, self._spec.concurrency, requests, tokens)

    def __enter__(self) -> "Endpoint":
        self._clients = {lane.url: self._make_client(lane.url) for lane in self._lanes}
        self._failures = failures()
        self._journal = Journal(self._account.workspace / JOURNAL)
        self._journal.declare(self._spec.name, self._spec.revision, self._spec.endpoints)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"teacher {self.name}", daemon=True)
        self._thread.start()
        return self

    def _make_client(self, url: str) -> "AsyncOpenAI":
        import httpx2
        from openai import AsyncOpenAI, DefaultAioHttpClient

        connections = self._spec.concurrency
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            return AsyncOpenAI(
                base_url=url,
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
        if error is None:
            self._check_served()

    def _check_served(self) -> None:
        """TeacherError where more requests than may be failed at every try."""
        counts = self._counts
        asked = counts.served + counts.unserved
        if counts.unserved > self._spec.max_unserved * asked:
            raise TeacherError(
                self._where,
                f"{counts.unserved} of {asked} requests could not be served; the first: {counts.first}",
                "Run again: replies that came are kept, and only the others are asked again. "
                "Or raise max_unserved to go on without them",
            )

    async def _close(self) -> None:
        self._open = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._keeping:  # what came is kept, whatever ends us
            await asyncio.gather(self._keeping, return_exceptions=True)
        for client in self._clients.values():
            await client.close()
        await asyncio.sleep(0)  # lets the transports say goodbye before the loop goes

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order. A request whose reply the journal holds costs no call."""
        waiting: deque[tuple[str, Future[Reply]]] = deque()
        asked: dict[str, Future[Reply]] = {}
        try:
            for request in requests:
                waiting.append(self._submit(request, asked))
                while waiting and (len(waiting) >= self._window or waiting[0][1].done()):
                    yield self._take(waiting, asked)
            while waiting:
                yield self._take(waiting, asked)
        finally:
            if waiting and self._open:
                for _, future in waiting:
                    future.cancel()
                self._loop.call_soon_threadsafe(self._abandon)

    @staticmethod
    def _take(waiting: deque[tuple[str, "Future[Reply]"]], asked: dict[str, "Future[Reply]"]) -> Reply:
        reply = waiting[0][1].result()
        asked.pop(waiting.popleft()[0], None)
        return reply

    def _submit(self, request: Request, asked: dict[str, "Future[Reply]"]) -> tuple[str, "Future[Reply]"]:
        """Ask, unless the journal knows the reply or the same thing is being asked already."""
        body = request_body(self._spec, request)
        key = self._key(body, request, 0)
        if key not in asked:
            asked[key] = Future()
            job = _Job(request, body, key, asked[key])
            if not self._from_journal(job):
                self._loop.call_soon_threadsafe(self._start, job)
        return key, asked[key]

    def _key(self, body: dict[str, Any], request: Request, attempt: int) -> str:
        return entry_key(body, revision=self._spec.revision, sample=request.sample, attempt=attempt)

    def _from_journal(self, job: _Job) -> bool:
        """Go on to the first attempt that the journal does not hold; True where a reply in it will do."""
        while (kept := self._journal.get(job.key)) is not None:
            try:
                reply = read_reply(kept)
            except ValueError as error:
                raise self._journal.unusable(error) from error
            if self._stands(job, reply):
                _settle(job.future, reply)
                return True
            self._ask_anew(job)
        return False

    def _stands(self, job: _Job, reply: Reply) -> bool:
        """Whether this reply is the one to hand out: it is accepted, or there are no attempts left."""
        return job.attempt + 1 >= job.request.attempts or job.request.accept(reply)

    def _ask_anew(self, job: _Job) -> None:
        """Make it its next attempt: the same request with another seed."""
        job.attempt, job.tries = job.attempt + 1, 0
        seed = request_seed(job.request.seed, "attempt", job.attempt)
        job.body = request_body(self._spec, replace(job.request, seed=seed))
        job.key = self._key(job.body, job.request, job.attempt)

    # What follows runs on the loop's thread.

    def _start(self, job: _Job) -> None:
        if self._fatal is not None:
            _settle(job.future, self._fatal)
            return
        job.first_try = self._loop.time()
        self._jobs.add(job)
        self._ready.append(job)
        self._pump()

    def _pump(self) -> None:
        """Send what may be sent now, and see to it that the rest is looked at when it may."""
        while self._ready and self._open and self._fatal is None:
            job = self._ready[0]
            if job.future.cancelled():
                self._jobs.discard(self._ready.popleft())
                continue
            job.prompt_most = job.prompt_most or most_prompt_tokens(job.body)
            expected = self._expected(job)
            found = choose(self._lanes, self._loop.time(), expected, job.failed_at)
            if not isinstance(found, Lane):
                self._wake_in(found)
                return
            if not self._afford(job):
                return
            self._ready.popleft()
            found.take(expected)
            task = self._loop.create_task(self._try(job, found))
            self._tasks[task] = job
            task.add_done_callback(self._ended)

    @staticmethod
    def _expected(job: _Job) -> float:
        """Tokens that a limit a minute is charged until more is known: three bytes each, and the longest answer."""
        return job.prompt_most / 3 + job.request.max_tokens

    def _wake_in(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = None if isinf(seconds) else self._loop.call_later(seconds + 0.001, self._pump)

    def _afford(self, job: _Job) -> bool:
        """Set its money aside. Where there is too little: wait for those in flight, then stop."""
        price, ledger = self._spec.price, self._account.ledger
        usd = 0.0
        if price is not None:
            usd = price.usd(job.prompt_most, job.request.max_tokens)
        if ledger.reserve(usd):
            job.reserved = usd
            return True
        if ledger.waits:
            self._wake_in(PURSE_SECONDS)
        else:
            self._stop(
                BudgetError(
                    f"{self.name}, for {self._account.stage}" if self._account.stage else self.name,
                    f"budget_usd is {ledger.budget_usd:,.2f}: {ledger.spent_usd:,.4f} are spent, and the next request "
                    f"may cost up to {usd:,.4f}",
                    "Raise budget_usd and run again; replies that came are kept",
                )
            )
        return False

    def _pay(self, job: _Job, usd: float) -> None:
        if job.reserved is not None:
            self._account.ledger.settle(job.reserved, usd)
            job.reserved = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        if not task.cancelled() and task.exception() is not None:  # a bug; let it be seen where the reply is awaited
            self._settle_job(job, task.exception())
        if task.cancelled():
            self._pay(job, 0.0)
        self._pump()

    def _abandon(self) -> None:
        for task, job in list(self._tasks.items()):
            if job.future.cancelled():
                task.cancel()

    def _settle_job(self, job: _Job, outcome: Reply | BaseException | None) -> None:
        self._jobs.discard(job)
        _settle(job.future, outcome)

    def _stop(self, error: PotstillError) -> None:
        """Nothing more can come from this endpoint: everything that waits learns of it now."""
        self._fatal = self._fatal or error
        for job in list(self._jobs):
            self._settle_job(job, self._fatal)
        self._ready.clear()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()

    async def _try(self, job: _Job, lane: Lane) -> None:
        """Ask once."""
        began, clock = self._loop.time(), time.monotonic()
        try:
            raw = await self._ask(lane, job.body)
            reply = read_reply(raw)
        except self._failures as error:
            lane.release()
            self._pay(job, 0.0)
            self._failed(job, lane, self._without_secret(failure(error, self._spec.timeout_seconds)), began)
            return
        except BaseException:
            lane.release()
            raise
        self._counts.in_a_row = self._counts.refused_in_a_row = 0
        used = used_tokens(job.body, reply)
        lane.served(self._expected(job), sum(used))
        entry = self._entry(job, lane, raw, reply, used, time.monotonic() - clock)
        # The lane is released once this is kept: so a kill can never cost more replies than may be in flight.
        self._unkept.append(_Kept(job, lane, reply, entry))
        if self._keeping is None or self._keeping.done():
            self._keeping = self._loop.create_task(self._keep())

    async def _ask(self, lane: Lane, body: dict[str, Any]) -> str:
        """One try; the body of a reply with status 200."""
        import httpx2

        path = "/completions" if "prompt" in body else "/chat/completions"
        async with asyncio.timeout(self._spec.timeout_seconds):  # the transport's own limit starts anew at each byte
            answer = await self._clients[lane.url].post(path, cast_to=httpx2.Response, body=body)
        return bytes(answer.content).decode("utf-8", "replace")  # whatever its headers say

    def _entry(self, job: _Job, lane: Lane, raw: str, reply: Reply, used: tuple[int, int], seconds: float) -> Entry:
        price = self._spec.price
        return Entry(
            key=job.key,
            model=self._spec.name,
            revision=self._spec.revision,
            replica=lane.url if self._spec.is_url else self._spec.server,
            stage=self._account.stage,
            sample=job.request.sample,
            attempt=job.attempt,
            request=json.dumps(job.body, ensure_ascii=False),
            reply=self._redact(raw),
            finish=reply.finish,
            prompt_tokens=used[0],
            completion_tokens=used[1],
            usd=price.usd(*used) if price else 0.0,
            seconds=round(seconds, 3),
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    async def _keep(self) -> None:
        """Put what came into the journal, as many at once as came meanwhile; then hand it out."""
        while self._unkept:
            batch, self._unkept = self._unkept, []
            try:
                await asyncio.to_thread(self._journal.keep, [kept.entry for kept in batch])
            except StorageError as error:
                self._stop(error)
                return
            for kept in batch:
                kept.lane.release()
                try:
                    self._handed(kept)
                except Exception as error:  # what `accept` raised, or the journal: where the reply is awaited
                    self._settle_job(kept.job, error)
            self._pump()

    def _handed(self, kept: _Kept) -> None:
        """A reply is on disk."""
        job = kept.job
        self._counts.served += 1
        self._pay(job, kept.entry.usd)
        if self._stands(job, kept.reply):
            self._settle_job(job, kept.reply)
            return
        self._ask_anew(job)
        if self._from_journal(job):
            self._jobs.discard(job)
        else:
            job.first_try, job.prompt_most = self._loop.time(), 0
            self._ready.append(job)

    def _failed(self, job: _Job, lane: Lane, failed: Failure, began: float) -> None:
        """A try failed: try again later, or settle the request, or end it all."""
        now, patience = self._loop.time(), self._patience
        job.tries += failed.kind != "wait"
        job.failed_at = lane
        lane.failures += failed.kind != "row"
        wait = self._wait(failed, max(1, lane.overloads) if failed.kind == "wait" else job.tries)
        if failed.kind == "wait":
            lane.overloaded(now, began, wait)
        elif failed.slow:
            lane.overloaded(now, began, 0.0)
        elif failed.kind == "absent":
            lane.rest_until = max(lane.rest_until, now + wait)
        if failed.kind == "stop":
            self._stop(TeacherError(self._where, f"the server says {failed.reason}", self._remedy(job, failed.status)))
        elif failed.kind == "row":
            self._refused(job, failed)
        elif all(other.failures >= patience.absent_attempts for other in self._lanes) and failed.kind == "absent":
            self._stop(self._nobody(failed))
        elif job.tries >= patience.attempts or (failed.kind == "wait" and now - job.first_try > patience.overload):
            self._unserved(job, failed)
        else:
            another = any(other.failures == 0 for other in self._lanes)
            self._loop.call_later(0.0 if another else wait, self._again, job)

    def _again(self, job: _Job) -> None:
        if job in self._jobs:
            self._ready.appendleft(job)
            self._pump()

    def _refused(self, job: _Job, failed: Failure) -> None:
        """The server will not have this one request. Where it takes none at all, something is wrong with them all."""
        self._counts.in_a_row = 0  # it answers
        self._counts.refused_in_a_row += 1
        if self._counts.served == 0 and self._counts.refused_in_a_row >= self._patience.failures_in_a_row:
            self._stop(
                TeacherError(
                    self._where,
                    f"the first {self._counts.refused_in_a_row} requests were all refused; the last: {failed.reason}",
                    "See to what is asked: the model's options can leave a field out or add one. Then run again",
                )
            )
        self._settle_job(job, Reply("", "error", failed.reason, origin="nobody"))

    def _unserved(self, job: _Job, failed: Failure) -> None:
        counts = self._counts
        counts.in_a_row += 1
        counts.unserved += 1
        counts.first = counts.first or failed.reason
        if counts.in_a_row >= self._patience.failures_in_a_row:
            self._stop(
                TeacherError(
                    self._where,
                    f"{counts.in_a_row} requests in a row could not be served; the last: {failed.reason}",
                    "See to the server and run again; replies that came are kept",
                )
            )
        reason = f"{failed.reason} (after {max(job.tries, 1)} tries)"
        self._settle_job(job, Reply("", "error", reason, origin="nobody"))

    def _nobody(self, failed: Failure) -> TeacherError:
        """What to say where nobody listens, which of a server of the recipe's own means that it has ended."""
        where = ", ".join(self._urls)
        what, first = f"no server answers at {where} ({failed.reason})", "Start it or correct the endpoint,"
        if not self._spec.is_url:
            what = f"the recipe's own server '{self._spec.server}' has ended"
            first = f"Read {self._account.workspace / 'logs' / self._spec.server}.log"
        return TeacherError(self._where, what, f"{first} and run again; replies that came are kept")

    def _wait(self, failed: Failure, times: int) -> float:
        """Seconds to wait after a try that failed, by how often that was so."""
        patience = self._patience
        longest = min(patience.longest_wait, patience.first_wait * 2.0 ** min(30, max(0, times - 1)))
        wait = longest * self._jitter.uniform(0.5, 1.0)
        if failed.after is not None:
            wait = max(wait, min(failed.after, patience.overload) * self._jitter.uniform(1.0, 1.1))
        return wait

    def _remedy(self, job: _Job, status: int) -> str:
        if status == 404 and "prompt" in job.body:
            return "Text without a chat template needs a server with /completions (vLLM, SGLang, llama.cpp have it)"
        if status == 404:
            return f"Check the endpoint's URL and that it serves a model named {self._spec.name!r}"
        if self._spec.key_env is None:
            return "Name the environment variable that holds the API key as the model's key_env"
        return f"Check the key in {self._spec.key_env} and what it may be used for"

    def _redact(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text

    def _without_secret(self, failed: Failure) -> Failure:
        return replace(failed, reason=self._redact(failed.reason))


def _settle(future: "Future[Reply]", outcome: Reply | BaseException | None) -> None:
    """Give a future its outcome, unless it has one."""
    try:
        if isinstance(outcome, Reply):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
    except InvalidStateError:
        pass
