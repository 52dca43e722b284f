"""Teachers and judges behind somebody else's OpenAI-compatible server, `transformers serve`, with a model that knows
nothing: rubbish ends as rows with their reasons, or as one line, and nothing crashes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from potstill.artifact import read_rows
from potstill.cli import main
from potstill.records import Answers, Chat, Dropped, Message
from potstill.sources import Account, EndpointModel, LocalModel, Model
from potstill.teachers.base import Reply, Request, connect

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi", reason="the server needs transformers[serving], which the extra 'dev' brings")

TEXTS = ["Task 1: what is this? It is a pot of tea.\n", "hello there, the cat sat on the mat.\n"] * 20
START_SECONDS = 120
EAGER = 5
"""How much the models want to end: some of their answers do so in time, some are cut."""


def make_model(path: Path, seed: int) -> None:
    """A chat model with random weights, in Hugging Face layout, that ends its answers now and then."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from potstill.tokens.tokenization import train_tokenizer
    from potstill.training.models import save_model

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, 330)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, sliding_window=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
        model.lm_head.weight[tokenizer.eos_token_id] *= EAGER
    save_model(model, tokenizer, path)
    settings = path / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_sample": True}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models 'tiny', 'other' and 'handy', which is 'tiny' with a template that offers tools."""
    folder = tmp_path_factory.mktemp("serve")
    for seed, name in enumerate(("tiny", "other")):
        make_model(folder / name, seed)
    make_model(folder / "handy", 0)
    settings = folder / "handy" / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(
        json.dumps({**known, "chat_template": "{{ tools | tojson if tools }}" + known["chat_template"]})
    )
    return folder


@contextmanager
def serving(folder: Path, port: int, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """The server, from when it answers until it is stopped. What it says is appended to the log."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host=127.0.0.1", f"--port={port}"]
    with log.open("ab") as file:
        server = subprocess.Popen([*command, "--device=cpu"], cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The server's address."""
    port = free_port()
    with serving(folder, port, folder / "log"):
        yield f"http://127.0.0.1:{port}/v1"


def wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(address).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"what is the pot number {i}?"}) + "\n" for i in range(10))
    )
    models = "".join(f"    - {{endpoint: '{url}', name: {name}, concurrency: 2}}\n" for name in ("tiny", "other"))
    Path("t.yaml").write_text(
        "name: t\nmodels:\n"
        f"  m: {{endpoint: '{url}', name: tiny, concurrency: 2}}\n"
        f"  gone: {{endpoint: '{url}', name: nobody/nothing, concurrency: 2}}\n"
        f"  pool:\n{models}"
        "stages:\n"
        "  talk: {kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 2], max_tokens: 40,\n"
        "         user_max_tokens: 40}\n"
        "  answers: {kind: sample, models: pool, prompts: prompts.jsonl, per_prompt: 2, max_tokens: 40}\n"
        "  rated: {kind: judge, judge: m, data: answers, aspects: [truthfulness], max_tokens: 40, min_coverage: 0}\n"
        "  tasks: {kind: self_instruct, teacher: m, seeds: prompts.jsonl, count: 4, max_requests: 4, max_tokens: 40}\n"
        "  strict: {kind: judge, judge: m, data: answers, aspects: [honesty], max_tokens: 40}\n"
        "  lost: {kind: converse, teacher: gone, prompts: prompts.jsonl, turns: [1, 1]}\n"
        "  scores: {kind: evaluate, models: [m], judge: m, limit: 3, max_tokens: 40, judge_max_tokens: 40,\n"
        "           suites: {chat: {protocol: mt_bench, questions: prompts.jsonl}}}\n"
    )


def run(stage: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["run", "t.yaml", "--until", stage])
    return code, capsys.readouterr().err


def facts(stage: str) -> Any:
    return json.loads((Path("runs/t") / stage / "manifest.json").read_text())["facts"]


def test_rubbish_becomes_rows_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("talk", capsys) == (0, "")
    chats = list(read_rows(Path("runs/t/talk/rows.jsonl"), Chat))
    dropped = list(read_rows(Path("runs/t/talk/dropped.jsonl"), Dropped))
    assert chats
    assert dropped
    assert len(chats) + len(dropped) == 10
    assert all(len(chat.messages) in (2, 4) and chat.messages[1].content for chat in chats)
    ends = {f"{who}_{how}" for who in ("answer", "user") for how in ("length", "empty", "error")}
    assert {row.reason for row in dropped} <= ends
    assert all(row.detail for row in dropped)

    assert run("rated", capsys) == (0, "")
    rated = list(read_rows(Path("runs/t/rated/rows.jsonl"), Answers))
    left_out = list(read_rows(Path("runs/t/answers/dropped.jsonl"), Dropped))
    assert rated
    assert len(rated) + len(left_out) == 10
    assert {row.reason for row in left_out} <= {"too_few_answers"}
    assert facts("answers")["answers"].keys() == {"tiny", "other"}
    ratings = [rating for row in rated for candidate in row.candidates for rating in candidate.ratings]
    assert len(ratings) == facts("rated")["ratings"]["asked"] == 2 * len(rated)
    assert facts("rated")["coverage"] < 0.5
    assert all(rating.score is not None or rating.rationale for rating in ratings)


