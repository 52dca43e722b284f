"""Models: loaded, and saved so that transformers needs nothing of ours to run them."""

import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.tokens.learnt import end_token
from potstill.tokens.tokenization import with_template

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]

GET_BITSANDBYTES = "Run pip install 'potstill[qlora]'"

MAX_SHARD = "5GB"
"""A weights file that would be larger is split, as the Hub's are."""


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


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template. Raises ModelError."""
    return with_template(read_tokenizer(model))


def read_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer as it came. Raises ModelError."""
    spec = model.local
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:  # the libraries below raise many kinds for a folder that holds no tokenizer
        raise _cannot_load(model, "tokenizer", error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_model(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype | None = torch.float32,
    quantization: Any = None,
) -> PreTrainedModel:
    """The model's weights, from safetensors only. ModelError where they are not whole, or not the tokenizer's.

    Trained models are loaded in float32 whatever they are stored in: an optimizer's small steps vanish in bfloat16.
    What they are stored in stays in `config.dtype`, for `save_model`. Each tensor goes from its file to the device in
    the type asked for (None: the stored one); there is never a second copy. `quantization` is a transformers
    quantization config.
    """
    spec = model.local
    source = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    straight = device.type != "cpu" or quantization is not None
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(spec.path, **source)
            _prepare_quantized(model, config, dtype)
            stored = config.dtype or torch.float32
            made: Any = AutoModelForCausalLM.from_pretrained(
                spec.path,
                config=config,
                use_safetensors=True,
                dtype=stored if dtype is None else dtype,
                device_map={"": device} if straight else None,
                quantization_config=quantization,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **source,
            )
    except ModelError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise _cannot_load(model, "model", error) from error
    loaded, report = made
    assert isinstance(loaded, PreTrainedModel)
    if wrong := _wrong_weights(loaded, report) or wrong_vocabulary(rows_of(loaded.get_input_embeddings()), tokenizer):
        raise ModelError(f"model {model.name}", f"{wrong} ({spec.path})", "Get the whole of it again, or another model")
    if report["unexpected_keys"]:
        logger.warning("model %s: weights that it has no place for: %s", model.name, sorted(report["unexpected_keys"]))
    loaded.config.dtype = stored
    return loaded


def quantized_by(config: Any) -> str:
    """What rounded a model's weights: bitsandbytes, gptq, awq, ...; "" where they are what they were trained as."""
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "")


def refuse_quantized(model: Model, loaded: PreTrainedModel) -> None:
    """ModelError where the weights are rounded to few bits, so that small steps would change none of them."""
    if method := quantized_by(loaded.config):
        raise ModelError(
            f"model {model.name}",
            f"its weights are rounded to few bits ({method}), and such weights cannot be trained",
            "Name the model that it was made of; adapter: {kind: qlora} rounds while it trains",
        )


