"""The benchmarks of curation: planted copies are as alike as they say, and each prints a row that the page takes."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def bench() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "bench"))
    yield
    sys.path.remove(str(ROOT / "bench"))


def load(name: str) -> Any:
    """A module of bench/."""
    return importlib.import_module(name)


def printed(*arguments: str) -> dict[str, Any]:
    """The row at the end of what a benchmark prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def test_every_tenth_document_is_a_copy_of_one_that_is_none() -> None:
    made = list(load("documents").documents(0, 400))
    copies = [document for document in made if document.of >= 0]
    assert [document.number for document in copies] == list(range(9, 400, 10))
    assert all(made[document.of].of < 0 for document in copies)
    values = [load("documents").similarity(document.text, made[document.of].text) for document in copies]
    assert min(values) < 0.6 < 0.9 < max(values)
    assert made == list(load("documents").documents(0, 400))
    assert load("documents").similarity("a b c d", "a b c e") == pytest.approx(1 / 3)


def test_what_was_found_is_counted_against_what_is_alike() -> None:
    found = load("curation").found
    assert found(["1", "2", "3", "4"], {"1", "2", "5"}) == {"dropped": 4, "recall": 0.6667, "precision": 0.5}


def test_rows_say_everything_and_the_page_takes_them() -> None:
    rows = [
        printed("bench/curation.py", "--documents", "400", "--peers"),
        printed("bench/scale.py", "--conversations", "100", "300"),
        printed("bench/novelty.py", "--instructions", "600", "--compare", "300"),
    ]
    for row in rows:
        assert {"question", "unit", "commit", "hardware", "config", "ours"} <= row.keys()
    assert rows[0]["found"]["ours"] | {"dropped": 0} == {"dropped": 0, "recall": 1.0, "precision": 1.0}
    assert rows[1]["curve"][1]["facts"]["dropped"].keys() <= {"duplicate", "near_duplicate"}
    assert rows[2]["brute_force"]["different"] == 0
    page = load("table").render(rows)
    for told in ("| `ours` |", "| 300 |", "| 600 |", "Nothing is recorded"):
        assert (told in page) == (told != "Nothing is recorded")


def test_missing_peers_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "bench/curation.py", "--documents", "100"]
    environment = {**os.environ, "BENCH_DATATROVE_PYTHON": str(tmp_path / "python")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("Run `make peers-data`, or pass --peers alone")
