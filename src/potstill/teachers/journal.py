"""Every reply that was paid for, in one SQLite file per workspace: on disk before anybody sees it.

A reply's key is a hash of what was asked: the rendered request with the model's name, the model's revision, and which
sample and attempt it is. No code, limit, price or address is in it. The reply is kept as it came, so that a better
parser can read it again.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import digest
from potstill.errors import StorageError, TeacherError

JOURNAL = "journal.sqlite"
BUSY_SECONDS = 60
"""How long to wait for another program that holds it."""
FORM = 2
"""Of the tables below; a file of another form is refused."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    revision TEXT NOT NULL,
    replica TEXT NOT NULL,
    stage TEXT NOT NULL,
    sample INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    request TEXT NOT NULL,
    reply TEXT NOT NULL,
    finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    usd REAL NOT NULL,
    seconds REAL NOT NULL,
    at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS endpoints (
    model TEXT NOT NULL, revision TEXT NOT NULL, endpoint TEXT NOT NULL, PRIMARY KEY (model, revision, endpoint)
);
CREATE TABLE IF NOT EXISTS pruned (
    stage TEXT NOT NULL, model TEXT NOT NULL, revision TEXT NOT NULL, calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, revision TEXT NOT NULL, jobs TEXT NOT NULL
);
PRAGMA user_version = {FORM};
COMMIT;
"""
"""Made whole or not at all, and twice is once: neither a kill nor another who opens it at that moment leaves half."""


@dataclass(frozen=True)
class Entry:
    """One reply and what it answered. Holds no header, so no key of an API."""

    key: str
    model: str
    """The name that the server knows."""
    revision: str
    replica: str
    """The base URL that answered."""
    stage: str
    """Who asked first."""
    sample: int
    attempt: int
    request: str
    """The body as it was sent, in JSON."""
    reply: str
    """The body that came back, unparsed."""
    finish: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    """What it cost at the price of the time."""
    seconds: float
    """How long it took to come."""
    at: str
    """When it came, UTC."""


@dataclass(frozen=True)
class Total:
    """What a group of replies comes to."""

    stage: str
    model: str
    revision: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    """The mean time that a reply took."""
    pruned: int = 0
    """How many of the calls' replies were forgotten since."""


@dataclass(frozen=True)
class Selection:
    """Which replies are meant; an empty field means all."""

    model: str = ""
    stage: str = ""
    finish: str = ""
    before: str = ""
    """Those that came before this time (UTC, ISO 8601)."""
    key: str = ""
    """The beginning of a key."""

    def where(self) -> tuple[str, list[str]]:
        """The condition in SQL and its values."""
        named = [("model = ?", self.model), ("stage = ?", self.stage), ("finish = ?", self.finish)]
        named += [("at < ?", self.before), ("substr(key, 1, length(?)) = ?", self.key)]
        said = [(text, value) for text, value in named if value]
        values = [value for text, value in said for _ in range(text.count("?"))]
        return " AND ".join(text for text, _ in said) or "1", values


def entry_key(body: Mapping[str, Any], *, revision: str, sample: int, attempt: int = 0) -> str:
    """What names a reply: the rendered request (with the model's name), and which answer to it this is."""
    return digest({"body": body, "revision": revision, "sample": sample, "attempt": attempt})


_COLUMNS = ", ".join(Entry.__dataclass_fields__)
_BLANKS = ", ".join("?" for _ in Entry.__dataclass_fields__)


