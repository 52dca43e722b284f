"""What `show` prints of a captured signal: its header, its size, and what the teacher says at some tokens."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from potstill.reading.files import escaped
from potstill.signals.files import Key, Reader
from potstill.signals.rows import Hidden
from potstill.signals.sparse import SparseArrays, to_sparse
from potstill.stages.kept import EXAMPLES_FILE, SIGNALS_FOLDER, TOKENIZER_FOLDER
from potstill.terminal.console import clean, number

POSITIONS = 8
"""Of a row that are shown."""
ENTRIES = 5
"""Of a position."""
SAID = {
    (True, False): "the teacher's likeliest",
    (False, True): "drawn from the teacher",
    (True, True): "the teacher's likeliest, and drawn from the others",
}
"""What entries are, where there are listed and drawn ones."""


def show_signals(console: Console, folder: Path, rows: int) -> None:
    """The artifact's signal. StorageError or DataError where it cannot be read."""
    reader = Reader(folder / SIGNALS_FOLDER)
    console.print(_header(reader))
    console.print()
    shown, words = 0, _Words(folder)
    for key, targets in islice(_examples(folder), min(rows, sys.maxsize)):
        console.print(Rule(Text(clean(key[0])), align="left", style="dim"))
        console.print(_row(reader, key, targets, words))
        if (more := len(targets) - POSITIONS) > 0:
            console.print(Text(f"… {more:,} more token{'s' * (more > 1)}", "dim"))
        console.print()
        shown += 1
    if shown < len(reader):
        console.print(Text(f"{shown:,} of {len(reader):,} rows", "dim"))


def _header(reader: Reader) -> RenderableType:
    header, table = reader.header, Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("vocabulary", f"{header.vocabulary:,} tokens")
    table.add_row("kept", "\n".join(_kept(reader)))
    table.add_row("temperature", number(header.temperature))
    asked = "endpoint" if "@" in header.teacher else "hash of weights"
    table.add_row(asked, Text(clean(header.teacher)))
    table.add_row("hash of tokenizer", Text(header.tokenizer))
    table.add_row("hash of data", Text(header.data))
    table.add_row("rows", f"{len(reader):,}")
    table.add_row("bytes a token", f"{reader.bytes_per_token():.2f}")
    return table


def _kept(reader: Reader) -> Iterator[str]:
    header = reader.header
    if header.top:
        yield f"the {header.top} largest entries"
    if header.draws:
        yield f"{header.draws} draws" + (" of the others" if header.top else "")
    for layer in header.hidden:
        yield f"layer {layer.layer} of {layer.of}, {layer.width} of {layer.whole} directions"


def _examples(folder: Path) -> Iterator[tuple[Key, list[int]]]:
    """Rows whose tokens were noted: the signal itself knows them by their hash."""
    for line in (folder / EXAMPLES_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield (row["row"], row["hash"]), row["tokens"]


class _Words:
    """Tokens as text."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FOLDER / "tokenizer.json"))
        self._before = self._tokenizer.encode("a", add_special_tokens=False).ids
        """What tokens are read behind: some vocabularies leave out the blank that a text begins with."""

    def __call__(self, token: int) -> str:
        """In quotes, with its blanks; one that is a part of a sign, as its vocabulary spells it."""
        before, text = (
            self._tokenizer.decode(ids, skip_special_tokens=False) for ids in (self._before, [*self._before, token])
        )
        text = text.removeprefix(before)
        if not text or "\ufffd" in text:
            text = self._tokenizer.id_to_token(token) or f"token {token}"
        return f'"{clean(escaped(text))}"'


def _row(reader: Reader, key: Key, targets: list[int], words: _Words) -> RenderableType:
    """Position by position: the token that stands there, and what the teacher would have said."""
    header, signals = reader.header, reader.read([key])
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("token", style="cyan")
    if not header.distribution:
        table.add_column("the teacher's hidden states")
        for place, token in enumerate(targets[:POSITIONS]):
            lengths = (f"layer {n}: length {_length(signals[0].hidden[n], place):.3g}" for n in signals[0].hidden)
            table.add_row(Text(words(token)), ", ".join(lengths))
        return table
    found = to_sparse(signals, header)
    table.add_column("nats", justify="right")
    table.add_column(SAID[bool(header.top), bool(header.draws)])
    for place, token in enumerate(targets[:POSITIONS]):
        table.add_row(Text(words(token)), f"{found.entropy_C[place]:.2f}", Text(_said(found, place, words)))
    return table


def _length(kept: Hidden, place: int) -> float:
    return float(np.linalg.norm(kept.codes_CH[place].astype(np.float64)) * float(kept.scale_C[place]))


def _said(found: SparseArrays, place: int, words: _Words) -> str:
    """The entries with the most mass, and what all others have."""
    ids_K, mass_K = found.ids_CK[place], found.mass_CK[place].astype(np.float64)
    order = [int(k) for k in np.argsort(-mass_K, kind="stable")[:ENTRIES] if ids_K[k] >= 0]
    parts = [f"{words(int(ids_K[k]))} {mass_K[k]:.1%}" for k in order]
    others = max(0.0, 1 - float(mass_K[order].sum()))
    return " | ".join([*parts, f"others {others:.1%}"] if others >= 0.0005 else parts)
