"""Divergences of a student's distribution Q from a teacher's P, with their slopes by the student's logits.

Suffixes: C positions, V vocabulary, K listed entries, E entries that are compared: the vocabulary, or K and one for all
the rest. Values are in nats. Log-probabilities are finite: `NEVER` stands for log 0.

A divergence here is a sum over entries of a function of (p, q) whatever the entries are, so a few listed probabilities
are compared by the same functions as a whole distribution: what is not listed is one more entry, on both sides. No side
is made to sum to 1 over the list, which would leave the student's mass outside of it without a slope.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from potstill.objectives.signal import NO_ENTRY, Dense, Part, Sparse

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]

NEVER = -1e30
"""Stands for the logarithm of a probability of 0: e to it is 0, and 0 times it is 0, where 0 times infinity is not. So
an infinite divergence comes out finite: 1e30 times the probability that is at fault, with a slope as steep."""

BLOCK = 1 << 18
"""Logits that one thread looks at before it goes on, so that what is computed of them stays in its cache: in memory
each pass over them would take three times as long."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence of the student Q from the teacher P, and its parameters.

    - forward_kl: KL(P, Q); Hinton et al. 2015, where P and Q are softened by the temperature.
    - reverse_kl: KL(Q, P); Gu et al. 2023 (MiniLLM), for one position.
    - jsd: b KL(P, M) + (1 - b) KL(Q, M) with M = b P + (1 - b) Q; Agarwal et al. 2023 (GKD), eq. 1. It is 0 for b = 0
      and b = 1; divided by b it tends to forward KL for b to 0, divided by 1 - b to reverse KL for b to 1.
    - skew_kl: KL(P, a P + (1 - a) Q), at most log(1 / a); Ko et al. 2024 (DistiLLM).
    - skew_reverse_kl: KL(Q, a Q + (1 - a) P); likewise.
    - total_variation: half the sum of |p - q|; Wen et al. 2023 (f-distill).
    - adaptive_kl: forward KL by the share of sum |p - q| that lies in the teacher's head, reverse KL by its tail's;
      Wu et al. 2024 (AKL). The shares are weights without a slope.
    """

    name: DivergenceName = "forward_kl"
    mix: float | None = None
    """jsd's b (0.5 unless told), the skew divergences' a (0.1), adaptive_kl's head: the most likely entries that have
    together at most this probability, and the first in any case (0.5). No other divergence has one."""
    temperature: float = 1.0
    """Divides both sides' logits; the divergence is multiplied by its square, and thereby the slope, so that the slope
    keeps its size (Hinton et al. 2015, section 2)."""

    def __post_init__(self) -> None:
        assert self.temperature > 0, "a temperature is above 0"
        if self.name in MIX:
            object.__setattr__(self, "mix", MIX[self.name] if self.mix is None else self.mix)
            assert self.mix is not None
            assert 0 < self.mix < 1, "a share lies between 0 and 1"
        else:
            assert self.mix is None, f"{self.name} mixes nothing"

    @property
    def share(self) -> float:
        """`mix`, or 0 where there is none."""
        return self.mix or 0.0


MIX: Mapping[str, float] = MappingProxyType({"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5})
"""What `mix` is unless told, for those that have one."""


class Compared(NamedTuple):
    """What `compare` says of C positions."""

    value_C: Tensor
    """Nats, times the temperature squared: the loss."""
    slope_CV: Tensor
    """The derivative of each value by its position's logits, as the head gives them; empty where it was not asked."""
    size_C: Tensor
    """The logarithm of the sum of e to the student's softened logits, which was needed on the way."""


def takes_drawn(name: DivergenceName) -> bool:
    """Whether it can be computed from a drawn signal, which is right on average: it has to be linear in the teacher."""
    return name == "forward_kl"


