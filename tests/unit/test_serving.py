"""`potstill serve` through the official client: protocol, batches, streams, stop words, hostile input, disconnects."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
import uvicorn
from engine import tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from potstill.records import Message
from potstill.serving import protocol
from potstill.serving.answer import Parts, longest_beginning
from potstill.serving.app import Service, application
from potstill.serving.engine import Engine
from potstill.serving.run import Gate
from potstill.sources import Account, EndpointModel, LocalModel, Model
from potstill.teachers.base import Request, connect, request_seed
from potstill.teachers.local import LocalTeacher
from potstill.teachers.logprobs import scoring_request
from potstill.training import decoding
from potstill.training.models import save_model

CONTEXT = 320
QUESTIONS = [f"{'hello there ' * (n % 4)}what is the cat number {n}{' mat' * (n // 4)}?" for n in range(32)]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def make(path: Path, seed: int) -> Model:
    """A model with random weights that ends its answers now and then, and can be offered tools."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    made = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
        made.lm_head.weight[tokenizer.eos_token_id] *= 2
    save_model(made, tokenizer, path)
    return Model(path.name, LocalModel(path=str(path)))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalTeacher]]:
    folder = tmp_path_factory.mktemp("served")
    models = [make(folder / name, seed) for seed, name in enumerate(("tiny", "other"), start=2)]
    with LocalTeacher(models[0]) as tiny, LocalTeacher(models[1]) as other:
        yield {"tiny": tiny, "other": other}


@contextmanager
def serving(teachers: dict[str, LocalTeacher], most_waiting: int = 1024, key: str = "") -> Iterator[tuple[str, Engine]]:
    """A real server on a free port, and its engine."""
    with socket.socket() as listener, Engine(teachers, most_waiting) as engine:
        listener.bind(("127.0.0.1", 0))
        app = Gate(application(Service(teachers, engine)), key, verbose=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", engine
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def served(teachers: dict[str, LocalTeacher]) -> Iterator[tuple[str, Engine]]:
    with serving(teachers) as found:
        yield found


@pytest.fixture
def client(served: tuple[str, Engine]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served[0], api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, text: str, model: str = "tiny", **settings: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 24, **settings}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **settings)


def local(teacher: LocalTeacher, text: str, **settings: Any) -> Any:
    (reply,) = teacher.complete([Request((Message(role="user", content=text),), **{"max_tokens": 24, **settings})])
    return reply


def test_models_and_health(client: openai.OpenAI, served: tuple[str, Engine]) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"
    told = httpx2.get(served[0].removesuffix("/v1") + "/health").json()
    assert (told["status"], told["models"]) == ("ok", ["tiny", "other"])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_it_says_what_the_model_says_in_this_process(client: openai.OpenAI, teachers: dict[str, LocalTeacher]) -> None:
    ends = set()
    for name in teachers:
        for text in QUESTIONS[:6]:
            mine, reply = local(teachers[name], text), ask(client, text, name)
            (choice,) = reply.choices
            assert (choice.message.role, choice.message.content, choice.finish_reason) == (
                "assistant", mine.text, "length" if mine.finish == "length" else "stop"
            )  # fmt: skip
            assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
                mine.prompt_tokens, mine.completion_tokens
            )  # fmt: skip
            assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
            ends.add(choice.finish_reason)
    assert ends == {"stop", "length"}


def test_a_stream_adds_up_to_the_whole_reply(client: openai.OpenAI) -> None:
    for text in QUESTIONS[:6]:
        whole = ask(client, text, n=2, temperature=1, seed=3)
        events = list(
            ask(client, text, n=2, temperature=1, seed=3, stream=True, stream_options={"include_usage": True})
        )
        assert events[-1].usage == whole.usage
        assert events[-1].choices == []
        assert all(event.usage is None for event in events[:-1])
        for index in (0, 1):
            mine = [event.choices[0] for event in events[:-1] if event.choices[0].index == index]
            assert mine[0].delta.role == "assistant"
            assert "".join(one.delta.content or "" for one in mine) == whole.choices[index].message.content
            assert [one.finish_reason for one in mine if one.finish_reason] == [whole.choices[index].finish_reason]
        assert len({event.id for event in events}) == 1
    assert list(ask(client, "hello", stream=True))[-1].usage is None


