"""Objectives across vocabularies: closed forms, exact slopes, and a planted shift of one span."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import family
from torch import Tensor
from torch.autograd import gradcheck

from potstill.objectives import cross_tokenizer
from potstill.objectives.cross_tokenizer import Compared, Shared, alm, merged, span_sums, uld
from potstill.records import Message
from potstill.tokens.alignment import align
from potstill.tokens.learnt import Turn, learnt_turns

STUDENT, TEACHER, SPANS = 11, 17, 5


def logits(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def follows(seed: int) -> Tensor:
    """Log-probabilities of what follows; a span of one token among them."""
    follow_C = -logits(seed, SPANS).abs()
    follow_C[1] = 0
    return follow_C


def some_shared(student: int = STUDENT, teacher: int = TEACHER) -> Shared:
    return Shared.of(torch.tensor([2, 4, 5, 9]), torch.tensor([3, 0, 16, 7]), student, teacher)


class Through(torch.autograd.Function):
    """A comparison as a loss: what it says of slopes becomes the gradient, so that gradcheck can doubt it."""

    @staticmethod
    def forward(
        ctx: Any, compare: Callable[[Tensor, Tensor], Compared], student_CV: Tensor, follow_C: Tensor
    ) -> Tensor:
        compared = compare(student_CV, follow_C)
        ctx.save_for_backward(compared.slope_CV, compared.slope_follow_C)
        return compared.value_C

    @staticmethod
    def backward(ctx: Any, grad_C: Tensor) -> tuple[None, Tensor, Tensor]:
        slope_CV, slope_follow_C = ctx.saved_tensors
        return None, slope_CV * grad_C[:, None], slope_follow_C * grad_C


def plain_uld(teacher_CW: Tensor, student_CV: Tensor, temperature: float) -> Tensor:
    size = max(teacher_CW.shape[1], student_CV.shape[1])
    sides = [(side / temperature).softmax(1).sort(1, descending=True).values for side in (teacher_CW, student_CV)]
    p_C, q_C = (torch.nn.functional.pad(side, (0, size - side.shape[1])) for side in sides)
    return temperature * (p_C - q_C).abs().sum(1)


def plain_merged(
    teacher_CW: Tensor,
    student_CV: Tensor,
    teacher_follow_C: Tensor,
    student_follow_C: Tensor,
    shared: Shared,
    **how: Any,
) -> Tensor:
    beta, temperature = how.get("beta", 0.5), how.get("temperature", 1.0)
    p_CW = (teacher_CW / temperature).softmax(1) * teacher_follow_C.exp()[:, None]
    q_CV = (student_CV / temperature).softmax(1) * student_follow_C.exp()[:, None]
    p_CK, q_CK = p_CW[:, shared.teacher_K], q_CV[:, shared.student_K]
    m_CK = beta * p_CK + (1 - beta) * q_CK
    jsd_C = (beta * p_CK * (p_CK / m_CK).log() + (1 - beta) * q_CK * (q_CK / m_CK).log()).sum(1)
    size = max(len(shared.teacher_rest), len(shared.student_rest))
    rests = (p_CW[:, shared.teacher_rest], q_CV[:, shared.student_rest])
    p_CR, q_CR = (
        torch.nn.functional.pad(rest.sort(1, descending=True).values, (0, size - rest.shape[1])) for rest in rests
    )
    weights = how.get("shared_weight", 1.0), how.get("rest_weight", 1.0)
    return weights[0] * temperature**2 * jsd_C + weights[1] * temperature * (p_CR - q_CR).abs().sum(1)


def test_uld_of_two_small_vocabularies_by_hand() -> None:
    teacher_CW = torch.tensor([[0.5, 0.2, 0.3]]).double().log()
    student_CV = torch.tensor([[0.1, 0.9]]).double().log()
    value_C, slope_CV, _ = uld(teacher_CW, student_CV)
    # 0.9 - 0.5, 0.3 - 0.1, 0.2 - 0: up for the student's second, down for its first.
    assert value_C.tolist() == pytest.approx([0.4 + 0.2 + 0.2])
    inner = 0.9 * 1 + 0.1 * -1
    assert slope_CV[0].tolist() == pytest.approx([0.1 * (-1 - inner), 0.9 * (1 - inner)])


def test_uld_of_distributions_that_have_nothing_in_common_is_two_at_most() -> None:
    certain, flat = torch.zeros(1, 4).double(), torch.zeros(1, 100_000).double()
    certain[0, 2] = 100
    assert uld(flat, certain).value_C.item() == pytest.approx(2, abs=3e-5)


def test_merged_of_a_span_by_hand() -> None:
    """Student: one token, of which both have one more. Teacher: two tokens, the second with probability 0.4."""
    shared = Shared.of(torch.tensor([0]), torch.tensor([1]), 2, 3)
    teacher_CW = torch.tensor([[0.2, 0.5, 0.3]]).double().log()
    student_CV = torch.tensor([[0.6, 0.4]]).double().log()
    value_C = merged(
        teacher_CW, student_CV, torch.tensor([0.4]).double().log(), torch.zeros(1).double(), shared
    ).value_C
    p, q = 0.2, 0.6
    jsd = 0.5 * p * math.log(p / 0.4) + 0.5 * q * math.log(q / 0.4)
    assert value_C.item() == pytest.approx(jsd + abs(0.4 - 0.12) + 0.08)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (TEACHER, STUDENT), (7, 7)])
def test_uld_is_its_definition_and_its_slope_the_derivative(student: int, teacher: int, temperature: float) -> None:
    teacher_CW, student_CV = logits(0, SPANS, teacher), logits(1, SPANS, student).requires_grad_()
    plain_C = plain_uld(teacher_CW, student_CV, temperature)
    compared = uld(teacher_CW, student_CV.detach(), temperature=temperature)
    torch.testing.assert_close(compared.value_C, plain_C.detach())
    torch.testing.assert_close(compared.slope_CV, torch.autograd.grad(plain_C.sum(), student_CV)[0])
    assert gradcheck(
        lambda z_CV: Through.apply(
            lambda z, _: uld(teacher_CW, z, temperature=temperature), z_CV, torch.zeros(SPANS).double()
        ),
        (student_CV,),
    )


HOWS: list[dict[str, float]] = [
    {},
    {"beta": 0.1, "shared_weight": 0.7, "rest_weight": 0.3},
    {"beta": 0.9, "temperature": 2.0},
    {"rest_weight": 0.0},
]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (30, TEACHER)])
def test_merged_is_its_definition_and_its_slopes_the_derivatives(
    student: int, teacher: int, how: dict[str, float]
) -> None:
    """Both slopes: by the distribution, and by how likely the rest of the span is."""
    shared, theirs_C = some_shared(student), follows(3)
    teacher_CW = logits(0, SPANS, teacher)
    student_CV, ours_C = logits(1, SPANS, student).requires_grad_(), follows(4).requires_grad_()
    plain_C = plain_merged(teacher_CW, student_CV, theirs_C, ours_C, shared, **how)
    compared = merged(teacher_CW, student_CV.detach(), theirs_C, ours_C.detach(), shared, **how)
    torch.testing.assert_close(compared.value_C, plain_C.detach())
    by_logits, by_follow = torch.autograd.grad(plain_C.sum(), (student_CV, ours_C))
    torch.testing.assert_close(compared.slope_CV, by_logits)
    torch.testing.assert_close(compared.slope_follow_C, by_follow)
    assert gradcheck(
        lambda z_CV, f_C: Through.apply(lambda z, f: merged(teacher_CW, z, theirs_C, f, shared, **how), z_CV, f_C),
        (student_CV, ours_C),
    )


def test_alm_by_hand_and_by_gradcheck() -> None:
    ours_S = torch.tensor([-0.5, -3.0, -20.0]).double().requires_grad_()
    theirs_S = torch.tensor([-1.0, -3.0, -2.0]).double()
    loss = alm(ours_S, theirs_S, temperature=2.0)
    a, b = math.exp(-0.5), math.exp(-0.25)
    first = a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
    assert loss[0].item() == pytest.approx(2 * first)
    assert loss[1].item() == pytest.approx(0, abs=1e-15)
    assert gradcheck(lambda x_S: alm(x_S, theirs_S, temperature=2.0), (ours_S,))
    # tau times (b - a) / (tau (1 - b)), the derivative of the KL of two coins by the logarithm of one's probability
    (slope_S,) = torch.autograd.grad(loss.sum(), ours_S)
    assert slope_S[0].item() == pytest.approx((b - a) / (1 - b))


def test_alm_at_a_high_temperature_compares_log_probabilities() -> None:
    ours_S, theirs_S = torch.tensor([-0.5, -3.0]).double(), torch.tensor([-1.0, -2.0]).double()
    limit_S = theirs_S - ours_S - theirs_S * torch.log(theirs_S / ours_S)
    torch.testing.assert_close(alm(ours_S, theirs_S, temperature=1e6), limit_S, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_slope(dtype: torch.dtype) -> None:
    same_CV, follow_C = logits(0, SPANS, 3000, scale=4.0).to(dtype), follows(1).to(dtype)
    everything = torch.arange(3000)
    part = Shared.of(everything[:1000], everything[:1000], 3000, 3000)
    for compared in (
        uld(same_CV, same_CV),
        merged(same_CV, same_CV, follow_C, follow_C, Shared.of(everything, everything, 3000, 3000)),
        merged(same_CV, same_CV, follow_C, follow_C, part, beta=0.3, temperature=2.0),
    ):
        assert compared.value_C.abs().max() < 20 * torch.finfo(dtype).eps
        assert compared.slope_CV.abs().max() < torch.finfo(dtype).eps
        assert compared.slope_follow_C.abs().max() < 20 * torch.finfo(dtype).eps
    logp_S = (-logits(2, 40).abs()).to(dtype).requires_grad_()
    loss_S = alm(logp_S, logp_S.detach())
    (slope_S,) = torch.autograd.grad(loss_S.sum(), logp_S)
    assert loss_S.sum() == 0
    assert slope_S.abs().max() < 1000 * torch.finfo(dtype).eps


def test_a_teacher_with_its_vocabulary_in_another_order_is_the_same_teacher() -> None:
    """In float32, where the two normalisers round differently: sorted probabilities that are equal have no sign."""
    student_CV = logits(0, SPANS, 5000, scale=3.0).float()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    compared = uld(student_CV[:, order], student_CV)
    assert compared.value_C.abs().max() < 1e-5
    assert (compared.slope_CV == 0).all()
    shared = Shared.of(order, torch.arange(5000), 5000, 5000)
    nothing_C = torch.zeros(SPANS)
    assert merged(student_CV[:, order], student_CV, nothing_C, nothing_C, shared).slope_CV.abs().max() < 1e-7


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0.01, 0.99), student=st.integers(10, 40), teacher=st.integers(17, 40))
def test_values_are_never_negative(seed: int, beta: float, student: int, teacher: int) -> None:
    """Probabilities of spans do not sum to 1, of which a KL would be negative (as TRL's is for beta 0 and 1)."""
    teacher_CW, student_CV = logits(seed, SPANS, teacher, scale=5), logits(seed + 1, SPANS, student, scale=5)
    compared = merged(
        teacher_CW, student_CV, follows(seed + 2), follows(seed + 3), some_shared(student, teacher), beta=beta
    )
    assert (compared.value_C >= 0).all()
    assert (uld(teacher_CW, student_CV).value_C >= 0).all()
    assert (uld(teacher_CW, student_CV).value_C <= 2 + 1e-12).all()
    torch.testing.assert_close(compared.slope_CV.sum(1), torch.zeros(SPANS).double(), atol=1e-12, rtol=0)


def test_padding_of_either_head_is_never_said() -> None:
    """Trap: "Teacher and student vocabularies padded to different sizes: use minus infinity, never zeros"."""
    teacher_CW, student_CV, (ours_C, theirs_C) = (
        logits(0, SPANS, TEACHER),
        logits(1, SPANS, STUDENT),
        (follows(2), follows(3)),
    )
    never = torch.full((SPANS, 6), -torch.inf).double()
    wide_CW, wide_CV = torch.cat([teacher_CW, never], 1), torch.cat([student_CV, never[:, :4]], 1)
    plain = uld(teacher_CW, student_CV), merged(teacher_CW, student_CV, theirs_C, ours_C, some_shared())
    shared = some_shared(STUDENT + 4, TEACHER + 6)
    wide = uld(wide_CW, wide_CV), merged(wide_CW, wide_CV, theirs_C, ours_C, shared)
    for narrow, padded in zip(plain, wide, strict=True):
        torch.testing.assert_close(padded.value_C, narrow.value_C)
        torch.testing.assert_close(padded.slope_CV[:, :STUDENT], narrow.slope_CV)
        assert (padded.slope_CV[:, STUDENT:] == 0).all()


def test_chunks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_CW, student_CV = logits(0, SPANS, TEACHER), logits(1, SPANS, STUDENT)
    args = (teacher_CW, student_CV, follows(2), follows(3), some_shared())
    whole = uld(teacher_CW, student_CV), merged(*args)
    monkeypatch.setattr(cross_tokenizer, "BLOCK", 2 * TEACHER)
    for one, other in zip(whole, (uld(teacher_CW, student_CV), merged(*args)), strict=True):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right)


