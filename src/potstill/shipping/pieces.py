"""How llama.cpp cuts a text before it merges: what its names for `tokenizer.ggml.pre` stand for.

The expressions are those of llama.cpp's src/llama-vocab.cpp. A tokenizer.json says its own; the two are matched by the
text of the expressions, never by trying.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Radford et al. 2019; what tokenizers' ByteLevel cuts by."""
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _HEAD + r"\p{N}{1,3}" + _TAIL
QWEN2 = _HEAD + r"\p{N}" + _TAIL
DIGITS = r"\p{N}"
OURS = r"\n+|[^\S\n]*[^\s\d]+|[^\S\n]*\d|[^\S\n]+"
"""What `tokenization.train_tokenizer` cuts by, before GPT2 does."""


@dataclass(frozen=True)
class Cut:
    """A way to cut that llama.cpp knows."""

    pre: str
    """Its name there."""
    expressions: tuple[str, ...]
    """Each cuts what the one before left."""
    ignore_merges: bool = False
    """Whether a piece that is a token is that token, however merges would come to it."""
    whole_breaks: bool = False
    """Whether runs of line breaks are to be tokens of their own before anything is cut: no name of llama.cpp's keeps
    "\\n\\n" whole before a word and a blank with a digit. Merges never cross where llama.cpp then does not cut."""


CUTS: Mapping[tuple[tuple[str, ...], bool], Cut] = {
    ((GPT2,), False): Cut("gpt-2", (GPT2,)),
    ((OURS, GPT2), False): Cut("gpt-2", (GPT2,), whole_breaks=True),
    ((DIGITS, GPT2), False): Cut("smollm", (DIGITS, GPT2)),
    ((LLAMA3,), True): Cut("llama-bpe", (LLAMA3,), ignore_merges=True),
    ((LLAMA3,), False): Cut("smaug-bpe", (LLAMA3,)),
    ((QWEN2,), False): Cut("qwen2", (QWEN2,)),
}


def cut_of(tokenizer: Mapping[str, Any]) -> Cut | None:
    """The cut of a byte-level tokenizer.json that llama.cpp makes too; None where it makes none like it."""
    expressions: list[str] = []
    for step in _steps(tokenizer["pre_tokenizer"]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            expressions += [GPT2] if step["use_regex"] else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            expressions.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            expressions.append(step["pattern"].get("Regex", ""))
        else:
            return None
    return CUTS.get((tuple(expressions), bool(tokenizer["model"].get("ignore_merges"))))


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json writes bytes as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in _steps(tokenizer["pre_tokenizer"]))


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