def test_many_at_once_are_answered_as_one_by_one_in_one_batch(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [ask(client, text, max_tokens=60).choices[0].message.content for text in QUESTIONS]
    assert len(set(alone)) > 8
    sizes, step = [], decoding.Batch.step

    def counted(self: decoding.Batch, waiting: Any) -> Any:
        time.sleep(0.02)  # a model slower than its clients, however slow these are here
        ended = step(self, waiting)
        sizes.append(len(self.rows))
        return ended

    monkeypatch.setattr(decoding.Batch, "step", counted)
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda text: ask(client, text, max_tokens=60), QUESTIONS))
    assert [reply.choices[0].message.content for reply in together] == alone
    assert max(sizes) > 4
    assert sum(sizes) > len(sizes)


def test_a_late_comer_joins_while_another_is_written(served: tuple[str, Engine], client: openai.OpenAI) -> None:
    """It need not wait for the end of whatever was asked before."""
    stream = ask(client, QUESTIONS[0], max_tokens=120, temperature=1.3, seed=5, stream=True, logit_bias={})
    events = iter(stream)
    next(events)
    assert ask(client, QUESTIONS[1], max_tokens=2).choices[0].finish_reason in ("length", "stop")
    assert len(list(events)) > 2


def test_a_seed_gives_the_same_words_again(client: openai.OpenAI, teachers: dict[str, LocalTeacher]) -> None:
    settings = {"temperature": 1.2, "top_p": 0.9, "extra_body": {"top_k": 40}}
    first, again, other = (ask(client, QUESTIONS[0], seed=seed, n=3, **settings) for seed in (7, 7, 8))

    def texts(reply: Any) -> list[str]:
        return [choice.message.content for choice in reply.choices]

    assert texts(first) == texts(again) != texts(other)
    assert len(set(texts(first))) == 3
    for sample, text in enumerate(texts(first)):
        mine = local(teachers["tiny"], QUESTIONS[0], temperature=1.2, top_p=0.9, top_k=40, seed=7, sample=sample)
        assert text == mine.text
    unsaid = {ask(client, QUESTIONS[0], temperature=1.5).choices[0].message.content for _ in range(6)}
    assert len(unsaid) > 1


def script(monkeypatch: pytest.MonkeyPatch, teacher: LocalTeacher, text: str, *, byte_by_byte: bool = False) -> None:
    """From now on each answer is this text, and ends."""
    encoded = [teacher.tokenizer.encode(part, add_special_tokens=False) for part in (text if byte_by_byte else [text])]
    tokens = [*(token for part in encoded for token in part), teacher.tokenizer.eos_token_id]
    monkeypatch.setattr(decoding, "choose", lambda logits_RV, rows: [tokens[len(row.tokens)] for row in rows])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected", "finish"),
    [
        ("sat on", "the cat ", "stop"),
        (["mat.", "the m"], "the cat sat on ", "stop"),
        (["zebra", "at sat"], "the c", "stop"),
        ("the", "", "stop"),
        ("mat. hello", "the cat sat on the mat.", "stop"),  # its beginning was held back, and comes at the end
        (None, "the cat sat on the mat.", "stop"),
    ],
)
def test_stop_words_end_an_answer_wherever_tokens_begin(
    client: openai.OpenAI,
    teachers: dict[str, LocalTeacher],
    monkeypatch: pytest.MonkeyPatch,
    stop: Any,
    expected: str,
    finish: str,
    stream: bool,
) -> None:
    script(monkeypatch, teachers["tiny"], "the cat sat on the mat.")
    said = ask(client, "tell", stop=stop, stream=stream, logprobs=True)
    if stream:
        choices = [event.choices[0] for event in said]
        text, found = "".join(one.delta.content or "" for one in choices), choices[-1].finish_reason
        told = [one.token for choice in choices if choice.logprobs for one in choice.logprobs.content]
    else:
        text, found = said.choices[0].message.content, said.choices[0].finish_reason
        told = [one.token for one in said.choices[0].logprobs.content]
    assert (text, found) == (expected, finish)
    assert "".join(told).startswith(expected)


