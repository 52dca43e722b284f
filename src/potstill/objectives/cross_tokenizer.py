"""Objectives for a teacher with another vocabulary, over spans of tokens that stand for the same bytes.

A span is read from its first token's distribution: that is where both models have seen the same text. How likely the
tokens of the span behind the first are, given those before, comes in as `follow`: the sum of their log-probabilities,
0 where a span has one token.

- `uld`: sorted probabilities; Boizard et al. 2024 (arXiv 2402.12030).
- `merged`: tokens that both vocabularies have are compared by name, the rest sorted, both times the probability of what
  follows: the loss of TRL's GOLD.
- `alm`: how likely the whole span is; Minixhofer et al. 2025 (arXiv 2503.20083).

Where `merged` differs from TRL 1.16 (`trl/experimental/gold`):

- TRL's default, "observed", takes the distribution behind a token for the one before it, and so the probability of
  another token for each that follows: all is off by one position. Here the batch shifts once, and spans begin where
  they begin; with the shift put right, TRL's loss of the same spans is this one (tests/parity).
- TRL's other way, "bayesian", takes the distribution before a span's last token, times what goes before. Its entries
  are last tokens: a student's `lo` behind `Hel` is compared with a teacher's `lo` in the place of `Hello`. At the first
  token, equal entries are equal bytes behind the same text.
- TRL matches tokens that are spelled alike, so that `Ġcat` and `▁cat`, `Ċ` and `<0x0A>` and two different ends of a
  turn are strangers; here they are matched by what they mean (`potstill.tokens.alignment.shared_tokens`).
- TRL clamps probabilities to 1e-8 within the JSD, where the slope is lost; with a vocabulary of 128k most are near it.
- With beta 0 or 1 TRL computes a KL of what does not sum to 1, which may be negative; here beta lies between.
- Where one vocabulary has no rest, TRL counts the other's for nothing; here it is compared with zeros, as in ULD.

Both `uld` and `merged` see no more of a teacher's span than its first token: where the student has `Hello` and the
teacher `Hel` and `lo`, the teacher's mass lies on `Hel`, and the student is asked for it as far as it has that token.
Where a turn ends that would be wrong (a line break in the place of the end token), so only spans that
`Spans.comparable_S` marks are for them; `alm` takes all.

Suffixes: N scored positions, M those in spans, C spans of a chunk, S spans, V the student's vocabulary, W the
teacher's, K tokens that both have, R tokens that the student has alone. Values are in nats or, where sorted
probabilities are compared, a distance from 0 to 2.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22
"""Logits that are looked at together."""

NEVER = -1e30
"""Stands for the logarithm of a probability of 0."""


class Compared(NamedTuple):
    """What is said of C spans."""

    value_C: Tensor
    slope_CV: Tensor
    """The derivative of each value by the student's logits at its span's first token, as the head gives them."""
    slope_follow_C: Tensor
    """The derivative of each value by `student_follow_C`: it is to be handed on to the log-probabilities of the span's
    other tokens, or the loss's gradient is not that of its value."""


class Shared(NamedTuple):
    """Which tokens both vocabularies have, and which one has alone; int64 indices."""

    student_K: Tensor
    teacher_K: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    @classmethod
    def of(cls, student_K: Tensor, teacher_K: Tensor, student_size: int, teacher_size: int) -> "Shared":
        """From matched ids (`potstill.tokens.alignment.shared_tokens`) and how many logits each model gives.

        Rows of a head that stand for no token (padding) are rest; their logits may be minus infinity.
        """
        rests = []
        for ids_K, size in ((student_K, student_size), (teacher_K, teacher_size)):
            assert len(ids_K) == len(torch.unique(ids_K)), "a token is matched twice"
            alone = torch.ones(size, dtype=torch.bool, device=ids_K.device)
            alone[ids_K] = False
            rests.append(alone.nonzero()[:, 0])
        return cls(student_K, teacher_K, *rests)


def span_sums(values_N: Tensor, starts_S: Tensor, ends_S: Tensor) -> Tensor:
    """Sums of scored positions' values over spans, half open and perhaps empty; can be differentiated.

    Of log-probabilities they are what `alm` takes and, from `starts_S + 1` on, what `merged` takes as follow.
    """
    lengths_S = ends_S - starts_S
    owner_M = torch.repeat_interleave(torch.arange(len(lengths_S), device=values_N.device), lengths_S)
    before_S = lengths_S.cumsum(0) - lengths_S
    place_M = torch.arange(len(owner_M), device=values_N.device) + (starts_S - before_S)[owner_M]
    return values_N.new_zeros(len(lengths_S)).index_add(0, owner_M, values_N[place_M])


