"""A GGUF file in llama.cpp against its model in transformers: tokens of texts, and the likeliest tokens."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.tokens.tokenization import Ids, backend_of
from potstill.training.models import load_model, load_tokenizer, stop_ids

# Suffixes: N answered tokens, V vocabulary.

ANSWER = 32
"""Tokens of each answer that are compared."""


@dataclass(frozen=True)
class Agreement:
    """Of a file with its model, over the answers that the model gives in float32, each token taken as the likeliest."""

    prompts: int
    tokens: int
    same: int
    """At so many of these tokens llama.cpp finds the same one the likeliest: where all are the same, so are answers."""
    kl: float
    """The mean over tokens of KL(transformers, llama.cpp) of the next token's distribution, in nats."""
    texts: int
    """So many texts became the same tokens in both."""

    def told(self) -> str:
        """One sentence."""
        share = self.same / self.tokens if self.tokens else 0.0
        return (
            f"llama.cpp finds the same token the likeliest as transformers does in float32 at {share:.1%} of "
            f"{self.tokens:,} tokens, answers to {self.prompts} prompts; mean KL {self.kl:.2g} nats a token; "
            f"{self.texts:,} texts are the same tokens."
        )


def has_llama() -> bool:
    """Whether llama-cpp-python is there to measure with."""
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # a library that does not fit this machine
        return False
    return True


def measure(folder: Path, file: Path, prompts: Sequence[Ids], texts: Sequence[str]) -> Agreement:
    """Both over the same prompts. ModelError where a text becomes other tokens in llama.cpp."""
    import llama_cpp

    source = Model(folder.name, LocalModel(path=str(folder)))
    tokenizer, cpu = load_tokenizer(source), torch.device("cpu")
    model: Any = load_model(source, tokenizer, cpu).eval()  # type: ignore[no-untyped-call]
    ends = set(stop_ids(model, tokenizer))
    room = max((len(prompt) for prompt in prompts), default=1) + ANSWER + 1
    read = llama_cpp.Llama(
        str(file), n_ctx=room, n_batch=room, n_ubatch=room, logits_all=True, verbose=False, n_gpu_layers=0,
        type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    try:
        _check_texts(read, backend_of(tokenizer), texts, file)
        kl, same, tokens = 0.0, 0, 0
        for prompt in prompts:
            p_NV, answer_N = _answered(model, prompt, ends)
            ids = [*map(int, prompt), *answer_N[:-1]]
            read.reset()
            read.eval(ids)
            logits = torch.from_numpy(np.array(read.scores[len(prompt) - 1 : len(ids)], dtype=np.float64))
            q_NV = logits.log_softmax(-1)
            kl += float((p_NV.exp() * (p_NV - q_NV)).sum())
            same += int((q_NV.argmax(1) == torch.tensor(answer_N)).sum())
            tokens += len(answer_N)
    finally:
        read.close()
    return Agreement(len(prompts), tokens, same, kl / max(tokens, 1), len(texts))


def _check_texts(read: Any, backend: Any, texts: Sequence[str], file: Path) -> None:
    composes = type(backend.normalizer).__name__ == "NFC"  # the card says that llama.cpp does not
    for given in texts:
        text = unicodedata.normalize("NFC", given) if composes else given
        found = read.tokenize(text.encode(), add_bos=False, special=True) if text else []
        if found != (expected := backend.encode(text, add_special_tokens=False).ids):
            what = f"llama.cpp reads {text[:80]!r} as {found[:8]}, and transformers as {expected[:8]}"
            raise ModelError(str(file), what, "Export it with --format hub, and tell potstill's makers of this text")


@torch.inference_mode()
def _answered(model: Any, prompt: Ids, ends: set[int]) -> tuple[torch.Tensor, list[int]]:
    """The log-probabilities before each token of the answer, and the answer, the likeliest token at every step."""
    given: NDArray[np.int64] = prompt.astype(np.int64)
    ids, cache, rows, answer = torch.from_numpy(given)[None], None, [], []
    for _ in range(ANSWER):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits_V = out.logits[0, -1].double()
        rows.append(logits_V.log_softmax(-1))
        answer.append(int(logits_V.argmax()))
        if answer[-1] in ends:
            break
        ids, cache = torch.tensor([[answer[-1]]]), out.past_key_values
    return torch.stack(rows), answer
