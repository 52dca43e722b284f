"""Limits, replicas, attempts and money: what goes out, and what is never passed."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub, completion, hang, refusal, reply

from potstill.errors import BudgetError, TeacherError
from potstill.money import Ledger
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request
from potstill.teachers.client import Endpoint
from potstill.teachers.dispatcher import Patience
from potstill.teachers.journal import JOURNAL, Journal

QUICK = Patience(attempts=4, first_wait=0.01, longest_wait=0.05, overload=5, absent_attempts=3, failures_in_a_row=8)


def asked(count: int, **fields: Any) -> list[Request]:
    return [Request((Message(role="user", content=f"q{i}"),), max_tokens=16, **fields) for i in range(count)]


def run(account: Account, endpoint: Any, requests: list[Request], **fields: Any) -> list[Reply]:
    model = Model("teacher", EndpointModel(endpoint=endpoint, name="m", **fields))
    with Endpoint(model, account, QUICK) as teacher:
        return list(teacher.complete(requests))


def totals(workspace: Path) -> Any:
    journal = Journal(workspace / JOURNAL)
    try:
        return journal.totals()
    finally:
        journal.close()


def test_requests_a_minute_are_kept_to(tmp_path: Path) -> None:
    with Stub() as stub:
        began = time.monotonic()
        run(Account(tmp_path), stub.base_url, asked(16), requests_per_minute=600)
        took = time.monotonic() - began
    assert 0.5 < took < 30, "ten at once, then ten a second"


def test_tokens_a_minute_are_kept_to(tmp_path: Path) -> None:
    with Stub() as stub:  # each takes 8 tokens, whatever was expected of it
        began = time.monotonic()
        run(Account(tmp_path), stub.base_url, asked(20), tokens_per_minute=60 * 60, concurrency=2)
        took = time.monotonic() - began
    assert 1.0 < took < 60


def test_overload_narrows_the_lane_and_it_grows_back(tmp_path: Path) -> None:
    """TRAPS: HTTP 429 handled as a failure of the row."""
    wide: list[int] = []

    async def bears_eight(stub: Stub, body: dict[str, Any], before: int) -> Any:
        wide.append(stub.in_flight)
        if stub.in_flight > 8:
            return refusal(429, "too many at once", {"retry-after": "0.02"})
        return await hang(0.01)

    with Stub(fault=bears_eight) as stub:
        replies = run(Account(tmp_path), stub.base_url, asked(600), concurrency=64)
    assert {r.finish for r in replies} == {"stop"}
    late = wide[len(wide) // 2 :]
    assert sum(n > 8 for n in late) < 0.35 * len(late), "it learnt what the server bears"
    assert max(late) >= 6, "and does not crawl"


def test_replicas_share_the_work_and_one_takes_over(tmp_path: Path) -> None:
    async def slow(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return await hang(0.005)

    async def dies(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(502, "gone") if stub.seen.total() > 20 else await hang(0.005)

    with Stub(fault=slow) as one, Stub(fault=dies) as two:
        replies = run(Account(tmp_path), [one.base_url, two.base_url], asked(200), concurrency=4)
        assert {r.finish for r in replies} == {"stop"}
        assert 15 <= two.answered.total() <= 20
        assert one.answered.total() == 200 - two.answered.total()
    with Stub(fault=slow) as one:
        run(Account(tmp_path / "c"), one.base_url, asked(1))
        run(Account(tmp_path / "c"), one.base_url + "/", asked(1))
        assert one.seen.total() == 1, "with a slash or without, it is the same place"
        replies = run(Account(tmp_path / "b"), ["http://127.0.0.1:9/v1", one.base_url], asked(50))
    assert {r.finish for r in replies} == {"stop"}


def test_no_replica_is_up(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no server answers at"):
        run(Account(tmp_path), ["http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"], asked(5))


def test_a_reply_that_is_not_accepted_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    async def cut_at_first(stub: Stub, body: dict[str, Any], before: int) -> Any:
        same = [key for key in stub.seen if json.loads(key)["messages"] == body["messages"]]
        return reply(completion("half", "length")) if len(same) <= 2 else reply(completion("whole"))

    requests = asked(3, attempts=5)
    with Stub(fault=cut_at_first) as stub:
        assert [r.text for r in run(Account(tmp_path), stub.base_url, requests)] == ["whole"] * 3
        assert stub.seen.total() == 9
        assert len({json.loads(key)["seed"] for key in stub.seen}) == 3
        assert [r.text for r in run(Account(tmp_path), stub.base_url, requests)] == ["whole"] * 3
        assert stub.seen.total() == 9, "all of it is kept"
        cut = run(Account(tmp_path), stub.base_url, asked(3, attempts=2))
    assert [(r.text, r.finish) for r in cut] == [("half", "length")] * 3, "the last one stands"


def test_what_accept_raises_comes_out(tmp_path: Path) -> None:
    def broken(reply: Reply) -> bool:
        raise RuntimeError("a bug of the stage")

    with Stub() as stub, pytest.raises(RuntimeError, match="a bug of the stage"):
        run(Account(tmp_path), stub.base_url, asked(1, attempts=2, accept=broken))


def test_more_failures_than_may_be_leave_the_stage_unsealed_and_only_they_are_asked_again(tmp_path: Path) -> None:
    """TRAPS: one bad row that turns its whole batch into nothing."""
    sick = True

    async def some(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(500, "boom") if sick and body["messages"][0]["content"] in ("q3", "q7") else None

    with Stub(fault=some) as stub:
        with pytest.raises(TeacherError, match=r"2 of 40 requests could not be served; the first: HTTP 500: boom\."):
            run(Account(tmp_path), stub.base_url, asked(40))
        assert stub.answered.total() == 38
        replies = run(Account(tmp_path), stub.base_url, asked(40), max_unserved=0.05)
        assert [r.finish for r in replies].count("error") == 2
        sick = False
        run(Account(tmp_path), stub.base_url, asked(40))
        assert set(stub.answered.values()) == {1}


def test_a_server_that_refuses_everything_is_not_asked_everything(tmp_path: Path) -> None:
    async def never(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(400, "unknown field: seed")

    with Stub(fault=never) as stub:
        with pytest.raises(TeacherError, match="the first 8 requests were all refused; the last: HTTP 400: unknown"):
            run(Account(tmp_path), stub.base_url, asked(500), concurrency=4)
        assert stub.seen.total() < 20
        fields = {"options": {"seed": None, "top_k": 5}, "token_limit": "max_completion_tokens"}
        stub.fault = None
        run(Account(tmp_path), stub.base_url, asked(1), **fields)
        sent = [json.loads(key) for key in stub.answered]
    assert "seed" not in sent[0]
    assert (sent[0]["top_k"], sent[0]["max_completion_tokens"], "max_tokens" in sent[0]) == (5, 16, False)


PRICE = {"input": 1000.0, "output": 1000.0}
"""A tenth of a cent a token: each reply of the stub, 8 tokens, costs 0.008."""


def test_the_budget_is_never_passed_and_what_it_bought_is_kept(tmp_path: Path) -> None:
    with Stub() as stub:
        ledger = Ledger(0.5)
        with pytest.raises(
            BudgetError, match=r"budget_usd is 0\.50: 0\.\d+ are spent, and the next request may cost up"
        ):
            run(Account(tmp_path, "chats", ledger), stub.base_url, asked(200), price=PRICE)
        paid = stub.answered.total()
        assert 0.3 < ledger.spent_usd <= 0.5
        assert paid * 0.008 == pytest.approx(ledger.spent_usd)
        (total,) = totals(tmp_path)
        assert (total.stage, total.calls, total.usd) == ("chats", paid, pytest.approx(paid * 0.008))
        run(Account(tmp_path, "chats", Ledger(5.0, ledger.spent_usd)), stub.base_url, asked(200), price=PRICE)
        assert set(stub.answered.values()) == {1}
        assert stub.answered.total() == 200


def test_two_teachers_of_a_stage_share_the_budget(tmp_path: Path) -> None:
    with Stub() as stub:
        ledger = Ledger(0.5)
        errors: list[Exception] = []

        def spend(name: str) -> None:
            model = Model(name, EndpointModel(endpoint=stub.base_url, name=name, price=PRICE))
            try:
                with Endpoint(model, Account(tmp_path, "s", ledger), QUICK) as teacher:
                    list(teacher.complete(asked(100)))
            except BudgetError as error:
                errors.append(error)

        threads = [threading.Thread(target=spend, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 2
    assert 0.3 < ledger.spent_usd <= 0.5


def test_a_server_that_counts_no_tokens_is_charged_the_most(tmp_path: Path) -> None:
    async def silent(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply({**completion("four"), "usage": None})

    with Stub(fault=silent) as stub:
        run(Account(tmp_path), stub.base_url, asked(1), price=PRICE)
    (total,) = totals(tmp_path)
    assert total.completion_tokens == 4
    assert total.prompt_tokens == len('{"messages": [{"role": "user", "content": "q0"}]}')


def test_a_changed_price_asks_nothing_again_and_the_past_costs_what_it_did(tmp_path: Path) -> None:
    with Stub() as stub:
        run(Account(tmp_path), stub.base_url, asked(5), price=PRICE)
        run(Account(tmp_path), stub.base_url, asked(5), price={"input": 1, "output": 1})
        assert stub.seen.total() == 5
    assert totals(tmp_path)[0].usd == pytest.approx(0.04)


def test_a_text_to_go_on_from_goes_to_completions(tmp_path: Path) -> None:
    requests = [Request((), 16, opening="<|user|>\n")]
    with Stub() as stub:
        (answer,) = run(Account(tmp_path), stub.base_url, requests)
        assert answer.text == "goes on from <|user|>\n"
        assert json.loads(next(iter(stub.seen)))["prompt"] == "<|user|>\n"