@torch.no_grad()
def uld(teacher_CW: Tensor, student_CV: Tensor, *, temperature: float = 1.0) -> Compared:
    """Sum |p_(i) - q_(i)| over both vocabularies' probabilities by size, the smaller filled up with zeros.

    The closed form of a Wasserstein distance where all tokens are equally far from each other; Boizard et al. 2024, who
    add it to the likelihood. `temperature` divides both sides' logits, and the
    value is multiplied by it, which keeps the slope's size (a divergence in nats needs the square). The logits, float32
    or float64, are left as they are; minus infinity is a probability of 0.
    """
    nothing_C = student_CV.new_zeros(len(student_CV))
    value_C, slope_CV = torch.empty_like(nothing_C), torch.empty_like(student_CV)
    for at in _blocks(teacher_CW, student_CV):
        q_CV, p_CW = (torch.softmax(side[at] / temperature, 1) for side in (student_CV, teacher_CW))
        distance_C, sign_CV = _sorted_distance(p_CW, q_CV)
        value_C[at] = temperature * distance_C
        slope_CV[at] = _through_softmax(q_CV, sign_CV)
    return Compared(value_C, slope_CV, nothing_C)


@torch.no_grad()
def merged(
    teacher_CW: Tensor,
    student_CV: Tensor,
    teacher_follow_C: Tensor,
    student_follow_C: Tensor,
    shared: Shared,
    *,
    beta: float = 0.5,
    shared_weight: float = 1.0,
    rest_weight: float = 1.0,
    temperature: float = 1.0,
) -> Compared:
    """The generalized JSD over shared tokens, and the distance of sorted probabilities over the others; GOLD.

    With P and Q the probabilities of a token at the span's beginning, times exp(follow): shared_weight * sum of
    beta P log(P / M) + (1 - beta) Q log(Q / M), where M = beta P + (1 - beta) Q, over shared tokens, and rest_weight *
    sum |P_(i) - Q_(i)| over the others. Neither sums to 1; each term of the first is 0 or more all the same, as
    x log x is convex, and 0 only where P = Q. TRL weighs by the share of the teacher's vocabulary that is matched
    unless told.

    `temperature` divides both sides' logits; the JSD is multiplied by its square, the distance by itself. The follows
    are taken as they come, and are to be of the same temperature.
    """
    assert 0 < beta < 1, "a share lies between 0 and 1"
    value_C, slope_CV = student_CV.new_empty(len(student_CV)), torch.empty_like(student_CV)
    follow_slope_C = torch.empty_like(value_C)
    for at in _blocks(teacher_CW, student_CV):
        logq_CV = torch.log_softmax(student_CV[at] / temperature, 1).clamp_(min=NEVER)
        logp_CW = torch.log_softmax(teacher_CW[at] / temperature, 1).clamp_(min=NEVER)
        q_CV = logq_CV.exp()
        logq_CV += student_follow_C[at, None]
        logp_CW += teacher_follow_C[at, None]
        inner_CV = torch.zeros_like(q_CV)  # the derivative by Q
        jsd_C, inner_CK = _jsd(logp_CW[:, shared.teacher_K], logq_CV[:, shared.student_K], beta)
        inner_CV[:, shared.student_K] = inner_CK.mul_(shared_weight * temperature**2)
        rest_C, sign_CR = _sorted_distance(logp_CW[:, shared.teacher_rest].exp(), logq_CV[:, shared.student_rest].exp())
        inner_CV[:, shared.student_rest] = sign_CR.mul_(rest_weight * temperature)
        value_C[at] = shared_weight * temperature**2 * jsd_C + rest_weight * temperature * rest_C
        through_CV = inner_CV.mul_(student_follow_C[at, None].exp())
        follow_slope_C[at] = (through_CV * q_CV).sum(1)
        slope_CV[at] = _through_softmax(q_CV, through_CV).div_(temperature)
    return Compared(value_C, slope_CV, follow_slope_C)


