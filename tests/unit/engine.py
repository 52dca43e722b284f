"""Tiny models, tokenizers and rows that the training engine's tests share."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from potstill.records import Message, Role
from potstill.tokens.tokenization import train_tokenizer
from potstill.training.batch import Item, collate
from potstill.training.loop import Settings
from potstill.training.scoring import Scorer

torch.set_num_threads(1)  # other tests run beside these

VOCABULARY = 61
SETTINGS = Settings(
    optimizer="adamw",
    learning_rate=1e-2,
    schedule="linear",
    warmup=0.2,
    weight_decay=0.1,
    beta2=0.99,
    clip=1.0,
    evaluations=3,
    keep="last",
    patience=None,
    micro_tokens=20,
)
"""Of the loop, where a test has no need of others."""
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.1,
    "experts_implementation": "eager",
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [7.0, 9.0],
}
FAMILIES: dict[str, Any] = {
    "mistral": MistralConfig(**SIZE, sliding_window=None),
    "mistral-window": MistralConfig(**SIZE, sliding_window=5),
    "llama-tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE),
    "gemma2": Gemma2Config(**SIZE, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(
        **SIZE, sliding_window=4, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=4
    ),
    "granite": GraniteConfig(**SIZE, logits_scaling=3.0, attention_multiplier=0.3, residual_multiplier=0.7),
    "phi3": Phi3Config(**SIZE, sliding_window=5),
    "phi3-longrope": Phi3Config(**SIZE, rope_parameters=LONGROPE, original_max_position_embeddings=16),
    "gpt-neox": GPTNeoXConfig(**{k: v for k, v in SIZE.items() if k not in ("head_dim", "num_key_value_heads")}),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4, pad_token_id=None),
    "mixtral": MixtralConfig(**SIZE, **EXPERTS, num_local_experts=4, sliding_window=6),
    "qwen3-moe": Qwen3MoeConfig(**SIZE, **EXPERTS, num_experts=4, moe_intermediate_size=12),
    "qwen2-moe-window": Qwen2MoeConfig(
        **SIZE,
        **EXPERTS,
        num_experts=4,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
        sliding_window=5,
        use_sliding_window=True,
        max_window_layers=1,
    ),
}
FALLBACKS = {"bloom": "padded", "qwen2-moe-window": "padded"}
"""The layout of what cannot be shared: attention that is not exchanged, a window that only the mask knows."""


def tiny_model(family: str = "mistral", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model with random weights, large enough that attention matters, the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def random_items(sizes: list[tuple[int, ...]], seed: int = 0) -> list[Item]:
    """One item a tuple: (prompt, answer, answer, ...) lengths. Some answer tokens are not scored."""
    draw = np.random.default_rng(seed)
    items = []
    for number, (prompt, *answers) in enumerate(sizes):
        branches = []
        for length in answers:
            learn_L = draw.random(length) < 0.8
            learn_L[0] = prompt > 0
            learn_L[-1] = True
            branches.append((draw.integers(0, VOCABULARY, length, dtype=np.int32), learn_L))
        items.append(Item(f"row{number}", draw.integers(0, VOCABULARY, prompt, dtype=np.int32), tuple(branches)))
    return items


PAIRS_AND_CHATS = random_items([(7, 5, 9), (0, 11), (3, 4, 4), (6, 8, 2, 5), (0, 6)])

Gradients = dict[str, Tensor]


def gradients_of(model: PreTrainedModel, loss: Callable[[], Tensor]) -> tuple[float, Gradients]:
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weigh(answer: int, index: int) -> float:
    """A weight of its own for every scored token, so that two swapped scores cannot hide."""
    return 1.0 + 0.37 * answer + 0.11 * index


def plain_loss(model: PreTrainedModel, items: Sequence[Item]) -> Tensor:
    """Every answer as a sequence of its own through the model's own forward: what all else must be equal to."""
    total, answer = torch.zeros((), dtype=torch.float64), 0
    for item in items:
        for ids_L, learn_L in item.answers:
            whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64))
            logp_LV = model(input_ids=whole[None], use_cache=False).logits[0].log_softmax(-1)
            for index, at in enumerate(np.flatnonzero(learn_L) + len(item.prompt_ids)):
                total = total + weigh(answer, index) * logp_LV[at - 1, whole[at]]
            answer += 1
    return total


def scorer_loss(scorer: Scorer, items: Sequence[Item], first_answer: int = 0) -> Tensor:
    batch = collate(items)
    counts = [int(learn_L.sum()) for item in items for _, learn_L in item.answers]
    weights = [weigh(first_answer + answer, index) for answer, count in enumerate(counts) for index in range(count)]
    return (scorer(batch) * torch.tensor(weights, dtype=torch.float64)).sum()


def assert_same(ours: tuple[float, Gradients], theirs: tuple[float, Gradients]) -> None:
    """As close as transformers allows: its norms and its eager softmax pass through float32 even in a float64 model."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows a few words."""
    return train_tokenizer(["the cat sat on the mat. hello hello there, what is this? it is a cat.\n"] * 20, 330)


def say(*turns: str, train: bool = True) -> tuple[Message, ...]:
    """Messages from texts such as "user: hello"."""
    messages = []
    for turn in turns:
        role, _, content = turn.partition(": ")
        messages.append(Message(role=_role(role), content=content, train=train))
    return tuple(messages)


def _role(name: str) -> Role:
    assert name in ("system", "user", "assistant", "tool")
    return name  # type: ignore[return-value]
