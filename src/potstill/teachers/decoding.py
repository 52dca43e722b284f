"""Answers from a local model: batches of prompts, one token a step, every row with randomness of its own.

Suffixes: R rows of the batch, P prompt length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from potstill.tokenization import Ids


@dataclass(frozen=True)
class Sampling:
    """One row to decode."""

    prompt_ids: Ids
    limit: int
    """Tokens at most, at least 1."""
    temperature: float
    top_p: float
    top_k: int
    seed: int


@torch.inference_mode()
def decode(model: PreTrainedModel, rows: Sequence[Sampling], stop_ids: Sequence[int]) -> Iterator[list[int]]:
    """Each step's new token for every row of the batch; -1 where a row has ended before.

    A stop token is given out as a row's last. Rows do not depend on each other: prompts are padded on the left and
    masked, and each row draws from its own seed.
    """
    device = model.device
    ids_RP, mask_RP = _left_padded(rows)
    mask = mask_RP.to(device)
    cache = DynamicCache(config=model.config)
    chooser = _Chooser(rows, device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    limits_R = torch.tensor([row.limit for row in rows], device=device)
    index_R = torch.arange(len(rows), device=device)  # which row of the batch each row of the cache is
    inputs, positions = ids_RP.to(device), (mask.cumsum(1) - 1).clamp_min(0)
    for step in range(max(row.limit for row in rows)):
        output: Any = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens_R = chooser(output.logits[:, -1], index_R, step)
        given = torch.full((len(rows),), -1, device=device)
        given[index_R] = tokens_R
        yield given.tolist()
        alive_R = ~torch.isin(tokens_R, stops) & (step + 1 < limits_R[index_R])
        if not alive_R.any():
            return
        keep = alive_R.nonzero()[:, 0]
        if len(keep) < len(index_R):
            cache.batch_select_indices(keep)
        index_R, mask = index_R[keep], torch.cat([mask[keep], mask.new_ones(len(keep), 1)], dim=1)
        inputs, positions = tokens_R[keep, None], positions[keep, -1:] + 1


def _left_padded(rows: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    longest = max(len(row.prompt_ids) for row in rows)
    ids_RP = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask_RP = torch.zeros((len(rows), longest), dtype=torch.int64)
    for index, row in enumerate(rows):
        start = longest - len(row.prompt_ids)
        ids_RP[index, start:] = torch.from_numpy(row.prompt_ids)
        mask_RP[index, start:] = 1
    return ids_RP, mask_RP


class _Chooser:
    """Greedy where the temperature is 0; otherwise inverts the distribution at a number drawn from the row's seed."""

    def __init__(self, rows: Sequence[Sampling], device: torch.device) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self.greedy = all(row.temperature == 0 for row in rows)
        self.temperature_R1 = column([row.temperature for row in rows])
        self.top_p_R1 = column([row.top_p for row in rows]).double()
        self.top_k_R1 = column([row.top_k if row.top_k > 0 else 2**31 for row in rows])
        if not self.greedy:
            steps = max(row.limit for row in rows)
            draws = [torch.rand(steps, generator=torch.Generator().manual_seed(row.seed)) for row in rows]
            self.uniform_RS = torch.stack(draws).double().to(device)

    def __call__(self, logits_RV: Tensor, index_R: Tensor, step: int) -> Tensor:
        best_R = logits_RV.argmax(-1)
        if self.greedy:
            return best_R
        temperature_R1 = self.temperature_R1[index_R]
        scaled_RV = logits_RV.float() / temperature_R1.clamp_min(1e-6)
        p_RV, order_RV = scaled_RV.softmax(-1).double().sort(descending=True, stable=True)
        before_RV = p_RV.cumsum(-1) - p_RV
        rank_V = torch.arange(p_RV.shape[1], device=p_RV.device)
        kept_RV = (before_RV < self.top_p_R1[index_R]) & (rank_V < self.top_k_R1[index_R])
        kept_RV[:, 0] = True
        mass_RV = (p_RV * kept_RV).cumsum(-1)
        goal_R1 = self.uniform_RS[index_R, step, None] * mass_RV[:, -1:]
        place_R1 = torch.searchsorted(mass_RV, goal_R1, right=True)
        place_R1 = torch.minimum(place_R1, kept_RV.sum(-1, keepdim=True) - 1)
        return torch.where(temperature_R1[:, 0] == 0, best_R, order_RV.gather(1, place_R1)[:, 0])