def test_what_follows_with_hardly_any_probability_is_no_trouble() -> None:
    """Long spans: exp(follow) is 0 in float32."""
    teacher_CW, student_CV = logits(0, SPANS, TEACHER).float(), logits(1, SPANS, STUDENT).float()
    far_C = torch.tensor([-200.0, -1e4, -1e30, 0.0, -90.0])
    for ours_C, theirs_C in ((far_C, far_C), (far_C, torch.zeros(SPANS)), (torch.zeros(SPANS), far_C)):
        for part in merged(teacher_CW, student_CV, theirs_C, ours_C, some_shared()):
            assert part.isfinite().all()
    sure_S = torch.tensor([0.0, -1e-9, -1e4]).requires_grad_()
    loss_S = alm(sure_S, torch.tensor([-1.0, 0.0, -2.0]))
    loss_S.sum().backward()
    assert loss_S.isfinite().all()
    assert sure_S.grad is not None
    assert sure_S.grad.isfinite().all()


def test_coarse_numbers_are_refused() -> None:
    with pytest.raises(AssertionError, match="too coarse"):
        uld(logits(0, 2, 4).bfloat16(), logits(0, 2, 4).bfloat16())
    with pytest.raises(AssertionError, match="too coarse"):
        alm(torch.zeros(3).bfloat16(), torch.zeros(3))


