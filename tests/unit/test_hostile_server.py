"""Servers that leak, lie, bill wrongly or never end: one clear line, the books right, the key nowhere."""

import asyncio
import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import RedirectResponse, Response, StreamingResponse
from stub_server import Stub, completion, refusal, reply
from test_batches import QUICK as RHYTHM
from test_batches import Batches
from test_batches import run as run_batch
from test_spending import asked, run, totals

from potstill.errors import BudgetError, PotstillError, TeacherError
from potstill.money import Ledger
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Reply
from potstill.teachers.batches import BatchEndpoint
from potstill.teachers.dispatcher import Who
from potstill.teachers.journal import JOURNAL

SECRET = "sk-very/secret-0123456789"
PRICE = {"input": 10.0, "output": 10.0}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STUB_KEY", SECRET)
    return "STUB_KEY"


def always(answer: Any) -> Any:
    async def fault(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return answer if isinstance(answer, Response) else answer()

    return fault


def outcome(stub: Stub, workspace: Path, **fields: Any) -> str:
    """What comes of one request, in words."""
    try:
        (made,) = run(Account(workspace), stub.base_url, asked(1), **{"max_unserved": 1.0, **fields})
    except PotstillError as error:
        return str(error)
    return f"{made.text}|{made.reason}|{[call.arguments for call in made.tool_calls]}"


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(sign):04X}" for sign in text)


# ---- the key

LEAKS: dict[str, Any] = {
    "where words are cut": lambda: refusal(400, "x" * 290 + " " + SECRET),
    "where the words of a refused key are cut": lambda: refusal(401, "x" * 290 + " " + SECRET),
    "where words of a failure are cut": lambda: refusal(500, "x" * 290 + " " + SECRET),
    "escaped, in an error of no known shape": lambda: Response(f'{{"oops": ["{escaped(SECRET)}"]}}', 400),
    "escaped, in a body that is no reply": lambda: Response(f'{{"oops": ["{escaped(SECRET)}"', 200),
    "as a URL has it": lambda: refusal(400, "see /?key=" + SECRET.replace("/", "%2F").replace("-", "%2d")),
    "in JSON inside JSON": lambda: reply(
        completion(None, "tool_calls", tool_calls=[{
            "id": "a", "type": "function",
            "function": {"name": "f", "arguments": f'{{"x": "{escaped(SECRET)}", "y": "\\\\{SECRET}"}}'},
        }])
    ),
    "as a name in it": lambda: reply(completion(json.dumps({SECRET: 1}))),
}  # fmt: skip


@pytest.mark.parametrize("where", LEAKS)
def test_the_key_comes_out_nowhere(where: str, key: str, tmp_path: Path) -> None:
    with Stub(fault=always(LEAKS[where])) as stub:
        said = outcome(stub, tmp_path, key_env=key)
    decoded = said.encode().decode("unicode_escape")
    for text in (said, decoded, *(file.read_text(errors="replace") for file in tmp_path.glob(f"{JOURNAL}*"))):
        assert "0123456" not in text, "no half of it either"
        assert "very" not in text
        assert escaped("secret") not in text


def test_what_is_not_the_key_stays_as_it_is(key: str) -> None:
    who = Who("t", EndpointModel(endpoint="http://a/v1", name="m", key_env=key), ("http://a/v1",))
    for text in ("", "sk-very/secret", "\\" * 9, '{"a": "C:\\\\dir\\n", "b": "\\u00e9"}', SECRET[1:]):
        assert who.redact(text) == text
    whole = json.dumps({"a": f"it is {SECRET}\n{SECRET}", "b": json.dumps({"c": "\\" + SECRET})})
    assert json.loads(who.redact(whole))["a"] == "it is [key]\n[key]"
    assert json.loads(json.loads(who.redact(whole))["b"]) == {"c": "[key]"}
    began = time.process_time()
    assert who.redact("\\" * 1_000_000 + "s" * 1_000_000).startswith("\\\\")
    assert time.process_time() - began < 5, "in time that grows as the text does"


# ---- bodies


@pytest.mark.parametrize("depth", [500, 900, 5_000, 100_000])
@pytest.mark.parametrize("where", ["beside", "call", "finish", "refusal", "usage"])
def test_what_is_nested_deep_is_a_reply_or_a_reason(depth: int, where: str, key: str, tmp_path: Path) -> None:
    nested = "[" * depth + "]" * depth
    spots = {
        "beside": '{"extra": NEST, "choices": [{"message": {"content": "fine"}}]}',
        "call": '{"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": NEST}}]}}]}',
        "finish": '{"choices": [{"message": {"content": "fine"}, "finish_reason": NEST}]}',
        "refusal": '{"choices": [{"message": {"refusal": NEST}}]}',
        "usage": '{"choices": [{"message": {"content": "fine"}}], "usage": {"prompt_tokens": NEST}}',
    }
    with Stub(fault=always(Response(spots[where].replace("NEST", nested)))) as stub:
        said = outcome(stub, tmp_path, key_env=key)
    if where in ("beside", "usage") and depth < 1000:
        assert said.startswith("fine|")
    assert said != "||[]"


