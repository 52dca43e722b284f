"""How long `potstill view` takes to open, page and search an artifact of a million rows.

    python bench/view.py                  # makes the artifact in a scratch folder, about 1 kB a row; one JSON row out
    python bench/view.py --rows 100000 --keep /tmp/large

Each time is of one HTTP request to the real server in a process of its own: the first to a file whose lines nobody has
counted, then as somebody would go on. `opened_again`: by a new server, which finds the lines remembered. The file was
just written or read, so that it lies in the system's memory as far as that reaches.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from measure import ROOT, commit, hardware

from potstill.artifact import seal, write_json

RARE = "quetzalcoatlus"
START_SECONDS = 60
FULL_ROWS = 1_000_000


def make(folder: Path, rows: int) -> None:
    """A run with one sealed artifact; the rare word stands in one row, three quarters on."""
    draft = folder / "work" / "chats"
    draft.mkdir(parents=True)
    filler = "The quick brown fox jumps over the lazy dog and goes on to the next field. " * 10
    with (draft / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            said = f"{RARE} {i}" if i == rows * 3 // 4 else f"answer {i}"
            messages = [{"role": "user", "content": f"Question {i}? {filler}"}, {"role": "assistant", "content": said}]
            row = {"id": f"row-{i}", "messages": messages, "category": ("math", "writing", "coding")[i % 3]}
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
    key = "c" * 64
    head = {"stage": "chats", "kind": "converse", "version": 1, "produces": "chats", "key": key, "seed": 1,
            "config": {}, "inputs": {}, "facts": {"rows": rows, "dropped": {}}}  # fmt: skip
    name = f"chats-{key[:12]}"
    seal(draft, folder / "artifacts" / name, head)
    stages = {"chats": {"kind": "converse", "produces": "chats", "folder": name}}
    write_json(folder / "run.json", {"recipe": "large", "source": "large", "overrides": [], "stages": stages})


class Server:
    """`potstill view` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "potstill.cli", "view", str(folder), "--no-browser"]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"http://\S+/", self._process.stdout.readline())
        assert found, "the server said no address"
        self.address = found[0].rstrip("/")
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get("/static/style.css")
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def get(self, path: str) -> tuple[float, str]:
        """Seconds, and the page."""
        began = time.perf_counter()
        with urllib.request.urlopen(self.address + path) as answer:
            text = answer.read().decode()
        return time.perf_counter() - began, text

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Seconds of every page, each with what it must have shown."""
    times = {}
    shutil.rmtree(folder / "cache", ignore_errors=True)  # of an earlier measurement: lines that were counted

    def take(server: Server, name: str, path: str, shows: str) -> None:
        seconds, text = server.get(path)
        assert shows in text, f"{path} does not show {shows}"
        times[name] = round(seconds, 4)

    server = Server(folder)
    take(server, "opened", "/rows/chats", "Question 0?")
    take(server, "middle", f"/rows/chats?start={rows // 2}", f"Question {rows // 2}?")
    take(server, "one_row", f"/row/{rows - 1}/chats", f"answer {rows - 1}")
    take(server, "common_word", "/rows/chats?q=question", "Question 0?")
    take(server, "filter", "/rows/chats?category=coding", "Question 2?")
    seconds, path = 0.0, f"/rows/chats?q={RARE}"
    while True:  # a page answers after about a second with what it has; a person would press "search on"
        took, text = server.get(path)
        seconds += took
        times.setdefault("rare_word_first_page", round(took, 4))
        on = re.search(r'rel="next" href="([^"]+)"', text)
        if f"row-{rows * 3 // 4}<" in text:
            break
        assert on, "the rare word was not found"
        path = on[1].replace("&amp;", "&")
    times["rare_word"] = round(seconds, 4)
    server.close()
    server = Server(folder)
    take(server, "opened_again", "/rows/chats", "Question 0?")
    server.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL_ROWS)
    parser.add_argument("--keep", type=Path, help="make the run here and leave it there")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "large"
        if not (folder / "run.json").exists():
            make(folder, args.rows)
        size = next((folder / "artifacts").glob("chats-*")).joinpath("rows.jsonl").stat().st_size
        row = {
            "question": "view",
            **commit(),
            "hardware": hardware(),
            "versions": {"python": platform.python_version()},
            "config": {"quick": args.rows < FULL_ROWS, "rows": args.rows, "bytes": size},
            "seconds": measure(folder, args.rows),
        }
    if args.record:
        with (ROOT / "bench" / "results" / "view.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
