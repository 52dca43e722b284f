"""What a step must compute, what this machine could compute at best, and where the rest of the time goes.

A product of (m, k) and (k, n) counts 2mkn FLOPs. The backward pass counts twice the forward one; what is computed twice
to save memory counts once.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rows import Architecture, body_tokens, scored_tokens

PEAK_SHAPE = (4096, 4096, 4096)
"""m, k, n of the product that is timed for the peak: large enough for any machine."""


def sft_flops(size: Architecture, row: Mapping[str, Any]) -> float:
    """Forward and backward over one conversation: the body on every token, the head on those that are scored."""
    return 3 * _forward(size, [body_tokens(row)], body_tokens(row), scored_tokens(row))


def dpo_flops(size: Architecture, row: Mapping[str, Any]) -> float:
    """The least for one pair: its prompt once, policy forward and backward, reference forward."""
    prompt = len(row["prompt"])
    paths = [prompt + len(row["chosen"]), prompt + len(row["rejected"])]
    twice = _attention(size, prompt)  # attention within the prompt is shared as well
    return 4 * (_forward(size, paths, body_tokens(row), scored_tokens(row)) - twice)


def teacher_flops(size: Architecture, row: Mapping[str, Any]) -> float:
    """Of a teacher that reads a conversation and speaks at each token that is scored."""
    return _forward(size, [body_tokens(row)], body_tokens(row), scored_tokens(row))


def _forward(size: Architecture, paths: Sequence[int], tokens: int, scored: int) -> float:
    dense = 2.0 * size.body_weights * tokens + 2.0 * size.vocabulary * size.width * scored
    return dense + sum(_attention(size, length) for length in paths)


def _attention(size: Architecture, length: int) -> float:
    """Scores and weighted values of causal attention: each token sees half of the others on average."""
    return 2.0 * size.layers * size.heads * size.head_width * length * length


def matrix_peak(job: Mapping[str, Any]) -> dict[str, Any]:
    """FLOP per second of one large product, in bfloat16 and in float32: the best of five, so that it is a peak."""
    import torch

    m, k, n = (256, 256, 256) if job.get("tiny") else PEAK_SHAPE
    device = job["device"]
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
        best = min(_seconds(a, b) for _ in range(6))  # the first warms up
        found[str(dtype).removeprefix("torch.")] = 2 * m * k * n / best
    return {"flops_per_second": found, "shape": [m, k, n]}


def _seconds(a: Any, b: Any) -> float:
    """Of one product, in a run of them that is long enough to time."""
    import torch

    repeats = 20 if a.device.type == "cuda" else 1
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        torch.nn.functional.linear(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


# In this order: the first that fits names the group.
GROUPS = (
    ("optimizer", ("adam", "foreach", "clip_grad", "linalg_vector_norm")),
    ("attention", ("scaled_dot_product", "flash", "flex", "bmm", "baddbmm", "_softmax")),
    ("head's softmax", ("log_softmax", "nll_loss", "cross_entropy")),
    ("products", ("mm", "addmm", "matmul", "linear", "gemm")),
    (
        "moving and casting",
        ("copy_", "_to_copy", "scatter", "cat", "index", "clone", "contiguous", "fill_", "zero_", "embedding"),
    ),
    ("elementwise", ("add", "mul", "silu", "rsqrt", "pow", "mean", "sum", "div", "neg", "exp", "sub", "sigmoid")),
)


def grouped(profiler: Any, vocabulary: int) -> dict[str, Any]:
    """Each group's share of the operators' own time, and the ten operators that took the most.

    Products with the vocabulary among their shapes are the head's.
    """
    cuda = any(event.self_device_time_total for event in profiler.key_averages())
    shares: dict[str, float] = {}
    operators: dict[str, float] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        name = group_of(event.key, event.input_shapes, vocabulary)
        shares[name] = shares.get(name, 0.0) + seconds
        operators[event.key] = operators.get(event.key, 0.0) + seconds
    total = sum(shares.values()) or 1.0
    top = sorted(operators.items(), key=lambda item: -item[1])[:10]
    return {
        "operator_seconds": round(total, 3),
        "groups": {name: round(value / total, 4) for name, value in sorted(shares.items(), key=lambda i: -i[1])},
        "operators": {name: round(value / total, 4) for name, value in top},
    }


def group_of(operator: str, shapes: Any, vocabulary: int) -> str:
    """The group that an operator belongs to."""
    name = operator.lower()
    for group, marks in GROUPS:
        if any(mark in name for mark in marks) and not (group == "attention" and "log_softmax" in name):
            return "head's products" if group == "products" and f"{vocabulary}" in str(shapes) else group
    return "other"
