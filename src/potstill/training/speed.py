"""How fast training goes against what the hardware could do: floating point operations of a row, and the measured peak.

Operations are those of the mathematics (a multiplication and an addition are two), so computing activations a second
time, padding and the reference's pass do not make training look busier. Attention is left out, as is usual.
"""

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.training.batch import Item

SIDE = 2048
REPEATS = 4


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, measured: the best of a few."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(REPEATS):
        started = time.perf_counter()
        (a @ b).sum().item()  # waits for the device
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - started))
    return best


def operations(model: PreTrainedModel) -> Callable[[Item], float]:
    """Operations of one row's forward and backward: the body over every token, the head over the scored ones.

    A weight costs two a token forward, two for the gradient of what it reads, and two for its own where it is trained.
    Of a mixture's experts those count that a token is routed to.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings = model.get_input_embeddings()
    config = model.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", 1) / experts if experts else 1.0
    skipped = {id(p) for layer in (head, embeddings) for p in layer.parameters()}
    body = sum(
        _each(p) * (used if ".experts." in name else 1.0)
        for name, p in model.named_parameters()
        if id(p) not in skipped and p.ndim > 1
    )
    top = sum(_each(p) for p in head.parameters() if p.ndim > 1)
    return lambda item: body * item.tokens + top * item.scored


def _each(weight: nn.Parameter) -> float:
    return weight.numel() * (6.0 if weight.requires_grad else 4.0)
