"""Every reply that was paid for, in one SQLite file per workspace: on disk before anybody sees it.

One thread writes. It takes whatever has gathered since its last commit as one transaction, so a commit is shared by
as many replies as came in meanwhile, and nobody waits for a timer.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import digest
from potstill.errors import StorageError

JOURNAL = "journal.sqlite"
BATCH = 1000
BUSY_SECONDS = 60
"""How long to wait for another program that holds it."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    revision TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    sample INTEGER NOT NULL,
    request TEXT NOT NULL,
    reply TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Entry:
    """One reply and what it answered. Holds no header, so no key."""

    model: str
    revision: str
    endpoint: str
    """As the recipe declares it, not where it answered this time."""
    sample: int
    request: str
    """The body as it was sent, in JSON."""
    reply: str
    """The body that came back, unparsed, so that a better parser can read it again."""


def entry_key(body: Mapping[str, Any], *, endpoint: str, revision: str, sample: int) -> str:
    """What names a reply: the rendered request (with the model's name), who was asked, and which sample it is."""
    return digest({"body": body, "endpoint": endpoint, "revision": revision, "sample": sample})


@dataclass(frozen=True)
class _Put:
    key: str
    entry: Entry
    kept: Callable[[], None]
    failed: Callable[[StorageError], None]


class Journal:
    """The store. `get` answers from committed replies; `put` calls back once the reply is durable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reader, connection = self._open(), self._open()
            with self._reader:
                self._reader.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self.unusable(error) from error
        self._puts: queue.SimpleQueue[_Put | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, args=(connection,), name="journal", daemon=True)
        self._writer.start()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut, not only a kill
        return connection

    def unusable(self, error: Exception) -> StorageError:
        """What to say of an error that came up with it, or of a reply in it that cannot be read."""
        what = f"the journal of replies cannot be used: {error}"
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # what is above refines it
        if code in _BUSY:
            remedy = "Another program holds it: end that and run again; replies that are in it stay"
        elif code in _DISK or isinstance(error, OSError):
            remedy = "Free some space or mend the folder's permissions and run again; replies that are in it stay"
        else:
            remedy = "Move it away and run again; the replies that are in it will be asked for anew"
        return StorageError(str(self.path), what, remedy)

    def get(self, key: str) -> str | None:
        """The raw reply kept under the key."""
        try:
            with self._lock:
                found = self._reader.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self.unusable(error) from error
        return None if found is None else str(found[0])

    def put(self, key: str, entry: Entry, kept: Callable[[], None], failed: Callable[[StorageError], None]) -> None:
        """Keep a reply. One of the two is called, from the writer's thread, when that is settled."""
        self._puts.put(_Put(key, entry, kept, failed))

    def __len__(self) -> int:
        with self._lock:
            return int(self._reader.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Write what waits, and let go of the file."""
        self._puts.put(None)
        self._writer.join()
        self._reader.close()

    def _write(self, connection: sqlite3.Connection) -> None:
        try:
            going = True
            while going:
                batch, going = self._gather()
                self._commit(connection, batch)
        finally:
            connection.close()

    def _gather(self) -> tuple[list[_Put], bool]:
        """Everything that waits, at least one; and whether more may come."""
        batch: list[_Put] = []
        item = self._puts.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH or self._puts.empty():
                return batch, True
            item = self._puts.get()
        return batch, False

    def _commit(self, connection: sqlite3.Connection, batch: list[_Put]) -> None:
        rows = [
            (p.key, p.entry.model, p.entry.revision, p.entry.endpoint, p.entry.sample, p.entry.request, p.entry.reply)
            for p in batch
        ]
        try:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            for put in batch:
                put.failed(self.unusable(error))
        else:
            for put in batch:
                put.kept()