def test_no_piece_of_a_stream_holds_half_a_character(
    client: openai.OpenAI, teachers: dict[str, LocalTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "héé 🏺☕ 한 naïve 👩‍🔬."
    script(monkeypatch, teachers["tiny"], text, byte_by_byte=True)
    pieces = [event.choices[0].delta.content or "" for event in ask(client, "tell", max_tokens=80, stream=True)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 10


def test_what_is_no_text_at_all_still_comes_and_ends(
    client: openai.OpenAI, teachers: dict[str, LocalTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teachers["tiny"]
    half = teacher.tokenizer.encode("🏺", add_special_tokens=False)[0]
    monkeypatch.setattr(decoding, "choose", lambda logits_RV, rows: [half for _ in rows])
    whole = ask(client, "tell", max_tokens=5, logprobs=True).choices[0]
    assert set(whole.message.content) == {"\ufffd"}
    assert [one.bytes for one in whole.logprobs.content] == [None] * 5
    pieces = [event.choices[0].delta.content or "" for event in ask(client, "tell", max_tokens=5, stream=True)]
    assert "".join(pieces) == whole.message.content


def test_logprobs_are_the_models_own(client: openai.OpenAI, teachers: dict[str, LocalTeacher]) -> None:
    teacher = teachers["tiny"]
    for temperature in (0, 1.5):  # they are those of temperature 1 whatever is drawn from
        choice = ask(client, QUESTIONS[3], temperature=temperature, seed=1, logprobs=True, top_logprobs=4).choices[0]
        row = teacher.row(Request((Message(role="user", content=QUESTIONS[3]),), 24, temperature, seed=1))
        batch, waiting = decoding.Batch(teacher.model, teacher.stops), deque([row])
        while waiting or batch.rows:
            batch.step(waiting)
        said = [token for token in row.tokens if token not in teacher.stops]
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.tokens]])
        logp = teacher.model(input_ids=ids).logits[0].detach().log_softmax(-1)[len(row.prompt_ids) - 1 :]
        assert len(choice.logprobs.content) == len(said)
        for place, (one, token) in enumerate(zip(choice.logprobs.content, said, strict=True)):
            assert one.logprob == pytest.approx(float(logp[place, token]), abs=1e-4)
            best = logp[place].topk(4).values.tolist()
            assert [other.logprob for other in one.top_logprobs] == pytest.approx(best, abs=1e-4)
    events = ask(client, QUESTIONS[3], logprobs=True, top_logprobs=2, stream=True)
    streamed = [one for event in events if event.choices[0].logprobs for one in event.choices[0].logprobs.content]
    whole = ask(client, QUESTIONS[3], logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert streamed == whole


def test_tools_reach_the_template_and_calls_come_back(
    client: openai.OpenAI, teachers: dict[str, LocalTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, tooled = (ask(client, "tell", max_tokens=1, **more).usage for more in ({}, {"tools": [TOOL]}))
    assert tooled.prompt_tokens > bare.prompt_tokens + 10
    told = ask(client, "tell", max_tokens=1, tools=[TOOL], tool_choice="none").usage
    assert told.prompt_tokens == bare.prompt_tokens
    written = 'I look. <tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>'
    script(monkeypatch, teachers["tiny"], written)
    choice = ask(client, "tell", max_tokens=100, tools=[TOOL]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"n": 1})
    events = [event.choices[0] for event in ask(client, "tell", max_tokens=100, tools=[TOOL], stream=True)]
    assert "".join(event.delta.content or "" for event in events).strip() == "I look."
    (streamed,) = [call for event in events for call in event.delta.tool_calls or ()]
    assert (streamed.index, streamed.function.name, events[-1].finish_reason) == (0, "look", "tool_calls")
    assert ask(client, "tell", max_tokens=100).choices[0].message.content == written  # nothing was offered
    cut = ask(client, "tell", max_tokens=9, tools=[TOOL]).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.tool_calls is None
    assert written.startswith(cut.message.content)
    assert "<tool_call>" in cut.message.content or len(cut.message.content) > 4


def test_thoughts_are_told_apart(
    client: openai.OpenAI, teachers: dict[str, LocalTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, teachers["tiny"], "<think>\na cat?\n</think>\n\nhello there")
    message = ask(client, "tell", max_tokens=60).choices[0].message
    assert (message.content, message.reasoning_content) == ("hello there", "a cat?")
    deltas = [event.choices[0].delta for event in ask(client, "tell", max_tokens=60, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == "hello there"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas).strip() == "a cat?"


def test_plain_text_is_gone_on_from(client: openai.OpenAI, teachers: dict[str, LocalTeacher]) -> None:
    teacher = teachers["tiny"]
    opening = "the cat sat"
    (mine,) = teacher.complete([Request((), 12, opening=opening)])
    ids = teacher.tokenizer.encode(opening, add_special_tokens=False)
    for prompt in (opening, ids):
        reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0)
        assert reply.choices[0].text == mine.text
    assert client.completions.create(model="tiny", prompt=opening, temperature=1).usage.completion_tokens <= 16
    several = client.completions.create(model="tiny", prompt=[opening, "hello"], n=2, max_tokens=12, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == mine.text
    assert several.usage.prompt_tokens == len(ids) + len(teacher.tokenizer.encode("hello", add_special_tokens=False))
    pieces = client.completions.create(model="tiny", prompt=opening, max_tokens=12, temperature=0, stream=True)
    assert "".join(event.choices[0].text for event in pieces) == mine.text


def test_what_the_prompt_itself_is_worth(client: openai.OpenAI, teachers: dict[str, LocalTeacher]) -> None:
    """As harnesses ask for it (`echo` with `logprobs`), and as vLLM has it."""
    teacher, opening = teachers["tiny"], "the cat sat on the mat"
    ids = teacher.tokenizer.encode(opening, add_special_tokens=False)
    expected = teacher.model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    reply = client.completions.create(model="tiny", prompt=opening, max_tokens=1, temperature=0, echo=True, logprobs=2)
    choice = reply.choices[0]
    assert choice.text.startswith(opening)
    own = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(own, abs=1e-4)
    raw = client.completions.create(
        model="tiny", prompt=ids, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 3}
    ).model_dump()
    places = raw["choices"][0]["prompt_logprobs"]
    assert places[0] is None
    assert [place[str(token)]["logprob"] for place, token in zip(places[1:], ids[1:], strict=True)] == pytest.approx(
        own, abs=1e-4
    )
    assert all(len(place) in (3, 4) for place in places[1:])


HOSTILE: list[tuple[str, Any, int, str]] = [
    ("not json", b"{", 400, "could not be read as JSON"),
    ("deep", b"[" * 100_000, 400, "could not be read as JSON"),
    ("a list", b"[]", 400, "the body must be a JSON object"),
    ("no model", {}, 400, "you must provide a model"),
    ("model of another kind", {"model": 7}, 400, "you must provide a model"),
    ("no such model", {"model": "tinny"}, 404, "did you mean 'tiny'?"),
    ("half a character", b'{"model": "\\ud800"}', 404, "does not exist"),
    ("no messages", {"model": "tiny"}, 400, "at least one message"),
    ("messages of another kind", {"model": "tiny", "messages": "hello"}, 400, "expected a list of messages"),
    ("no role", {"model": "tiny", "messages": [{"content": "x"}]}, 400, "the role of turn 1"),
    (
        "an image",
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "image_url",
    ),
    ("temperature", {"temperature": "hot"}, 400, "'temperature' must be a number and lie between 0 and 2"),
    ("temperature", {"temperature": float("nan")}, 400, "'temperature'"),
    ("true is no number", {"max_tokens": True}, 400, "'max_tokens' must be a whole number"),
    ("no tokens", {"max_tokens": 0}, 400, "'max_tokens'"),
    ("many", {"n": 10_000}, 400, "'n' must be a whole number and lie between 1 and 128"),
    ("stop", {"stop": [1]}, 400, "'stop' must be a text or a list"),
    ("stop", {"stop": [""]}, 400, "'stop'"),
    ("stop", {"stop": ["x"] * 99}, 400, "at most 16"),
    ("stream", {"stream": "yes"}, 400, "'stream' must be true or false"),
    ("tools", {"tools": "hammer"}, 400, "tools"),
    ("choice", {"tool_choice": "required"}, 400, "'tool_choice' must be"),
    ("schema", {"response_format": {"type": "json_object"}}, 400, "'response_format' cannot be done here"),
    ("penalty", {"frequency_penalty": 1.0}, 400, "'frequency_penalty' cannot be done here"),
    ("misspelt", {"temprature": 1}, 400, "did you mean 'temperature'?"),
    ("too long", {"messages": [{"role": "user", "content": "cat " * 500}]}, 400, f"the model reads {CONTEXT}"),
    ("top_logprobs", {"top_logprobs": 3}, 400, "needs 'logprobs'"),
]


@pytest.mark.parametrize(("name", "body", "status", "words"), HOSTILE)
def test_what_cannot_be_done_is_refused_in_words(
    served: tuple[str, Engine], name: str, body: Any, status: int, words: str
) -> None:
    if isinstance(body, dict) and not {"model", "messages"} & set(body) and body:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **body}
    if isinstance(body, dict) and "messages" in body and "model" not in body:
        body = {"model": "tiny", **body}
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx2.post(f"{served[0]}/chat/completions", content=sent)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [None, 7, [], [[]], ["x", 1], [-1], [10**6], ""])
def test_a_prompt_that_is_none_is_refused(served: tuple[str, Engine], prompt: Any) -> None:
    reply = httpx2.post(f"{served[0]}/completions", json={"model": "tiny", "prompt": prompt})
    assert (reply.status_code, "prompt" in reply.json()["error"]["message"]) == (400, True)


def test_a_body_of_a_hundred_megabytes_is_not_read(served: tuple[str, Engine]) -> None:
    """Neither where its length is said beforehand, nor where it comes in pieces without one."""
    host, port = served[0].removeprefix("http://").removesuffix("/v1").split(":")
    for head in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode())
            chunk = b"x" * 1_000_000
            taken = 0
            with contextlib.suppress(OSError):  # it hangs up in the middle
                while "chunked" in head and taken < 100:
                    raw.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    taken += 1
            assert taken < 100
            if "chunked" not in head:
                assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert protocol.MOST_BODY_BYTES < 100_000_000


def test_unknown_places_are_told_in_the_protocols_form(served: tuple[str, Engine]) -> None:
    for method, path in (("GET", "/v1/nothing"), ("GET", "/v1/chat/completions"), ("POST", "/v1/models")):
        reply = httpx2.request(method, served[0].removesuffix("/v1") + path)
        assert reply.status_code in (404, 405)
        assert "unknown request URL" in reply.json()["error"]["message"]


def wait_until(happens: Any, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(happens())


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch, teachers: dict[str, LocalTeacher]) -> None:
    """Answers that do not end by themselves, and take their time."""
    (word,) = teachers["tiny"].tokenizer.encode("hello", add_special_tokens=False)[:1]

    def slowly(logits_RV: Any, rows: Any) -> list[int]:
        time.sleep(0.05)
        return [word for _ in rows]

    monkeypatch.setattr(decoding, "choose", slowly)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer(served: tuple[str, Engine], endless: None, stream: bool) -> None:
    url, engine = served
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": stream, "max_tokens": 120}
    )
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall((head + body).encode())
        assert wait_until(lambda: engine.busy == 1)
        began = time.monotonic()
    assert wait_until(lambda: engine.busy == 0)
    assert time.monotonic() - began < 4, "the whole answer would take 6 seconds"


def test_more_than_can_wait_is_told_to_come_again(teachers: dict[str, LocalTeacher], endless: None) -> None:
    with serving(teachers, most_waiting=3) as (url, engine), ThreadPoolExecutor(8) as pool:
        ask_one = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
        replies = list(pool.map(lambda _: httpx2.post(f"{url}/chat/completions", json=ask_one, timeout=60), range(8)))
        refused = [reply for reply in replies if reply.status_code == 429]
        assert 1 <= len(refused) <= 5
        assert sum(reply.status_code == 200 for reply in replies) == 8 - len(refused)
        assert all(reply.headers["retry-after"] for reply in refused)
        assert wait_until(lambda: engine.busy == 0)


def test_a_model_that_fails_says_so_and_the_next_request_is_answered(
    served: tuple[str, Engine], client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ask(client, QUESTIONS[0]).choices[0].message.content
    with monkeypatch.context() as broken:

        def fail(logits_RV: Any, rows: Any) -> Any:
            raise torch.OutOfMemoryError("no memory is left")

        broken.setattr(decoding, "choose", fail)
        with pytest.raises(openai.InternalServerError, match="no memory is left"):
            ask(client, QUESTIONS[0])
        with pytest.raises(openai.APIError, match="no memory is left"):
            list(ask(client, QUESTIONS[0], stream=True))
    assert ask(client, QUESTIONS[0]).choices[0].message.content == before


def test_a_key_is_asked_for(teachers: dict[str, LocalTeacher], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(teachers, key="right") as (url, _):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=url, api_key="right", max_retries=0).models.list().data
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 200
        httpx2.get(url + "/a%0Ab")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1:4] for line in lines[:3]] == [
        ["GET", "/v1/models", "401"], ["GET", "/v1/models", "200"], ["GET", "/health", "200"]
    ]  # fmt: skip
    assert r"/v1/a\nb 401" in lines[3]


