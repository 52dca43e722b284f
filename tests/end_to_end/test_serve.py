"""`potstill serve` as a process: a recipe's teacher and judge ask it, and signals end it as they should."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from test_transformers_serve import make_model

from potstill.cli import main

pytestmark = pytest.mark.slow
START_SECONDS = 180


@contextmanager
def serving(*words: str) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """The process and its address, from when it answers."""
    command = [sys.executable, "-m", "potstill.cli", "serve", *words, "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    kill = threading.Timer(START_SECONDS, server.kill)
    kill.start()
    try:
        line = server.stdout.readline()
        assert " at http://" in line, server.communicate()[1]
        yield server, line.split(" at ")[1].split(";")[0]
    finally:
        kill.cancel()
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    make_model(path, 0)
    make_model(path.with_name("other"), 1)
    return path


def test_a_recipe_samples_over_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe on the folder itself gives the same answers."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"what is pot {n}?"}) + "\n" for n in range(12)))
    recipe = (
        "name: {name}\nmodels:\n  pool:\n    - {one}\n    - {two}\nstages:\n"
        "  answers: {{kind: sample, models: pool, prompts: prompts.jsonl, per_prompt: 2, temperature: 0,\n"
        "            max_tokens: 40}}\n"
    )
    other = tiny.with_name("other")
    with serving(str(tiny), str(other)) as (_, url):
        far = [f"{{endpoint: '{url}', name: {name}}}" for name in ("tiny", "other")]
        near = [f"{{path: '{path}'}}" for path in (tiny, other)]
        for name, (one, two) in {"far": far, "near": near}.items():
            Path(f"{name}.yaml").write_text(recipe.format(name=name, one=one, two=two))
        assert main(["run", "far.yaml"]) == 0
        assert main(["run", "near.yaml"]) == 0
    told = [
        [json.loads(line) for line in Path(f"runs/{name}/answers/rows.jsonl").read_text().splitlines()]
        for name in ("far", "near")
    ]
    assert told[0]
    texts = [[sorted(one["text"] for one in row["candidates"]) for row in rows] for rows in told]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_under_way_finish(tiny: Path, number: int, code: int) -> None:
    with serving(str(tiny), "--verbose") as (server, url):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        chat = [{"role": "user", "content": "hello there"}]
        stream = client.completions.create(
            model="tiny", prompt="hello", max_tokens=400, temperature=1, seed=2, stream=True
        )
        first = next(iter(stream))
        server.send_signal(number)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        assert first.id == rest[-1].id
        assert server.wait(60) == code
        _, said = server.communicate()
        assert "Traceback" not in said
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="tiny", messages=chat)


def test_it_ends_within_its_grace_when_nobody_asks(tiny: Path) -> None:
    with serving(str(tiny)) as (server, url):
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 200
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 143
        assert time.monotonic() - began < 20


def test_a_page_with_another_name_for_this_machine_is_not_let_in(tiny: Path) -> None:
    with serving(str(tiny)) as (_, url):
        assert httpx2.get(f"{url}/models", headers={"host": "evil.example"}).status_code == 400
        assert httpx2.get(f"{url}/models").status_code == 200


def test_a_port_that_is_taken_ends_before_anything_is_loaded(tiny: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "potstill.cli", "serve", str(tiny), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    assert ended.returncode == 2
    assert "already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