def said(turn: Turn) -> list[float]:
    """Log-probabilities of a turn's tokens by a model of bytes, one as likely as its number says; 0 for the end's."""
    whole = [math.log((1 + byte % 7) / 1024) for byte in turn.said]
    places = zip(turn.starts_L.tolist(), turn.ends_L.tolist(), strict=True)
    return [sum(whole[max(0, start) : end]) if end <= len(whole) else 0.0 for start, end in places]


def by_span(values: list[float], starts_S: np.ndarray, ends_S: np.ndarray) -> Tensor:
    return span_sums(torch.tensor(values).double(), torch.from_numpy(starts_S), torch.from_numpy(ends_S))


def test_sums_over_spans_with_gaps_and_without_anything() -> None:
    values_N = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).double().requires_grad_()
    starts_S, ends_S = torch.tensor([1, 3, 4, 6]), torch.tensor([3, 3, 5, 6])
    assert span_sums(values_N, starts_S, ends_S).tolist() == [6, 0, 16, 0]
    span_sums(values_N, starts_S, ends_S).dot(torch.tensor([1.0, 5.0, 3.0, 7.0]).double()).backward()
    assert values_N.grad is not None
    assert values_N.grad.tolist() == [0, 1, 1, 0, 3, 0]
    assert span_sums(values_N, starts_S[:0], ends_S[:0]).tolist() == []


