"""What `show` prints of a captured signal: its header, its size, and what the teacher says at some tokens."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from potstill.console import clean, number
from potstill.signals.files import Key, Reader
from potstill.signals.rows import Hidden
from potstill.signals.sparse import SparseArrays, to_sparse
from potstill.stages.kept import EXAMPLES_FILE, SIGNALS_FOLDER, TOKENIZER_FOLDER

POSITIONS = 8
"""Of a row that are shown."""
ENTRIES = 5
"""Of a position."""


def show_signals(console: Console, folder: Path, rows: int) -> None:
    """The artifact's signal. StorageError or DataError where it cannot be read."""
    reader = Reader(folder / SIGNALS_FOLDER)
    console.print(_header(reader))
    console.print()
    shown = 0
    for key, targets in islice(_examples(folder), rows):
        console.print(Rule(Text(clean(key[0])), align="left", style="dim"))
        console.print(_row(reader, key, targets, _Words(folder)))
        console.print()
        shown += 1
    if shown < len(reader):
        console.print(Text(f"{shown:,} of {len(reader):,} rows", "dim"))


def _header(reader: Reader) -> RenderableType:
    header, table = reader.header, Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("vocabulary", f"{header.vocabulary:,} tokens")
    table.add_row("kept", ", ".join(_kept(reader)))
    table.add_row("temperature", number(header.temperature))
    for name in ("teacher", "tokenizer", "data"):
        table.add_row(name, Text(str(getattr(header, name))))
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

    def __call__(self, token: int) -> str:
        """With its blanks; one that is a part of a sign, as its vocabulary spells it."""
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            text = self._tokenizer.id_to_token(token) or f"token {token}"
        return clean(text.replace("\n", "\\n"))


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
    table.add_column("the teacher's likeliest")
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
