"""What is kept of a teacher's logits: its largest entries, a random sample of the others, and the entropy of them all.

The sample is systematic (Kitagawa 1996, "Monte Carlo filter and smoother", appendix; Carpenter, Clifford and Fearnhead
1999): one uniform number a position, and points at equal distances from it over the cumulative distribution. Each
entry comes floor(n p) or ceil(n p) times, on average n p: unbiased as independent draws are, and much less spread.

A position costs one softmax and a few passes that only read, block by block of the vocabulary, in slices which a core's
own cache holds; everything else sees the blocks' largest logits and sums, and of the entries only those in the few
blocks that matter. Nothing here waits for a GPU more often than a chunk has parts.

Suffixes: C positions of a chunk, V vocabulary, B blocks of S entries, K listed entries, N candidates for them, D draws,
M distinct entries drawn in the whole chunk, R blocks looked into.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.signal import NO_ENTRY

BLOCK = 64
"""Entries of the vocabulary that are looked at as one."""

SLICE_LOGITS = 1 << 19
"""Logits a thread's softmax works on at once, on a CPU: 2 MiB in float32, for what is read again lies near the core."""


LEAST = 1e-30
"""A block with less probability is never drawn from: near what float32 can hold, exp rounds to 0 or does not."""


@dataclass(frozen=True)
class Taken:
    """What was asked for, of each position of a chunk; the rest is None."""

    entropy_C: Tensor
    """Of the whole distribution at the temperature, in nats; float32, right to some 1e-7 of the largest logit."""
    logp_C: Tensor | None
    """Of the targets at temperature 1, in nats."""
    listed_ids_CK: Tensor | None
    """int64, the largest first and of equal ones the lower id; `NO_ENTRY` where a position has fewer that can come."""
    listed_logp_CK: Tensor | None
    """At the temperature, in nats; -inf where there is no entry."""
    rest_C: Tensor
    """The probability of everything that is not listed, at the temperature; float64. It is summed, not 1 less others:
    a small rest has as many right digits as a large one."""
    drawn_ids_M: Tensor | None
    """int64: of the first position, ascending, then of the second. Never a listed one."""
    counts_M: Tensor | None
    """int64, how often each came: of a position `draws` in all, or none where nothing is left beside the list."""
    sizes_C: Tensor | None
    """int64, how many of M are each position's."""


@torch.no_grad()
def take(
    logits_CV: Tensor,
    *,
    temperature: float = 1.0,
    top: int = 0,
    draws: int = 0,
    uniforms_C: Tensor | None = None,
    targets_C: Tensor | None = None,
) -> Taken:
    """List the `top` largest entries, draw from all others as `uniforms_C` in [0, 1) says, and score targets.

    The logits are float32 (or float64), -inf for what can never come. Each position's answer is its own: the same
    alone or in a chunk. While it draws, listed logits are -inf; at the end they are as before.

    Raises ModelError where a position has no distribution: a logit is NaN or +inf, or none is finite.
    """
    spare = -logits_CV.shape[1] % BLOCK
    chunk_CV = F.pad(logits_CV, (0, spare), value=-torch.inf) if spare else logits_CV.contiguous()
    scan = _scan(chunk_CV, temperature, targets_C is not None)
    ids_CK = logp_CK = None
    drawn: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if top:
        ids_CK, logits_CK = _list(chunk_CV, scan, top)
        logp_CK = (logits_CK - scan.top_C[:, None]) / temperature + scan.log_top_C[:, None]
    logp_C = None
    if targets_C is not None:
        logp_C = chunk_CV.gather(1, targets_C[:, None])[:, 0] - scan.top_C + scan.plain_C
    if draws:
        assert uniforms_C is not None, "draws come of uniform numbers"
        with _hidden(chunk_CV, ids_CK):
            drawn = _draw(chunk_CV, scan, draws, uniforms_C)
    return Taken(scan.entropy_C, logp_C, ids_CK, logp_CK, scan.mass_CB.sum(-1), *drawn)


@contextmanager
def _hidden(chunk_CV: Tensor, ids_CK: Tensor | None) -> Iterator[None]:
    """Within this, listed logits are -inf."""
    if ids_CK is None:
        yield
        return
    starts_C1 = torch.arange(len(ids_CK), device=ids_CK.device)[:, None] * chunk_CV.shape[1]
    place_L = (starts_C1 + ids_CK)[ids_CK != NO_ENTRY]
    logits = chunk_CV.view(-1)
    before_L = logits[place_L]
    logits[place_L] = -torch.inf
    try:
        yield
    finally:
        logits[place_L] = before_L


