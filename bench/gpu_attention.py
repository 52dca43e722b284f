"""Do the CUDA attention kernels compute what the model's own forward does? Log-probabilities and gradients.

    python bench/gpu_attention.py            on a GPU, minutes
    python bench/gpu_attention.py --device cpu   rows alone, to see that this script runs

The truth is the model's own forward in float32, one sequence a call. In float32 ours must be within 0.1% of it. In
bfloat16 (weights in bfloat16, or products by autocast) ours may be no further from it than the model's own forward in
bfloat16 is, but for half as much again. The last line printed is one JSON object; the status is 1 where any differs.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig

from potstill.training.attention import choose_kernel
from potstill.training.batch import Item, collate
from potstill.training.paths import Kernel
from potstill.training.scoring import Scorer

EXACT, SLACK = 1e-3, 1.5
WINDOW = 17  # small and odd, so that a window of one more or less shows through the rounding of bfloat16
KERNELS: tuple[Kernel, ...] = ("varlen", "flex", "rows")

Found = tuple[Tensor, dict[str, Tensor]]


def shapes(small: bool) -> dict[str, Any]:
    """Grouped heads, windows, soft caps, alternating layers, and a head as wide as FlashAttention takes."""
    size: dict[str, Any] = {
        "vocab_size": 1000 if small else 8000,
        "hidden_size": 128 if small else 1024,
        "intermediate_size": 256 if small else 2816,
        "num_hidden_layers": 2 if small else 8,
        "num_attention_heads": 4 if small else 16,
        "num_key_value_heads": 2 if small else 4,
        "head_dim": 32 if small else 64,
        "max_position_embeddings": 4096,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    wide = size | {"head_dim": 64 if small else 256, "num_attention_heads": 4}
    layers = ["sliding_attention", "full_attention"] * (size["num_hidden_layers"] // 2)
    return {
        "llama": LlamaConfig(**size),
        "mistral, window": MistralConfig(**size, sliding_window=WINDOW),
        "gemma2, soft cap and windows": Gemma2Config(**size, sliding_window=WINDOW, layer_types=layers),
        "gemma3, windows": Gemma3TextConfig(**wide, sliding_window=WINDOW, layer_types=layers),
    }


def items(vocabulary: int, longest: int) -> list[Item]:
    """Pairs, a prompt with four answers, lone sequences; lengths on both sides of blocks and windows."""
    draw = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return draw.integers(0, vocabulary, max(2, length), dtype=np.int32)

    rows = [(0.3, 0.5, 0.4), (0.13, 0.01, 0.87), (0.0, 1.0), (0.25, 0.1, 0.1, 0.2, 0.02), (0.0, 0.06)]
    found = []
    for number, (prompt, *answers) in enumerate(rows):
        branches = [ids(int(share * longest)) for share in answers]
        learn = [np.ones(len(branch), dtype=np.bool_) for branch in branches]
        start = ids(int(prompt * longest)) if prompt else np.zeros(0, dtype=np.int32)
        for mask in learn:
            mask[0] = bool(prompt)
        found.append(Item(str(number), start, tuple(zip(branches, learn, strict=True))))
    return found


def own_logps(model: Any, rows: Sequence[Item], autocast: bool) -> Tensor:
    """By the model's own forward, one sequence a call."""
    logps = []
    for item in rows:
        for ids_L, learn_L in item.answers:
            whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64)).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
                logits_LV = model(input_ids=whole[None], use_cache=False).logits[0]
            at = torch.from_numpy(np.flatnonzero(learn_L)).to(model.device) + len(item.prompt_ids)
            logps.append(logits_LV.float().log_softmax(-1)[at - 1, whole[at]])
    return torch.cat(logps)


def with_gradients(model: Any, score: Callable[[], Tensor]) -> Found:
    model.zero_grad(set_to_none=True)
    logp_N = score()
    (logp_N * torch.linspace(1, 2, len(logp_N), device=logp_N.device)).mean().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logp_N.detach().float(), gradients


def errors(found: Found, truth: Found) -> tuple[float, float]:
    """Relative, of the log-probabilities and of all gradients together."""
    logp = float((found[0] - truth[0]).norm() / truth[0].norm())
    off = sum(float((found[1][name] - theirs).norm()) ** 2 for name, theirs in truth[1].items())
    return logp, (off / sum(float(theirs.norm()) ** 2 for theirs in truth[1].values())) ** 0.5


def can(kernel: Kernel, device: str, dtype: torch.dtype, config: Any) -> bool:
    """Whether the kernel is one that this model could be given."""
    cap = getattr(config, "attn_logit_softcapping", None)
    if device != "cuda" or kernel == "rows":
        return kernel == "rows"
    return kernel == "flex" or choose_kernel(device, dtype, (config.head_dim,) * 2, None, cap, 0.0) == "varlen"


def make(config: Any, device: str) -> Any:
    """Random weights that bfloat16 holds exactly; attention is sharp and matters, so that a wrong one shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name and parameter.ndim == 2:
                parameter.mul_(4)
    return model.to(torch.bfloat16).float().to(device).eval()


def compare(name: str, config: Any, device: str, longest: int) -> Iterator[dict[str, Any]]:
    """One model in every precision with every kernel."""
    model = make(config, device)
    rows = items(config.vocab_size, longest)
    truth = with_gradients(model, partial(own_logps, model, rows, autocast=False))
    for precision in ("float32", "bfloat16 products", "bfloat16 weights"):
        if precision == "bfloat16 weights":
            model = model.to(torch.bfloat16)
        autocast = precision == "bfloat16 products"
        own = errors(with_gradients(model, partial(own_logps, model, rows, autocast)), truth)
        limits = [EXACT if precision == "float32" else SLACK * error + EXACT / 10 for error in own]
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        for kernel in (kernel for kernel in KERNELS if can(kernel, device, dtype, config)):
            scorer = Scorer(model, "shared", torch.bfloat16 if autocast else torch.float32)
            scorer.kernel = kernel
            ours = errors(with_gradients(model, partial(scorer, collate(rows).to(torch.device(device)))), truth)
            scorer.release()
            yield {
                "model": name,
                "precision": precision,
                "kernel": kernel,
                "logp_error": ours[0],
                "gradient_error": ours[1],
                "own_logp_error": own[0],
                "own_gradient_error": own[1],
                "right": all(error <= limit for error, limit in zip(ours, limits, strict=True)),
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("this machine has no CUDA device; --device cpu tries the script with rows alone\n")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = (True,) if device == "cpu" else (True, False)
    results = []
    for small in sizes:
        for name, config in shapes(small).items():
            for result in compare(name, config, device, 150 if device == "cpu" else 1500):
                results.append({"size": "small" if small else "medium", **result})
                sys.stderr.write(json.dumps(results[-1]) + "\n")
    right = all(result["right"] for result in results)
    row = {
        "question": "do the CUDA attention kernels compute what the model's own forward does?",
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "right": right,
        "cases": results,
    }
    sys.stdout.write(json.dumps(row) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
