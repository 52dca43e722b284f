"""A lesson through the scorer: the same loss and gradients as by hand, however rows are cut, packed or padded."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine import FALLBACKS, FAMILIES, PAIRS_AND_CHATS, VOCABULARY, assert_same, gradients_of, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.errors import ModelError
from potstill.objectives.divergence import Divergence, DivergenceName
from potstill.objectives.signal import Sparse
from potstill.training import taught_head
from potstill.training.batch import Batch, Item, collate, micro_batches
from potstill.training.head import Room
from potstill.training.itself import check_itself
from potstill.training.layers import Projections
from potstill.training.lesson import Aims, Entries, Lesson, Told, Whole
from potstill.training.scoring import Scorer, build_scorer
from potstill.training.taught_head import linear_lesson
from potstill.training.tellers import Present, lessons

AIMS = Aims(Divergence("forward_kl"), VOCABULARY, divergence_weight=0.7, likelihood_weight=0.4)


def teacher_model(family: str = "mistral") -> PreTrainedModel:
    """Another model than the student."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.3).add_(0.05)
    return model


def own_logits(model: PreTrainedModel, items: Sequence[Item], vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Logits at every scored position by the model's own forward, and the targets, in the batch's order."""
    rows, targets = [], []
    batch = collate(items)
    for item in items:
        for ids_L, learn_L in item.answers:
            whole = torch.cat([torch.from_numpy(item.prompt_ids), torch.from_numpy(ids_L)]).long()
            at = torch.from_numpy(learn_L.nonzero()[0]) + len(item.prompt_ids)
            rows.append(model(input_ids=whole[None], use_cache=False).logits[0, at - 1, :vocabulary])
            targets.append(whole[at])
    assert torch.equal(torch.cat(targets), batch.targets_N)
    return torch.cat(rows), batch.targets_N


def by_hand(student: PreTrainedModel, teacher: PreTrainedModel, aims: Aims) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with torch.no_grad():
            theirs, _ = own_logits(teacher, PAIRS_AND_CHATS, aims.vocabulary)
        ours, targets = own_logits(student, PAIRS_AND_CHATS, aims.vocabulary)
        t = aims.divergence.temperature
        logp, logq = (theirs / t).log_softmax(-1), (ours / t).log_softmax(-1)
        divergence = (logp.exp() * (logp - logq)).sum() * t**2
        return aims.divergence_weight * divergence + aims.likelihood_weight * F.cross_entropy(
            ours, targets, reduction="sum"
        )

    return loss


def by_lesson(scorer: Scorer, aims: Aims, *tellers: Any, budget: int = 1000) -> Callable[[], Tensor]:
    teach = lessons(aims, tellers)

    def loss() -> Tensor:
        parts = [scorer(teach(batch))[0].sum() for batch in micro_batches(PAIRS_AND_CHATS, budget)]
        return torch.stack(parts).sum()

    return loss


def present(model: PreTrainedModel, vocabulary: int = VOCABULARY, **rest: Any) -> Present:
    return Present(build_scorer(model).eval(), vocabulary, **rest)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "moe" not in name])
def test_every_family_learns_as_by_hand(family: str):
    student = tiny_model(family)
    theirs = gradients_of(student, by_hand(student, teacher_model(), AIMS))
    scorer = build_scorer(student)
    assert scorer.layout == FALLBACKS.get(family, "shared")
    assert_same(gradients_of(student, by_lesson(scorer, AIMS, present(teacher_model()))), theirs)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "granite"])
@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_gradients_do_not_depend_on_chunks_slabs_pieces_and_micro_batches(
    family: str, budget: int, monkeypatch: pytest.MonkeyPatch
):
    student = tiny_model(family)
    theirs = gradients_of(student, by_hand(student, teacher_model(), AIMS))
    monkeypatch.setattr(taught_head, "CHUNK_LOGITS", 3 * VOCABULARY)
    monkeypatch.setattr(taught_head, "LEAST_ROWS", 1)
    monkeypatch.setattr(taught_head, "SLAB_BYTES", 7 * VOCABULARY * 8)
    monkeypatch.setattr(taught_head, "PIECE", 5)
    scorer = build_scorer(student)
    scorer.head.chunk_logits = 5 * VOCABULARY
    ours = gradients_of(student, by_lesson(scorer, AIMS, present(teacher_model()), budget=budget))
    assert_same(ours, theirs)


def test_positions_may_count_differently():
    """Then what the forward made for equal weights is made again."""
    student = tiny_model()
    scorer, teller = build_scorer(student), present(teacher_model())
    batch = lessons(AIMS, [teller])(collate(PAIRS_AND_CHATS))
    weights_N = torch.linspace(0.5, 2, len(batch.targets_N), dtype=torch.float64)

    def weighted() -> Tensor:
        return (scorer(batch)[0] * weights_N).sum()

    ours = gradients_of(student, weighted)
    figures_N = scorer(batch)[0].detach()
    assert ours[0] == pytest.approx(float((figures_N * weights_N).sum()))
    # The gradient is linear in the weights: one position at a time adds up to all.
    total: dict[str, Tensor] = {}
    for index in range(len(weights_N)):
        _, one = gradients_of(student, lambda index=index: scorer(batch)[0][index] * weights_N[index])
        for name, gradient in one.items():
            total[name] = total.get(name, 0) + gradient
    assert_same(ours, (ours[0], total))


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    """Trap: KL printed without the teacher's entropy: not zero at a match."""
    student = tiny_model()
    scorer = build_scorer(student)
    aims = replace(AIMS, likelihood_weight=0.0)
    loss, gradients = gradients_of(student, by_lesson(scorer, aims, present(tiny_model())))
    assert loss == pytest.approx(0, abs=1e-9)
    assert all(gradient.norm() < 1e-9 for gradient in gradients.values())


@pytest.mark.parametrize(("ours", "theirs"), [(64, 80), (80, 64), (64, 61)])
def test_padded_vocabularies_both_ways(ours: int, theirs: int):
    """Trap: Teacher and student vocabularies padded to different sizes: slice to the tokenizer, never zeros."""

    def padded(model: PreTrainedModel, size: int) -> PreTrainedModel:
        if size > VOCABULARY:
            model.resize_token_embeddings(size, mean_resizing=False)
            with torch.no_grad():
                model.lm_head.weight[VOCABULARY:].normal_(0, 1)
        return model

    student, teacher = padded(tiny_model(), ours), padded(teacher_model(), theirs)
    expected = gradients_of(student, by_hand(student, teacher, AIMS))
    assert_same(gradients_of(student, by_lesson(build_scorer(student), AIMS, present(teacher))), expected)
    assert bool((expected[1]["lm_head.weight"][VOCABULARY:] == 0).all())
    twin = gradients_of(student, by_lesson(build_scorer(student), replace(AIMS, likelihood_weight=0.0),
                                           present(padded(tiny_model(), theirs))))  # fmt: skip
    assert twin[0] == pytest.approx(0, abs=1e-9), "what lies in the padding is no part of the comparison"


@pytest.mark.parametrize("k", [VOCABULARY, 5])
def test_listed_entries_of_all_tokens_are_the_whole_distribution(k: int):
    student, teacher = tiny_model(), teacher_model()
    scorer = build_scorer(student)
    batch = collate(PAIRS_AND_CHATS)
    with torch.no_grad():
        logp_NV = own_logits(teacher, PAIRS_AND_CHATS)[0].log_softmax(-1)
    mass_NK, ids_NK = logp_NV.exp().topk(k)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    sparse = Sparse(ids_NK, mass_NK, (1 - mass_NK.sum(-1)).clamp(min=0), entropy_N, drawn=False)
    lesson = Lesson(AIMS, (Told(Entries(sparse)),))
    listed = gradients_of(student, lambda: scorer(replace(batch, lesson=lesson))[0].sum())
    dense = gradients_of(student, by_lesson(scorer, AIMS, present(teacher)))
    if k == VOCABULARY:
        assert_same(listed, dense)
    else:
        assert listed[0] < dense[0], "to lump tokens together can only lose information"


def test_several_teachers_add_up_by_their_weights():
    student = tiny_model()
    scorer = build_scorer(student)
    first, second = present(teacher_model(), weight=0.3), present(teacher_model("llama-tied"), weight=1.2)
    aims = replace(AIMS, likelihood_weight=0.0)
    parts = [gradients_of(student, by_lesson(scorer, aims, teller)) for teller in (first, second)]
    both = gradients_of(student, by_lesson(scorer, aims, first, second))
    together = {name: parts[0][1][name] + parts[1][1][name] for name in parts[0][1]}
    assert_same(both, (parts[0][0] + parts[1][0], together))


def test_hidden_states_of_mapped_layers():
    """Trap: projections absent from the optimizer (DistillKit 0.1)."""
    student, teacher = tiny_model(), teacher_model("qwen3")
    scorer = build_scorer(student)
    scorer.projections.append(Projections(((1, 1), (2, 2)), 16, 16, seed=1).to(torch.float64))
    aims = replace(AIMS, divergence_weight=0.0, likelihood_weight=0.0, hidden_weight=0.5, hidden="mse")
    teller = present(teacher, layers={1: 1, 2: 2}, speaks=False)
    batch = lessons(aims, [teller])(collate(PAIRS_AND_CHATS[1:2]))
    figures_FN = scorer(batch)
    ids = batch.tokens_T[None]
    with torch.no_grad():
        ours = tiny_model()(input_ids=ids, output_hidden_states=True).hidden_states
        theirs = teacher_model("qwen3")(input_ids=ids, output_hidden_states=True).hidden_states
        first = (ours[1] - theirs[1])[0, batch.scored_N].pow(2).mean(-1)
    figures_FN[0].sum().backward()
    learnt = {name for name, p in scorer.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name for name in learnt if name.startswith("projections")} == {
        "projections.0.linears.1.weight",
        "projections.0.linears.2.weight",
    }
    one = replace(batch, lesson=lessons(aims, [present(teacher, layers={1: 1}, speaks=False)])(batch).lesson)
    torch.testing.assert_close(scorer(one)[3].detach(), first)


def test_a_teacher_drops_nothing_out():
    """Trap: Teacher in train mode."""
    config = deepcopy(FAMILIES["mistral"])
    config.attention_dropout = 0.5
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).train()
    teller, batch = present(model), collate(PAIRS_AND_CHATS)
    first, second = (teller.tell(batch).says for _ in range(2))
    assert torch.equal(first.part(slice(None)).logits_CV, second.part(slice(None)).logits_CV)
    assert not teller.scorer.training
    assert not first.part(slice(None)).logits_CV.requires_grad