def test_our_own_client_is_served(
    served: tuple[str, Engine], teachers: dict[str, LocalTeacher], tmp_path: Path
) -> None:
    """As a teacher of a recipe, with the odds of first tokens that judges of pairs weigh, and as one that scores."""
    url, _ = served
    spec = EndpointModel(endpoint=url, name="tiny", concurrency=8)
    asked = [
        Request((Message(role="user", content=text),), 20, temperature=1.0 if n % 2 else 0.0, seed=n, top_logprobs=5)
        for n, text in enumerate(QUESTIONS[:12])
    ]
    with connect(Model("m", spec), Account(tmp_path)) as teacher:
        far = list(teacher.complete(asked))
    near = list(teachers["tiny"].complete(asked))
    for one, other in zip(far, near, strict=True):
        assert (one.text, one.prompt_tokens, one.completion_tokens) == (
            other.text, other.prompt_tokens, other.completion_tokens
        )  # fmt: skip
        assert [logp for _, logp in one.likeliest] == pytest.approx([logp for _, logp in other.likeliest], abs=1e-4)
    ids = teachers["tiny"].tokenizer.encode("the cat sat on the mat", add_special_tokens=False)
    with connect(Model("m", spec), Account(tmp_path)) as teacher:
        (scored,) = teacher.complete([scoring_request(ids, 4)])
    assert len(json.loads(scored.body)["choices"][0]["prompt_logprobs"]) == len(ids)


