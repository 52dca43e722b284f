"""Batch, tree attention and scorer: the same log-probabilities and gradients as plain sequences, in float64.

A docstring that begins with "Trap" quotes the bug it would catch.
"""

import numpy as np
import pytest
import torch
from engine import (
    FALLBACKS,
    FAMILIES,
    PAIRS_AND_CHATS,
    VOCABULARY,
    assert_same,
    gradients_of,
    plain_loss,
    random_items,
    scorer_loss,
    tiny_model,
)

from potstill.training import head
from potstill.training.batch import Item, collate, micro_batches
from potstill.training.head import Room
from potstill.training.scoring import Layout, Scorer, build_scorer


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_shared_equals_one_sequence_a_call(family: str) -> None:
    """Trap: "Packing that lets one document attend to another, or loses position restarts"; "Branch positions mislead
    transformers ... the second answer of a shared prompt silently loses its prompt"."""
    truth_model, model = tiny_model(family), tiny_model(family)
    truth = gradients_of(truth_model, lambda: plain_loss(truth_model, PAIRS_AND_CHATS))
    scorer = build_scorer(model)
    assert scorer.layout == FALLBACKS.get(family, "shared")
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)


@pytest.mark.parametrize("family", ["mistral-window", "gemma2", "gemma3", "mixtral"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_layout_equals_one_sequence_a_call(family: str, layout: Layout) -> None:
    model = tiny_model(family)
    truth = gradients_of(model, lambda: plain_loss(model, PAIRS_AND_CHATS))
    scorer = Scorer(model, layout)
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)


def test_a_shared_prompt_equals_separate_prompts() -> None:
    model = tiny_model()
    scorer = build_scorer(model)
    separate = [alone for item in PAIRS_AND_CHATS for alone in item.separate()]
    assert collate(separate).tokens_T.numel() > collate(PAIRS_AND_CHATS).tokens_T.numel()
    truth = gradients_of(model, lambda: scorer_loss(scorer, separate))
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_a_chunked_head_equals_a_dense_one(rows: int) -> None:
    """Also trap: "A second, fused copy of a loss that ... ignores logit scale or softcap": gemma2 has one."""
    model = tiny_model("gemma2")
    scorer = build_scorer(model)
    dense = gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS))
    scorer.head.chunk_logits = rows * VOCABULARY
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), dense)


@pytest.mark.parametrize("budget", [1, 20, 40])
def test_accumulated_micro_batches_equal_the_whole(budget: int) -> None:
    """Trap: "Gradient accumulation averages micro-batch means, so short micro-batches weigh more"."""
    model = tiny_model("llama-tied")
    scorer = build_scorer(model)
    items = random_items([(0, 30), (4, 3, 5), (0, 5), (2, 9, 1), (0, 4)])
    count = sum(item.scored for item in items)
    whole = gradients_of(model, lambda: -scorer(collate(items)).sum() / count)
    model.zero_grad(set_to_none=True)
    batches = list(micro_batches(items, budget))
    assert len(batches) > 1
    for batch in batches:
        (-scorer(batch).sum() / count).backward()
    parts = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same((whole[0], parts), whole)


def test_the_batch_as_the_design_draws_it() -> None:
    learn = np.array([True, False, True])
    pair = Item("pair", np.array([1, 2], np.int32), ((np.array([3, 4, 5], np.int32), learn),) * 2)
    batch = collate([pair, Item.text("text", np.array([6, 7], np.int32))])
    assert batch.tokens_T.tolist() == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 0, 1]
    assert batch.scored_N.tolist() == [1, 3, 1, 6, 8]  # the last prompt token stands here twice
    assert batch.targets_N.tolist() == [3, 5, 3, 5, 7]
    assert batch.owner_N.tolist() == [0, 0, 1, 1, 2]
    assert batch.by_answer(torch.arange(5.0)).tolist() == [1.0, 5.0, 4.0]
    assert batch.row_ids == ("pair", "text")
    assert batch.weights_N.sum().item() == pair.scored + 1


@pytest.mark.parametrize("budget", [1, 17, 64, 10_000])
def test_micro_batches_hold_every_row_once_and_keep_to_the_budget(budget: int) -> None:
    items = random_items([(0, 2 + n % 13) for n in range(40)] + [(5, n, 3) for n in range(1, 9)])
    batches = list(micro_batches(items, budget))
    assert sorted(row for batch in batches for row in batch.row_ids) == sorted(item.row for item in items)
    assert sum(batch.targets_N.numel() for batch in batches) == sum(item.scored for item in items)
    for batch in batches:
        assert batch.tokens_T.numel() <= budget or len(batch.row_ids) == 1


def test_every_token_is_read_from_a_slot_that_holds_it() -> None:
    tree = collate(PAIRS_AND_CHATS).tree
    assert tree.slots_S[tree.home_T].tolist() == list(range(len(tree.home_T)))
    assert tree.slots_S[tree.extra_slots_E].tolist() == tree.extra_tokens_E.tolist()
    assert not set(tree.home_T.tolist()) & set(tree.extra_slots_E.tolist())
    assert collate(random_items([(0, 9), (0, 9)])).tree.plain