def test_a_student_is_compared_with_itself_and_left_as_it_was():
    student = tiny_model("llama-tied")
    scorer = build_scorer(student).train()
    check_itself(scorer, VOCABULARY, PAIRS_AND_CHATS)
    assert scorer.training
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_comparison_that_is_off_by_one_position_is_noticed(monkeypatch: pytest.MonkeyPatch):
    tell = Present.tell

    def shifted(self: Present, batch: Batch) -> Told:
        told = tell(self, batch)
        assert isinstance(told.says, Whole)
        return replace(told, says=replace(told.says, hidden_ND=told.says.hidden_ND.roll(1, 0)))

    monkeypatch.setattr(Present, "tell", shifted)
    with pytest.raises(ModelError, match="compared with itself, it has a divergence of"):
        check_itself(build_scorer(tiny_model()), VOCABULARY, PAIRS_AND_CHATS)


@pytest.mark.parametrize("name", ["forward_kl", "jsd", "reverse_kl"])
def test_products_in_bfloat16_cost_little(name: DivergenceName):
    """Trap: "bf16 logits before the float32 softmax: 4-23% gradient error (Liger 1432)". Logits stay in float32."""
    draw = torch.Generator().manual_seed(0)
    hidden_ND, theirs_ND = torch.randn(200, 64, generator=draw), torch.randn(200, 64, generator=draw)
    weight_VD = torch.randn(1000, 64, generator=draw) * 0.4
    targets_N = torch.randint(0, 1000, (200,), generator=draw)
    lesson = Lesson(Aims(Divergence(name), 1000), (Told(Whole(theirs_ND, lambda hidden: hidden @ weight_VD.t())),))
    found = []
    for product in (torch.float32, torch.bfloat16):
        hidden, weight = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        figures_FN = linear_lesson(hidden, weight, targets_N, lesson, 1.0, product)
        figures_FN[0].mean().backward()
        found.append((figures_FN[0].detach(), hidden.grad, weight.grad))
    (value, by_hidden, by_weight), (value_16, by_hidden_16, by_weight_16) = found
    torch.testing.assert_close(value_16, value)
    assert (by_hidden_16 - by_hidden).norm() < 0.005 * by_hidden.norm()
    assert (by_weight_16 - by_weight).norm() < 0.005 * by_weight.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "granite"])
def test_what_a_teacher_says_lies_in_one_room_and_is_never_coarser_than_float32(family: str, dtype: torch.dtype):
    """Of a plain head; Granite's scales logits, Gemma 2's caps them and answers as a module."""
    scorer = Scorer(teacher_model(family).to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    hidden = torch.randn(5, scorer.model.config.hidden_size, dtype=dtype)
    room, expected = Room(), scorer.head.logits(hidden)[:, : VOCABULARY - 3]
    first = scorer.head.said(hidden[:3], VOCABULARY - 3, room)
    torch.testing.assert_close(first, expected[:3].to(wide), rtol=1e-6, atol=1e-6)
    assert first.dtype == wide
    second = scorer.head.said(hidden[3:], VOCABULARY - 3, room)
    torch.testing.assert_close(second, expected[3:].to(wide), rtol=1e-6, atol=1e-6)
    assert (first.data_ptr() == second.data_ptr()) is (family != "gemma2")