def test_a_number_of_thousands_of_digits_costs_no_reply(tmp_path: Path) -> None:
    body = json.dumps(completion("fine")).replace('"prompt_tokens": 5', '"prompt_tokens": ' + "9" * 6000)
    with Stub(fault=always(Response(body))) as stub:
        assert outcome(stub, tmp_path) == "fine||[]"


@pytest.mark.parametrize("charset", ["base64", "zlib", "rot13", "idna", "undefined", "nothing"])
def test_a_charset_that_is_none(charset: str, tmp_path: Path) -> None:
    headers = {"content-type": f"application/json; charset={charset}"}
    bad = Response(json.dumps({"error": {"message": "no such field"}}), 400, headers)
    with Stub(fault=always(bad)) as stub:
        assert outcome(stub, tmp_path) == "|HTTP 400: no such field|[]"
    with Stub(fault=always(Response(json.dumps(completion("fine")), 200, headers))) as stub:
        assert outcome(stub, tmp_path / "b") == "fine||[]"


def test_a_body_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def long() -> Any:
        for _ in range(300):
            yield b" " * 65536
            await asyncio.sleep(0)

    monkeypatch.setattr("potstill.teachers.client.MOST_BYTES", 1_000_000)
    with Stub(fault=always(lambda: StreamingResponse(long()))) as stub:
        assert "the body is longer than 1,000,000 bytes (after 4 tries)" in outcome(stub, tmp_path)


def test_a_small_body_that_unpacks_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.teachers.client.MOST_PACKED_BYTES", 10_000)
    packed = {"content-encoding": "gzip"}
    with Stub(fault=always(Response(gzip.compress(b" " * 20_000_000), 200, packed))) as stub:
        assert "the body is longer than 10,000 bytes" in outcome(stub, tmp_path)
        assert stub.headers[0]["accept-encoding"] == "identity"
    with Stub(fault=always(Response(gzip.compress(json.dumps(completion("fine")).encode()), 200, packed))) as stub:
        assert outcome(stub, tmp_path / "b") == "fine||[]", "who packs all the same is read"


@pytest.mark.parametrize("status", [302, 307])
def test_nothing_is_sent_on_to_where_a_server_points(status: int, tmp_path: Path) -> None:
    with Stub() as other, Stub(fault=always(RedirectResponse(other.base_url + "/chat/completions", status))) as stub:
        said = outcome(stub, tmp_path)
        assert (
            f"the server says HTTP {status}: it sends to {other.base_url}/chat/completions. Write the address" in said
        )
        assert other.seen.total() == 0


def test_a_bug_on_the_loop_comes_out_where_replies_are_awaited(tmp_path: Path) -> None:
    (bad,) = asked(1)
    object.__setattr__(bad, "max_tokens", "20")
    with Stub() as stub, pytest.raises(TypeError):
        run(Account(tmp_path), stub.base_url, [bad])


# ---- money


def bills(times: float, **body: Any) -> Any:
    """Charges that many times the longest answer that was asked for."""

    async def fault(stub: Stub, body_: dict[str, Any], before: int) -> Any:
        whole = completion("x") | body
        return reply(whole | {"usage": {"prompt_tokens": 1, "completion_tokens": int(times * body_["max_tokens"])}})

    return fault


def test_a_server_that_bills_twice_is_reckoned_with_once(tmp_path: Path) -> None:
    ledger = Ledger(1.0)  # one request: 16 tokens of an answer and some bytes of a prompt, 0.0006 at the most
    with Stub(fault=bills(10.0)) as stub:
        made = run(Account(tmp_path, "s", ledger), stub.base_url, asked(200), price=PRICE)
    assert {reply.finish for reply in made} == {"stop"}
    assert 0.3 < ledger.spent_usd < 0.4


def test_no_budget_without_a_bound(tmp_path: Path) -> None:
    with Stub() as stub:
        with pytest.raises(BudgetError, match="options leave out what bounds an answer, and so its cost"):
            run(Account(tmp_path, "s", Ledger(5.0)), stub.base_url, asked(1), price=PRICE, options={"max_tokens": None})
        assert stub.seen.total() == 0
        unpaid = run(Account(tmp_path), stub.base_url, asked(1), price=PRICE, options={"max_tokens": None})
    assert unpaid[0].text == "echo q0"