def test_sums_and_softmax_stay_in_float32_where_products_are_bfloat16() -> None:
    """Trap: "Sequence log-probabilities summed or rounded in bf16"; "bf16 logits before the float32 softmax"."""
    model = tiny_model(dtype=torch.float32)
    scorer = build_scorer(model, torch.bfloat16)
    batch = collate(PAIRS_AND_CHATS)
    with scorer.products():
        logp_N = scorer(batch)
    assert logp_N.dtype == torch.float32
    assert not torch.equal(logp_N, logp_N.bfloat16().float())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"


@pytest.mark.parametrize("chunk", [1 << 25, 7 * VOCABULARY])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_weights_in_bfloat16_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch, family: str, chunk: int) -> None:
    """Trap: "Sequence log-probabilities summed or rounded in bf16 (steps of 1.0 at -186)"; "bf16 logits before the
    float32 softmax: 4-23% gradient error". From the same hidden states, the head is as exact as float64 would be."""
    scorer = build_scorer(tiny_model(family, torch.bfloat16))
    scorer.head.chunk_logits = chunk
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk)
    exact = build_scorer(tiny_model(family, torch.bfloat16).double())
    torch.manual_seed(0)
    hidden_ND = torch.randn(50, 16).bfloat16().requires_grad_()
    wide_ND = hidden_ND.detach().double().requires_grad_()
    targets_N = torch.randint(0, VOCABULARY, (50,))
    ours_N, truth_N = scorer.head.logps(hidden_ND, targets_N), exact.head.logps(wide_ND, targets_N)
    assert ours_N.dtype == torch.float32
    assert torch.allclose(ours_N.double(), truth_N, rtol=1e-5, atol=1e-5)
    ours_N.sum().backward()
    truth_N.sum().backward()
    assert hidden_ND.grad is not None
    assert wide_ND.grad is not None
    rounding = (wide_ND.grad.bfloat16().double() - wide_ND.grad).norm()
    # Of the gradient itself, and in the fused head once more of softmax - onehot, which both of its products take.
    assert (hidden_ND.grad.double() - wide_ND.grad).norm() <= (1.01 if family == "gemma2" else 1.5) * rounding


def test_what_was_chosen_is_recorded() -> None:
    scorer = build_scorer(tiny_model(dtype=torch.float32), torch.bfloat16, checkpoint_activations=True)
    assert scorer.facts() == {
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": "float32",
        "layout": "shared",
        "attention": "rows",
        "activation_checkpointing": "every layer",
    }
    facts = build_scorer(tiny_model("bloom")).facts()
    assert (facts["layout"], facts["attention"]) == ("padded", "the model's own")


@pytest.mark.parametrize("family", ["mistral", "llama-tied", "gemma2", "mixtral", "bloom"])
def test_a_body_that_nobody_trains_says_the_same_when_it_is_held_narrow(family: str) -> None:
    batch = collate(PAIRS_AND_CHATS)
    scorer = build_scorer(tiny_model(family, torch.float32).requires_grad_(False), torch.bfloat16).eval()
    with torch.no_grad(), scorer.products():
        before, logp = scorer(batch, "hidden", (1, 2)), scorer(batch)
        head = scorer.head.module.weight.clone()
        narrow = sum(module.weight.dtype == torch.bfloat16 for module in scorer.narrow().modules() if is_linear(module))
        assert narrow >= 8
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(scorer(batch, "hidden", (1, 2)), before, strict=True)
        )
        assert torch.equal(scorer(batch), logp)
    assert torch.equal(scorer.head.module.weight, head)
    assert scorer.head.module.weight.dtype == torch.float32
    exact = build_scorer(tiny_model(family, torch.float32).requires_grad_(False)).narrow()
    assert {module.weight.dtype for module in exact.modules() if is_linear(module)} == {torch.float32}


def is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear


@pytest.mark.parametrize("family", ["mistral", "granite", "gemma2"])
def test_what_a_teacher_says_is_its_logits_of_the_first_tokens(family: str) -> None:
    """Of a head that is scaled, and of one that levels off too, which does not write into the room."""
    scorer, room = build_scorer(tiny_model(family)), Room()
    torch.manual_seed(0)
    hidden_CD = torch.randn(5, 16, dtype=torch.float64)
    with torch.no_grad():
        whole_CV, found_CV = scorer.head.logits(hidden_CD), scorer.head.said(hidden_CD, VOCABULARY - 4, room)
    assert torch.allclose(found_CV, whole_CV[:, : VOCABULARY - 4], rtol=1e-12)
    again_CV = scorer.head.said(hidden_CD, VOCABULARY - 4, room)
    assert (found_CV.data_ptr() == again_CV.data_ptr()) == (family != "gemma2")