def bitsandbytes_fault() -> str:
    """Why bitsandbytes cannot be used here; "" where it can."""
    try:
        with _without_kernels():
            importlib.import_module("bitsandbytes")
    except Exception as error:  # a shared library that does not fit this machine raises what it likes
        absent = isinstance(error, ModuleNotFoundError)
        return "bitsandbytes is not installed" if absent else f"bitsandbytes does not start: {error}"
    return ""


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Where the package `kernels` is installed, bitsandbytes fetches code from the Hub as it is imported, and runs it:
    nobody has asked for that."""
    there, before = "kernels" in sys.modules, sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # it reads as not installed
    try:
        yield
    finally:
        del sys.modules["kernels"]
        if there:
            sys.modules["kernels"] = before  # type: ignore[assignment]


def _prepare_quantized(model: Model, config: Any, dtype: torch.dtype | None) -> None:
    """ModelError where weights that bitsandbytes rounded are to be read without it; products in the type asked for."""
    if quantized_by(config) != "bitsandbytes":
        return
    if fault := bitsandbytes_fault():
        what = f"its weights are rounded by bitsandbytes, and {fault}"
        remedy = f"{GET_BITSANDBYTES}, or name the model that it was made of"
        raise ModelError(f"model {model.name}", what, remedy)
    if dtype is not None and isinstance(config.quantization_config, dict):
        config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")


def weights_files(spec: LocalModel) -> list[Path]:
    """The files that hold a model's weights, in its folder or in the Hub's cache; none where that is not known."""
    folder = Path(spec.path)
    if not folder.is_dir():
        config = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision)
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("*.safetensors"))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars and its report on weights, which is ours to make."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _wrong_weights(loaded: PreTrainedModel, report: Mapping[str, Any]) -> str:
    """What transformers would fill with random numbers, or what no training mends; empty where all is well."""
    missing = sorted(report["missing_keys"])
    if missing:
        return f"its weights lack {len(missing)} of the tensors that its config.json asks for, {missing[0]} the first"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        return f"its weights hold {name} as {list(stored)}, and its config.json asks for {list(expected)}"
    # The sum of a tensor is finite only where all of it is, and takes no memory.
    broken = (name for name, tensor in loaded.named_parameters() if not torch.isfinite(_sum(tensor.detach())))
    name = next(broken, "")
    return f"its weights hold numbers that are not finite, in {name}" if name else ""


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))  # in float16 it would overflow


def rows_of(embeddings: Any) -> int:
    """For how many tokens there is room in a model's embeddings, or in its head."""
    return int(embeddings.weight.shape[0])


def wrong_vocabulary(rows: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that a model with so many rows cannot read. Padding may stand beyond: it is never read."""
    beyond = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and t != tokenizer.pad_token)
    if not beyond:
        return ""
    index, token = beyond[0]
    return f"it has embeddings for {rows} tokens; its tokenizer makes {len(beyond)} more, the first {token!r} ({index})"


def _cannot_load(model: Model, what: str, error: Exception) -> ModelError:
    path = model.local.path
    where, folder = f"model {model.name}", Path(path)
    if (folder / "adapter_config.json").is_file():
        what = f"{path} holds an adapter, not a whole model"
        return ModelError(where, what, "Merge it into its base with peft's merge_and_unload, and give the merged model")
    if folder.exists() and not (folder / "config.json").is_file():
        return ModelError(
            where,
            f"{path} holds no model: there is no config.json in it",
            "Give a folder in Hugging Face layout, or a name on the Hub",
        )
    if (pickles := sorted(folder.glob("*.bin"))) and not any(folder.glob("*.safetensors")):
        what = f"its weights are pickled ({pickles[0].name} in {path}), and whoever unpickles a file runs what is in it"
        return ModelError(where, what, "Convert them to safetensors where you trust them, or choose another model")
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if "trust_remote_code" in str(error):
        what = f"its {what} is code of its own, in {path}, and such code is not run unasked"
        return ModelError(where, what, "Read that code; where you trust it, set trust_remote_code: true")
    failed = f"its {what} cannot be loaded from {path}"
    if not folder.exists():
        failed = f"there is no folder {path}, and its {what} cannot be loaded from the Hub"
    return ModelError(
        where,
        f"{failed}: {first}",
        "Give a folder in Hugging Face layout with safetensors weights, or a name on the Hub",
    )


def end_tokens(model: Model) -> list[int]:
    """The tokens that end an answer by the model's own word (its generation_config.json), where it has one."""
    spec = model.local
    try:
        config = GenerationConfig.from_pretrained(spec.path, revision=spec.revision or "main")
    except OSError:  # many models come without
        return []
    known = config.eos_token_id
    return known if isinstance(known, list) else [] if known is None else [known]


@torch.no_grad()
def resize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int]) -> None:
    """Room for every token of the tokenizer; the rows of the new ones become the mean of the old (Hewitt 2021).

    Rows beyond the old vocabulary, where a model was padded, are used before any is added. `new_tokens` are ids. What
    transformers does instead (`mean_resizing`) draws from a normal distribution, another at every call.
    """
    rows = rows_of(model.get_input_embeddings())
    old = sorted(i for i in set(tokenizer.get_vocab().values()) - set(new_tokens) if i < rows)
    if len(tokenizer) > rows:
        device = model.device
        draws = torch.random.fork_rng([device] if device.type == "cuda" else [])  # it fills the rows that it adds
        with draws, _quiet_transformers():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:  # type: ignore[no-untyped-call]
        for table in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if table is not None and new_tokens:
                mean = table[old].to(torch.promote_types(table.dtype, torch.float32)).mean(0)
                table[list(new_tokens)] = mean.to(table.dtype)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    dtype: DtypeName = "auto",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model in Hugging Face layout, its chat template with it, and generation settings that stop.

    `dtype` is what the weights are rounded to on their way to the disk; auto: what the base was stored in. `weights`
    is the gathered state of a model whose own is sharded. The end token ends an answer and the padding token never
    does (transformers issue 48016).
    """
    settle_padding(tokenizer)
    ends = stop_ids(model, tokenizer)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    stored = stored_dtype(model, dtype)
    rounded = None  # what few bits hold is written as it is, with its scales
    if not quantized_by(model.config):
        rounded = _rounded(model, model.state_dict() if weights is None else weights, stored)
    with storage_errors(path), _quiet_transformers():
        model.save_pretrained(path, state_dict=rounded, max_shard_size=MAX_SHARD)
        model.config.dtype = stored  # it has written the type that the weights are held in
        model.config.save_pretrained(path)
        tokenizer.save_pretrained(path, save_jinja_files=False)


def stored_dtype(model: PreTrainedModel, dtype: DtypeName = "auto") -> torch.dtype:
    """What the weights are stored in: as asked, or as the base was."""
    known = model.config.dtype if dtype == "auto" else dtype
    known = getattr(torch, known) if isinstance(known, str) else known
    return known or torch.float32


def _rounded(model: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in that type. Tied ones stay one tensor; what the family keeps in float32 stays so."""
    exact = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, tensor in weights.items():
        keep = not tensor.is_floating_point() or not exact.isdisjoint(name.split("."))
        made.setdefault(_place(tensor), tensor if keep else tensor.to("cpu", dtype))
    return {name: made[_place(tensor)] for name, tensor in weights.items()}


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