def test_where_nothing_can_be_used_it_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "tasks": "m: none of 4 replies held a task to keep (",
        "strict": "m: only 0% of ",
        "scores": "judge m: none of its 3 judgments could be read (",
        # HTTP 500 is what this server says of a model that it cannot find.
        "lost": f"gone ({url}): 10 of 10 requests could not be served; the first: HTTP 500: ",
    }
    for stage, says in expected.items():
        code, err = run(stage, capsys)
        assert code == 2, stage
        assert err.count("\n") == 1, err
        assert err.startswith(says), err
        assert not Path(f"runs/t/{stage}").exists()


QUESTIONS = [f"what is the pot number {n}?" for n in range(12)]
TOOL = '{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}'


def ask(model: Model, requests: list[Request], tmp_path: Path) -> list[Reply]:
    with connect(model, Account(tmp_path)) as teacher:
        return list(teacher.complete(requests))


def test_greedy_answers_are_those_of_the_model_in_this_process(folder: Path, url: str, tmp_path: Path) -> None:
    """Chats and texts to go on from, eight at once: the same words, tokens and ends, from both kinds of teacher."""
    requests = [Request((Message(role="user", content=text),), 30) for text in QUESTIONS]
    requests += [Request((), 30, opening=f"<s><|user|>\n{text[: 5 + n]}") for n, text in enumerate(QUESTIONS)]
    served = ask(Model("m", EndpointModel(endpoint=url, name="tiny", concurrency=8)), requests, tmp_path)
    local = ask(Model("m", LocalModel(path=str(folder / "tiny"))), requests, tmp_path)
    assert len({reply.text for reply in local}) > 12
    assert {reply.finish for reply in local} == {"stop", "length"}
    for ours, theirs in zip(local, served, strict=True):
        assert (theirs.text, theirs.prompt_tokens, theirs.completion_tokens) == (
            ours.text, ours.prompt_tokens, ours.completion_tokens
        )  # fmt: skip
        assert theirs.finish == ours.finish or ours.completion_tokens == 30  # it calls whatever has 30 tokens cut


def test_tools_reach_the_models_template(folder: Path, url: str, tmp_path: Path) -> None:
    requests = [Request((Message(role="user", content=QUESTIONS[0]),), 10, tools=tools) for tools in ((), (TOOL,))]
    served = ask(Model("m", EndpointModel(endpoint=url, name="handy", concurrency=1)), requests, tmp_path)
    local = ask(Model("m", LocalModel(path=str(folder / "handy"))), requests, tmp_path)
    assert [reply.prompt_tokens for reply in served] == [reply.prompt_tokens for reply in local]
    assert [reply.text for reply in served] == [reply.text for reply in local]
    assert served[1].prompt_tokens > served[0].prompt_tokens + 20


def test_a_seed_gives_the_same_words_again(url: str, tmp_path: Path) -> None:
    """One at a time: the seed is the server's own, and requests in flight together draw from one stream."""
    requests = [Request((Message(role="user", content=text),), 20, temperature=1.0, seed=7) for text in QUESTIONS[:3]]
    model = Model("m", EndpointModel(endpoint=url, name="tiny", concurrency=1))
    first, again = ([reply.text for reply in ask(model, requests, tmp_path / name)] for name in ("first", "again"))
    assert first == again
    other = [replace(request, seed=8) for request in requests]
    assert [reply.text for reply in ask(model, other, tmp_path / "other")] != first


def test_a_server_that_dies_is_one_line_and_what_it_said_is_not_asked_again(folder: Path, tmp_path: Path) -> None:
    port, log, questions = free_port(), tmp_path / "log", 24
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"what is the pot number {n}?"}) + "\n" for n in range(questions))
    )
    Path("k.yaml").write_text(
        f"name: k\nmodels: {{m: {{endpoint: 'http://127.0.0.1:{port}/v1', name: tiny, concurrency: 2}}}}\n"
        "stages:\n  talk: {kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 1], max_tokens: 200}\n"
    )
    command = [sys.executable, "-c", "import sys; from potstill.cli import main; sys.exit(main(['run', 'k.yaml']))"]
    with serving(folder, port, log) as server:
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + START_SECONDS
        while asked(log) < 8 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        server.kill()
        server.wait()
        _, said = running.communicate(timeout=START_SECONDS)
    before = asked(log)
    assert running.returncode == 2, said
    assert 8 <= before < questions, "it was to die in the middle"
    assert said.count("\n") == 1, said
    assert said.startswith(f"m (http://127.0.0.1:{port}/v1): no server answers at "), said
    assert "Start it or correct the endpoint, and run again; replies that came are kept" in said
    assert not Path("runs/k/talk").exists()
    with serving(folder, port, log):
        assert main(["run", "k.yaml"]) == 0
        assert asked(log) <= questions + 2  # the two that were in flight are asked again
        assert len(list(read_rows(Path("runs/k/talk/rows.jsonl"), Chat))) > 0


def asked(log: Path) -> int:
    """How many requests the server has begun to serve."""
    return log.read_text(errors="replace").count("[Request received]")
