"""Models as llama.cpp knows them: which families, what their files say of them, and how their matrices lie."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from potstill.errors import ModelError
from potstill.shipping.whole import check_tensors

ARCHES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Families, and what llama.cpp calls them."""
REMEDY = "Export it with --format hub, and convert that folder with llama.cpp's convert_hf_to_gguf.py"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Arch:
    """A model's shape in GGUF's words."""

    name: str
    layers: int
    fields: Mapping[str, int | float | str]
    """By their names behind `name.`"""
    heads: int
    kv_heads: int
    rope_factors: Tensor | None = None
    """What each frequency is divided by, where the rotary embedding is stretched as in Llama 3."""
    notes: tuple[str, ...] = ()


def read_arch(config: Any, where: str) -> Arch:
    """What to write of a model with this config. ModelError where potstill does not write its family."""
    family = str(config.model_type)

    def refuse(what: str) -> ModelError:
        return ModelError(where, what, REMEDY)

    if family not in ARCHES:
        raise refuse(f"potstill writes no GGUF of the family {family}; it does of {', '.join(ARCHES)}")
    if config.hidden_act != "silu":
        raise refuse(f"its feed-forward layers use {config.hidden_act}; llama.cpp's {family} uses silu")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields: dict[str, int | float | str] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    factors = _stretched(config, fields, refuse)
    notes: tuple[str, ...] = ()
    if (window := _window(config)) and window < config.max_position_embeddings:
        fields["context_length"] = window
        told = (
            f"Its attention slides over {window:,} tokens, which llama.cpp does not do for {family}: the file allows a "
            f"context of {window:,} tokens, within which the two compute the same."
        )
        notes = (told,)
    layers, heads, kv_heads = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    return Arch(ARCHES[family], layers, fields, heads, kv_heads, factors, notes)


def _window(config: Any) -> int:
    """Over how many tokens some layer's attention slides; 0 where none's does."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return 0
    kinds = getattr(config, "layer_types", None)
    return int(window) if kinds is None or "sliding_attention" in kinds else 0


def _stretched(config: Any, fields: dict[str, int | float | str], refuse: Callable[[str], ModelError]) -> Tensor | None:
    """Notes how positions are stretched. ModelError for ways that potstill does not write."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise refuse("its rotary embedding turns only a part of each head")
    if kind == "linear":
        fields["rope.scaling.type"], fields["rope.scaling.factor"] = "linear", float(rope["factor"])
    elif kind == "llama3":
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        half = torch.arange(0, int(fields["rope.dimension_count"]), 2, dtype=torch.float32)
        plain = 1.0 / (float(rope["rope_theta"]) ** (half / int(fields["rope.dimension_count"])))
        return plain / stretched.float()
    elif kind != "default":
        raise refuse(f"its rotary embedding is stretched by {kind}; potstill writes default, linear and llama3")
    return None


def read_tensors(folder: Path, arch: Arch, names: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in float32 by its name in GGUF, one in memory at a time. `names` gives that of one in the folder.

    A tied head is left out: llama.cpp takes the embeddings.
    """
    for file in sorted(folder.glob("*.safetensors")):
        check_tensors([file])
        with safe_open(str(file), framework="pt") as opened:
            for name in sorted(opened.keys()):
                written = names(name)
                if written is None:
                    raise ModelError(str(file), f"llama.cpp's {arch.name} has no place for the tensor {name}", REMEDY)
                yield written, _laid(name, opened.get_tensor(name).float(), arch)
    if arch.rope_factors is not None:
        yield ROPE_FACTORS, arch.rope_factors


def _laid(name: str, tensor: Tensor, arch: Arch) -> Tensor:
    """llama.cpp's llama turns neighbours of a head, transformers' its halves; the other families' lie alike."""
    heads = {"q_proj": arch.heads, "k_proj": arch.kv_heads}.get(name.split(".")[-2])
    if arch.name != "llama" or heads is None:
        return tensor
    rows = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, rows, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape).contiguous()
