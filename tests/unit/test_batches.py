"""Batch jobs: half the price, and nothing is paid for twice wherever the process ends."""

import json
from email.parser import BytesParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request as Asked
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from stub_server import Stub, completion, refusal, reply

from potstill.errors import BudgetError, TeacherError
from potstill.money import Ledger
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request, connect
from potstill.teachers.batches import BatchEndpoint, Rhythm
from potstill.teachers.journal import JOURNAL, Journal

QUICK = Rhythm(poll=0.01, attempts=3, first_wait=0.01)
PRICE = {"input": 1000.0, "output": 1000.0}


class Batches(Stub):
    """Offers batch jobs, each done at the second look. `spoil` may answer for a line."""

    def __init__(self, spoil: Any = None) -> None:
        super().__init__()
        self.spoil = spoil or (lambda body, times: None)
        self.files: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.looks = 0
        self.crash_after_create = self.crash_list = False
        self.status = "completed"

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{name}/content", self._content),
            Route("/v1/batches", self._create, methods=["POST"]),
            Route("/v1/batches", self._list),
            Route("/v1/batches/{name}", self._look),
        ]

    async def _upload(self, request: Asked) -> Response:
        message = b"Content-Type: " + request.headers["content-type"].encode() + b"\n\n" + await request.body()
        parts = BytesParser().parsebytes(message).get_payload()
        (file,) = (part for part in parts if part.get_filename())  # type: ignore[union-attr]
        name = f"file-{len(self.files)}"
        self.files[name] = file.get_payload(decode=True).decode()
        return reply({"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "x", "purpose": "batch"})

    async def _content(self, request: Asked) -> Response:
        if request.path_params["name"] not in self.files:
            return refusal(404, "no such file")
        return PlainTextResponse(self.files[request.path_params["name"]])

    async def _create(self, request: Asked) -> Response:
        asked = await request.json()
        name = f"batch-{len(self.jobs)}"
        self.jobs[name] = {**asked, "id": name, "object": "batch", "created_at": 0, "status": "in_progress"}
        return refusal(500, "died on the way back") if self.crash_after_create else reply(self.jobs[name])

    async def _list(self, request: Asked) -> Response:
        """Newest first, three to a page."""
        if self.crash_after_create and self.crash_list:
            return refusal(500, "still dying")
        jobs = list(reversed(self.jobs.values()))
        after = request.query_params.get("after")
        begin = [job["id"] for job in jobs].index(after) + 1 if after else 0
        page = jobs[begin : begin + 3]
        return reply({"object": "list", "data": page, "has_more": begin + 3 < len(jobs)})

    async def _look(self, request: Asked) -> Response:
        job = self.jobs[request.path_params["name"]]
        self.looks += 1
        if self.looks % 2 == 0 and job["status"] == "in_progress":
            self._work(job)
        return reply(job)

    def _work(self, job: dict[str, Any]) -> None:
        done = []
        for text in reversed(self.files[job["input_file_id"]].splitlines()):  # in no order
            line = json.loads(text)
            key = json.dumps(line["body"], sort_keys=True)
            said = self.spoil(line["body"], self.seen[key])
            self.seen[key] += 1
            if said == "lost":
                continue
            if said is None:
                self.answered[key] += 1
                said = {"status_code": 200, "body": completion(f"echo {line['body']['messages'][-1]['content']}")}
            done.append(json.dumps({"id": "r", "custom_id": line["custom_id"], "response": said, "error": None}))
        name = f"out-{job['id']}"
        self.files[name] = "\n".join([*done, "not json", "[]"]) + "\n"
        job |= {"status": self.status, "output_file_id": name}


def asked(count: int, **fields: Any) -> list[Request]:
    return [Request((Message(role="user", content=f"q{i}"),), max_tokens=16, **fields) for i in range(count)]


def run(
    workspace: Path, stub: Stub, requests: list[Request], ledger: Ledger | None = None, **fields: Any
) -> list[Reply]:
    model = Model("t", EndpointModel(endpoint=stub.base_url, name="m", batch=True, price=PRICE, **fields))
    with BatchEndpoint(model, Account(workspace, "s", ledger or Ledger()), QUICK) as teacher:
        return list(teacher.complete(requests))


def test_replies_in_order_at_half_the_price_and_once(tmp_path: Path) -> None:
    ledger = Ledger()
    with Batches() as stub:
        replies = run(tmp_path, stub, asked(30) + asked(5), ledger)
        assert [r.text for r in replies] == [f"echo q{i}" for i in [*range(30), *range(5)]]
        assert len(stub.jobs) == 1
        assert run(tmp_path, stub, asked(30)) == replies[:30]
        assert len(stub.jobs) == 1
    assert ledger.spent_usd == pytest.approx(30 * 0.004)


def test_a_recipe_says_so_with_a_word(tmp_path: Path) -> None:
    model = Model("t", EndpointModel(endpoint="http://localhost:1/v1", name="m", batch=True))
    assert isinstance(connect(model, Account(tmp_path)), BatchEndpoint)


def test_what_a_job_lost_is_asked_again_and_what_is_wrong_is_a_row_with_its_reason(tmp_path: Path) -> None:
    def spoil(body: dict[str, Any], times: int) -> Any:
        number = int(body["messages"][-1]["content"][1:])
        if number % 5 == 0 and times == 0:
            return "lost"
        if number % 5 == 1 and times == 0:
            return {"status_code": 500, "body": {"error": {"message": "boom"}}}
        if number % 5 == 2:
            return {"status_code": 400, "body": {"error": {"message": "too long"}}}
        return {"status_code": 200, "body": {"choices": []}} if number % 5 == 3 and times == 0 else None

    with Batches(spoil) as stub:
        replies = run(tmp_path, stub, asked(20))
    assert [r.text for r in replies] == ["" if i % 5 == 2 else f"echo q{i}" for i in range(20)]
    assert replies[2] == Reply("", "error", "HTTP 400: too long", origin="nobody")
    assert set(stub.answered.values()) == {1}


def test_what_fails_in_every_job_is_not_sealed(tmp_path: Path) -> None:
    with Batches(lambda body, times: "lost" if body["messages"][-1]["content"] == "q1" else None) as stub:
        with pytest.raises(TeacherError, match="1 of 3 requests could not be served"):
            run(tmp_path, stub, asked(3))
        assert len(stub.jobs) == 3
        replies = run(tmp_path, stub, asked(3), max_unserved=0.5)
    assert replies[1].reason == "the batch job failed at it 3 times"


def test_a_reply_that_is_not_accepted_goes_into_another_job(tmp_path: Path) -> None:
    def cut(body: dict[str, Any], times: int) -> Any:
        return {"status_code": 200, "body": completion("half", "length")} if body["seed"] == 0 else None

    with Batches(cut) as stub:
        assert [r.text for r in run(tmp_path, stub, asked(3, attempts=2))] == ["echo q0", "echo q1", "echo q2"]
        assert len(stub.jobs) == 2


def killed_while_it_waits(
    workspace: Path, stub: Stub, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends once its job is sent."""

    def killed(seconds: float) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("potstill.teachers.batches.time", SimpleNamespace(sleep=killed))  # not every thread's
        with pytest.raises(RuntimeError, match="killed"):
            run(workspace, stub, requests)


def test_a_job_of_a_killed_run_is_found_and_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Batches() as stub:
        killed_while_it_waits(tmp_path, stub, asked(10), monkeypatch)
        goes_on(tmp_path, stub)


def test_a_job_whose_name_never_came_back_is_found_and_paid_once(tmp_path: Path) -> None:
    with Batches() as stub:
        stub.crash_after_create = stub.crash_list = True
        with pytest.raises(TeacherError, match="no batch job can be had"):
            run(tmp_path, stub, asked(10))
        stub.crash_after_create = stub.crash_list = False
        others = {f"other-{i}": {**stub.jobs["batch-0"], "id": f"other-{i}", "metadata": {}} for i in range(8)}
        stub.jobs |= others
        goes_on(tmp_path, stub, jobs=9)


def goes_on(workspace: Path, stub: Batches, jobs: int = 1) -> None:
    assert len(stub.jobs) == jobs
    assert [r.text for r in run(workspace, stub, asked(10))] == [f"echo q{i}" for i in range(10)]
    assert len(stub.jobs) == jobs
    assert set(stub.answered.values()) == {1}
    journal = Journal(workspace / JOURNAL)
    assert journal.open_batches("m", "") == []
    journal.close()


def test_an_expired_job_brings_what_it_did(tmp_path: Path) -> None:
    with Batches(lambda body, times: "lost" if times == 0 and body["messages"][-1]["content"] > "q4" else None) as stub:
        stub.status = "expired"
        assert len(run(tmp_path, stub, asked(9))) == 9
        assert set(stub.answered.values()) == {1}


def test_a_server_without_batches_says_so(tmp_path: Path) -> None:
    with Stub() as stub, pytest.raises(TeacherError, match=r"HTTP 404: .*\. Leave out batch: true"):
        run(tmp_path, stub, asked(3))


def test_the_budget_holds(tmp_path: Path) -> None:
    ledger = Ledger(0.2)
    with Batches() as stub, pytest.raises(BudgetError, match=r"budget_usd is 0\.20"):
        run(tmp_path, stub, asked(200), ledger)
    assert 0 < ledger.spent_usd <= 0.2


@pytest.mark.parametrize("said", ["one\u2028two\u0085three", "half \ud83d"])
def test_a_reply_with_odd_signs_is_read_once_and_whole(tmp_path: Path, said: str) -> None:
    with Batches(lambda body, times: {"status_code": 200, "body": completion(said)}) as stub:
        (answer,) = run(tmp_path, stub, asked(1))
        assert answer.text == said.replace("\ud83d", "\ufffd")
        assert run(tmp_path, stub, asked(1)) == [answer]
        assert len(stub.jobs) == 1


@pytest.mark.parametrize(
    "line", ["str", [1], 5, {"status_code": 200, "body": {"choices": [], "usage": {"prompt_tokens": 2**70}}}]
)
def test_a_line_that_is_no_reply_is_asked_again(tmp_path: Path, line: Any) -> None:
    with Batches(lambda body, times: line if times == 0 else None) as stub:
        assert [r.text for r in run(tmp_path, stub, asked(2))] == ["echo q0", "echo q1"]


def test_a_job_whose_replies_are_gone_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Batches() as stub:
        killed_while_it_waits(tmp_path, stub, asked(2), monkeypatch)
        stub.jobs["batch-0"] |= {"status": "completed", "output_file_id": "lost"}
        assert [r.text for r in run(tmp_path, stub, asked(2))] == ["echo q0", "echo q1"]
