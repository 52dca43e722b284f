"""What a local model has worked out for a stage that is not sealed yet: on disk as it comes, so a kill costs little.

One line of JSON a result, under a hash of exactly what was computed: the prompt's token ids, how to draw, or the tokens
that were scored. The folder belongs to the stage's key, which names every model by its content, and goes when the
stage is sealed. Local answers cost time and no money, so nothing of them stays for ever, as replies in the journal do.
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.artifact import digest, find, storage_errors

SYNC_SECONDS = 1.0
"""A line survives the process at once, and a power cut after so long."""


class Spool:
    """The results of one model in one stage. Those of earlier runs are handed out, each once; new ones are added.

    Without a folder it holds nothing, and nothing is kept.
    """

    def __init__(self, folder: Path | None, name: str = "", identity: Any = None) -> None:
        """`identity` is what the results depend on besides what is asked: the model, the device, the precision."""
        self._descriptor, self._path = -1, Path()
        self._places: dict[str, deque[tuple[int, int]]] = {}
        self._synced = time.monotonic()
        if folder is None:
            return
        self._path = folder / f"{name}-{digest(identity)[:12]}.jsonl"
        with storage_errors(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._descriptor, self._read())

    def _read(self) -> int:
        """Where each result stands; returns where the last whole one ends: a kill may have torn the one behind it."""
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                key = _key_of(line)
                if key is None:
                    break
                self._places.setdefault(key, deque()).append((end, len(line)))
                end += len(line)
        return end

    def __len__(self) -> int:
        """How many results are left to hand out."""
        return sum(map(len, self._places.values()))

    def take(self, key: str) -> Any:
        """The earliest result under that key that was not handed out yet; None where there is none.

        Whoever asks the same thing twice gets what it got the first and the second time.
        """
        places = self._places.get(key)
        if not places:
            return None
        place, length = places.popleft()
        with storage_errors(self._path):
            return json.loads(os.pread(self._descriptor, length, place))["found"]

    def keep(self, results: Iterable[tuple[str, Any]]) -> None:
        """Add results, together or not at all as far as a kill goes."""
        if self._descriptor < 0:
            return
        lines = [json.dumps({"key": key, "found": found}, separators=(",", ":")) + "\n" for key, found in results]
        with storage_errors(self._path):
            _write(self._descriptor, "".join(lines).encode())
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _key_of(line: bytes) -> str | None:
    """The key of a whole line; None where it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
        return str(found["key"]) if "found" in found else None
    except (ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def weights_identity(path: str) -> Any:
    """What tells the weights in a folder from others: the key they were sealed under, else its files by size and time.

    A name on the Hub is itself. For a spool, which is never read under another stage's key.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    artifact = find(folder)
    if artifact is not None:
        return artifact.key
    stats: Sequence[tuple[str, os.stat_result]] = [(f.name, f.stat()) for f in sorted(folder.iterdir()) if f.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
