"""Limits, replicas, attempts and money: what goes out, and what is never passed."""

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from stub_server import Stub, completion, hang, refusal, reply

from potstill.errors import BudgetError, StorageError, TeacherError
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


def at(stub: Stub) -> Model:
    return Model("t", EndpointModel(endpoint=stub.base_url, name="m"))


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


@pytest.mark.parametrize("counted", [2**63, 10**400, -5, "many"])
def test_counts_that_nobody_can_believe_are_none(tmp_path: Path, counted: Any) -> None:
    async def absurd(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply({**completion("four"), "usage": {"prompt_tokens": counted, "completion_tokens": counted}})

    with Stub(fault=absurd) as stub:
        run(Account(tmp_path), stub.base_url, asked(2), price=PRICE)
    (total,) = totals(tmp_path)
    assert total.completion_tokens == 8


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_process_comes_out_of_accept_too(tmp_path: Path, error: type[BaseException]) -> None:
    def ends(reply: Reply) -> bool:
        raise error

    with Stub() as stub, pytest.raises(error):
        run(Account(tmp_path), stub.base_url, asked(1, attempts=2, accept=ends))


def test_the_most_that_a_request_can_cost_is_what_its_body_asks_for(tmp_path: Path) -> None:
    with Stub() as stub, pytest.raises(BudgetError, match="may cost up to 5"):
        run(Account(tmp_path, "s", Ledger(1.0)), stub.base_url, asked(5), price=PRICE, options={"max_tokens": 5000})
    assert not stub.seen


def test_a_server_that_bills_more_than_was_asked_for_is_believed_the_next_time(tmp_path: Path) -> None:
    async def thinks(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return reply({**completion("short"), "usage": {"prompt_tokens": 5, "completion_tokens": 300}})

    ledger = Ledger(1.0)
    with Stub(fault=thinks) as stub, pytest.raises(BudgetError):
        run(Account(tmp_path, "s", ledger), stub.base_url, asked(50), price=PRICE, concurrency=1)
    assert 0.9 <= ledger.spent_usd <= 1.0


def test_two_who_ask_the_same_at_once_get_the_same(tmp_path: Path) -> None:
    async def differs(stub: Stub, body: dict[str, Any], before: int) -> Any:
        await hang(0.05)
        return reply(completion(f"answer {stub.seen.total()}"))

    found: list[list[str]] = []
    with Stub(fault=differs) as stub:
        threads = [
            threading.Thread(
                target=lambda: found.append(
                    [r.text for r in run(Account(tmp_path), stub.base_url, asked(5), price=PRICE)]
                )
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        again = [r.text for r in run(Account(tmp_path), stub.base_url, asked(5))]
        assert found == [again, again]
        assert sum(t.usd for t in totals(tmp_path)) == pytest.approx(0.008 * stub.seen.total()), "both were paid"


def test_what_is_accepted_by_one_is_not_by_another(tmp_path: Path) -> None:
    async def worse_at_first(stub: Stub, body: dict[str, Any], before: int) -> Any:
        await hang(0.05)
        return reply(completion("cut", "length")) if body["seed"] == 0 else None

    model = Model("t", EndpointModel(endpoint="x", name="m"), "")
    with Stub(fault=worse_at_first) as stub:
        model = Model("t", EndpointModel(endpoint=stub.base_url, name="m"))
        with Endpoint(model, Account(tmp_path), QUICK) as teacher:
            one, other = teacher.submit(asked(1)[0]), teacher.submit(asked(1, attempts=3)[0])
            assert (one.result().finish, other.result().finish) == ("length", "stop")


def test_one_who_leaves_takes_nothing_from_who_stays(tmp_path: Path) -> None:
    async def slow(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return await hang(0.2)

    with Stub(fault=slow) as stub, Endpoint(at(stub), Account(tmp_path), QUICK) as teacher:
        stays = teacher.submit(asked(3)[2])
        leaves = teacher.complete(iter(asked(3)))
        next(leaves)
        leaves.close()
        assert stays.result().text == "echo q2"


def test_a_journal_that_is_taken_away_is_noticed(tmp_path: Path) -> None:
    async def takes(stub: Stub, body: dict[str, Any], before: int) -> Any:
        (tmp_path / JOURNAL).unlink(missing_ok=True)

    with Stub(fault=takes) as stub, pytest.raises(StorageError, match="was removed or replaced while it was in use"):
        run(Account(tmp_path), stub.base_url, asked(3))


@pytest.mark.parametrize("options", [{"stream": True}, {"n": 5}, {"messages": []}, {"model": "x"}, {"x": float("nan")}])
def test_options_do_not_change_what_is_asked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be an option|cannot be sent as JSON"):
        EndpointModel(endpoint="http://x", name="m", options=options)


def test_a_replica_is_named_once() -> None:
    with pytest.raises(ValueError, match="the same URL stands there twice"):
        EndpointModel(endpoint=["http://x/v1", "http://x/v1/"], name="m")


def test_the_key_reaches_no_row_however_a_server_spells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-abc/def+12345"
    monkeypatch.setenv("STUB_KEY", secret)

    async def tells(stub: Stub, body: dict[str, Any], before: int) -> Any:
        raw = json.dumps(completion("your key is SECRET, so SECRET"))
        return Response(
            raw.replace("SECRET", secret.replace("/", "\\/"), 1).replace("SECRET", secret.replace("+", "\\u002b"))
        )

    with Stub(fault=tells) as stub:
        for _ in range(2):
            (answer,) = run(Account(tmp_path), stub.base_url, asked(1), key_env="STUB_KEY")
            assert answer.text == "your key is [key], so [key]"
    assert all(b"abc" not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_word_that_any_server_of_ones_own_takes_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "content")
    with Stub(answer=lambda body: "Use ollama, be content.") as stub:
        for _ in range(2):
            assert (
                run(Account(tmp_path), stub.base_url, asked(1), key_env="STUB_KEY")[0].text == "Use ollama, be content."
            )


def test_a_server_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    with Stub() as stub:
        port = stub.port
    patience = replace(QUICK, first_wait=0.2, longest_wait=1.0, absent_attempts=4)
    later = threading.Timer(0.4, lambda: started.set())
    started = threading.Event()
    model = Model("t", EndpointModel(endpoint=f"http://127.0.0.1:{port}/v1", name="m", concurrency=32))

    def serve() -> None:
        started.wait(10)
        with Stub(port=port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    later.start()
    try:
        with Endpoint(model, Account(tmp_path), patience) as teacher:
            assert {r.finish for r in teacher.complete(asked(64))} == {"stop"}
    finally:
        done.set()
        thread.join()


def test_a_connection_that_is_closed_is_told_as_such(tmp_path: Path) -> None:
    closer = socket.create_server(("127.0.0.1", 0))

    def close_all() -> None:
        while True:
            try:
                connection, _ = closer.accept()
            except OSError:
                return
            connection.recv(1000)
            connection.close()

    threading.Thread(target=close_all, daemon=True).start()
    url = f"http://127.0.0.1:{closer.getsockname()[1]}/v1"
    (answer,) = run(Account(tmp_path), url, asked(1), max_unserved=1)
    closer.close()
    assert "no reply came in" not in answer.reason
    assert "clos" in answer.reason or "connection failed" in answer.reason
