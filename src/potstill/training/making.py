"""Models made without training: of any family at a chosen size, or of chosen layers of another."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from potstill.errors import ModelError
from potstill.training.layers import layer_list
from potstill.training.size import Size

SIZED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""What a family's config has to call its sizes, or they could be given and not be heard."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

NO_LAYERS = ("architectures", "keys_to_ignore_at_inference")
"""Lists of a config that may be as long as there are layers, and are not about them; lists of tokens are others."""
PREFIXES = ("first_k_dense_replace",)
"""How many layers, counted from the first, are of a kind."""
WHICH = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
"""Lists of the layers that are of a kind, by their numbers."""


# At random.


def make_model(
    family: str, size: Size, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device
) -> PreTrainedModel:
    """A model of a family (a `model_type` of transformers) with random weights; the same seed gives the same weights.

    Its vocabulary is the tokenizer's. ModelError where the family is unknown, or not sized by what `size` says, or what
    it makes reads ahead of itself or answers with numbers that are not finite.
    """
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = make_config(family, size, max(tokenizer.get_vocab().values()) + 1, ends)
    where = f"family: {family}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            build: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            model = cast(PreTrainedModel, cast(nn.Module, build(config)).to(device))
        wrong = _wrong_answers(model)
    except Exception as error:  # families raise what they like of a size that does not suit them
        if isinstance(error, RuntimeError) and ("alloc" in str(error) or "out of memory" in str(error)):
            large = f"layers: {size.layers}, width: {size.width}"
            raise ModelError(large, "a model of this size does not fit into memory", "Make it smaller") from error
        raise _cannot_be_made(where, error) from error
    if wrong:
        raise ModelError(where, wrong, "Choose a family of decoders, such as llama or qwen3")
    return model


def make_config(
    family: str, size: Size, vocabulary: int, ends: Mapping[str, int | None] | None = None
) -> PreTrainedConfig:
    """What such a model is: `vocabulary` rows of embeddings; `ends`: its control tokens. ModelError as `make_model`."""
    kind = _family(family)
    known = {name for cls in kind.__mro__ for name in vars(cls).get("__annotations__", {})} | set(kind.attribute_map)
    where = f"family: {family}"
    for name in SIZED:
        if name not in known:
            what = f"its config has no {name}; expected a family of text decoders that is sized in the usual words"
            raise ModelError(where, what, "Choose another family, such as llama or qwen3")
    if not known.isdisjoint(EXPERTS):
        what = "it is a mixture of experts, which has more sizes than can be given here"
        raise ModelError(where, what, "Choose a family without experts")
    if "num_key_value_heads" not in known and size.kv_heads not in (None, size.heads):
        what = f"its heads have keys and values of their own, and kv_heads is {size.kv_heads}"
        raise ModelError(where, what, "Leave kv_heads out")
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.feed_forward,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads or size.heads,
        "head_dim": size.head_width,
        "max_position_embeddings": size.context,
        "query_pre_attn_scalar": size.head_width,  # Gemma: attention is scaled by its root
        "attention_multiplier": size.head_width**-0.5,  # Granite: attention is scaled by it
    }
    if "layer_types" not in known:  # where windows and layers take turns they are the family's nature
        values["sliding_window"] = None
    try:
        make: Any = kind
        return cast(
            PreTrainedConfig,
            make(
                **{name: value for name, value in values.items() if name in known},
                tie_word_embeddings=size.tied,
                **(ends or {}),
                dtype="float32",
            ),
        )
    except Exception as error:  # of the config's own checks
        raise _cannot_be_made(where, error) from error


def _family(name: str) -> type[PreTrainedConfig]:
    """The config of the causal language models of that family."""
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return CONFIG_MAPPING[name]
    near = difflib.get_close_matches(name, [kind.model_type for kind in MODEL_FOR_CAUSAL_LM_MAPPING], n=1, cutoff=0.5)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    raise ModelError(
        f"family: {name}",
        f"transformers knows no causal language models of that name{meant}",
        "Write a model_type, as it stands in a config.json: llama, mistral, qwen3, ...",
    )


@torch.no_grad()
def _wrong_answers(model: PreTrainedModel) -> str:
    """What no causal language model does, in words; empty where all is well."""
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    rows: int = model.config.get_text_config().vocab_size
    ids_L = (torch.arange(8, device=model.device) * 7919) % rows
    other_L = ids_L.clone()
    other_L[-1] = (ids_L[-1] + 1) % rows
    logits_LV, other_LV = (cast(Any, model)(input_ids=ids[None], use_cache=False).logits[0] for ids in (ids_L, other_L))
    model.train(training)
    if logits_LV.shape != (8, rows) or not torch.isfinite(logits_LV).all():
        return "what it makes does not answer every token with finite numbers, one for each token of the vocabulary"
    if (logits_LV[:-1] - other_LV[:-1]).abs().max() > 1e-4 * logits_LV.abs().max():
        return "it reads tokens before their time: what it says of a token depends on those behind it"
    return ""


def _cannot_be_made(where: str, error: Exception) -> ModelError:
    what = f"no model of this size can be made of it: {_first_line(error)}"
    return ModelError(where, what, "Change the size, or the family")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# Of chosen layers.


def which_layers(layers: int | Sequence[int], total: int, where: str) -> tuple[int, ...]:
    """The layers that are kept, counted from 1. A number stands for so many at even distances, the first and the last
    among them: of twelve, six are 1, 3, 5, 8, 10, 12, which DistilBERT began with (Sanh et al. 2019). One is the first.

    ModelError where there are not so many.
    """
    if isinstance(layers, int):
        if layers > total:
            what = f"the model has {total} layers, and {layers} are asked for"
            raise ModelError(where, what, f"Ask for {total} at most")
        gaps = max(1, layers - 1)
        return tuple(
            1 + (2 * place * (total - 1) + gaps) // (2 * gaps) for place in range(layers)
        )  # rounded, halves up
    beyond = [layer for layer in layers if not 1 <= layer <= total]
    if beyond:
        what = f"the model has {total} layers, 1 to {total}, and none with the number {beyond[0]}"
        raise ModelError(where, what, "Name layers that it has")
    return tuple(layers)


def keep_layers(model: PreTrainedModel, kept: Sequence[int], where: str) -> None:
    """Take all other layers out of the model, and out of its config. `kept`: ascending, counted from 1.

    Each layer that stays computes what it computed before, and so does all around them; ModelError, and the model as it
    was, where the family's code would make another model of these weights and that config.
    """
    layers = _layers(model, where)
    shared = getattr(model.config.get_text_config(), "num_kv_shared_layers", 0)
    if shared and len(kept) < len(layers):
        what = f"its last {shared} layers read keys and values of layers before them, so that none can be left out"
        raise ModelError(where, what, "Keep all layers, or choose another model")
    numbers = dict(zip((layer - 1 for layer in kept), range(len(kept)), strict=True))  # in code they count from 0
    anew = _rebuilt(model, numbers, where)
    for (old, new), other in zip(numbers.items(), _layers(anew, where), strict=True):
        if wrong := _unlike(layers[old], other, old, new):
            what = f"layer {old + 1} would be another as layer {new + 1}: {wrong}"
            raise ModelError(where, what, "Keep other layers, or choose another model")
    before = list(layers)
    _hold(layers, [before[number] for number in numbers])
    if wrong := _other_weight(model, anew):
        _hold(layers, before)
        what = f"layers cannot be taken out of it alone: {wrong} would have to change as well"
        raise ModelError(where, what, "Choose another model")
    for module, other in zip(layers.modules(), _layers(anew, where).modules(), strict=True):
        for attribute, value in _plain(other).items():
            setattr(module, attribute, value)
    renumber(model.config.get_text_config(), numbers)


def _rebuilt(model: PreTrainedModel, numbers: Mapping[int, int], where: str) -> PreTrainedModel:
    """What the family's code makes of the config with those layers alone, read as from a disk; without weights."""
    config = copy.deepcopy(model.config)
    try:
        renumber(config.get_text_config(), numbers)
        with torch.device("meta"):
            return cast(PreTrainedModel, cast(Any, type(model))(type(config).from_dict(config.to_dict())))
    except Exception as error:  # of the config's own checks, or of a family that wants layers at certain places
        kept = ", ".join(str(number + 1) for number in numbers)
        what = f"its family cannot be built of layers {kept} alone: {_first_line(error)}"
        raise ModelError(where, what, "Keep other layers") from error