@dataclass(frozen=True)
class Footprint:
    """What training holds in memory besides activations, in bytes."""

    trained: int
    """Weights that are trained."""
    frozen: int
    """Weights that are not, and buffers."""
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.trained + self.frozen + self.gradients + self.optimizer


def footprint(model: nn.Module, optimizer_states: int) -> Footprint:
    """From the parameters as they are held now (a meta model will do), tied ones counted once.

    `optimizer_states` is how many tensors of a weight's size and type the optimizer keeps: 2 for AdamW, 1 for Muon.
    The scales of 4-bit weights, some 3% of them, are not counted.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    frozen += sum(buffer.nbytes for buffer in model.buffers())
    return Footprint(trained, frozen, gradients=trained, optimizer=optimizer_states * trained)


def settle_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a padding token that is not its end token, where it has one to give."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if tokenizer.unk_token is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token, the one that its chat template ends an assistant's turn
    with, and those that the model names; padding never, unless it is one of the first two."""
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = known if isinstance(known, list) else [] if known is None else [known]
    if not all(isinstance(token, int) for token in named):
        raise ModelError(
            str(model.name_or_path),
            f"its generation_config.json names the end token {known!r}; expected a token's number",
            "Correct eos_token_id there",
        )
    learnt = _turn_end(tokenizer)
    ends = {*named, tokenizer.eos_token_id, learnt} - {None}
    if tokenizer.pad_token_id not in (tokenizer.eos_token_id, learnt):
        ends.discard(tokenizer.pad_token_id)
    return sorted(ends)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of its own with which the chat template ends an assistant's turn; None where it writes none.

    It need not be the tokenizer's end token: base models of some families (Qwen's) come with a template for turns, and
    with the end token of documents.
    """
    try:
        token = end_token(tokenizer)
    except ModelError:  # it takes no question and answer; a stage that has them says so
        return None
    return token if token in tokenizer.added_tokens_decoder else None