@torch.no_grad()
def compare(divergence: Divergence, teacher: Part, logits_CV: Tensor, *, slope: bool = True) -> Compared:
    """The divergence at each position, in closed form.

    `logits_CV` are the student's, before any temperature, over the teacher's vocabulary; float32 or float64. They are
    overwritten, and `slope_CV` lies where they lay. The teacher's are left as they are. Minus infinity among logits is
    a probability of 0.
    """
    assert logits_CV.dtype in (torch.float32, torch.float64), "too coarse"
    value_C, size_C = logits_CV.new_empty(2, len(logits_CV)).unbind()
    rows = _rows_at_once(logits_CV)
    for start in range(0, len(logits_CV), rows):
        at = slice(start, start + rows)
        if isinstance(teacher, Dense):
            value_C[at], size_C[at] = _compare_dense(divergence, teacher.logits_CV[at], logits_CV[at], slope)
        else:
            some = Sparse(
                teacher.ids_CK[at], teacher.mass_CK[at], teacher.rest_C[at], teacher.entropy_C[at], teacher.drawn
            )
            of_kind = _compare_drawn if teacher.drawn else _compare_listed
            value_C[at], size_C[at] = of_kind(divergence, some, logits_CV[at], slope)
    value_C *= divergence.temperature**2
    return Compared(value_C, logits_CV if slope else logits_CV[:0], size_C)