@pytest.mark.parametrize(
    "names", [("small", "metaspace"), ("large", "words"), ("legacy", "greedy"), ("nfc", "unigram")]
)
def test_spans_that_are_off_by_one_do_not_match(names: tuple[str, str]) -> None:
    """Trap: "Cross-tokenizer alignment off by one span (TRL 5885, 5905)".

    Two models that give every byte the same probability say every span alike, whatever their tokens.
    """
    messages = [
        Message(role="user", content="what?"),
        Message(role="assistant", content="the cat sat on the mat. naïve 😀 hello there!"),
    ]
    (((_, ours),), ((_, theirs),)) = (learnt_turns(family(name), [messages]) for name in names)
    spans = align(ours, theirs, "row 1")
    blanks = "words" in names  # which no token of that one has
    student_S = by_span(said(ours[0]), spans.student_starts_S, spans.student_ends_S)
    teacher = theirs[0] if not blanks else replace(theirs[0], starts_L=np.append(0, theirs[0].ends_L[:-1]))
    values = said(teacher)
    teacher_S = by_span(values, spans.teacher_starts_S, spans.teacher_ends_S)
    assert len(spans) > 5
    assert alm(student_S, teacher_S).sum().item() == pytest.approx(0, abs=1e-12)
    assert alm(student_S[:-1], teacher_S[1:]).sum().item() > 0.1
    shifted = [*values[1:], 0.0]  # every position scored for the token behind its own
    one_later_S = by_span(shifted, spans.teacher_starts_S, spans.teacher_ends_S)
    assert alm(student_S, one_later_S).sum().item() > 0.1


def test_distributions_that_are_off_by_one_do_not_match() -> None:
    """Trap: "Cross-tokenizer alignment off by one span (TRL 5885, 5905)". Here through whole distributions."""
    rows_CV = logits(0, SPANS + 1, STUDENT)
    everything = torch.arange(STUDENT)
    shared, nothing_C = Shared.of(everything, everything, STUDENT, STUDENT), torch.zeros(SPANS).double()
    for teacher_CW, matches in ((rows_CV[:-1], True), (rows_CV[1:], False)):
        for compared in (
            uld(teacher_CW, rows_CV[:-1]),
            merged(teacher_CW, rows_CV[:-1], nothing_C, nothing_C, shared),
        ):
            assert bool((compared.value_C < 1e-12).all()) == matches
            assert bool((compared.slope_CV.abs() < 1e-12).all()) == matches
