"""What the benchmarks train on: a model with random weights, and rows of made-up tokens of known lengths.

Both sides are given the same token ids. A word-level tokenizer spells each id as one word, so that a side that reads
text comes to exactly these ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAD, START, END, UNKNOWN = 0, 1, 2, 3
FIRST_WORD = 4

# An opening blank parts a message from the one before it; the end token closes what an assistant says.
TEMPLATE = "{% for m in messages %} {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"


@dataclass(frozen=True)
class Architecture:
    """The size of a model; `family` is transformers' name of it."""

    family: str
    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool = False

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def body_weights(self) -> int:
        """Weights of the layers' matrices: what every token is multiplied with, head and embeddings aside."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.intermediate)

    @property
    def weights(self) -> int:
        """All matrices, embeddings and head among them."""
        return self.body_weights + self.vocabulary * self.width * (1 if self.tied else 2)


ARCHITECTURES = {
    "60m": Architecture("mistral", 32_000, layers=8, width=512, heads=8, kv_heads=2, intermediate=1792),
    "1b": Architecture("llama", 128_256, 16, 2048, 32, 8, 8192, tied=True),  # as Llama 3.2 1B: 1.24 billion
    "1.5b": Architecture("qwen2", 151_936, 28, 1536, 12, 2, 8960, tied=True),  # as Qwen 2.5 1.5B: 1.54 billion
    "56m-128k": Architecture("llama", 128_256, 4, 384, 6, 2, 1024, tied=True),  # the head is most of what it computes
    "90m-128k": Architecture("llama", 128_256, 8, 512, 8, 2, 1536, tied=True),
    "tiny": Architecture("mistral", 512, layers=2, width=64, heads=4, kv_heads=2, intermediate=96),
}


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens: their mean over the set, and the longest. `sigma` 0: all of them equal."""

    mean: int
    longest: int
    sigma: float

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """Lengths from 8 to the longest; their mean is as declared, to half a token."""
        raw = generator.lognormal(0.0, self.sigma, count)
        low, high = 0.0, 100.0 * self.mean
        for _ in range(60):  # clipping moves the mean: find the scale that brings it back
            middle = (low + high) / 2
            low, high = (middle, high) if self._clip(raw, middle).mean() < self.mean else (low, middle)
        return [int(length) for length in self._clip(raw, high)]

    def _clip(self, raw: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(np.rint(raw * scale), min(8, self.mean), self.longest)


def save_model(folder: Path, name: str, seed: int = 0, sharpness: float = 1.0) -> Architecture:
    """A model with random weights in float32, with its tokenizer, in Hugging Face layout. `sharpness` multiplies its
    logits: those of random weights are nearly equal."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    size = ARCHITECTURES[name]
    words = ["<pad>", "<s>", "</s>", "<unk>"] + [word(index) for index in range(FIRST_WORD, size.vocabulary)]
    backend = Tokenizer(models.WordLevel({text: index for index, text in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **special).save_pretrained(folder)
    config = AutoConfig.for_model(
        size.family,
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=size.tied,
        sliding_window=None,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.base_model.norm.weight.mul_(sharpness)
    model.save_pretrained(folder)
    return size


def word(index: int) -> str:
    """How the tokenizer spells an id."""
    return f"w{index}"


def pairs(seed: int, count: int, vocabulary: int, prompt: Lengths, chosen: Lengths, rejected: Lengths) -> list[dict]:
    """Rows {id, prompt, chosen, rejected} of token ids; an answer's length counts the token that ends it."""
    generator = np.random.default_rng([seed, 0])
    sizes = zip(*(lengths.draw(generator, count) for lengths in (prompt, chosen, rejected)), strict=True)
    return [
        {
            "id": f"{seed}-{number}",
            "prompt": _words(generator, first, vocabulary),
            "chosen": [*_words(generator, second - 1, vocabulary), END],
            "rejected": [*_words(generator, third - 1, vocabulary), END],
        }
        for number, (first, second, third) in enumerate(sizes)
    ]


USER_SHARE = 0.2
"""Of a conversation's tokens: what the user says, read and not learnt."""


def chats(seed: int, count: int, vocabulary: int, whole: Lengths, exchanges: int) -> list[dict]:
    """Rows {id, turns} of token ids: user and assistant in turn, each assistant's turn closed by the end token."""
    generator = np.random.default_rng([seed, 1])
    rows = []
    for number, length in enumerate(whole.draw(generator, count)):
        turns = []
        for share in np.array_split(np.arange(length), exchanges):
            user = max(1, round(USER_SHARE * len(share)))
            turns.append(_words(generator, user, vocabulary))
            turns.append([*_words(generator, len(share) - user - 1, vocabulary), END])
        rows.append({"id": f"{seed}-{number}", "turns": turns})
    return rows


def _words(generator: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    return [int(index) for index in generator.integers(FIRST_WORD, vocabulary, count)]


def body_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of a row, each counted once: a pair's prompt too."""
    parts: Sequence[Sequence[int]] = row.get("turns") or [row["prompt"], row["chosen"], row["rejected"]]
    return sum(len(part) for part in parts)


def scored_tokens(row: Mapping[str, Any]) -> int:
    """Tokens whose log-probability is wanted: what assistants say."""
    return sum(len(part) for part in (row["turns"][1::2] if "turns" in row else (row["chosen"], row["rejected"])))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: str | Path) -> list[dict]:
    """Rows that `write` wrote."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
