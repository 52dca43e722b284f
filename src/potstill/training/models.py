"""Models: made, loaded, and saved so that transformers needs nothing of ours to run them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.sources import Model
from potstill.tokenization import with_template

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: DeviceName = "auto") -> torch.device:
    """The device asked for, or the fastest that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise ModelError(f"device: {name}", "this machine has no such device", "Set device: auto")
    return torch.device(name)


def choose_precision(name: DtypeName, device: torch.device) -> torch.dtype:
    """What products are computed in; weights, sums and the softmax stay in float32 either way.

    "auto" goes by what the hardware has, never by a timing, so that one machine always chooses alike.
    """
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


@dataclass(frozen=True)
class Shape:
    """The size of a model made from scratch."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int
    tied: bool


def make_mistral(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device) -> PreTrainedModel:
    """A Mistral-architecture model with random weights; the same seed gives the same weights."""
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(PreTrainedModel, cast(nn.Module, MistralForCausalLM(config)).to(device))


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template. Raises ModelError."""
    spec = model.local
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:  # the libraries below raise many kinds for a folder that holds no tokenizer
        raise _cannot_load(model, "tokenizer", error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return with_template(tokenizer)


def load_model(model: Model, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model's weights, from safetensors only. Raises ModelError.

    Trained models are loaded in float32 whatever they are stored in: an optimizer's small steps vanish in bfloat16.
    """
    spec = model.local
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            spec.path,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            dtype=dtype,
        )
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise _cannot_load(model, "model", error) from error
    assert isinstance(loaded, PreTrainedModel)
    return cast(PreTrainedModel, cast(nn.Module, loaded).to(device))


def _cannot_load(model: Model, what: str, error: Exception) -> ModelError:
    path = model.local.path
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        return ModelError(
            f"model {model.name}",
            f"{path} holds no model: there is no config.json in it",
            "Give a folder in Hugging Face layout, or a name on the Hub",
        )
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"model {model.name}",
        f"its {what} cannot be loaded from {path}: {first[:200]}",
        "Give a folder in Hugging Face layout with safetensors weights, or a name on the Hub",
    )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the model in Hugging Face layout, its chat template with it, and generation settings that stop.

    The end token ends an answer and the padding token never does (transformers issue 48016).
    """
    settle_padding(tokenizer)
    ends = stop_ids(model, tokenizer)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with storage_errors(path):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path, save_jinja_files=False)


def settle_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a padding token that is not its end token, where it has one to give."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if tokenizer.unk_token is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token and those that the model names, padding never."""
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = known if isinstance(known, list) else [] if known is None else [known]
    ends = {*named, tokenizer.eos_token_id} - {None}
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        ends.discard(tokenizer.pad_token_id)
    return sorted(ends)