def uniforms(seed: int, token_hash: str, positions: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each scored position of a row: of the seed, the row's tokens and the place alone, so
    that the draws are the same however rows are batched."""
    key = hashlib.sha256(f"draws/{seed}/{token_hash}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little"))).random(positions)


@dataclass(frozen=True)
class _Scan:
    """What one pass over all logits leaves."""

    temperature: float
    peaks_CB: Tensor
    """Each block's largest logit."""
    mass_CB: Tensor
    """Each block's probability at the temperature, in float64; what `_list` finds is taken from it."""
    top_C: Tensor
    """The largest logit of all. Others are seen from there: a difference of logits is rounded less than they are."""
    log_top_C: Tensor
    """The logarithm of its probability at the temperature."""
    plain_C: Tensor
    """The same at temperature 1, where that was asked for."""
    entropy_C: Tensor


def _scan(chunk_CV: Tensor, temperature: float, plain: bool) -> _Scan:
    """Slice by slice: the softmax of a slice is read by all that need it while it lies in the cache."""
    positions, vocabulary = chunk_CV.shape
    rows = max(1, positions)
    if chunk_CV.device.type == "cpu":
        rows = torch.get_num_threads() * max(1, SLICE_LOGITS // vocabulary)
    softmax_CV, product_CV = (chunk_CV.new_empty((min(rows, positions), vocabulary)) for _ in range(2))
    parts = [
        _scan_slice(part_CV, temperature, plain, softmax_CV[: len(part_CV)], product_CV[: len(part_CV)])
        for part_CV in chunk_CV.split(rows)  # type: ignore[no-untyped-call]
    ]
    scan = _Scan(temperature, *(torch.cat(column) for column in zip(*parts, strict=True)))
    if not bool(scan.log_top_C.isfinite().all()):
        raise ModelError(
            "a teacher's logits",
            "at some position one is not a number or infinite, or none is finite: there is no distribution",
            "Use float32 for this teacher, or other weights",
        )
    return scan


def _scan_slice(
    slice_CV: Tensor, temperature: float, plain: bool, softmax_CV: Tensor, product_CV: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the scan has of some positions, in its order. The last two are room to work in."""
    shape_CBS = (len(slice_CV), slice_CV.shape[1] // BLOCK, BLOCK)
    softmax_CBS = softmax_CV.view(shape_CBS)
    peaks_CB = slice_CV.view(shape_CBS).amax(-1)
    top_C, block_C = peaks_CB.max(-1)
    row_C = torch.arange(len(slice_CV), device=slice_CV.device)

    def log_top(scaled_CV: Tensor) -> Tensor:
        torch.softmax(scaled_CV, -1, out=softmax_CV)
        return softmax_CBS[row_C, block_C].amax(-1).log()

    plain_C = log_top(slice_CV) if plain or temperature == 1.0 else top_C
    log_top_C = plain_C
    if temperature != 1.0:
        log_top_C = log_top(torch.mul(slice_CV, 1 / temperature, out=product_CV))
    mass_CB = softmax_CBS.sum(-1).double()
    mean_C = _total(torch.mul(softmax_CV, slice_CV, out=product_CV).view(shape_CBS))
    if bool(mean_C.isnan().any()):  # 0 times -inf
        finite_CV = slice_CV.clamp(min=torch.finfo(slice_CV.dtype).min)
        mean_C = _total(torch.mul(softmax_CV, finite_CV, out=product_CV).view(shape_CBS))
    entropy_C = (top_C * mass_CB.sum(-1) - mean_C) / temperature - log_top_C
    return peaks_CB, mass_CB, top_C, log_top_C, plain_C, entropy_C.clamp(min=0).to(slice_CV.dtype)


def _total(values_CBS: Tensor) -> Tensor:
    """The sum of each position's values, block by block, then in float64."""
    return values_CBS.sum(-1).double().sum(-1)


def _list(chunk_CV: Tensor, scan: _Scan, top: int) -> tuple[Tensor, Tensor]:
    """Ids and logits of the largest entries; their mass is taken from the scan's.

    The `top` largest lie in blocks whose peak is among the `top` largest peaks, or equals one of them.
    """
    positions, blocks = scan.peaks_CB.shape
    least_C = scan.peaks_CB.topk(min(top, blocks), sorted=False).values.amin(-1)
    if top > blocks:
        least_C.fill_(-torch.inf)
    position_R, block_R = (scan.peaks_CB >= least_C[:, None]).nonzero(as_tuple=True)
    logits_RS = chunk_CV.view(-1, BLOCK).index_select(0, position_R * blocks + block_R)
    least_C = least_C.clamp_(min=torch.finfo(least_C.dtype).min)  # -inf is never listed
    place_N = (logits_RS >= least_C[position_R, None]).view(-1).nonzero()[:, 0]
    row_N = place_N // BLOCK
    position_N = position_R[row_N]
    many_C = torch.bincount(position_N, minlength=positions)
    column_N = torch.arange(len(place_N), device=place_N.device) - (many_C.cumsum(0) - many_C)[position_N]
    shape = (positions, max(top, 0, *many_C.tolist()))
    values_CN = logits_RS.new_full(shape, -torch.inf)
    values_CN[position_N, column_N] = logits_RS.view(-1)[place_N]
    places_CN = place_N.new_full(shape, NO_ENTRY)
    places_CN[position_N, column_N] = place_N
    # Candidates stand by ascending id, and a stable sort leaves equal ones so.
    values_CN, order_CN = values_CN.sort(dim=-1, descending=True, stable=True)
    place_CK = places_CN.gather(1, order_CN[:, :top])
    ids_CK = torch.where(place_CK < 0, NO_ENTRY, block_R[place_CK // BLOCK] * BLOCK + place_CK % BLOCK)
    logits_RS.view(-1)[place_CK[place_CK >= 0]] = -torch.inf
    unit_R = scan.log_top_C.double().exp()[position_R]
    scan.mass_CB[position_R, block_R] = _weights(logits_RS, scan, position_R).sum(-1) * unit_R
    return ids_CK, values_CN[:, :top]


def _weights(logits_RS: Tensor, scan: _Scan, position_R: Tensor) -> Tensor:
    """Of some blocks' entries in place of their logits, in units of the largest probability of their position."""
    logits_RS -= scan.top_C[position_R, None]
    if scan.temperature != 1.0:
        logits_RS /= scan.temperature
    return logits_RS.exp_()


def _draw(chunk_CV: Tensor, scan: _Scan, draws: int, uniforms_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First each point's block, of the blocks' masses; then its entry, of the entries in the blocks that were met.

    Sums are in float64. A point lies strictly below what they come to, so that it always falls on a positive mass.
    """
    positions, blocks = scan.mass_CB.shape
    device = chunk_CV.device
    mass_CB = scan.mass_CB.masked_fill(scan.mass_CB < LEAST, 0)
    ladder_CB = mass_CB.cumsum(-1)
    whole_C1 = ladder_CB[:, -1:].contiguous()
    steps_D = torch.arange(draws, dtype=torch.float64, device=device)
    points_CD = (uniforms_C.to(device, torch.float64)[:, None] + steps_D) / draws * whole_C1
    points_CD = points_CD.minimum(whole_C1.nextafter(torch.zeros_like(whole_C1)))
    block_CD = torch.searchsorted(ladder_CB, points_CD, right=True).clamp_(max=blocks - 1)
    mass_CD = mass_CB.gather(1, block_CD)
    below_CD = ladder_CB.gather(1, block_CD) - mass_CD
    share_CD = ((points_CD - below_CD) / mass_CD).clamp_(0, 1 - 2.0**-30)

    left_C = whole_C1[:, 0] > 0
    first_C1 = torch.arange(positions, device=device)[:, None] * blocks
    key_R, row_P = _runs((block_CD + first_C1)[left_C].view(-1))
    ladder_RS = _weights(chunk_CV.view(-1, BLOCK).index_select(0, key_R), scan, key_R // blocks).double().cumsum_(-1)
    ladder_RS /= ladder_RS[:, -1:].clone()
    ladder_RS += torch.arange(len(key_R), device=device)[:, None]  # one ladder of all rows, each a step of 1
    place_P = torch.searchsorted(ladder_RS.view(-1), share_CD[left_C].view(-1) + row_P, right=True)
    place_M, run_P = _runs(place_P)
    block_M = key_R[place_M // BLOCK]
    sizes_C = torch.bincount(block_M // blocks, minlength=positions)
    return block_M % blocks * BLOCK + place_M % BLOCK, torch.bincount(run_P, minlength=len(place_M)), sizes_C


def _runs(values_P: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending values, each once, and of each of P which of them it is."""
    return torch.unique_consecutive(values_P, return_inverse=True)  # type: ignore[no-any-return]