def alm(student_logp_S: Tensor, teacher_logp_S: Tensor, *, temperature: float = 100.0) -> Tensor:
    """KL of whether a span is said: a log(a / b) + (1 - a) log((1 - a) / (1 - b)), with a = p(span)^(1/temperature) of
    the teacher and b of the student, times the temperature; Minixhofer et al. 2025, with f = KL. Of each span.

    Takes sums of log-probabilities over spans, in nats, and can be differentiated by the student's. A high temperature
    turns all spans' probabilities towards 1: with x and y for -log p of teacher and student, the value tends to
    y - x + x log(x / y), and the factor, which is not the paper's, keeps it and its slope from vanishing. The authors'
    code adds the teacher's entropy (a cross-entropy), which has no slope but is not 0 at a match. The paper's debiasing
    of outcome chunks, which leaves out spans that one tokenizer would not end there, is not done: a span is one where
    both tokenizers end a token.
    """
    assert student_logp_S.dtype in (torch.float32, torch.float64), "too coarse"
    floor = torch.finfo(student_logp_S.dtype).eps  # what rounds to 1 counts as the largest below
    ours_S, theirs_S = (
        (logp_S / temperature).clamp(max=-floor) for logp_S in (student_logp_S, teacher_logp_S.to(student_logp_S.dtype))
    )
    said_S, not_said_S = theirs_S.exp(), -torch.expm1(theirs_S)
    each_S = said_S * (theirs_S - ours_S) + not_said_S * (not_said_S.log() - torch.log(-torch.expm1(ours_S)))
    return temperature * each_S


def _blocks(teacher_CW: Tensor, student_CV: Tensor) -> list[slice]:
    """Of spans that are looked at together, so that what is computed of them stays small."""
    assert len(teacher_CW) == len(student_CV), "as many spans on both sides"
    assert {teacher_CW.dtype, student_CV.dtype} <= {torch.float32, torch.float64}, "too coarse"
    rows = max(1, BLOCK // max(teacher_CW.shape[1], student_CV.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(student_CV), rows)]


def _sorted_distance(p_CW: Tensor, q_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Sum |p_(i) - q_(i)| by size, the smaller side filled up with zeros; and its derivative by each q.

    Where two are equal but for rounding the derivative is 0, which lies between its limits: else a student that is its
    teacher would be driven by the order in which its normaliser was added up.
    """
    p_CW = _by_size(p_CW).to(q_CV.dtype)
    order_CV = _order_by_size(q_CV)
    q_CV = q_CV.gather(1, order_CV)
    common = min(p_CW.shape[1], q_CV.shape[1])
    difference_CV = q_CV.clone()
    difference_CV[:, :common] -= p_CW[:, :common]
    distance_C = difference_CV.abs().sum(1) + p_CW[:, common:].sum(1)
    sign_CV = difference_CV.sign()
    sign_CV[difference_CV.abs() <= 8 * torch.finfo(q_CV.dtype).eps * q_CV] = 0
    return distance_C, torch.zeros_like(sign_CV).scatter_(1, order_CV, sign_CV)


def _by_size(values_CV: Tensor) -> Tensor:
    """The largest first. On a CPU NumPy sorts 25 times as fast as torch, with vector instructions."""
    if values_CV.device.type != "cpu":
        return values_CV.sort(1, descending=True).values
    return torch.from_numpy(np.sort(values_CV.numpy(), axis=1)).flip(1)


def _order_by_size(values_CV: Tensor) -> Tensor:
    """Which entry is the largest, the next, and so on."""
    if values_CV.device.type != "cpu":
        return values_CV.argsort(1, descending=True)
    return torch.from_numpy(np.argsort(values_CV.numpy(), axis=1)).flip(1)


def _jsd(logp_CK: Tensor, logq_CK: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The sum of beta P log(P / M) + (1 - beta) Q log(Q / M), and its derivative by each Q: (1 - beta) log(Q / M)."""
    p_CK, q_CK = logp_CK.exp(), logq_CK.exp()
    logm_CK = torch.lerp(q_CK, p_CK, beta).clamp_(min=torch.finfo(q_CK.dtype).tiny).log_()
    inner_CK = (logq_CK - logm_CK).mul_(1 - beta)
    value_C = beta * (p_CK * (logp_CK - logm_CK)).sum(1) + (q_CK * inner_CK).sum(1)
    return value_C, inner_CK


def _through_softmax(q_CV: Tensor, inner_CV: Tensor) -> Tensor:
    """From the derivative by each q to that by each logit."""
    inner_CV = inner_CV * q_CV
    return inner_CV.addcmul_(q_CV, inner_CV.sum(1, keepdim=True), value=-1)
