"""Adapters: put into a frozen model, taken out of its way, kept in peft's format, and merged into a plain model.

A model with an adapter is the same PreTrainedModel, its linear layers replaced by peft's. What a stage seals is always
the merged model, so an adapter for the next stage, and that stage's reference, start from all that was learnt before.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from potstill.artifact import storage_errors
from potstill.errors import ModelError
from potstill.sources import Model
from potstill.training.adapter_config import Adapter
from potstill.training.models import (
    GET_BITSANDBYTES,
    DtypeName,
    bitsandbytes_fault,
    load_model,
    load_tokenizer,
    refuse_quantized,
    resize,
    save_model,
)

FOLDER = "adapter"
"""Where, beside the merged model, the adapter itself is kept."""
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before the name of every weight."""


def load_base(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    adapter: Adapter | None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The model to train, as `load_model` does; for QLoRA its body's matrices in 4 bits (NF4, scales quantised too).

    A 4-bit base computes in float32 at first; see `hold_base`.
    """
    if adapter is None or adapter.kind != "qlora":
        loaded = load_model(model, tokenizer, device, dtype)
        refuse_quantized(model, loaded)
        return loaded
    _check_bitsandbytes(device)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # type: ignore[no-untyped-call]
    return load_model(model, tokenizer, device, dtype, four_bits)


def _check_bitsandbytes(device: torch.device) -> None:
    """ModelError where there is no GPU for it, or it is not there, or does not start.

    On a CPU it repacks its weights between training and evaluation, for some shapes only, and computes otherwise then.
    """
    where = "adapter: qlora"
    if device.type != "cuda":
        raise ModelError(where, f"4-bit weights need a CUDA device, and this is {device.type}", "Set kind: lora")
    if fault := bitsandbytes_fault():
        raise ModelError(where, fault, f"{GET_BITSANDBYTES}, or set kind: lora")


def attach(model: PreTrainedModel, adapter: Adapter, seed: int, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
    """The model with an adapter put into it, in place; only the adapter is trained, and what it adds is 0 at first.

    The same seed gives the same adapter, and draws nothing from anyone else's generator. The rows of `new_tokens` (ids)
    are trained too, in the embeddings and in the head. Raises ModelError where a target is no linear layer.
    """
    assert not is_adapted(model), "the adapter before is to be merged first, or this one's reference would miss it"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=cast(int, adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=_targets(adapter, model),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
        use_dora=adapter.kind == "dora",
        use_rslora=adapter.rslora,
        trainable_token_indices=_token_rows(model, new_tokens),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _inject(model, config)


def _inject(model: PreTrainedModel, config: LoraConfig) -> PreTrainedModel:
    """peft's layers in place of the model's own; what is trained is in float32 or wider, whatever the base is in."""
    inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(_wide(parameter.dtype))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, lengths in layer.lora_magnitude_vector.items():  # made in the base's type: once more, in float32
                factors: dict[str, Any] = {"lora_A": layer.lora_A[name].weight, "lora_B": layer.lora_B[name].weight}
                measure: Any = lengths.update_layer
                measure(base_layer=layer.get_base_layer(), scaling=layer.scaling[name], **factors)
    model.train(model.training)  # new layers come in training mode, and their dropout with them
    return model


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _targets(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """The names, or their endings, of the linear layers that are to carry an addition. Raises ModelError.

    A head that is the embeddings carries none: merging it would change them too.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head is not None and head.weight is _weight(model.get_input_embeddings())
    body = [n for n, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    endings = sorted({name.rpartition(".")[2] for name in body})
    if adapter.targets == "auto":
        return endings
    heads = [name for name, module in model.named_modules() if module is head and not tied]
    for target in adapter.targets:
        if not any(name == target or name.endswith("." + target) for name in [*body, *heads]):
            near = difflib.get_close_matches(target, [*endings, *body, *heads], n=3, cutoff=0.5) or endings
            what = f"{model.name_or_path} has no linear layer '{target}' that could carry an adapter"
            raise ModelError("adapter.targets", what, f"Name others, such as {', '.join(near)}, or set auto")
    return sorted(set(adapter.targets))


def _weight(layer: Any) -> Tensor:
    return cast(Tensor, layer.weight)


def _token_rows(model: PreTrainedModel, new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Which rows of the embeddings and of the head are trained; peft ties the two where the model does."""
    if not new_tokens:
        return None
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if getattr(head, "bias", None) is not None:
        what = "its head has a bias, which an adapter with new tokens would drop"
        raise ModelError(str(model.name_or_path), what, "Train the whole model, or add no tokens")
    tables = [model.get_input_embeddings()]
    if head is not None and head.weight is not _weight(tables[0]):
        tables.append(head)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(table)]: sorted(new_tokens) for table in tables}


def is_adapted(model: nn.Module) -> bool:
    """Whether an adapter is in the model."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def hold_base(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold the frozen matrices that carry an adapter in `dtype`, or compute 4-bit ones in it; all else in float32.

    Under autocast to bfloat16, that changes no number of a base stored in bfloat16, and halves it. Without, it fails.
    """
    held: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            held |= {id(parameter) for parameter in base.parameters()}
            if hasattr(base, "compute_dtype"):
                base.compute_dtype = dtype
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype if id(parameter) in held else _wide(parameter.dtype))


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within this the model is its base: the reference of a preference objective."""
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_facts(model: PreTrainedModel) -> dict[str, Any]:
    """What was attached, for the manifest."""
    targets = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {"targets": sorted(targets), "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def save_adapter(model: PreTrainedModel, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter as peft does, the same bytes for the same adapter.

    `weights` is the gathered state of a model whose own is sharded. A base that lies in a folder of this machine is
    not named: what is sealed says nothing of where it was made.
    """
    state = get_peft_model_state_dict(model, None if weights is None else dict(weights), save_embedding_layers=False)
    config = copy.copy(_config(model))
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, whose order is another in every process
    base = str(model.name_or_path)
    config.base_model_name_or_path = None if not base or Path(base).exists() else base
    with storage_errors(path):
        config.save_pretrained(str(path))
        tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
        save_file(tensors, path / WEIGHTS_FILE, metadata={"format": "pt"})


def _config(model: PreTrainedModel) -> Any:
    """peft's own account of what it put in."""
    configs: Any = model.peft_config
    return configs["default"]


def load_adapter(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """Put an adapter that `save_adapter` wrote into its base, in place, to be trained on or merged."""
    config = LoraConfig.from_pretrained(str(path))
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):  # peft draws what is then overwritten
        adapted = _inject(model, cast(LoraConfig, config))
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path / WEIGHTS_FILE).items()}
    report: Any = set_peft_model_state_dict(adapted, state)
    assert not report.unexpected_keys, f"{path} was trained on another base: {report.unexpected_keys[:3]}"
    return adapted


@torch.no_grad()
def merge(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The plain model that computes the same, in place: each matrix is added up in float32, then rounded to `dtype`.

    A 4-bit base cannot take an addition without losing most of it: see `save_trained`.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            assert base.weight.is_floating_point(), "4-bit weights are merged into their unquantised base"
            base.weight.data = base.weight.data.to(_wide(base.weight.dtype))
            layer.merge()
            base.weight.data = base.weight.data.to(dtype)
        if isinstance(layer, LoraLayer | AuxiliaryTrainingWrapper):
            plain = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer.original_module
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    for parameter in model.parameters():  # no buffers: rounded rotary frequencies would move every position
        parameter.data = parameter.data.to(dtype)
    del model.peft_config
    return model


def save_trained(
    model: PreTrainedModel,
    base: Model,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    dtype: DtypeName = "auto",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what training made: a plain model, and where an adapter was trained that adapter beside it, in `adapter/`.

    `weights` is the gathered state of a model whose own is sharded, of an adapted one the adapter's alone. `base` is
    what training started from: one that was sharded, or held in 4 bits, is read once more, whole, to be merged into.
    """
    if is_adapted(model):
        save_adapter(model, path / FOLDER, weights)
        if weights is not None or getattr(model, "is_quantized", False):
            model = load_model(base, load_tokenizer(base), torch.device("cpu"))
            resize(model, tokenizer, ())
            load_adapter(model, path / FOLDER)
        model, weights = merge(model), None
    save_model(model, tokenizer, path, dtype, weights)
