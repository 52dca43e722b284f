"""The journal of replies: nothing that was received is asked for again, whenever the process is killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub

from potstill.errors import StorageError, TeacherError
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Request
from potstill.teachers.client import Endpoint
from potstill.teachers.journal import JOURNAL, Entry, Journal

ENTRY = Entry(
    "k", "m", "", "declared", "s", 0, 0, "{}", '{"a": 1}', "stop", 5, 3, 0.5, 0.1, "2026-01-01T00:00:00+00:00"
)

CHILD = """
import sys
from pathlib import Path
from potstill.records import Message
from potstill.sources import Account, EndpointModel, Model
from potstill.teachers.base import Request
from potstill.teachers.client import Endpoint
url, workspace = sys.argv[1:]
model = Model("t", EndpointModel(endpoint="declared", name="m", concurrency=8), url)
with Endpoint(model, Account(Path(workspace))) as teacher:
    requests = (Request((Message(role="user", content=f"q{i}"),), 8) for i in range(300))
    for i, reply in enumerate(teacher.complete(requests)):
        print(i, reply.text, flush=True)
"""


def put(journal: Journal, key: str, **fields: Any) -> None:
    journal.keep([replace(ENTRY, key=key, **fields)])


def test_a_reply_is_on_disk_when_it_is_told_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    assert journal.get("k") is None
    put(journal, "k")
    with sqlite3.connect(tmp_path / JOURNAL) as other:  # another process would see it too
        assert other.execute("SELECT reply FROM replies").fetchall() == [('{"a": 1}',)]
    other.close()
    assert journal.get("k") == '{"a": 1}'
    journal.close()


def test_the_first_reply_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    put(journal, "k")
    put(journal, "k", reply='{"a": 2}')
    assert (journal.get("k"), len(journal)) == ('{"a": 1}', 1)
    journal.close()


def test_two_journals_of_one_workspace_live_together(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / JOURNAL), Journal(tmp_path / JOURNAL)
    for i in range(50):
        put(one, f"a{i}")
        put(other, f"b{i}")
    assert len(one) == len(other) == 100
    one.close()
    other.close()


def test_many_who_open_a_new_one_at_once_find_it_whole(tmp_path: Path) -> None:
    for folder in range(20):
        together = threading.Barrier(6)

        def opened(path: Path = tmp_path / str(folder) / JOURNAL, together: threading.Barrier = together) -> str | None:
            together.wait()
            journal = Journal(path)
            journal.keep([ENTRY])
            reply = journal.get("k")
            journal.close()
            return reply

        with ThreadPoolExecutor(6) as pool:
            assert [each.result() for each in [pool.submit(opened) for _ in range(6)]] == [ENTRY.reply] * 6


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / JOURNAL) as other:
        other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StorageError) as caught:
        Journal(tmp_path / JOURNAL)
    assert str(caught.value) == (
        f"{tmp_path / JOURNAL}: this journal was written by another version of potstill. Move it away and run again."
    )


def test_a_folder_that_cannot_hold_it_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="the journal of replies cannot be used"):
        Journal(tmp_path / "file" / JOURNAL)


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    put(journal, "k")
    with sqlite3.connect(tmp_path / JOURNAL) as other:
        other.execute("DROP TABLE replies")
    other.close()
    with pytest.raises(StorageError, match="no such table"):
        put(journal, "l")
    journal.close()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda raw: b"nonsense " * 500,
    "truncated": lambda raw: raw[: len(raw) // 2],
    "overwritten": lambda raw: raw[:4096] + b"\xff" * (len(raw) - 4096),
    "a reply that is none": lambda raw: raw.replace(b'{"id": "c"', b"nonsense!!"),
    "a reply that is no text": lambda raw: raw.replace(b'{"id": "c"', b"\xff" * 10),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_journal_is_to_be_moved_away(tmp_path: Path, case: str) -> None:
    path = tmp_path / JOURNAL

    def go() -> list[str]:
        model = Model("t", EndpointModel(endpoint="declared", name="m"), stub.base_url)
        with Endpoint(model, Account(tmp_path)) as teacher:
            asked = [Request((Message(role="user", content=f"q{i}"),), 8) for i in range(50)]
            return [reply.text for reply in teacher.complete(asked)]

    with Stub() as stub:
        replies = go()
        path.write_bytes(DAMAGE[case](path.read_bytes()))
        with pytest.raises(
            StorageError, match="Move it away and run again; the replies that are in it will be"
        ) as caught:
            go()
        assert caught.value.where == str(path)
        path.rename(tmp_path / "away")
        assert go() == replies


def test_a_journal_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.teachers.journal.BUSY_SECONDS", 0.1)
    journal = Journal(tmp_path / JOURNAL)
    other = sqlite3.connect(tmp_path / JOURNAL)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"database is locked\. Another program holds it: end that and run again"):
        put(journal, "k")
    other.close()
    put(journal, "k")
    assert len(journal) == 1
    journal.close()


def test_a_new_address_takes_the_place_of_one_that_gave_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    journal.declare("m", "", ["http://wrong/v1"])
    journal.declare("m", "", ["http://right/v1"])
    put(journal, "k")
    with pytest.raises(TeacherError, match=r"holds 1 replies of this model from http://right/v1, and .* now asks"):
        journal.declare("m", "", ["http://wrong/v1"])
    journal.close()


def test_an_open_batch_job_is_at_stake_as_replies_are(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    journal.declare("m", "", ["http://one/v1"])
    journal.note_batch("job", "m", "", ["asked"])
    with pytest.raises(TeacherError, match="holds 1 open batch jobs of this model from http://one/v1"):
        journal.declare("m", "", ["http://other/v1"])
    journal.forget_batch("job")
    journal.declare("m", "", ["http://other/v1"])
    journal.close()


@pytest.mark.parametrize("after", [5, 150, 280])
def test_kill_9_costs_at_most_what_was_in_flight(tmp_path: Path, after: int) -> None:
    command = [sys.executable, "-c", CHILD]
    with Stub() as stub:
        child = subprocess.Popen([*command, stub.base_url, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        received = [child.stdout.readline() for _ in range(after)]
        os.kill(child.pid, signal.SIGKILL)
        received += child.stdout.readlines()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        paid = stub.answered.total()
        again = subprocess.run([*command, stub.base_url, str(tmp_path)], capture_output=True, text=True, check=True)
        asked_again = {json.loads(k)["messages"][0]["content"] for k, n in stub.answered.items() if n > 1}
    assert again.stdout == "".join(f"{i} echo q{i}\n" for i in range(300))
    assert paid < 300 or after == 280
    seen = {f"q{line.split()[0]}" for line in received if line.endswith("\n")}
    assert not asked_again & seen, "a reply that had been seen was paid for twice"
    assert len(asked_again) <= 8, "more was paid for twice than could be in flight"