def _rows_at_once(logits_CV: Tensor) -> int:
    """How many positions are looked at together: on a CPU as many as its caches hold, elsewhere all."""
    positions, vocabulary = logits_CV.shape
    if logits_CV.device.type != "cpu":
        return max(1, positions)
    threads = torch.get_num_threads()
    return max(threads, BLOCK * threads // vocabulary)


def _compare_dense(divergence: Divergence, teacher_CV: Tensor, logits_CV: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """The value before the temperature's square, and the normaliser; the slope lies in `logits_CV`."""
    assert teacher_CV.shape == logits_CV.shape, "two vocabularies"
    assert teacher_CV.dtype in (torch.float32, torch.float64), "too coarse"
    logp_CV, p_CV, q_CV = (torch.empty_like(logits_CV) for _ in range(3))
    teacher_CV = teacher_CV.to(logits_CV.dtype)
    if divergence.temperature == 1:
        torch.clamp(teacher_CV, min=NEVER, out=logp_CV)
    else:
        torch.mul(teacher_CV, 1 / divergence.temperature, out=logp_CV).clamp_(min=NEVER)
    _soften(logits_CV, divergence.temperature)
    logp_CV -= softmax(logp_CV, p_CV)
    size_C1 = softmax(logits_CV, q_CV)
    logits_CV -= size_C1
    entries = _Entries(p_CV, logp_CV, q_CV, logits_CV, whole=True)
    value_C = _FUNCTIONS[divergence.name](entries, divergence.share, slope)
    if slope and divergence.temperature != 1:
        logits_CV *= divergence.temperature
    return value_C, size_C1[:, 0]


def _compare_listed(divergence: Divergence, teacher: Sparse, logits_CV: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """Likewise. The student's mass outside the list is summed up there: 1 less the mass in the list would be all
    rounding where it is small. So is its shape, which the slope follows: that of a softmax over the others alone."""
    _soften(logits_CV, divergence.temperature)
    at_CK = teacher.ids_CK.clamp(min=0)
    absent_CK = teacher.ids_CK == NO_ENTRY
    listed_CK = logits_CV.gather(1, at_CK).masked_fill_(absent_CK, NEVER)
    logits_CV.scatter_add_(1, at_CK, torch.full_like(listed_CK, NEVER).masked_fill_(absent_CK, 0.0))
    others_C1 = softmax(logits_CV, logits_CV)
    logq_CE = torch.cat([listed_CK, others_C1], 1)
    size_C1 = logq_CE.logsumexp(1, keepdim=True)
    logq_CE -= size_C1
    rest_C1 = teacher.rest_C[:, None].masked_fill(others_C1 < NEVER / 2, 0.0)  # where all is listed, it is rounding
    p_CE = torch.cat([teacher.mass_CK, rest_C1], 1).to(logits_CV.dtype)
    entries = _Entries(p_CE, p_CE.log().clamp_(min=NEVER), logq_CE.exp(), logq_CE.clamp_(min=NEVER), whole=False)
    value_C = _FUNCTIONS[divergence.name](entries, divergence.share, slope)
    if slope:
        slope_CE = entries.logq_CE.mul_(divergence.temperature)
        logits_CV *= slope_CE[:, -1:]
        logits_CV.scatter_add_(1, at_CK, slope_CE[:, :-1])  # 0 where there is no entry, as p and q are
    return value_C, size_C1[:, 0]


def _compare_drawn(divergence: Divergence, teacher: Sparse, logits_CV: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """Likewise: the cross-entropy of the entries less the teacher's entropy."""
    assert takes_drawn(divergence.name), f"{divergence.name} is not linear in the teacher"
    _soften(logits_CV, divergence.temperature)
    at_CK, mass_CK = teacher.ids_CK.clamp(min=0), teacher.mass_CK.to(logits_CV.dtype)
    logq_CK = logits_CV.gather(1, at_CK)
    size_C1 = softmax(logits_CV, logits_CV)
    logq_CK -= size_C1
    value_C = -(mass_CK * logq_CK).sum(1) - teacher.entropy_C
    if slope:
        logits_CV *= divergence.temperature * mass_CK.sum(1, keepdim=True)
        logits_CV.scatter_add_(1, at_CK, -divergence.temperature * mass_CK)
    return value_C, size_C1[:, 0]


def _soften(logits_CV: Tensor, temperature: float) -> None:
    if temperature != 1:
        logits_CV *= 1 / temperature
    logits_CV.clamp_(min=NEVER)


def softmax(logits_CV: Tensor, into_CV: Tensor) -> Tensor:
    """The logarithm of the normaliser, of shape (C, 1), and by the way the softmax, which may take the logits' place.
    Of the likeliest entry all is known but the normaliser, so no second exponential is taken for it."""
    top_C1 = logits_CV.amax(1, keepdim=True)
    torch.softmax(logits_CV, 1, out=into_CV)
    return top_C1 - into_CV.amax(1, keepdim=True).log()


class _Entries(NamedTuple):
    """Two distributions over E entries. All four are overwritten, and the slope comes to lie in `logq_CE`."""

    p_CE: Tensor
    logp_CE: Tensor
    q_CE: Tensor
    logq_CE: Tensor
    whole: bool
    """P is a softmax, and so sums to 1 but for its rounding."""

    def total_C1(self) -> Tensor | float:
        """What P sums to."""
        return 1.0 if self.whole else self.p_CE.sum(1, keepdim=True)


# Each returns the value and leaves the slope in `logq_CE`. With D = sum d(p, q) and r = q dd/dq, the slope is
# r - q sum r, as dq_i/dz_j = q_i (1[i = j] - q_j). Sums are of products that lie where nothing is needed any more.


def _forward_kl(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = -p."""
    p_CE, logp_CE, q_CE, logq_CE, whole = entries
    logp_CE -= logq_CE
    value_C = logp_CE.mul_(p_CE).sum(1)
    if slope and whole:
        torch.sub(q_CE, p_CE, out=logq_CE)
    elif slope:
        torch.mul(q_CE, p_CE.sum(1, keepdim=True), out=logq_CE).sub_(p_CE)
    return value_C


def _reverse_kl(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = q log(q / p) + q."""
    _, logp_CE, q_CE, logq_CE, _ = entries
    torch.sub(logq_CE, logp_CE, out=logp_CE).mul_(q_CE)
    value_C = logp_CE.sum(1)
    if slope:
        torch.addcmul(logp_CE, q_CE, value_C[:, None], value=-1, out=logq_CE)
    return value_C


def _jsd(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = (1 - b) q log(q / m)."""
    p_CE, logp_CE, q_CE, logq_CE, _ = entries
    logm_CE = _mixture(q_CE, p_CE, share).log_()
    of_teacher_C = logp_CE.sub_(logm_CE).mul_(p_CE).sum(1)
    of_student_C = logq_CE.sub_(logm_CE).mul_(q_CE).sum(1)
    if slope:
        logq_CE.addcmul_(q_CE, of_student_C[:, None], value=-1).mul_(1 - share)
    return share * of_teacher_C + (1 - share) * of_student_C


def _skew_kl(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = -(1 - a) q p / m."""
    p_CE, logp_CE, q_CE, logq_CE, _ = entries
    mixture_CE = _mixture(q_CE, p_CE, share)
    value_C = logp_CE.sub_(torch.log(mixture_CE, out=logq_CE)).mul_(p_CE).sum(1)
    if slope:
        p_CE.mul_(q_CE).div_(mixture_CE)
        torch.mul(q_CE, p_CE.sum(1, keepdim=True), out=logq_CE).sub_(p_CE).mul_(1 - share)
    return value_C


def _skew_reverse_kl(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = q (log(q / m) + 1 - a q / m)."""
    p_CE, logp_CE, q_CE, logq_CE, _ = entries
    mixture_CE = _mixture(p_CE, q_CE, share)
    logq_CE -= torch.log(mixture_CE, out=logp_CE)
    value_C = torch.mul(logq_CE, q_CE, out=p_CE).sum(1)
    if slope:
        logq_CE.add_(torch.div(q_CE, mixture_CE, out=logp_CE), alpha=-share).mul_(q_CE)
        logq_CE.addcmul_(q_CE, logq_CE.sum(1, keepdim=True), value=-1)
    return value_C


def _total_variation(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = q sign(q - p) / 2; where they are equal, the slope is 0, which lies between its limits."""
    p_CE, logp_CE, q_CE, logq_CE, _ = entries
    p_CE.sub_(q_CE).neg_()
    value_C = torch.abs(p_CE, out=logp_CE).sum(1).mul_(0.5)
    if slope:
        torch.sign(p_CE, out=logq_CE).mul_(q_CE)
        logq_CE.addcmul_(q_CE, logq_CE.sum(1, keepdim=True), value=-1).mul_(0.5)
    return value_C


def _adaptive_kl(entries: _Entries, share: float, slope: bool) -> Tensor:
    """r = -h p + (1 - h) q (log(q / p) + 1), h the head's share of sum |p - q|."""
    p_CE, logp_CE, q_CE, logq_CE, whole = entries
    head_C1 = _head_share(p_CE, q_CE, share, whole)
    logq_CE -= logp_CE
    forward_C1 = -torch.mul(logq_CE, p_CE, out=logp_CE).sum(1, keepdim=True)
    reverse_C1 = torch.mul(logq_CE, q_CE, out=logp_CE).sum(1, keepdim=True)
    if slope:
        logq_CE.sub_(reverse_C1).mul_(1 - head_C1).add_(head_C1 * entries.total_C1()).mul_(q_CE)
        logq_CE.addcmul_(p_CE, head_C1, value=-1)
    return (head_C1 * forward_C1 + (1 - head_C1) * reverse_C1)[:, 0]


def _mixture(first_CE: Tensor, second_CE: Tensor, share: float) -> Tensor:
    """(1 - share) * first + share * second, never 0, so that it has a logarithm and can be divided by."""
    return torch.lerp(first_CE, second_CE, share).clamp_(min=torch.finfo(first_CE.dtype).tiny)


def _head_share(p_CE: Tensor, q_CE: Tensor, mass: float, whole: bool) -> Tensor:
    """Which share of sum |p - q| lies in the head, of shape (C, 1); a half where P is Q. The head, as in the authors'
    code: the likeliest entries of P as long as their sum is at most `mass`, and the first. What is not listed is tail.
    """
    entries = p_CE.shape[1] - (not whole)
    if not entries:
        return torch.zeros_like(p_CE)
    count = min(32, entries)
    while True:
        top_CH, at_CH = p_CE[:, :entries].topk(count)
        sums_CH = top_CH.cumsum(1)
        if count == entries or bool((sums_CH[:, -1] > mass).all()):
            break
        count = min(8 * count, entries)
    inside_CH = sums_CH <= mass
    inside_CH[:, 0] = True
    head_C1 = ((top_CH - q_CE.gather(1, at_CH)).abs() * inside_CH).sum(1, keepdim=True)
    all_C1 = (p_CE - q_CE).abs_().sum(1, keepdim=True)
    return torch.where(all_C1 > 0, head_C1 / all_C1, 0.5).clamp_(max=1)


_FUNCTIONS: Mapping[DivergenceName, Callable[[_Entries, float, bool], Tensor]] = MappingProxyType(
    {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "jsd": _jsd,
        "skew_kl": _skew_kl,
        "skew_reverse_kl": _skew_reverse_kl,
        "total_variation": _total_variation,
        "adaptive_kl": _adaptive_kl,
    }
)
