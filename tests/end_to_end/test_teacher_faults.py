"""A server that fails at a fifth of all requests in every way, and a process that is killed a hundred times.

Nothing is lost, nothing stands twice in the data, and no reply that was received is asked for again.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from stub_server import Stub, cut_body, hang, page, refusal, reply

from potstill.cli import main
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Request
from potstill.teachers.client import Endpoint
from potstill.teachers.dispatcher import Patience
from potstill.teachers.journal import JOURNAL

pytestmark = pytest.mark.slow

REQUESTS = 10_000
KILLS = 100
PROMPTS = 2_000
CONCURRENCY = 16

RECIPE = """
name: killed
models: {{t: {{endpoint: "{url}", name: m, concurrency: 16}}}}
stages: {{chats: {{kind: converse, teacher: t, prompts: prompts.jsonl, turns: [1, 1]}}}}
"""


async def slowly(stub: Stub, body: dict[str, Any], before: int) -> Any:
    """A drip of a body: the head at once, the rest bit by bit, within the timeout."""
    await hang(0.2)
    return None


async def faulty(stub: Stub, body: dict[str, Any], before: int) -> Any:
    """One of every kind of failure for a fifth of the tries."""
    chance = random.Random(f"{body['messages'][-1]['content']}/{before}")
    if chance.random() >= 0.2:
        return None
    kind = chance.randrange(8)
    if kind == 0:
        return refusal(429, "slow down", {"retry-after": "0.05"})
    if kind == 1:
        return refusal(500, "boom")
    if kind == 2:
        await hang(3)  # beyond the timeout
        return page()
    if kind == 3:
        return cut_body()
    if kind == 4:
        return reply({"choices": [{"message": {"content": 7}}]})
    if kind == 5:
        return await slowly(stub, body, before)
    if kind == 6:
        return page()
    return refusal(400, "this one is too long") if before == 0 and chance.random() < 0.1 else refusal(503, "loading")


def test_ten_thousand_requests_at_a_server_that_fails_at_a_fifth(tmp_path: Path) -> None:
    """TRAPS: one bad row that turns its batch into nothing; HTTP 429 handled as a failure of the row."""
    patience = Patience(attempts=8, first_wait=0.02, longest_wait=0.5)
    with Stub(fault=faulty) as stub:
        model = Model("t", EndpointModel(endpoint=stub.base_url, name="m", concurrency=64, timeout_seconds=1.0))
        began = time.monotonic()
        with Endpoint(model, Account(tmp_path), patience) as teacher:
            asked = (Request((Message(role="user", content=f"q{i}"),), 16) for i in range(REQUESTS))
            replies = list(teacher.complete(asked))
        seconds = time.monotonic() - began
    assert len(replies) == REQUESTS
    ended = Counter(r.finish for r in replies)
    assert [r.text for r in replies if r.finish == "stop"] == [
        f"echo q{i}" for i, r in enumerate(replies) if r.finish == "stop"
    ]
    assert {r.reason for r in replies if r.finish != "stop"} <= {"HTTP 400: this one is too long"}
    with sqlite3.connect(tmp_path / JOURNAL) as journal:
        (kept,) = journal.execute("SELECT count(*) FROM replies").fetchone()
    journal.close()
    assert kept == ended["stop"]
    paid_twice = sum(count - 1 for count in stub.answered.values())
    sys.stdout.write(f"{ended}, {stub.seen.total()} tries, {paid_twice} answered more than once, {seconds:.0f} s\n")
    assert paid_twice <= 0.002 * REQUESTS, "drips that a busy machine made too slow"


def journalled(folder: Path) -> set[str]:
    """Bodies of the requests whose replies are kept, as the stub tells them apart."""
    path = folder / JOURNAL
    if not path.exists():
        return set()
    with sqlite3.connect(path) as journal:
        tables = journal.execute("SELECT count(*) FROM sqlite_master WHERE name = 'replies'").fetchone()[0]
        found = {row[0] for row in journal.execute("SELECT request FROM replies")} if tables else set()
    journal.close()
    return {json.dumps(json.loads(text), sort_keys=True) for text in found}


def test_a_hundred_kills_lose_nothing_and_pay_for_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(PROMPTS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chance, settled = random.Random(0), Counter[str]()

    async def takes_half_a_second(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return await hang(0.4)

    with Stub(fault=takes_half_a_second) as stub:
        Path("recipe.yaml").write_text(RECIPE.format(url=stub.base_url))
        command = [sys.executable, "-m", "potstill.cli", "run", "recipe.yaml"]
        landed = 0
        for _ in range(KILLS):
            before = stub.seen.total()
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while stub.seen.total() == before and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)  # kills are for while requests run
            time.sleep(chance.uniform(0.0, 1.0))
            landed += child.poll() is None
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            time.sleep(0.5)  # what is in flight ends at the server
            for body in journalled(tmp_path / "runs" / "killed") - settled.keys():
                settled[body] = stub.seen[body]
        stub.fault = None
        assert main(["run", "recipe.yaml"]) == 0
        again = [body for body, count in settled.items() if stub.seen[body] > count]
        assert again == [], "a reply that was kept was asked for again"
        twice = sum(count - 1 for count in stub.answered.values())
        assert set(stub.answered) == set(stub.seen)
        assert len(stub.seen) == PROMPTS
        assert main(["run", "recipe.yaml", "--out", "calm"]) == 0
    sys.stdout.write(f"{landed} of {KILLS} kills landed; {len(settled)} replies kept by then; {twice} answered twice\n")
    assert landed > 0.9 * KILLS
    assert twice <= CONCURRENCY * KILLS

    def data(folder: str) -> bytes:
        return (Path(folder) / "chats" / "rows.jsonl").read_bytes()

    assert data("runs/killed") == data("calm")
    assert len(data("calm").splitlines()) == PROMPTS