@pytest.mark.parametrize("limit", [20000.0, "5000", -5, 0, True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_is_a_whole_number(name: str, limit: Any) -> None:
    with pytest.raises(ValueError, match=f"'{name}' has to be a whole number over 0, or null"):
        EndpointModel(endpoint="http://a/v1", name="m", options={name: limit})


def test_what_cannot_be_read_is_paid_for_nevertheless(tmp_path: Path) -> None:
    """Trap: a reply that came and cost something stands in the books, though nobody can use it."""
    ledger = Ledger(0.01)
    with Stub(fault=bills(25.0, choices=[])) as stub:  # 0.004 each
        with pytest.raises(BudgetError):
            run(Account(tmp_path, "s", ledger), stub.base_url, asked(20), price=PRICE, concurrency=1)
        sent = stub.seen.total()
    assert 1 <= sent <= 3, "the budget is passed by one request at the most, the one that showed how it bills"
    assert ledger.spent_usd == pytest.approx(sent * 0.00401)
    (total,) = totals(tmp_path)
    assert (total.calls, total.pruned, total.usd) == (sent, sent, pytest.approx(ledger.spent_usd))


def test_an_address_with_a_question_is_refused() -> None:
    with pytest.raises(ValueError, match="goes on behind"):
        EndpointModel(endpoint="http://a/v1?api_key=abc", name="m")


# ---- batch jobs


class Odd(Batches):
    """Says something odd once of what a route answers."""

    def __init__(self, **odd: Any) -> None:
        super().__init__(odd.pop("spoil", None))
        self.odd = odd

    async def _upload(self, request: Any) -> Any:
        return self.odd.pop("upload", None) or await super()._upload(request)

    async def _create(self, request: Any) -> Any:
        return self.odd.pop("create", None) or await super()._create(request)

    async def _look(self, request: Any) -> Any:
        return self.odd.pop("look", None) or await super()._look(request)

    async def _content(self, request: Any) -> Any:
        made = await super()._content(request)
        return self.odd["content"](made.body) if "content" in self.odd else made


PAGE = {"html": lambda: Response("<html>hello</html>", media_type="text/html"), "list": lambda: reply([1, 2])}


@pytest.mark.parametrize("page", PAGE)
@pytest.mark.parametrize("route", ["upload", "create", "look"])
def test_a_page_in_place_of_a_job_is_asked_again(route: str, page: str, tmp_path: Path) -> None:
    with Odd(**{route: PAGE[page]()}) as stub:
        assert [r.text for r in run_batch(tmp_path, stub, asked(2))] == ["echo q0", "echo q1"]


@pytest.mark.parametrize(
    "errors", ["bad", {"data": [None, 5]}, {"data": {"a": 1}}, {"data": [{"message": SECRET}]}, None]
)
def test_a_job_that_failed_is_one_line(errors: Any, key: str, tmp_path: Path) -> None:
    failed = {"id": "batch-0", "object": "batch", "created_at": 0, "status": "failed", "errors": errors}
    with Odd(look=reply(failed)) as stub, pytest.raises(TeacherError, match="the batch job batch-0 failed: ") as caught:
        run_batch(tmp_path, stub, asked(2), key_env=key)
    assert "secret" not in str(caught.value)


def test_a_state_that_is_not_known_holds_no_key(key: str, tmp_path: Path) -> None:
    odd = {"id": "batch-0", "object": "batch", "created_at": 0, "status": SECRET}
    with Odd(look=reply(odd)) as stub, pytest.raises(TeacherError, match=r"is .\[key\]., which is not known"):
        run_batch(tmp_path, stub, asked(2), key_env=key)


DEEP = json.dumps({"custom_id": "x"})[:-1] + ', "a": ' + "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        lambda body: Response(DEEP.encode() + b"\n" + body),
        lambda body: Response(body, media_type="application/json; charset=base64"),
        lambda body: Response(body.replace(b'"status_code": 200', b'"status_code": "200"')),
        lambda body: Response(body + body.replace(b"echo", b"worse")),
    ],
    ids=["nested", "charset", "status as text", "every reply twice"],
)
def test_one_odd_line_costs_no_other(content: Any, tmp_path: Path) -> None:
    with Odd(content=content) as stub:
        assert [r.text for r in run_batch(tmp_path, stub, asked(3))] == ["echo q0", "echo q1", "echo q2"]
        assert len(stub.jobs) == 1


def test_the_words_of_a_refused_line_are_cut_behind_the_key(key: str, tmp_path: Path) -> None:
    words = "x" * 285 + SECRET
    with Batches(lambda body, times: {"status_code": "400", "body": {"error": {"message": words}}}) as stub:
        (made,) = run_batch(tmp_path, stub, asked(1), key_env=key)
    assert made == Reply("", "error", f"HTTP 400: {'x' * 285}[key]", origin="nobody")


def test_jobs_that_cost_nothing_need_no_bound(tmp_path: Path) -> None:
    free = {"price": {**PRICE, "batch": 0.0}, "batch": True, "options": {"max_tokens": None}}
    model = Model("t", EndpointModel(endpoint="declared", name="m", **free), "")
    with (
        Batches() as stub,
        BatchEndpoint(replace(model, base_url=stub.base_url), Account(tmp_path, "s", Ledger(1.0)), RHYTHM) as teacher,
    ):
        assert [r.text for r in teacher.complete(asked(1))] == ["echo q0"]
