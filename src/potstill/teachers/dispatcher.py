"""Sends jobs to the servers of one model, keeps what comes back, and decides what a failure means for whom.

Everything here runs on the thread of one event loop. Which server is asked when is decided by `scheduler`; a reply is
in the journal before its future has it.
"""

import asyncio
import datetime
import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isinf
from typing import Any

from potstill.errors import TeacherError
from potstill.sources import Account, EndpointModel
from potstill.teachers.base import Reply
from potstill.teachers.jobs import Job
from potstill.teachers.journal import Entry, Journal
from potstill.teachers.scheduler import Lane, choose
from potstill.teachers.wire import Failure, failure, failures, read_reply, usage, used_tokens

PURSE_SECONDS = 0.2
"""How often to look whether another teacher's replies left money over."""

SHORTEST_SECRET = 8
BLOT = "[key]"

Send = Callable[[Lane, dict[str, Any]], Awaitable[str]]
"""One try: the body of a reply with status 200."""


@dataclass(frozen=True)
class Patience:
    """How long to try. Times in seconds."""

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


@dataclass(frozen=True)
class Who:
    """Whom the errors are about."""

    name: str
    """As the recipe calls it."""
    spec: EndpointModel
    urls: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.name} ({', '.join(self.urls)})"

    @cached_property
    def secret(self) -> str | None:
        """The API key, which must stand nowhere."""
        return os.environ.get(self.spec.key_env) if self.spec.key_env else None

    def check_key(self) -> None:
        """TeacherError where the key that the recipe names is not there."""
        if fault := self.spec.key_fault():
            name = self.spec.key_env
            raise self.error(f"the environment variable {name} {fault}", f"Set it first: export {name}=YOUR-KEY")

    def redact(self, text: str) -> str:
        """The text, which may be JSON, without the key. To be called before anything is cut off: half a key is one."""
        return self._spellings.sub(BLOT, text) if self._spellings else text

    @cached_property
    def _spellings(self) -> re.Pattern[str] | None:
        """The key, each letter as it is or escaped: in JSON, in JSON inside JSON, in a URL. None where it is no secret:
        servers of one's own take any short word."""
        if self.secret is None or len(self.secret) < SHORTEST_SECRET:
            return None
        letters = (rf"(?:{re.escape(c)}|(?i:u00{ord(c):02x}|%{ord(c):02x}))" for c in self.secret)
        # Taken whole or not at all, and only from its beginning: a long run of backslashes is read once.
        return re.compile(r"(?<!\\)" + "".join(rf"\\*+{letter}" for letter in letters))

    def error(self, what: str, remedy: str) -> TeacherError:
        return TeacherError(self.where, self.redact(what), remedy)

    def nobody(self, why: str, account: Account) -> TeacherError:
        """What to say where nobody listens, which of a server of the recipe's own means that it has ended."""
        what, first = f"no server answers at {', '.join(self.urls)} ({why})", "Start it or correct the endpoint,"
        if not self.spec.is_url:
            what = f"the recipe's own server '{self.spec.server}' has ended"
            first = f"Read {account.workspace / 'logs' / self.spec.server}.log"
        return self.error(what, f"{first} and run again; replies that came are kept")

    def remedy(self, body: dict[str, Any], status: int) -> str:
        """What to do about a status that ends it all."""
        if status == 0:
            return "Lower the model's concurrency, or raise the limit of open files (ulimit -n), and run again"
        if 300 <= status < 400:
            return "Write the address that it sends to as the endpoint"
        if status == 404 and "prompt" in body:
            return "Text without a chat template needs a server with /completions (vLLM, SGLang, llama.cpp have it)"
        if status == 404:
            return f"Check the endpoint's URL and that it serves a model named {self.spec.name!r}"
        if self.spec.key_env is None:
            return "Name the environment variable that holds the API key as the model's key_env"
        return f"Check the key in {self.spec.key_env} and what it may be used for"


@dataclass
class _Kept:
    """A reply that came and is not on disk yet."""

    job: Job
    lane: Lane
    reply: Reply
    entry: Entry


