"""Which optimizer moves which parameter."""

from typing import Literal

import torch

from potstill.training.scoring import Scorer

OptimizerName = Literal["adamw", "muon"]
STATES: dict[OptimizerName, int] = {"adamw": 2, "muon": 1}
"""How many tensors of a weight's size an optimizer keeps: AdamW two moments; Muon one, of the body's matrices."""


def make_optimizers(
    scorer: Scorer, name: OptimizerName, learning_rate: float, weight_decay: float, beta2: float
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the body's matrices beside it. Decay, where there is any, falls on matrices only."""
    trained = [(name, p) for name, p in scorer.named_parameters() if p.requires_grad]
    body = {name for name, p in trained if p.ndim == 2 and ".layers." in name} if name == "muon" else set()
    rest = [p for name, p in trained if name not in body]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, beta2),
        fused=True,
    )
    if not body:
        return [adamw]
    muon = torch.optim.Muon(
        [p for name, p in trained if name in body],
        lr=learning_rate,
        weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]
