"""Who teaches in a stage of distillation: models and captured signals, checked before they are asked anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.signals.files import Reader
from potstill.sources import Data, LocalModel, Model
from potstill.stages.session import Session
from potstill.training.batch import Item
from potstill.training.layers import Pairs, decoder_layers, depth_map
from potstill.training.models import load_model, load_tokenizer
from potstill.training.preflight import first_template_difference, first_token_difference, vocabulary
from potstill.training.probe import bare
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.tellers import Captured, Present, Teller, key_of

TOKENIZER_FOLDER = "tokenizer"
"""Of a captured signal: whose tokens it speaks of."""


class Teacher(Protocol):
    """One of those who teach."""

    name: str
    tokenizer: PreTrainedTokenizerBase

    def check_rows(self, items: Sequence[Item]) -> None:
        """Refuse rows that it has nothing to say of."""
        ...

    def teller(self, student: Scorer, wanted: "Wanted") -> tuple[Teller, int]:
        """Who tells batches, and the width of the hidden states that it tells of."""
        ...

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        ...
