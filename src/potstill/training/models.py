"""Models: made, loaded, and saved so that transformers needs nothing of ours to run them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

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

logger = logging.getLogger(__name__)

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


def load_model(
    model: Model, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model's weights, from safetensors only. ModelError where they are not whole, or not the tokenizer's.

    Trained models are loaded in float32 whatever they are stored in: an optimizer's small steps vanish in bfloat16.
    """
    spec = model.local
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its report is ours to make
    try:
        made: Any = AutoModelForCausalLM.from_pretrained(
            spec.path,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise _cannot_load(model, "model", error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    loaded, report = made
    assert isinstance(loaded, PreTrainedModel)
    if wrong := _wrong_weights(loaded, report) or _wrong_vocabulary(loaded, tokenizer):
        raise ModelError(f"model {model.name}", f"{wrong} ({spec.path})", "Get the whole of it again, or another model")
    if report["unexpected_keys"]:
        logger.warning("model %s: weights that it has no place for: %s", model.name, sorted(report["unexpected_keys"]))
    return cast(PreTrainedModel, cast(nn.Module, loaded).to(device))


def _wrong_weights(loaded: PreTrainedModel, report: Mapping[str, Any]) -> str:
    """What transformers would fill with random numbers, or what no training mends; empty where all is well."""
    missing = sorted(report["missing_keys"])
    if missing:
        return f"its weights lack {len(missing)} of the tensors that its config.json asks for, {missing[0]} the first"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        return f"its weights hold {name} as {list(stored)}, and its config.json asks for {list(expected)}"
    # The sum of a tensor is finite only where all of it is, and takes no memory.
    broken = (name for name, tensor in loaded.named_parameters() if not torch.isfinite(tensor.detach().sum()))
    name = next(broken, "")
    return f"its weights hold numbers that are not finite, in {name}" if name else ""


def _wrong_vocabulary(loaded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that the model cannot read. Padding may stand beyond: it is never read."""
    embeddings: Any = loaded.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    beyond = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and t != tokenizer.pad_token)
    if not beyond:
        return ""
    index, token = beyond[0]
    return f"it has embeddings for {rows} tokens; its tokenizer makes {len(beyond)} more, the first {token!r} ({index})"


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
    if not all(isinstance(token, int) for token in named):
        raise ModelError(
            str(model.name_or_path),
            f"its generation_config.json names the end token {known!r}; expected a token's number",
            "Correct eos_token_id there",
        )
    ends = {*named, tokenizer.eos_token_id} - {None}
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        ends.discard(tokenizer.pad_token_id)
    return sorted(ends)
