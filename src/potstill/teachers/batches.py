"""A teacher asked by batch jobs, as OpenAI offers them: half the price, an answer within a day.

Requests are gathered into a job, sent as one file, and awaited. What a job is asked stands in the journal before it is
sent, so whoever comes after a kill finds it on the server and waits for it, instead of paying twice.
"""

import datetime
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from potstill.artifact import digest
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request
from potstill.teachers.dispatcher import Who
from potstill.teachers.jobs import Job
from potstill.teachers.journal import JOURNAL, Entry, Journal
from potstill.teachers.wire import failure, failures, read_reply, short, used_tokens

if TYPE_CHECKING:
    import httpx2
    from openai import OpenAI
    from openai.types import Batch

T = TypeVar("T")

MOST_REQUESTS = 20_000
"""In one job; OpenAI takes 50,000."""
MOST_BYTES = 90_000_000
"""Of one job's file; OpenAI takes 200 MB."""
LONGEST_WAIT = 900.0
"""Seconds, whatever a server asks for."""
OURS = "potstill"
"""The name in a job's metadata that says which of ours it is."""
UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")
ENDED = ("completed", "failed", "expired", "cancelled")
INTENDED = "intended-"


@dataclass(frozen=True)
class Rhythm:
    """How often to look, and how long to try. Times in seconds."""

    poll: float = 20.0
    attempts: int = 6
    """Tries of one call, and of one request, that fail in themselves."""
    first_wait: float = 1.0


@dataclass(frozen=True)
class _Asked:
    """One line of a job: enough to keep its reply without whoever asked for it."""

    key: str
    sample: int
    attempt: int
    body: dict[str, Any]

    def to_json(self) -> list[Any]:
        return [self.key, self.sample, self.attempt, self.body]


