"""Weights rounded to few bits by bitsandbytes, in a folder that transformers loads again, and what rounding changed.

Embeddings and the head stay as they were stored; what is rounded are the body's matrices. It is done on a CPU, where
the same weights give the same bytes on every machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.training.batch import Item
from potstill.training.models import GET_BITSANDBYTES, bitsandbytes_fault, load_model, quantized_by, save_model

# Suffixes: N scored tokens, V vocabulary.

Scheme = Literal["int8", "nf4", "fp4"]


@dataclass(frozen=True)
class Drift:
    """How far a rounded model is from the one that it was made of, over given answers."""

    tokens: int
    kl: float
    """The mean over tokens of KL(original, rounded) of the next token's distribution, in nats."""
    logp_change: float
    """The mean change of the given tokens' log-probability, in nats; below 0 they became less likely."""
    same_choice: float
    """At which share of the tokens both find the same token the likeliest."""


def round_model(source: Model, tokenizer: PreTrainedTokenizerBase, scheme: Scheme, path: Path) -> int:
    """Write the model with its matrices rounded; returns how many parameters were. ModelError where it cannot be."""
    where = f"model {source.name}"
    if fault := bitsandbytes_fault():
        raise ModelError(f"scheme: {scheme}", fault, GET_BITSANDBYTES)
    model = load_model(source, tokenizer, torch.device("cpu"), None, _config(scheme))
    if not quantized_by(model.config):
        raise ModelError(where, "transformers left it as it is", "Choose another model")
    rounded: int = sum(layer.in_features * layer.out_features for layer in _rounded_layers(model))
    if not rounded:
        raise ModelError(where, "it has no linear layer that bitsandbytes rounds", "Choose another model")
    save_model(model, tokenizer, path)
    return rounded


def _config(scheme: Scheme) -> BitsAndBytesConfig:
    """int8: every row of a matrix has its scale, and every token's input too (Dettmers et al. 2022, section 2.1).

    Without that paper's outliers in float16: they are found over all rows of a batch, so that what a row says would
    depend on those beside it.
    """
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type=scheme, bnb_4bit_compute_dtype=torch.float32
    )


def _rounded_layers(model: PreTrainedModel) -> Iterator[Any]:
    kinds = ("Linear8bitLt", "Linear4bit")
    return (layer for layer in model.modules() if type(layer).__name__ in kinds)


@torch.inference_mode()
def drift(source: Model, rounded: Path, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> Drift:
    """Both models over the same rows, each row by itself, in float32 on a CPU."""
    made = Model(source.name, LocalModel(path=str(rounded)))
    cpu = torch.device("cpu")
    before, after = (load_model(one, tokenizer, cpu).eval() for one in (source, made))  # type: ignore[no-untyped-call]
    kl = change = same = 0.0
    tokens = 0
    for item in items:
        p_NV, q_NV, targets_N = (*(_scored(model, item) for model in (before, after)), _targets(item))
        kl += float((p_NV.exp() * (p_NV - q_NV)).sum())
        change += float((q_NV - p_NV).gather(1, targets_N[:, None]).sum())
        same += int((p_NV.argmax(1) == q_NV.argmax(1)).sum())
        tokens += len(targets_N)
    return Drift(tokens, kl / tokens, change / tokens, same / tokens)


def _scored(model: PreTrainedModel, item: Item) -> Tensor:
    """The log-probabilities of all tokens at every place before one that is scored."""
    ((ids_L, learn_L),) = item.answers
    logits_LV = model(input_ids=torch.from_numpy(ids_L.astype("int64"))[None]).logits[0, :-1]
    logp_NV: Tensor = logits_LV[torch.from_numpy(learn_L[1:])].double().log_softmax(-1)
    return logp_NV


def _targets(item: Item) -> Tensor:
    ((ids_L, learn_L),) = item.answers
    return torch.from_numpy(ids_L[1:][learn_L[1:]].astype("int64"))