def renumber(config: PreTrainedConfig, numbers: Mapping[int, int]) -> None:
    """What a config says of its layers, for those that stay; `numbers`: what each is called from now on."""
    total = config.num_hidden_layers
    if (step := getattr(config, "decoder_sparse_step", 1)) > 1:  # every so-manieth has experts: the others by name
        plain = {layer for layer in range(total) if (layer + 1) % step}
        config.mlp_only_layers = sorted(plain.union(config.mlp_only_layers))
        config.decoder_sparse_step = 1
    for name, value in list(vars(config).items()):
        if name in PREFIXES and value is not None:
            setattr(config, name, sum(layer < value for layer in numbers))
        elif not isinstance(value, list) or name in NO_LAYERS or name.endswith("_token_id"):
            continue
        elif name in WHICH:
            setattr(config, name, [numbers[layer] for layer in value if layer in numbers])
        elif len(value) == total:
            setattr(config, name, [value[layer] for layer in numbers])
    config.num_hidden_layers = len(numbers)


def _layers(model: PreTrainedModel, where: str) -> nn.ModuleList:
    found = layer_list(model)
    if found is None:
        what = "its layers cannot be chosen from: there is no list of them in it"
        raise ModelError(where, what, "Choose another model")
    return found


def _hold(layers: nn.ModuleList, held: Sequence[nn.Module]) -> None:
    """Have a list hold these modules, and no others."""
    del layers[:]
    layers.extend(held)


def _unlike(layer: nn.Module, other: nn.Module, old: int, new: int) -> str:
    """How two layers differ besides their weights, in words: in their parts, or in what these keep of the config. A
    number that is the layer's own in each is no difference."""
    parts, others = dict(layer.named_modules()), dict(other.named_modules())
    for name in {**parts, **others}:
        if type(parts.get(name)) is not type(others.get(name)):
            return f"{name} is made otherwise"
        kept = _plain(others[name])
        for attribute, value in _plain(parts[name]).items():
            if value != kept.get(attribute) and (value, kept.get(attribute)) != (old, new):
                return f"{name + '.' if name else ''}{attribute} is {value}, and would be {kept.get(attribute)}"
    return ""


def _other_weight(model: PreTrainedModel, other: PreTrainedModel) -> str:
    """The first weight that only one of them has, or has in another shape; empty where there is none."""
    ours, theirs = ({name: tensor.shape for name, tensor in one.state_dict().items()} for one in (model, other))
    return next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), "")


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a module keeps of its config: numbers and words."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None) and name != "training" and not name.startswith("_")
    }
