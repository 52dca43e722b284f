"""Folders that are made beside their place and moved there whole; what stands there already is not touched unasked."""

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifact import storage_errors, sync
from potstill.errors import StorageError
from potstill.runs.workspace import is_alive

NOTE = "potstill.json"
"""In every folder that `export` made: what it is, and of which model."""


@contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` to write into; at the end it is `target`, unless something went wrong.

    StorageError where something stands there: `overwrite` replaces an export, never anything else.
    """
    _clear_dead(target)
    _refuse(target, overwrite)
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        with storage_errors(target):
            yield draft
            for file in sorted(draft.rglob("*")):
                sync(file)
            sync(draft)
            if target.exists():
                target.rename(old)
            draft.rename(target)
            sync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear_dead(target: Path) -> None:
    """What a process left that was killed: drafts go, and an export that it had moved aside comes back."""
    for left in sorted(target.parent.glob(f".{glob.escape(target.name)}.*.*")):
        pid, _, kind = left.name.removeprefix(f".{target.name}.").partition(".")
        if kind not in ("draft", "old") or not pid.isdecimal() or is_alive(int(pid)):
            continue
        if kind == "old" and not target.exists():
            left.rename(target)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _refuse(target: Path, overwrite: bool) -> None:
    if target.name in ("", "..") or target.is_symlink():
        raise StorageError(str(target), "an export makes a folder of its own", "Name one that is not there yet")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise StorageError(str(target), "something stands there already", "Name another with --to, or add --overwrite")
    if not (target / NOTE).is_file():
        raise StorageError(
            str(target), "no export of potstill made this", "Name another with --to, or remove it yourself"
        )


def write_text(path: Path, text: str) -> None:
    """In UTF-8, with a line break at the end."""
    with storage_errors(path):
        path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def write_note(folder: Path, note: Mapping[str, Any]) -> None:
    """What the folder is."""
    write_text(folder / NOTE, json.dumps(note, indent=1, ensure_ascii=False, sort_keys=True))
