"""What a scorer does in training mode alone: noise on embeddings, and layers computed again in the backward."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from engine import PAIRS_AND_CHATS, assert_same, gradients_of, random_items, scorer_loss, tiny_model
from torch import Tensor

from potstill.errors import ModelError
from potstill.training.batch import collate
from potstill.training.neftune import Noise
from potstill.training.paths import Plan
from potstill.training.scoring import LADDER, Layout, Scorer, build_scorer


def trained(family: str, layout: Layout, seed: int = 3, **how: Any) -> tuple[float, dict[str, Tensor], Tensor]:
    """Loss and gradients in training mode, with dropout; and what the generator would give next."""
    model = tiny_model(family, torch.float32)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    scorer = Scorer(model, layout, **how).train()
    torch.manual_seed(seed)
    loss, gradients = gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS))
    return loss, gradients, torch.rand(1)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "mixtral"])
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_layers_computed_again_give_the_same_gradients_bit_for_bit(family: str, layout: Layout, alpha: float) -> None:
    """Dropout and noise included, and the generator ends where it would have."""
    plain = trained(family, layout, neftune_alpha=alpha)
    assert plain[0] != trained(family, layout, neftune_alpha=alpha, seed=4)[0]  # there is noise to restore
    again = trained(family, layout, neftune_alpha=alpha, checkpoint_activations=True)
    assert plain[0] == again[0]
    assert plain[1].keys() == again[1].keys()
    assert all(torch.equal(gradient, again[1][name]) for name, gradient in plain[1].items())
    assert torch.equal(plain[2], again[2])


def test_layers_are_computed_again_only_in_training_and_not_after_release() -> None:
    model = tiny_model()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *given: calls.append(1))
    scorer = build_scorer(model, checkpoint_activations=True)

    def passes(run: Callable[[], Tensor]) -> int:
        calls.clear()
        run().sum().backward()
        return len(calls)

    batch = collate(PAIRS_AND_CHATS)
    assert passes(lambda: scorer.train()(batch)) == 2
    assert passes(lambda: scorer.eval()(batch)) == 1
    assert scorer.facts()["activation_checkpointing"] == "every layer"
    scorer.train().release()
    assert passes(lambda: model(torch.arange(5)[None]).logits) == 1


def test_a_model_whose_layers_cannot_be_computed_again_is_refused() -> None:
    model = tiny_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match=r"cannot be computed a second time.*activation_checkpointing: false"):
        Scorer(model, checkpoint_activations=True)


def test_the_noise_is_uniform_by_the_length_of_each_sequence() -> None:
    """Jain et al. 2023: uniform in +-alpha / sqrt(L d), whose standard deviation is 1 / sqrt(3) of that. A shared
    prompt's tokens go by their first branch."""
    torch.manual_seed(0)
    batch = collate(random_items([(6, 10, 90), (0, 400)]))
    embeddings = torch.nn.Embedding(61, 64)
    tokens_T = torch.arange(len(batch.tokens_T))
    clean_TD = embeddings(batch.tokens_T)
    with Noise(5.0, Plan(batch.tree)).on(embeddings, tokens_T):
        noise_TD = embeddings(batch.tokens_T) - clean_TD
    assert torch.equal(embeddings(batch.tokens_T), clean_TD)
    for tokens, length in ((slice(0, 16), 16), (slice(16, 106), 96), (slice(106, 506), 400)):
        most = 5.0 / sqrt(length * 64)
        part = noise_TD[tokens]
        assert part.abs().max().item() == pytest.approx(most, rel=0.02)
        assert part.std().item() == pytest.approx(most / sqrt(3), rel=0.05)
        assert abs(part.mean().item()) < 0.1 * most


def test_the_noise_is_the_same_in_every_layout() -> None:
    """One draw a token of the batch, a shared prompt's once."""

    def noisy(layout: Layout) -> tuple[float, dict[str, Tensor]]:
        model = tiny_model("gemma3")
        scorer = Scorer(model, layout, neftune_alpha=5.0).train()
        torch.manual_seed(3)
        return gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS))

    shared, packed, padded = map(noisy, LADDER)
    assert_same(packed, shared)
    assert_same(padded, shared)


def test_noise_comes_from_the_generator_and_only_in_training() -> None:
    scorer = build_scorer(tiny_model(), neftune_alpha=5.0)
    batch = collate(PAIRS_AND_CHATS)
    clean = scorer.eval()(batch)
    state = torch.get_rng_state()
    first, second = scorer.train()(batch), scorer(batch)
    torch.set_rng_state(state)
    assert torch.equal(scorer(batch), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, clean)
    state = torch.get_rng_state()
    assert torch.equal(scorer.eval()(batch), clean)
    assert torch.equal(torch.get_rng_state(), state)