class BatchEndpoint:
    """A Teacher. Use it as a context manager. Raises as `client.Endpoint` does."""

    def __init__(self, model: Model, account: Account, rhythm: Rhythm | None = None) -> None:
        assert isinstance(model.spec, EndpointModel)
        self.name = model.name
        self._spec = model.spec
        self._who = Who(model.name, model.spec, (model.base_url,) if model.base_url else model.spec.endpoints)
        self._who.check_key()
        self._account, self._rhythm = account, rhythm or Rhythm()
        self._refused: dict[str, str] = {}
        """Why a request of a job has no reply, by its key."""
        self._failed: dict[str, int] = {}
        """How often a request failed for no reason of its own."""
        self._asked = 0

    def __enter__(self) -> "BatchEndpoint":
        self._client = self._make_client()
        self._failures = failures()
        self._journal = Journal(self._account.workspace / JOURNAL)
        try:
            self._journal.declare(self._spec.name, self._spec.revision, self._spec.endpoints)
            for name, jobs in self._journal.open_batches(self._spec.name, self._spec.revision):
                self._go_on(name, [_Asked(*line) for line in jobs])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make_client(self) -> "OpenAI":
        from openai import DefaultHttpxClient, OpenAI

        def plain(response: "httpx2.Response") -> None:
            response.encoding = "utf-8"  # whatever its headers say

        return OpenAI(
            base_url=self._who.urls[0],
            api_key=self._who.secret or "none",
            max_retries=0,
            http_client=DefaultHttpxClient(
                timeout=self._spec.timeout_seconds, follow_redirects=False, event_hooks={"response": [plain]}
            ),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._journal.close()

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply a request, in order, job by job. A request whose reply the journal holds is in no job."""
        rest = iter(requests)
        while window := list(islice(rest, MOST_REQUESTS)):
            jobs: dict[str, Job] = {}
            same = [jobs.setdefault(job.key, job) for job in (Job(self._spec, request) for request in window)]
            self._asked += len(jobs)
            waiting = deque(job for job in jobs.values() if not self._settled(job))
            while waiting:
                waiting.extend(job for job in self._sent(waiting) if not self._settled(job))
            for job in same:
                reply = job.future.result()
                self._account.meter.add(reply.prompt_tokens, reply.completion_tokens)
                yield reply
        self._check_served()

    def _settled(self, job: Job) -> bool:
        """Whether its reply is known: from the journal, or that it gets none."""
        if job.find(self._journal):
            return True
        reason = self._refused.get(job.key)
        if reason is None and self._failed.get(job.key, 0) >= self._rhythm.attempts:
            reason = f"the batch job failed at it {self._failed[job.key]} times"
        if reason is not None:
            job.settle(Reply("", "error", reason, origin="nobody"))
        return reason is not None

    def _check_served(self) -> None:
        unserved = sum(count >= self._rhythm.attempts for count in self._failed.values())
        if unserved > self._spec.max_unserved * self._asked:
            what = f"{unserved} of {self._asked} requests could not be served"
            raise self._who.error(what, "Run again: only those are asked again. Or raise max_unserved to go on without")

    def _sent(self, waiting: "deque[Job]") -> list[Job]:
        """Send the first of what waits as one job, and wait for it."""
        jobs: list[Job] = []
        size = 0
        while waiting and len(jobs) < MOST_REQUESTS and (size < MOST_BYTES or not jobs):
            if not self._account.ledger.reserve(waiting[0].most_usd):
                break
            job = waiting.popleft()
            size += 2 * job.prompt_most
            jobs.append(job)
        if not jobs:
            raise self._account.too_little(self.name, waiting[0].most_usd)
        asked = [_Asked(job.key, job.request.sample, job.attempt, job.body) for job in jobs]
        mark = digest([line.key for line in asked] + [sum(self._failed.values())])
        self._journal.note_batch(INTENDED + mark, self._spec.name, self._spec.revision, [a.to_json() for a in asked])
        try:
            self._fetch(self._create(asked, mark), asked)
        finally:
            for job in jobs:
                self._account.ledger.settle(job.most_usd, 0.0)
        return jobs

    def _create(self, asked: list[_Asked], mark: str) -> str:
        """Upload the lines and start the job; its name on the server, which the journal knows before we wait."""
        path = "/v1/completions" if "prompt" in asked[0].body else "/v1/chat/completions"
        lines = (
            json.dumps({"custom_id": a.key, "method": "POST", "url": path, "body": a.body}, ensure_ascii=False)
            for a in asked
        )
        content = "".join(line + "\n" for line in lines).encode()
        file = self._call(lambda: _with_id(self._client.files.create(file=(f"{mark}.jsonl", content), purpose="batch")))
        endpoint: Any = path
        tries = 0

        def create() -> str:
            nonlocal tries
            tries += 1
            # The server may have taken it before its answer was lost.
            there = self._named(mark) if tries > 1 else None
            if there:
                return there
            made = self._client.batches.create(
                input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={OURS: mark}
            )
            return _with_id(made).id

        name = self._call(create)
        self._note(name, mark, asked)
        return name

    def _named(self, mark: str) -> str | None:
        """The server's name for the job with our mark."""
        try:
            for batch in self._client.batches.list(limit=100):  # page after page
                if isinstance(batch.metadata, dict) and batch.metadata.get(OURS) == mark:
                    return _with_id(batch).id
        except (AttributeError, TypeError) as error:  # the client does not check what it is sent
            raise ValueError("the list of batch jobs is none") from error
        return None

    def _note(self, name: str, mark: str, asked: list[_Asked]) -> None:
        self._journal.note_batch(name, self._spec.name, self._spec.revision, [a.to_json() for a in asked])
        self._journal.forget_batch(INTENDED + mark)

    def _go_on(self, name: str, asked: list[_Asked]) -> None:
        """A job of an earlier run: find it on the server, if it ever came there, and wait for it."""
        if name.startswith(INTENDED):
            mark = name.removeprefix(INTENDED)
            there = self._call(lambda: self._named(mark))
            if there is None:
                self._journal.forget_batch(name)
                return
            name = there
            self._note(name, mark, asked)
        self._fetch(name, asked)

    def _fetch(self, name: str, asked: list[_Asked]) -> None:
        """Wait for a job's end and keep what it brought."""
        while True:
            batch = self._call(lambda: _with_id(self._client.batches.retrieve(name)), gone=None)
            if batch is None or batch.status in ENDED:
                break
            if batch.status not in UNDER_WAY:
                raise self._who.error(f"the batch job {name} is {batch.status!r}, which is not known", "See to it")
            time.sleep(self._rhythm.poll)
        by_key = {line.key: line for line in asked}
        first: dict[str, Entry] = {}
        for entry in self._read(batch, by_key) if batch else ():
            first.setdefault(entry.key, entry)
        entries = list(first.values())
        self._journal.keep(entries)
        self._account.ledger.settle_late(sum(entry.usd for entry in entries))
        for key in by_key.keys() - {entry.key for entry in entries} - self._refused.keys():
            self._failed[key] = self._failed.get(key, 0) + 1
        self._journal.forget_batch(name)
        if batch and batch.status == "failed" and not entries:
            told = getattr(batch.errors, "data", None)
            words = "; ".join(str(getattr(e, "message", e)) for e in (told if isinstance(told, list) else ()))
            words = short(self._who.redact(words)) or "no word from the server"
            raise self._who.error(f"the batch job {name} failed: {words}", "See to it")

    def _read(self, batch: "Batch", by_key: Mapping[str, _Asked]) -> Iterator[Entry]:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in self._lines(file):
                asked = by_key.get(str(line.get("custom_id")))
                answer = line.get("response")
                if asked is None or not isinstance(answer, dict | None):
                    continue
                answer = answer or {}
                body = answer.get("body")
                status = str(answer.get("status_code"))  # some write it as text
                try:
                    if status != "200":
                        self._note_failure(asked.key, status, body or line.get("error"))
                        continue
                    raw = self._who.redact(json.dumps(body))
                    reply = read_reply(raw)
                except (ValueError, RecursionError):
                    continue  # counted with those that brought nothing
                used = used_tokens(asked.body, reply)
                yield Entry(
                    key=asked.key,
                    model=self._spec.name,
                    revision=self._spec.revision,
                    replica=self._who.urls[0],
                    stage=self._account.stage,
                    sample=asked.sample,
                    attempt=asked.attempt,
                    request=json.dumps(asked.body, ensure_ascii=False),
                    reply=raw,
                    finish=reply.finish,
                    prompt_tokens=used[0],
                    completion_tokens=used[1],
                    usd=self._spec.price.usd(*used, batch=True) if self._spec.price else 0.0,
                    seconds=0.0,
                    at=at,
                )

    def _note_failure(self, key: str, status: str, said: object) -> None:
        """The server's fault is tried again in another job, the request's own is not."""
        if re.fullmatch("4[0-9][0-9]", status) and status not in ("408", "409", "425", "429"):
            error = said.get("error", said) if isinstance(said, dict) else said
            words = error.get("message") if isinstance(error, dict) else error
            self._refused[key] = f"HTTP {status}: {short(self._who.redact(' '.join(str(words).split())))}"

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        content = self._call(lambda: self._client.files.content(file), gone=None)
        text = content.content.decode("utf-8", "replace") if content else ""  # whatever its headers say
        for line in text.split("\n"):  # not at U+2028, which a reply may hold
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value

    @overload
    def _call(self, call: Callable[[], T]) -> T: ...
    @overload
    def _call(self, call: Callable[[], T], *, gone: None) -> T | None: ...
    def _call(self, call: Callable[[], T], **gone: None) -> T | None:
        """One call of the server, tried again where that may help. `gone=None`: where it has no such thing, None."""
        for tries in range(1, self._rhythm.attempts + 1):
            try:
                return call()
            except self._failures as error:
                failed = failure(error, self._spec.timeout_seconds, self._who.redact)
                reason = failed.reason
                if failed.status == 404 and gone:
                    return None
                if failed.kind in ("stop", "row"):
                    unknown = failed.status in (404, 405, 501)
                    remedy = "Leave out batch: true" if unknown else self._who.remedy({}, failed.status)
                    raise self._who.error(f"the server says {reason}", remedy) from error
                if tries == self._rhythm.attempts:
                    what = f"no batch job can be had ({reason})"
                    raise self._who.error(what, "See to the server and run again; nothing is lost") from error
                time.sleep(max(min(failed.after or 0.0, LONGEST_WAIT), self._rhythm.first_wait * 2 ** (tries - 1)))
        raise AssertionError("unreachable")


def _with_id(made: T) -> T:
    """What the server says it made. ValueError where that is nothing with a name: the client does not check it."""
    if not isinstance(getattr(made, "id", None), str):
        raise ValueError(f"the reply is neither a file nor a job: {short(str(made))!r}")
    return made
