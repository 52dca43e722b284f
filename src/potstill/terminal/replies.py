"""What `potstill journal` prints, writes and takes away: the replies of a run that were paid for."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.artifact import storage_errors
from potstill.errors import DataError
from potstill.runs.workspace import Workspace
from potstill.sources import Price
from potstill.teachers.journal import JOURNAL, Entry, Journal, Selection, Total
from potstill.teachers.wire import read_reply

SHOWN = 60
"""Characters of a reply in a list."""
KEY_SHOWN = 12


@contextlib.contextmanager
def _opened(workspace: Workspace, *, read_only: bool = True) -> Iterator[Journal]:
    path = workspace.path / JOURNAL
    if not path.exists():
        raise DataError(str(workspace.path), "there is no journal here: no model was asked", "Name another run")
    with contextlib.closing(Journal(path, read_only=read_only)) as journal:
        yield journal


@dataclass(frozen=True)
class _Sum:
    """Totals of replies, and what they come to at a price of the user's."""

    totals: list[Total]
    price: Price | None

    def usd(self, total: Total) -> float:
        return self.price.usd(total.prompt_tokens, total.completion_tokens) if self.price else total.usd


def totals_view(console: Console, workspace: Workspace, selection: Selection, price: Price | None) -> None:
    """Replies, tokens and money by stage and model; at another price where one is given."""
    with _opened(workspace) as journal:
        found = _Sum(journal.totals(selection), price)
    revised = len({(t.model, t.revision) for t in found.totals}) > len({t.model for t in found.totals})
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("stage", "model", *(["revision"] if revised else [])):
        table.add_column(name, overflow="fold")
    for name in ("replies", "prompt\ntokens", "answer\ntokens", "USD", "seconds\neach"):
        table.add_column(name, justify="right", no_wrap=True)
    for t in found.totals:
        figures = (f"{t.calls:,}", f"{t.prompt_tokens:,}", f"{t.completion_tokens:,}", f"{found.usd(t):,.4f}")
        names = (t.stage, t.model, *([t.revision] if revised else []))
        table.add_row(*map(Text, names), *figures, f"{t.seconds:.2f}")
    console.print(table)
    console.print()
    calls, gone = sum(t.calls for t in found.totals), sum(t.pruned for t in found.totals)
    usd = sum(found.usd(t) for t in found.totals)
    at = "at this price" if price else "at the prices of the time"
    since = f", {gone:,} of them pruned since" if gone else ""
    console.print(f"{calls:,} replies in {workspace.path / JOURNAL}{since}; ${usd:,.4f} {at}.", soft_wrap=True)


def list_view(console: Console, workspace: Workspace, selection: Selection, rows: int) -> None:
    """One line a reply, oldest first."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("key", "came", "stage", "model", "ended", "tokens"):
        table.add_column(name, no_wrap=True, justify="right" if name == "tokens" else "left")
    table.add_column("reply", no_wrap=True, overflow="ellipsis", ratio=1, min_width=20)
    table.expand = True
    with _opened(workspace) as journal:
        count, shown = journal.count(selection), 0
        for entry in journal.entries(selection):
            if shown == rows:
                break
            shown += 1
            tokens = f"{entry.prompt_tokens}+{entry.completion_tokens}"
            words = " ".join(_words(entry).split())[:SHOWN]
            columns = (
                entry.key[:KEY_SHOWN],
                entry.at[5:16].replace("T", " "),
                entry.stage,
                entry.model,
                entry.finish,
                tokens,
                words,
            )
            table.add_row(*map(Text, columns))
    console.print(table)
    more = f"; {count - shown:,} more (--rows)" if count > shown else ""
    console.print(f"{shown:,} of {count:,} replies{more}.", soft_wrap=True)


def _words(entry: Entry) -> str:
    try:
        return read_reply(entry.reply).text
    except ValueError as error:
        return f"({error})"


def show_view(console: Console, workspace: Workspace, selection: Selection) -> None:
    """What was asked and what came, whole. DataError where the key is nobody's."""
    with _opened(workspace) as journal:
        found = list(journal.entries(selection))
    if not found:
        raise DataError(selection.key, "no reply has a key that begins so", "See them with: potstill journal RUN list")
    for entry in found:
        console.print(json.dumps(_opened_up(entry), indent=1, ensure_ascii=False), markup=False, soft_wrap=True)


def export(workspace: Workspace, selection: Selection, target: Path | None) -> int:
    """Write the replies that are meant as JSON lines, to a file or to standard output; returns how many."""
    if target is not None and target.exists():
        raise DataError(str(target), "this file is there already", "Name a new one with --to")
    if target is not None and not target.parent.is_dir():
        what = f"the folder {target.parent} is {'no folder' if target.parent.exists() else 'not there'}"
        raise DataError(str(target), what, "Make it first, or name another with --to")
    with _opened(workspace) as journal:
        lines = (json.dumps(_opened_up(entry)) + "\n" for entry in journal.entries(selection))
        if target is None:
            return sum(sys.stdout.write(line) > 0 for line in lines)
        aside = target.with_name(f".{target.name}.{os.getpid()}")  # whole, or not there
        with storage_errors(target):
            try:
                with aside.open("w", encoding="utf-8") as file:
                    count = sum(file.write(line) > 0 for line in lines)
                aside.rename(target)
            finally:
                aside.unlink(missing_ok=True)
    return count


def _opened_up(entry: Entry) -> dict[str, object]:
    """The entry with its bodies as values, not as text."""
    return asdict(entry) | {"request": _value(entry.request), "reply": _value(entry.reply)}


def _value(text: str) -> Any:
    """The value in a JSON text; the text itself where it is spoilt."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def prune(workspace: Workspace, selection: Selection) -> int:
    """Forget the replies that are meant; returns how many. BusyError while a run works in the folder.

    DataError where no reply is of the stage or model that is named.
    """
    with workspace.hold(), _opened(workspace, read_only=False) as journal:
        totals = journal.totals()
        for what, named, known in (
            ("stage", selection.stage, {t.stage for t in totals}),
            ("model", selection.model, {t.model for t in totals}),
        ):
            if named and named not in known:
                names = ", ".join(sorted(known))
                raise DataError(f"command line, --{what}", f"no reply is of '{named}'", f"Name one of: {names}")
        return journal.prune(selection)
