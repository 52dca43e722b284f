"""How many answer tokens a second does a server of local models write, and how soon does the first one come?

    python bench/serving.py [--model 60m] [--clients 1 8 32] [--requests 64] [--peers transformers batching] [--record]

`ours` is `potstill serve`. `transformers` is `transformers serve`, `batching` the same with `--continuous-batching`.
Each server has the machine to itself in turn; clients stream greedy answers of 64 tokens at most through the official
client, each one request after the other. Take it on an idle machine.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
from measure import OURS, ROOT, commit, hardware, short
from rows import ARCHITECTURES, save_model
from serve import versions

ANSWER_TOKENS = 64
START_SECONDS = 300
PEERS = ("transformers", "batching")


def command(side: str, folder: Path, port: int) -> list[str]:
    """How a side is started."""
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if side == OURS:
        return [sys.executable, "-m", "potstill.cli", "serve", str(folder), "--engine", "transformers", *place]
    program = str(Path(sys.executable).with_name("transformers"))
    return [program, "serve", *place, *(["--continuous-batching"] if side == "batching" else [])]


@contextmanager
def serving(side: str, folder: Path, log: Path) -> Iterator[str]:
    """The address of a side, from when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as file:
        server = subprocess.Popen(
            command(side, folder, port), cwd=folder.parent, env=environment, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{side} did not start: {log.read_text()[-1000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        return httpx2.get(address, timeout=1).status_code == 200
    except httpx2.TransportError:
        return False


def measure(url: str, model: str, clients: int, requests: int) -> tuple[dict[str, float], list[str]]:
    """Answer tokens a second, the median and the worst wait for a first one; and the answers."""

    def ask(number: int) -> tuple[int, float, str]:
        began, first, count, text = time.perf_counter(), 0.0, 0, ""
        chat: Any = [{"role": "user", "content": f"{'word ' * (number % 17)}number {number}"}]
        stream = client.chat.completions.create(
            model=model,
            messages=chat,
            temperature=0,
            max_tokens=ANSWER_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        for event in stream:
            count = event.usage.completion_tokens if event.usage else count
            if event.choices and event.choices[0].delta.content:
                text += event.choices[0].delta.content
                first = first or time.perf_counter() - began
        return count, first or time.perf_counter() - began, text

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        ask(0)  # transformers serve loads a model when it is first asked for
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            told = list(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - began
    waits = sorted(wait for _, wait, _ in told)
    rates = {
        "tokens_per_second": sum(count for count, _, _ in told) / seconds,
        "first_token_seconds": statistics.median(waits),
        "worst_first_token_seconds": waits[-1],
    }
    return rates, [text for _, _, text in told]


def main() -> None:
    """One row of JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ARCHITECTURES, default="60m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="requests a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    chosen = parser.parse_args()
    quick = chosen.model == "tiny" or chosen.rounds < 2
    row = {
        "question": "serving",
        "unit": "tokens_per_second",
        **commit(),
        "hardware": hardware(),
        **versions("torch", "transformers"),
        "config": {**vars(chosen), "quick": quick, "answer_tokens": ANSWER_TOKENS},
        **compare(chosen),
    }
    if chosen.record:
        with (ROOT / "bench" / "results" / "serving.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


def compare(chosen: argparse.Namespace) -> dict[str, Any]:
    """By side and number of clients: what each round found. By peer: the share of its answers that are ours too."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    same: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name) / "model"
        save_model(folder, chosen.model)
        for number in range(chosen.rounds):
            expected: list[str] = []
            for side in (OURS, *chosen.peers):
                with serving(side, folder, Path(name) / f"{side}.log") as url:
                    for clients in chosen.clients:
                        measured, texts = measure(url, "model", clients, chosen.requests)
                        expected = expected or texts
                        same.setdefault(side, []).extend(map(str.__eq__, texts, expected))
                        for what, value in measured.items():
                            found.setdefault(side, {}).setdefault(str(clients), {}).setdefault(what, []).append(
                                short(value)
                            )
                        sys.stderr.write(f"round {number}, {side}, {clients} clients: {measured}\n")
    return {"found": found, "same_answers": {side: short(statistics.mean(equal)) for side, equal in same.items()}}


if __name__ == "__main__":
    main()
