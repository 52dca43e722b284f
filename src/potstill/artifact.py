"""Sealed directories: written aside, hashed, then moved into place whole. No manifest: not finished.

What lies in a sealed artifact depends only on its key, so two runs seal the same bytes; times and costs live elsewhere.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import DataError, PotstillError, StorageError, reading
from potstill.records import Record

MANIFEST = "manifest.json"
ROWS_FILE = "rows.jsonl"
DROPPED_FILE = "dropped.jsonl"

R = TypeVar("R", bound=Record)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


READABLE = 0o666
"""A file's permissions, but for what the user's umask takes away."""

_REFUSALS = (
    ((errno.ENOSPC, errno.EDQUOT), "the disk is full", "Free some space and run again; what is sealed stays"),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "this folder cannot be written",
        "Choose another with --out or mend its permissions",
    ),
    ((errno.ENOENT,), "the folder that it belongs into is not there", "Make it first, or choose another"),
    ((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder was expected", "Move it or choose another --out"),
    ((errno.EISDIR,), "a folder stands where a file was expected", "Move it or choose another --out"),
    (
        (errno.EFBIG,),
        "a file may not grow so large here",
        "Raise the limit (ulimit -f) and run again; what is sealed stays",
    ),
    ((errno.ENAMETOOLONG,), "this name is too long", "Choose a shorter one with --out"),
)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a disk or a folder into one clear line."""
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        number = _system_errno(error)
        where = getattr(error, "filename2", None) or getattr(error, "filename", None) or path
        for numbers, what, remedy in _REFUSALS:
            if number in numbers:
                raise StorageError(str(where), what, remedy) from error
        raise


def _system_errno(error: Exception) -> int | None:
    """The operating system's number for what went wrong. Libraries written in Rust raise classes of their own."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def read_rows(path: Path, row_type: type[R]) -> Iterator[R]:
    """The rows of a file that potstill wrote. For files of other origin see `formats`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield row_type.model_validate_json(line)
            except ValidationError as error:
                raise DataError(
                    f"{path}:{number}",
                    f"not a {row_type.__name__}: {error.errors()[0]['msg']}",
                    "The file was changed after it was sealed; remove its folder and run again",
                ) from error


def write_rows(path: Path, rows: Iterable[Record]) -> int:
    """Write rows as JSON lines; returns how many."""
    count = 0
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.to_line())
            count += 1
    return count


class RowWriter:
    """A file of rows as JSON lines, written one by one while a `with` block lasts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0

    def __enter__(self) -> "RowWriter":
        with storage_errors(self._path):
            self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # what ended the block is what there is to say
            with suppress(OSError):
                self._file.close()
            return
        with storage_errors(self._path):
            self._file.close()

    def write(self, row: Record) -> None:
        """Add a row."""
        with storage_errors(self._path):
            self._file.write(row.to_line())
        self.count += 1


def add_line(path: Path, line: str) -> None:
    """Add a line to a file, durable before this returns, whoever else adds to it; a torn last one is ended first."""
    with storage_errors(path), path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end, last = file.seek(0, os.SEEK_END), b"\n"
        if end:
            file.seek(end - 1)
            last = file.read(1)
        file.write((b"" if last == b"\n" else b"\n") + line.encode())
        file.flush()
        os.fsync(file.fileno())
    if not end:
        sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def read_json(path: Path) -> Any:
    """The value in a JSON file that potstill wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:  # an error of its own kind, where other damage is a ValueError
        raise ValueError(f"{path}: it is nested too deep") from error


class _Source(BaseModel):
    name: str
    key: str


class _Stamp(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """What a manifest has to hold, so that whoever reads it finds what they look for."""

    stage: str
    kind: str
    version: int
    produces: str
    key: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, list[_Source]]
    facts: dict[str, Any]
    files: dict[str, _Stamp]


@dataclass(frozen=True)
class Artifact:
    """A sealed directory: `path` and the manifest that was written last."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def produces(self) -> str:
        """What lies inside: texts, prompts, chats, answers, ratings, pairs, model, scores, trial or report."""
        return str(self.manifest["produces"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage counted and decided while it made this."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    def damaged(self) -> str | None:
        """The first file whose bytes are not those that were sealed, or None."""
        for name, stamp in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != stamp["bytes"] or hash_file(file) != stamp["sha256"]:
                return str(file)
        return None


@reading()
def find(path: Path) -> Artifact | None:
    """The artifact sealed at `path`, or None where there is none. Sizes are checked; `damaged` checks the bytes."""
    manifest_file = path / MANIFEST
    if not manifest_file.is_file():
        return None
    manifest, stamps = _read_manifest(manifest_file)
    for name, stamp in stamps.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != stamp.bytes:
            raise StorageError(
                str(file),
                "this sealed file is missing or has another size than when it was sealed",
                f"Remove the folder {path} and run again",
            )
    return Artifact(path, manifest)


def _read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, _Stamp]]:
    """The manifest, and of each sealed file what it was."""
    try:
        manifest = read_json(path)
        return manifest, _Manifest.model_validate(manifest).files
    except (ValueError, RecursionError) as error:
        what = "this is not a manifest as potstill writes them"
        raise StorageError(str(path), what, f"Remove the folder {path.parent} and run again") from error


@reading()
def check_bytes(folder: Path, names: Iterable[str]) -> None:
    """StorageError where one of these files, as far as they are there, is not as the folder's manifest says."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    _, stamps = _read_manifest(manifest)
    for name in names:
        file = folder / name
        if name in stamps and file.is_file() and hash_file(file) != stamps[name].sha256:
            what = "its bytes are not those that were sealed"
            raise StorageError(str(file), what, f"Remove the folder {folder} and run again")


def seal(draft: Path, target: Path, head: Mapping[str, Any]) -> Artifact:
    """Finish what lies in `draft`: make it durable, write the manifest last, move the folder to `target` whole.

    `head` is the manifest without its files: stage, kind, produces, key, config, inputs, facts.
    """
    with storage_errors(target):
        files = {}
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            file.chmod(READABLE & ~_umask())  # safetensors lets nobody else read what it writes
            sync(file)
            files[file.relative_to(draft).as_posix()] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
        manifest = {**head, "files": files}
        write_json(draft / MANIFEST, manifest)
        sync(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # an unsealed leftover: `find` saw no manifest there
            shutil.rmtree(target)
        draft.rename(target)
        sync(target.parent)
    return Artifact(target, manifest)


def _umask() -> int:
    """What this process takes from the permissions of files that it makes; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Make a file, or a folder's list of files, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
