"""The client of OpenAI-compatible teachers against a server that fails in every way that it knows."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub, completion, cut_body, hang, page, refusal, reply

from potstill.errors import TeacherError
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply, Request, remedy
from potstill.teachers.client import LEAST_WINDOW, Endpoint
from potstill.teachers.dispatcher import Patience
from potstill.teachers.journal import JOURNAL
from potstill.teachers.wire import read_reply

QUICK = Patience(attempts=4, first_wait=0.01, longest_wait=0.05, overload=5, absent_attempts=3, failures_in_a_row=8)


def model(url: str, **fields: Any) -> Model:
    return Model("teacher", EndpointModel(**{"endpoint": "declared", "name": "m", **fields}), url)


def ask(text: str, **fields: Any) -> Request:
    return Request((Message(role="user", content=text),), max_tokens=16, **fields)


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].removeprefix("q"))


def ended_by(reason: object) -> dict[str, Any]:
    body = completion("x")
    body["choices"][0]["finish_reason"] = reason
    return body


def run(stub: Stub, workspace: Path, count: int = 1, **fields: Any) -> list[Reply]:
    with Endpoint(model(stub.base_url, **fields), Account(workspace), QUICK) as teacher:
        return list(teacher.complete(ask(f"q{i}") for i in range(count)))


def ask_for(stub: Stub, workspace: Path, *requests: Request) -> list[Reply]:
    with Endpoint(model(stub.base_url), Account(workspace), QUICK) as teacher:
        return list(teacher.complete(requests))


def test_replies_come_in_order_whatever_order_they_are_served_in(tmp_path: Path) -> None:
    async def later_ones_first(stub: Stub, body: dict[str, Any], before: int) -> None:
        await hang((7 - number(body) % 8) * 0.01)

    with Stub(fault=later_ones_first) as stub:
        assert [r.text for r in run(stub, tmp_path, 64)] == [f"echo q{i}" for i in range(64)]


def test_as_many_are_in_flight_as_the_recipe_says_and_no_more(tmp_path: Path) -> None:
    async def slowly(stub: Stub, body: dict[str, Any], before: int) -> None:
        await hang(0.02)

    with Stub(fault=slowly) as stub:
        run(stub, tmp_path, 40, concurrency=5)
        assert stub.most_in_flight == 5


def test_requests_are_read_a_bounded_window_ahead(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield ask(f"q{taken}")

    with Stub() as stub, Endpoint(model(stub.base_url, concurrency=2), Account(tmp_path), QUICK) as teacher:
        replies = teacher.complete(endless())
        assert [next(replies).text for _ in range(3)] == ["echo q1", "echo q2", "echo q3"]
        assert taken <= 3 + LEAST_WINDOW
        replies.close()


def test_faults_of_every_kind_pass(tmp_path: Path) -> None:
    """TRAPS: 429 handled as a failure of the row. Every request fails once, each in another way, and all are served."""
    faults: list[Callable[[], Any]] = [
        lambda: refusal(429, "slow down", {"retry-after": "0.05"}),
        lambda: refusal(500, "boom"),
        lambda: refusal(503, "loading"),
        cut_body,
        page,
        lambda: reply({"no": "choices"}),
        lambda: reply(completion("x") | {"choices": []}),
    ]

    async def once(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return faults[number(body) % len(faults)]() if before == 0 else None

    with Stub(fault=once) as stub:
        assert [r.text for r in run(stub, tmp_path, 70)] == [f"echo q{i}" for i in range(70)]
        assert set(stub.answered.values()) == {1}
        assert set(stub.seen.values()) == {2}


def test_overload_uses_up_no_attempts_and_its_wait_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    async def long_overloaded(stub: Stub, body: dict[str, Any], before: int) -> Any:
        times.append(time.monotonic())
        return refusal(429, "busy", {"retry-after": "0.1"}) if before < 6 else None

    with Stub(fault=long_overloaded) as stub:
        (answer,) = run(stub, tmp_path)
    assert answer == Reply("echo q0", prompt_tokens=5, completion_tokens=3, origin="journal")
    assert len(times) == 7 > QUICK.attempts
    assert all(b - a >= 0.1 for a, b in pairwise(times))


def test_a_hanging_request_is_given_up_at_its_timeout_and_asked_again(tmp_path: Path) -> None:
    async def first_hangs(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return await hang(5) if before == 0 else None

    with Stub(fault=first_hangs) as stub:
        began = time.monotonic()
        (answer,) = run(stub, tmp_path, timeout_seconds=0.3)
    assert answer.text == "echo q0"
    assert time.monotonic() - began < 3


def test_what_cannot_be_served_ends_as_a_reply_with_its_reason(tmp_path: Path) -> None:
    async def third_never(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(500, "this one breaks me") if number(body) == 3 else None

    with Stub(fault=third_never) as stub:
        answers = run(stub, tmp_path, 6, max_unserved=0.2)
    assert [a.finish for a in answers] == ["stop"] * 3 + ["error"] + ["stop"] * 2
    assert answers[3].reason == "HTTP 500: this one breaks me (after 4 tries)"
    assert [a.origin for a in answers] == ["journal"] * 3 + ["nobody"] + ["journal"] * 2


def test_a_server_that_never_answers_is_said_to(tmp_path: Path) -> None:
    async def never(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return await hang(5)

    with Stub(fault=never) as stub:
        (answer,) = run(stub, tmp_path, timeout_seconds=0.2, max_unserved=1)
    assert answer == Reply("", "error", "no reply came in 0.2 s (after 4 tries)", origin="nobody")


def test_a_bad_request_fails_at_once_and_alone(tmp_path: Path) -> None:
    """TRAPS: one bad row that turns its whole batch into nothing."""

    async def too_long(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(400, "maximum context length is 5") if number(body) % 2 else None

    with Stub(fault=too_long) as stub:
        answers = run(stub, tmp_path, 40)
        assert set(stub.seen.values()) == {1}
    assert [a.finish for a in answers] == ["stop", "error"] * 20
    assert answers[1] == Reply("", "error", "HTTP 400: maximum context length is 5", origin="nobody")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_unknown_model_stops_everything_with_the_servers_words(tmp_path: Path, status: int) -> None:
    async def refuse(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(status, "no such thing for you")

    with Stub(fault=refuse) as stub:
        with pytest.raises(TeacherError, match=rf"the server says HTTP {status}: no such thing for you") as caught:
            run(stub, tmp_path, 100, concurrency=2)
        assert stub.seen.total() <= 4
    assert "\n" not in str(caught.value)


def test_a_server_that_cannot_go_on_from_text_is_told_what_it_lacks(tmp_path: Path) -> None:
    async def chats_alone(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(404, "Not Found") if "prompt" in body else None

    needs = r"HTTP 404: Not Found. Text without a chat template needs .*/completions"
    with Stub(fault=chats_alone) as stub, pytest.raises(TeacherError, match=needs):
        ask_for(stub, tmp_path, Request((), 5, opening="<|user|>"))


def test_an_exhausted_quota_stops_everything(tmp_path: Path) -> None:
    async def refuse(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(429, "you have spent it all", code="insufficient_quota")

    with Stub(fault=refuse) as stub, pytest.raises(TeacherError, match="you have spent it all"):
        run(stub, tmp_path)


@pytest.mark.parametrize(
    ("url", "fields", "says"),
    [
        ("http://127.0.0.1:9/v1", {"endpoint": "http://127.0.0.1:9/v1"}, "no server answers at http://127.0.0.1:9/v1"),
        ("", {"endpoint": "http://nobody.invalid/v1"}, "no server answers at http://nobody.invalid/v1"),
        ("", {"endpoint": "http://1.2.3.999/v1"}, "the endpoint is no URL: Invalid IPv4 address"),
        (
            "http://127.0.0.1:9/v1",
            {"endpoint": "world"},
            r"own server 'world' has ended\. Read .*/logs/world\.log and run",
        ),
    ],
)
def test_no_server_is_one_clear_line(tmp_path: Path, url: str, fields: dict[str, str], says: str) -> None:
    with pytest.raises(TeacherError, match=says), Endpoint(model(url, **fields), Account(tmp_path), QUICK) as teacher:
        list(teacher.complete([ask("q0")] * 3))


def test_a_server_that_only_fails_is_given_up(tmp_path: Path) -> None:
    async def broken(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(500, "out of memory")

    with Stub(fault=broken) as stub, pytest.raises(TeacherError, match=r"8 requests in a row .* out of memory"):
        run(stub, tmp_path, 100)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("half an ans", "length"), Reply("half an ans", "length", "the answer was cut at max_tokens", 5, 3)),
        (completion("", "stop"), Reply("", "empty", "the answer is empty", 5, 3)),
        (completion(" \n", "stop"), Reply(" \n", "empty", "the answer is empty", 5, 3)),
        (
            completion(None, "content_filter"),
            Reply("", "filter", "the server's content filter stopped the answer", 5, 3),
        ),
        (completion(None, "stop", refusal="I won't"), Reply("", "refusal", "the model refused: I won't", 5, 3)),
        (completion("x", "tool_calls"), Reply("x", "error", "the answer ended with finish_reason 'tool_calls'", 5, 3)),
        (completion("x", None), Reply("x", "stop", "", 5, 3)),
        (ended_by(["stop"]), Reply("x", "error", "the answer ended with finish_reason ['stop']", 5, 3)),
        (ended_by({}), Reply("x", "error", "the answer ended with finish_reason {}", 5, 3)),
    ],
)
def test_how_an_answer_ended_is_told(tmp_path: Path, body: dict[str, Any], expected: Reply) -> None:
    """TRAPS: truncation retried ten times at full price. Each of these is asked for once, and kept."""

    async def say(stub: Stub, asked: dict[str, Any], before: int) -> Any:
        return reply(body)

    with Stub(fault=say) as stub:
        for _ in range(2):
            assert run(stub, tmp_path) == [replace(expected, origin="journal")]
        assert stub.seen.total() == 1


@pytest.mark.parametrize(
    "raw", ["", "null", "[]", '{"choices": [{}]}', '{"choices": [{"message": {"content": 3}}]}', "[" * 200_000]
)
def test_a_body_that_is_no_reply_is_no_reply(raw: str) -> None:
    with pytest.raises(ValueError, match="the reply"):
        read_reply(raw)


def test_a_second_run_costs_no_call_and_a_changed_request_does(tmp_path: Path) -> None:
    """TRAPS: a changed system prompt that the cache does not see; a changed limit that throws paid answers away."""
    with Stub() as stub:
        first = run(stub, tmp_path, 20)
        assert run(stub, tmp_path, 20, concurrency=3, timeout_seconds=9, price={"input": 1, "output": 2}) == first
        assert stub.seen.total() == 20
        changes: list[Request] = [
            ask("q0", seed=1),
            ask("q0", temperature=0.5),
            ask("q0", top_p=0.5),
            ask("q0", sample=1),
            Request((Message(role="system", content="Be brief."), Message(role="user", content="q0")), 16),
            Request((Message(role="user", content="q0"),), 17),
        ]
        with Endpoint(model(stub.base_url), Account(tmp_path), QUICK) as teacher:
            list(teacher.complete(changes))
        assert stub.seen.total() == 20 + len(changes)
        for fields in ({"revision": "2"}, {"name": "other"}, {"options": {"reasoning_effort": "low"}}):
            run(stub, tmp_path, **fields)
        assert stub.seen.total() == 20 + len(changes) + 3


def test_another_address_under_an_old_name_is_refused_until_it_is_declared(tmp_path: Path) -> None:
    """TRAPS: a changed base URL that the cache key does not see."""
    with Stub() as one, Stub(answer=lambda body: "another model") as other:
        first = run_at(tmp_path, one.base_url)
        with pytest.raises(TeacherError, match=rf"holds 3 replies of this model from {one.base_url}, and .* now asks"):
            run_at(tmp_path, other.base_url)
        assert run_at(tmp_path, [other.base_url, one.base_url]) == first, "replicas share what is kept"
        assert run_at(tmp_path, other.base_url) == first, "it was declared"
        assert not other.seen
        assert run_at(tmp_path, other.base_url, revision="b") == ["another model"] * 3


def run_at(workspace: Path, endpoint: str | list[str], count: int = 3, **fields: Any) -> list[str]:
    """Ask whoever is there, by addresses alone."""
    at = Model("teacher", EndpointModel(endpoint=endpoint, name="m", **fields))
    with Endpoint(at, Account(workspace), QUICK) as teacher:
        return [r.text for r in teacher.complete(ask(f"q{i}") for i in range(count))]


def test_the_same_thing_twice_in_one_go_is_asked_for_once(tmp_path: Path) -> None:
    with Stub() as stub, Endpoint(model(stub.base_url), Account(tmp_path), QUICK) as teacher:
        assert [r.text for r in teacher.complete([ask("q1")] * 30)] == ["echo q1"] * 30
        assert stub.seen.total() == 1


def test_what_is_counted_is_what_was_asked_whatever_the_journal_held(tmp_path: Path) -> None:
    """Facts hold these counts: after a kill, which leaves some replies behind, they have to be the same."""
    asked, found = [ask("q1"), ask("q2"), ask("q1"), ask("q1")], []
    with Stub() as stub:
        for held in ([], ["q1"], ["q1", "q2"]):
            workspace = tmp_path / str(len(held))
            if held:
                ask_for(stub, workspace, *map(ask, held))
            account = Account(workspace)
            with Endpoint(model(stub.base_url), account, QUICK) as teacher:
                list(teacher.complete(asked))
            found.append(account.meter)
        assert stub.seen.total() == 6, "every journal is asked for each once"
    assert found[0].calls == 4
    assert found[0] == found[1] == found[2]


def test_the_key_is_sent_and_stands_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("STUB_KEY", secret)
    refused = False

    async def talkative(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return refusal(401, f"Incorrect API key provided: {secret}") if refused else None

    with Stub(answer=lambda body: f"your key is {secret}", fault=talkative) as stub:
        run(stub, tmp_path, key_env="STUB_KEY")
        assert stub.headers[0]["authorization"] == f"Bearer {secret}"
        refused = True
        with pytest.raises(TeacherError) as caught:
            run(stub, tmp_path, 2, key_env="STUB_KEY")
    assert secret not in str(caught.value)
    assert all(secret.encode() not in file.read_bytes() for file in tmp_path.glob(f"{JOURNAL}*"))


def test_a_key_that_is_not_set_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUB_KEY", raising=False)
    with pytest.raises(TeacherError, match="the environment variable STUB_KEY is not set"):
        Endpoint(model("http://127.0.0.1:9/v1", key_env="STUB_KEY"), Account(tmp_path))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            Reply("", "error", "HTTP 500", origin="nobody"),
            "See to the server and to what it is asked for, and run again;",
        ),
        (Reply("?", origin="journal"), "Use another one. Its replies are kept: give"),
        (Reply("?", "length", origin="journal"), "Use another one, or raise limit. Its replies are kept: give"),
        (Reply("?", "length"), "Use another one, or raise limit"),
        (Reply("", "error", "the prompt is too long"), "Use another one"),
    ],
)
def test_the_remedy_fits_the_cause(answer: Reply, says: str) -> None:
    advice = remedy(answer, "Use another one", "limit")
    assert advice.startswith(says)
    assert ("Its replies are kept" in advice) == (answer.origin == "journal")


def test_an_error_in_the_requests_themselves_comes_out_and_nothing_is_left_running(tmp_path: Path) -> None:
    def broken() -> Iterator[Request]:
        yield ask("q0")
        raise RuntimeError("a bug of the stage")

    with Stub() as stub, Endpoint(model(stub.base_url), Account(tmp_path), QUICK) as teacher:
        with pytest.raises(RuntimeError, match="a bug of the stage"):
            list(teacher.complete(broken()))
        assert [r.text for r in teacher.complete([ask("q1")])] == ["echo q1"]


def test_what_is_sent_is_what_the_protocol_has(tmp_path: Path) -> None:
    with Stub() as stub, Endpoint(model(stub.base_url), Account(tmp_path), QUICK) as teacher:
        list(teacher.complete([ask("q0", temperature=0.5, top_p=0.9, top_k=7, seed=3)]))
        (sent,) = stub.seen
    assert json.loads(sent) == {
        "model": "m",
        "messages": [{"role": "user", "content": "q0"}],
        "max_tokens": 16,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
    }