def test_sample_numbers_and_choices_draw_alike() -> None:
    """`n` of a request is `per_prompt` of a local model: the same seed and number, the same words."""
    assert request_seed(7, 0) != request_seed(7, 1)


def test_beginnings_of_stop_words() -> None:
    assert longest_beginning("the end", ("d of",)) == 1
    assert longest_beginning("the end of", ("d of it", "of")) == 4
    assert longest_beginning("the end", ("x",)) == 0
    assert longest_beginning("", ("x",)) == 0


@pytest.mark.parametrize(
    ("text", "begun", "content", "reasoning", "called"),
    [
        ("plain <think>x</think>", False, "plain <think>x</think>", "", ""),
        ("<think>a</think> b", False, "b", "a", ""),
        ("a</think>b<tool_call>c", True, "b", "a", "<tool_call>c"),
        ("<think>a", False, "", "a", ""),
        ("  <thi", False, "  <thi", "", ""),
        ("x <tool", False, "x <tool", "", ""),
    ],
)
def test_parts_do_not_depend_on_where_pieces_are_cut(
    text: str, begun: bool, content: str, reasoning: str, called: str
) -> None:
    for size in (1, 2, 3, 5, len(text)):
        parts, said, thought = Parts(begun, reasons=True, calls=True), "", ""
        for first in range(0, len(text), size):
            more, also = parts.add(text[first : first + size])
            said, thought = said + more, thought + also
        more, also = parts.rest()
        assert (said + more, thought + also, parts.called) == (content, reasoning, called)


def test_the_loop_of_a_request_may_be_gone() -> None:
    """An engine that still writes for a request whose server has ended does not fail."""
    from potstill.serving.app import Mailbox

    async def make() -> Mailbox:
        return Mailbox()

    asyncio.run(make()).deliver([])
