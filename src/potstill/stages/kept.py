"""What a stage that keeps a teacher's signal will have kept: for whoever learns from it, before either has run."""

from dataclasses import dataclass
from typing import Literal

from potstill.stages.base import StageConfig

SIGNALS_FOLDER = "signals"
TOKENIZER_FOLDER = "tokenizer"
EXAMPLES_FILE = "examples.jsonl"
"""Of a captured signal: its shards, whose tokens they speak of, and the tokens of its first rows, for `show`."""

ALIGNMENT_FILE = "alignment.txt"
"""Of a student taught across tokenizers: which tokens of the first row stand for the same bytes, for people."""


@dataclass(frozen=True)
class Kept:
    """By the names of the fields of `capture`."""

    top: int
    draws: int
    temperature: float
    layers: tuple[int, ...]
    learn: Literal["assistant", "all"] | None
    """None where only its shards are there to tell, which know rows by their tokens."""


class KeepsSignals(StageConfig):
    """The config of a stage that makes signals."""

    def kept(self) -> Kept:
        """What of a teacher."""
        raise NotImplementedError
