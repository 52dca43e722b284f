"""What a model is made of, before its weights are at hand: from its folder, the Hub's cache, or a table of well-known
ones. Architecture alone: numbers of layers, widths, heads, tokens.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from potstill.errors import ModelError
from potstill.sources import LocalModel
from potstill.validation import nearest


class Shape(NamedTuple):
    """A config in short; what is not said is the family's default."""

    family: str
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    more: dict[str, Any] = {}  # noqa: RUF012  never written to


TIED: dict[str, Any] = {"tie_word_embeddings": True}


def _head(width: int, *, tied: bool = False) -> dict[str, Any]:
    return {"head_dim": width, **(TIED if tied else {})}


# The numbers are those of each model's config.json on the Hugging Face Hub; a test compares the parameters that they
# make with those that the models' cards and papers state.
SHAPES: dict[str, Shape] = {
    "mistral-7b-v0.1": Shape("mistral", 4096, 14336, 32, 32, 8, 32000),
    "mistral-7b-v0.3": Shape("mistral", 4096, 14336, 32, 32, 8, 32768, {"sliding_window": None}),
    "mixtral-8x7b-v0.1": Shape("mixtral", 4096, 14336, 32, 32, 8, 32000, {"sliding_window": None}),
    "llama-2-7b": Shape("llama", 4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": Shape("llama", 5120, 13824, 40, 40, 40, 32000),
    "llama-2-70b": Shape("llama", 8192, 28672, 80, 64, 8, 32000),
    "llama-3-8b": Shape("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-3-70b": Shape("llama", 8192, 28672, 80, 64, 8, 128256),
    "llama-3.2-1b": Shape("llama", 2048, 8192, 16, 32, 8, 128256, _head(64, tied=True)),
    "llama-3.2-3b": Shape("llama", 3072, 8192, 28, 24, 8, 128256, _head(128, tied=True)),
    "tinyllama-1.1b": Shape("llama", 2048, 5632, 22, 32, 4, 32000),
    "smollm2-135m": Shape("llama", 576, 1536, 30, 9, 3, 49152, TIED),
    "smollm2-360m": Shape("llama", 960, 2560, 32, 15, 5, 49152, TIED),
    "smollm2-1.7b": Shape("llama", 2048, 8192, 24, 32, 32, 49152, TIED),
    "qwen2.5-0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 151936, TIED),
    "qwen2.5-1.5b": Shape("qwen2", 1536, 8960, 28, 12, 2, 151936, TIED),
    "qwen2.5-3b": Shape("qwen2", 2048, 11008, 36, 16, 2, 151936, TIED),
    "qwen2.5-7b": Shape("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-14b": Shape("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "qwen2.5-32b": Shape("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "qwen2.5-72b": Shape("qwen2", 8192, 29568, 80, 64, 8, 152064),
    "qwen3-0.6b": Shape("qwen3", 1024, 3072, 28, 16, 8, 151936, _head(128, tied=True)),
    "qwen3-1.7b": Shape("qwen3", 2048, 6144, 28, 16, 8, 151936, _head(128, tied=True)),
    "qwen3-4b": Shape("qwen3", 2560, 9728, 36, 32, 8, 151936, _head(128, tied=True)),
    "qwen3-8b": Shape("qwen3", 4096, 12288, 36, 32, 8, 151936, _head(128)),
    "qwen3-14b": Shape("qwen3", 5120, 17408, 40, 40, 8, 151936, _head(128)),
    "qwen3-32b": Shape("qwen3", 5120, 25600, 64, 64, 8, 151936, _head(128)),
    "gemma-2b": Shape("gemma", 2048, 16384, 18, 8, 1, 256000, _head(256, tied=True)),
    "gemma-7b": Shape("gemma", 3072, 24576, 28, 16, 16, 256000, _head(256, tied=True)),
    "gemma-2-2b": Shape("gemma2", 2304, 9216, 26, 8, 4, 256000, _head(256, tied=True)),
    "gemma-2-9b": Shape("gemma2", 3584, 14336, 42, 16, 8, 256000, _head(256, tied=True)),
    "gemma-3-1b": Shape("gemma3_text", 1152, 6912, 26, 4, 1, 262144, {**_head(256, tied=True), "sliding_window": 512}),
    "stablelm-2-1_6b": Shape("stablelm", 2048, 5632, 24, 32, 32, 100352, {"use_qkv_bias": True}),
    "phi-3-mini-4k": Shape("phi3", 3072, 8192, 32, 32, 32, 32064, {"sliding_window": 2047, "pad_token_id": 32000}),
}
"""By a part of the name that all models of that shape have: of several the longest counts."""
SAME = {
    "zephyr-7b": "mistral-7b-v0.1",
    "mistral-7b-sft": "mistral-7b-v0.1",
    "mistral-7b-instruct-v0.1": "mistral-7b-v0.1",
    "mistral-7b-instruct-v0.2": "mistral-7b-v0.1",
    "mistral-7b-instruct-v0.3": "mistral-7b-v0.3",
    "mixtral-8x7b-instruct": "mixtral-8x7b-v0.1",
    "llama-3.1-8b": "llama-3-8b",
    "llama-3.1-70b": "llama-3-70b",
    "llama-3.3-70b": "llama-3-70b",
    "stablelm-2-zephyr-1_6b": "stablelm-2-1_6b",
}


def config_of(spec: LocalModel, name: str) -> tuple[PreTrainedConfig, str]:
    """A model's config, and where it was found: nothing is fetched. ModelError where nobody knows it."""
    folder = Path(spec.path)
    if folder.is_dir():
        return _read(folder, name), "config.json"
    cached = None
    if not folder.is_absolute() and spec.path.count("/") <= 1:
        cached = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision)
    if isinstance(cached, str):
        return _read(Path(cached).parent, name), "the Hub's cache"
    if found := known_shape(spec.path):
        return make(SHAPES[found]), f"potstill's table ({found})"
    near = nearest(spec.path.rpartition("/")[2].lower(), [*SHAPES, *SAME])
    raise ModelError(
        f"model {name}",
        f"what {spec.path} is made of is not known here{near}: it is no folder, not in the Hub's cache and not in the "
        "table of well-known models",
        f"Name a folder that holds its config.json as path, or fetch it once: hf download {spec.path} config.json",
    )


def known_shape(path: str) -> str:
    """Which shape of the table a name on the Hub has; "" where none."""
    last = path.rpartition("/")[2].lower().replace("meta-", "")
    names = sorted((name for name in (*SHAPES, *SAME) if _begins(last, name)), key=len)
    return SAME.get(names[-1], names[-1]) if names else ""


def _begins(last: str, name: str) -> bool:
    """Whether a model's name begins so, and goes on with another word at most: llama-3-8b is not llama-3-80b."""
    return last == name or (last.startswith(name) and not last[len(name)].isalnum())


def make(shape: Shape) -> PreTrainedConfig:
    """As transformers has it, its weights stored in bfloat16."""
    sizes: dict[str, Any] = {
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 1 << 17,
        "tie_word_embeddings": False,
    }
    kind: Any = CONFIG_MAPPING[shape.family]
    made: PreTrainedConfig = kind(**{**sizes, **shape.more})
    made.dtype = torch.bfloat16
    return made


def _read(folder: Path, name: str) -> PreTrainedConfig:
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # OSError, ValueError, KeyError of a config that is none
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        what = f"its config.json in {folder} cannot be read: {first}"
        raise ModelError(f"model {name}", what, "Give a folder in Hugging Face layout") from error
    return found