class Journal:
    """The store. `get` answers from committed replies; `keep` returns once they are durable. Threads may share it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._reading, self._writing = threading.Lock(), threading.Lock()
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._reader = self._open(read_only)
            self._writer = self._reader if read_only else self._open(read_only)
            self._prepare(read_only)
            self._inode = path.stat().st_ino
        except StorageError:
            raise
        except (OSError, sqlite3.Error) as error:
            raise self.unusable(error) from error

    def _open(self, read_only: bool) -> sqlite3.Connection:
        if read_only:
            return sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
            )
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        until = time.monotonic() + BUSY_SECONDS
        while True:  # SQLite's own patience does not cover two who make one file a WAL at once
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)
        connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut, not only a kill
        return connection

    def _prepare(self, read_only: bool) -> None:
        state = "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"  # of one moment
        form, tables = self._reader.execute(state).fetchone()
        if form == FORM:
            return
        if tables or read_only:
            raise StorageError(
                str(self.path), "this journal was written by another version of potstill", "Move it away and run again"
            )
        self._writer.executescript(_SCHEMA)

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
        found = self._select("SELECT reply FROM replies WHERE key = ?", [key])
        return str(found[0][0]) if found else None

    def keep(self, entries: Sequence[Entry]) -> set[str]:
        """Keep replies, in one transaction; returns the keys under which another was kept before.

        The first stays; what the second cost is counted with what was pruned. StorageError where it cannot be written.
        """
        there: set[str] = set()
        try:
            self._check_file()
            with self._writing, self._writer:
                for entry in entries:
                    row = [getattr(entry, name) for name in Entry.__dataclass_fields__]
                    done = self._writer.execute(f"INSERT OR IGNORE INTO replies ({_COLUMNS}) VALUES ({_BLANKS})", row)
                    if done.rowcount == 0:
                        there.add(entry.key)
                        cost = (1, entry.prompt_tokens, entry.completion_tokens, entry.usd)
                        names = (entry.stage, entry.model, entry.revision)
                        self._writer.execute("INSERT INTO pruned VALUES (?, ?, ?, ?, ?, ?, ?)", (*names, *cost))
        except sqlite3.Error as error:
            raise self.unusable(error) from error
        return there

    def note_useless(self, stage: str, model: str, revision: str, used: tuple[int, int], usd: float) -> None:
        """Count a reply that came and cost something, but cannot be read: with those that were pruned."""
        self._write("INSERT INTO pruned VALUES (?, ?, ?, 1, ?, ?, ?)", [(stage, model, revision, *used, usd)])

    def _check_file(self) -> None:
        """StorageError where the file was taken away while it was written to: what is kept would be lost."""
        try:
            same = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise StorageError(
                str(self.path), "the journal was removed or replaced while it was in use", "Put it back and run again"
            )

    def declare(self, model: str, revision: str, endpoints: Sequence[str]) -> None:
        """Note where a model answers. TeacherError where replies of it are kept, or awaited from a batch job, that come
        from elsewhere, and none of that is named. Where nothing is, the new address takes the place of the old."""
        whose = "WHERE model = ? AND revision = ?"
        rows = self._select(f"SELECT endpoint FROM endpoints {whose}", [model, revision])
        known = [str(row[0]) for row in rows]
        if known and not set(known) & set(endpoints):
            count = int(self._select(f"SELECT count(*) FROM replies {whose}", [model, revision])[0][0])
            jobs = len(self.open_batches(model, revision))
            if count or jobs:
                held = [f"{count} replies"] * (count > 0) + [f"{jobs} open batch jobs"] * (jobs > 0)
                raise TeacherError(
                    model,
                    f"the journal holds {' and '.join(held)} of this model from {', '.join(known)}, and the recipe now "
                    f"asks {', '.join(endpoints)}",
                    f"If it is the same model there, name both: endpoint: [{known[0]}, {endpoints[0]}]; if it is "
                    "another, give it a revision of its own",
                )
            self._write(f"DELETE FROM endpoints {whose}", [(model, revision)])
            known = []
        new = [(model, revision, endpoint) for endpoint in endpoints if endpoint not in known]
        if new:
            self._write("INSERT OR IGNORE INTO endpoints VALUES (?, ?, ?)", new)

    def open_batches(self, model: str, revision: str) -> list[tuple[str, list[Any]]]:
        """(id, what was asked) of the batch jobs that were sent and not yet fetched."""
        rows = self._select("SELECT id, jobs FROM batches WHERE model = ? AND revision = ?", [model, revision])
        return [(str(name), json.loads(jobs)) for name, jobs in rows]

    def note_batch(self, name: str, model: str, revision: str, jobs: Sequence[Any]) -> None:
        """A batch job is sent: its replies are to be fetched, whoever comes."""
        text = json.dumps(jobs, ensure_ascii=False)
        self._write("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", [(name, model, revision, text)])

    def forget_batch(self, name: str) -> None:
        """Its replies are kept."""
        self._write("DELETE FROM batches WHERE id = ?", [(name,)])

    def totals(self, selection: "Selection | None" = None) -> list[Total]:
        """By stage, model and revision, pruned replies included: of those, only stage and model are known."""
        selection = selection or Selection()
        where, values = selection.where()
        of_pruned, more = Selection(selection.model, selection.stage).where()
        if selection.finish or selection.before or selection.key:
            of_pruned, more = "0", []
        rows = self._select(
            "SELECT stage, model, revision, sum(calls), sum(p), sum(c), sum(usd), sum(s) / max(1, sum(calls - gone)),"
            " sum(gone) FROM ("
            " SELECT stage, model, revision, count(*) calls, sum(prompt_tokens) p, sum(completion_tokens) c,"
            f"  sum(usd) usd, sum(seconds) s, 0 gone FROM replies WHERE {where} GROUP BY stage, model, revision"
            " UNION ALL SELECT stage, model, revision, calls, prompt_tokens, completion_tokens, usd, 0, calls"
            f"  FROM pruned WHERE {of_pruned}"
            ") GROUP BY stage, model, revision ORDER BY stage, model, revision",
            [*values, *more],
        )
        return [Total(*row) for row in rows]

    def spent_usd(self) -> float:
        """What all its replies have cost, pruned ones included."""
        return sum(total.usd for total in self.totals())

    def entries(self, selection: Selection) -> Iterator[Entry]:
        """The replies that are meant, oldest first."""
        where, values = selection.where()
        try:
            with self._reading:
                cursor = self._reader.execute(f"SELECT {_COLUMNS} FROM replies WHERE {where} ORDER BY rowid", values)
            for row in cursor:
                yield Entry(*row)
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    def count(self, selection: Selection) -> int:
        """How many are meant."""
        where, values = selection.where()
        return int(self._select(f"SELECT count(*) FROM replies WHERE {where}", values)[0][0])

    def prune(self, selection: Selection) -> int:
        """Forget the replies that are meant; what they cost stays known. Returns how many went."""
        where, values = selection.where()
        try:
            with self._writing, self._writer:
                self._writer.execute(
                    "INSERT INTO pruned SELECT stage, model, revision, count(*), sum(prompt_tokens), "
                    f"sum(completion_tokens), sum(usd) FROM replies WHERE {where} GROUP BY stage, model, revision",
                    values,
                )
                return self._writer.execute(f"DELETE FROM replies WHERE {where}", values).rowcount
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
        self._writer.close()

    def __len__(self) -> int:
        return int(self._select("SELECT count(*) FROM replies", [])[0][0])

    def _select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        try:
            with self._reading:
                return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    def _write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        try:
            with self._writing, self._writer:
                self._writer.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self.unusable(error) from error
