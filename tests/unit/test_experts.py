"""The balance of experts: transformers' loss, whatever the layout and the split of the global batch."""

from collections.abc import Sequence

import pytest
import torch
from engine import FAMILIES, PAIRS_AND_CHATS, random_items, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral import modeling_mixtral
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from potstill.errors import ModelError
from potstill.training.batch import Item, collate, micro_batches
from potstill.training.experts import balance_loss, routing
from potstill.training.scoring import LADDER, Layout, Scorer, build_scorer

CASES = [(family, layout) for family in ("mixtral", "qwen3-moe") for layout in LADDER] + [
    ("qwen2-moe-window", "padded")
]


def plain_balance(model: PreTrainedModel, items: Sequence[Item]) -> Tensor:
    """Every answer a padded row with its own prompt, as plain training sees it, through the model's own loss."""
    rows = [[*item.prompt_ids, *ids_L] for item in items for ids_L, _ in item.answers]
    longest = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    loss = model(ids_BL, attention_mask=mask_BL, output_router_logits=True, use_cache=False).aux_loss
    assert isinstance(loss, Tensor)
    return loss


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_the_loss_is_that_of_transformers() -> None:
    torch.manual_seed(1)
    logits = [torch.randn(50, 6, dtype=torch.float64) for _ in range(3)]
    mask_R = torch.rand(50) < 0.7
    routed_E, router_E = routing(logits, mask_R.long(), 2)
    assert routed_E.sum() == 3 * 2 * mask_R.sum()
    theirs = load_balancing_loss_func(tuple(logits), 6, 2, mask_R[None].long())
    assert balance_loss(routed_E, router_E, 2).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_even_routing_costs_as_many_as_are_chosen() -> None:
    """Closed form: f_e = K / E and p_e = 1 / E, so the loss is K, its least where probabilities go with choices."""
    even_E = torch.full((8,), 5.0)
    assert balance_loss(2 * even_E, even_E, 2).item() == pytest.approx(2.0)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_every_layout_counts_what_plain_training_sees(family: str, layout: Layout) -> None:
    """A shared prompt counts once a branch, padding never."""
    model = tiny_model(family)
    theirs = plain_balance(model, PAIRS_AND_CHATS)
    theirs.backward()
    truth = gradients(model)
    assert any("gate" in name for name in truth)
    model.zero_grad()
    scorer = Scorer(model, layout)
    logp_N, routed_E, router_E = scorer(collate(PAIRS_AND_CHATS), want="routing")
    assert torch.equal(logp_N, scorer(collate(PAIRS_AND_CHATS)))
    assert not routed_E.requires_grad
    ours = balance_loss(routed_E, router_E, scorer.experts_per_token)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    assert_same_gradients(gradients(model), truth)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_micro_batches_add_up_to_the_global_batch(checkpoint_activations: bool) -> None:
    """Two passes: counts of the whole batch without gradients, then each part's share of the loss."""
    model = tiny_model("mixtral")
    items = random_items([(4, 3, 5), (0, 30), (0, 5), (2, 9, 1), (0, 4)])
    plain_balance(model, items).backward()
    truth = gradients(model)
    model.zero_grad()
    scorer = build_scorer(model, checkpoint_activations=checkpoint_activations)
    scorer.train()
    batches = list(micro_batches(items, 20))
    assert len(batches) > 2
    with torch.no_grad():
        routed_E = sum(scorer(batch, want="routing")[1] for batch in batches)
    for batch in batches:
        balance_loss(routed_E, scorer(batch, want="routing")[2], scorer.experts_per_token).backward()
    assert_same_gradients(gradients(model), truth)


def test_the_coefficient_is_what_plain_training_would_take() -> None:
    assert build_scorer(tiny_model("mixtral")).balance_coefficient == FAMILIES["mixtral"].router_aux_loss_coef == 0.1
    assert build_scorer(tiny_model("mistral")).balance_coefficient == 0.0
    model = tiny_model("mixtral")
    model.config.output_router_logits = False
    assert build_scorer(model).balance_coefficient == 0.0


def test_another_balance_loss_than_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*given: object) -> Tensor:
        return 1.1 * load_balancing_loss_func(*given)

    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", other)
    with pytest.raises(
        ModelError, match=r"balance loss of experts .* its own forward says .*output_router_logits: false"
    ):
        build_scorer(tiny_model("mixtral"))