class Dispatcher:
    """The jobs of one model. `start` and all else are called on the loop."""

    def __init__(
        self, who: Who, lanes: Sequence[Lane], send: Send, journal: Journal, account: Account, patience: Patience
    ) -> None:
        self._who, self._spec, self._lanes, self._send = who, who.spec, lanes, send
        self._journal, self._account, self._patience = journal, account, patience
        self._loop = asyncio.get_running_loop()
        self._failures = failures()
        self._ready: deque[Job] = deque()
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._jobs: set[Job] = set()
        self._unkept: list[_Kept] = []
        self._keeping: asyncio.Task[None] | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._fatal: Exception | None = None
        self._open = True
        self._failed_in_a_row = self._refused_in_a_row = 0
        self._overrun = 1.0
        """How many times the most that it could cost the dearest request did cost."""
        self._jitter = random.Random()  # decides when, never what
        self.served = self.unserved = 0
        """Requests that were answered, and those that the servers failed at every try."""
        self.first_unserved = ""
        """Why the first of the latter was not."""

    def start(self, job: Job) -> None:
        """Take a job on. Its future is settled in time, whatever happens."""
        if self._fatal is not None:
            job.settle(self._fatal)
            return
        job.first_try = self._loop.time()
        self._jobs.add(job)
        self._ready.append(job)
        self._pump()

    def abandon(self) -> None:
        """Nobody waits any more for jobs whose futures were cancelled."""
        for task, job in list(self._tasks.items()):
            if job.future.cancelled():
                task.cancel()

    async def close(self) -> None:
        """End what is on its way. What came is kept, whatever ends us."""
        self._open = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._keeping:
            await asyncio.gather(self._keeping, return_exceptions=True)

    def _pump(self) -> None:
        """Send what may be sent now, and see to it that the rest is looked at when it may."""
        try:
            self._send_ready()
        except Exception as error:  # a bug, such as a request of no sense; to be seen where replies are awaited
            self._stop(error)

    def _send_ready(self) -> None:
        while self._ready and self._open and self._fatal is None:
            job = self._ready[0]
            if job.future.cancelled():
                self._jobs.discard(self._ready.popleft())
                continue
            expected = job.expected_tokens
            lane = choose(self._lanes, self._loop.time(), expected, job.failed_at)
            if not isinstance(lane, Lane):
                self._wake_in(lane)
                return
            if not self._afford(job):
                return
            self._ready.popleft()
            lane.take(expected)
            task = self._loop.create_task(self._try(job, lane))
            self._tasks[task] = job
            task.add_done_callback(self._ended)

    def _wake_in(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = None if isinf(seconds) else self._loop.call_later(seconds + 0.001, self._pump)

    def _afford(self, job: Job) -> bool:
        """Set its money aside. Where there is too little: wait for those in flight, then stop."""
        ledger, most = self._account.ledger, job.most_usd * self._overrun
        if ledger.reserve(most):
            job.reserved_usd = most
            return True
        if ledger.waits:
            self._wake_in(PURSE_SECONDS)
            return False
        self._stop(self._account.too_little(self._who.name, most))
        return False

    def _pay(self, job: Job, usd: float) -> None:
        if job.reserved_usd is not None:
            self._account.ledger.settle(job.reserved_usd, usd)
            job.reserved_usd = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        if task.cancelled():
            self._pay(job, 0.0)
        elif task.exception() is not None:  # a bug; let it be seen where the reply is awaited
            self._settle(job, task.exception())
        self._pump()

    def _settle(self, job: Job, outcome: Reply | BaseException | None) -> None:
        self._jobs.discard(job)
        job.settle(outcome)

    def _stop(self, error: Exception) -> None:
        """Nothing more can come from here: everything that waits learns of it now."""
        self._fatal = self._fatal or error
        for job in list(self._jobs):
            self._settle(job, self._fatal)
        self._ready.clear()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()

    async def _try(self, job: Job, lane: Lane) -> None:
        """Ask once."""
        began = self._loop.time()
        raw = ""
        try:
            raw = self._who.redact(await self._send(lane, job.body))
            reply = read_reply(raw)
        except self._failures as error:
            usd = await asyncio.to_thread(self._note_useless, job, raw) if raw else 0.0
            lane.release()
            self._pay(job, usd)
            failed = failure(error, self._spec.timeout_seconds, self._who.redact)
            if failed.slow and self._loop.time() - began < 0.9 * self._spec.timeout_seconds:
                failed = replace(failed, reason="the connection was closed before a reply came", slow=False)
            self._failed(job, lane, failed, began)
            return
        except BaseException:
            lane.release()
            raise
        self._failed_in_a_row = self._refused_in_a_row = 0
        used = used_tokens(job.body, reply)
        lane.served(job.expected_tokens, sum(used))
        entry = self._entry(job, lane.url, raw, reply, used, self._loop.time() - began)
        # The lane is released once this is kept: so a kill can never cost more replies than may be in flight.
        self._unkept.append(_Kept(job, lane, reply, entry))
        if self._keeping is None or self._keeping.done():
            self._keeping = self._loop.create_task(self._keep())

    def _note_useless(self, job: Job, raw: str) -> float:
        """What a body that is no reply cost nevertheless, by its own count; the books hold it, though nobody can use
        it. USD."""
        used = usage(raw)
        if not any(used):
            return 0.0
        usd = self._spec.price.usd(*used) if self._spec.price else 0.0
        self._journal.note_useless(self._account.stage, self._spec.name, self._spec.revision, used, usd)
        return usd

    def _entry(self, job: Job, url: str, raw: str, reply: Reply, used: tuple[int, int], seconds: float) -> Entry:
        price = self._spec.price
        return Entry(
            key=job.key,
            model=self._spec.name,
            revision=self._spec.revision,
            replica=url if self._spec.is_url else self._spec.server,
            stage=self._account.stage,
            sample=job.request.sample,
            attempt=job.attempt,
            request=json.dumps(job.body, ensure_ascii=False),
            reply=raw,
            finish=reply.finish,
            prompt_tokens=used[0],
            completion_tokens=used[1],
            usd=price.usd(*used) if price else 0.0,
            seconds=round(seconds, 3),
            at=datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(timespec="seconds"),
        )

    async def _keep(self) -> None:
        """Put what came into the journal, as many at once as came meanwhile; then hand it out."""
        while self._unkept:
            batch, self._unkept = self._unkept, []
            try:
                there = await asyncio.to_thread(self._journal.keep, [kept.entry for kept in batch])
            except Exception as error:
                self._stop(error)
                return
            for kept in batch:
                kept.lane.release()
                try:
                    if kept.entry.key in there:  # somebody else asked the same at the same time, and was first
                        kept.reply = read_reply(self._journal.get(kept.entry.key) or kept.entry.reply)
                    self._handed(kept)
                except BaseException as error:  # what `accept` raised, or the journal: where the reply is awaited
                    self._settle(kept.job, error)
            self._pump()

    def _handed(self, kept: _Kept) -> None:
        """A reply is on disk: it is the one, or the next attempt begins."""
        job = kept.job
        self.served += 1
        if job.reserved_usd:  # a server that bills more than it was asked for will do so again
            self._overrun = max(self._overrun, kept.entry.usd / job.most_usd)
        self._pay(job, kept.entry.usd)
        if job.stands(kept.reply):
            self._settle(job, kept.reply)
            return
        job.ask_anew()
        if job.find(self._journal):
            self._jobs.discard(job)
        else:
            job.first_try = self._loop.time()
            self._ready.append(job)

    def _failed(self, job: Job, lane: Lane, failed: Failure, began: float) -> None:
        """A try failed: try again later, or settle the request, or end it all."""
        now, patience = self._loop.time(), self._patience
        job.failed_at = lane
        job.tries += failed.kind != "wait"
        lane.failures += failed.kind != "row"
        wait = self._wait(failed, max(1, lane.overloads) if failed.kind == "wait" else job.tries)
        if failed.kind == "wait" or failed.slow:
            lane.overloaded(now, began, 0.0 if failed.slow else wait)
        elif failed.kind == "absent":
            lane.absent(now, began, wait)
        else:
            lane.absences = 0
        if failed.kind == "stop":
            remedy = self._who.remedy(job.body, failed.status)
            says = f"the server says {failed.reason}" if failed.status else failed.reason
            self._stop(self._who.error(says, remedy))
        elif failed.kind == "row":
            self._refused(job, failed)
        elif all(other.absences >= patience.absent_attempts for other in self._lanes):
            self._stop(self._who.nobody(failed.reason, self._account))
        elif (failed.kind != "absent" and job.tries >= patience.attempts) or (
            failed.kind == "wait" and now - job.first_try > patience.overload
        ):
            self._unserved(job, failed)
        else:
            another = any(other.failures == 0 for other in self._lanes)
            self._loop.call_later(0.0 if another else wait, self._again, job)

    def _again(self, job: Job) -> None:
        if job in self._jobs:
            self._ready.appendleft(job)
            self._pump()

    def _refused(self, job: Job, failed: Failure) -> None:
        """The server will not have this one request. Where it takes none at all, something is wrong with them all."""
        self._failed_in_a_row = 0  # it answers
        self._refused_in_a_row += 1
        if self.served == 0 and self._refused_in_a_row >= self._patience.failures_in_a_row:
            what = f"the first {self._refused_in_a_row} requests were all refused; the last: {failed.reason}"
            remedy = "See to what is asked: the model's options can leave a field out or add one. Then run again"
            self._stop(self._who.error(what, remedy))
        self._settle(job, Reply("", "error", failed.reason, origin="nobody"))

    def _unserved(self, job: Job, failed: Failure) -> None:
        """The servers failed at it to the last try."""
        self._failed_in_a_row += 1
        self.unserved += 1
        self.first_unserved = self.first_unserved or failed.reason
        if self._failed_in_a_row >= self._patience.failures_in_a_row:
            what = f"{self._failed_in_a_row} requests in a row could not be served; the last: {failed.reason}"
            self._stop(self._who.error(what, "See to the server and run again; replies that came are kept"))
        reason = f"{failed.reason} (after {max(job.tries, 1)} tries)"
        self._settle(job, Reply("", "error", reason, origin="nobody"))

    def _wait(self, failed: Failure, times: int) -> float:
        """Seconds to wait after a try that failed, by how often that was so."""
        patience = self._patience
        longest = min(patience.longest_wait, patience.first_wait * 2.0 ** min(30, max(0, times - 1)))
        wait = longest * self._jitter.uniform(0.5, 1.0)
        if failed.after is not None:
            wait = max(wait, min(failed.after, patience.overload) * self._jitter.uniform(1.0, 1.1))
        return wait
