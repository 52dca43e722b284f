"""The load-time probe and its ladder: what is wrong is noticed, what is right is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from engine import PAIRS_AND_CHATS, assert_same, gradients_of, plain_loss, random_items, scorer_loss, tiny_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.training import attention
from potstill.training.batch import collate
from potstill.training.output_head import OutputHead
from potstill.training.probe import check_positions
from potstill.training.scoring import Scorer, build_scorer


def test_a_wrong_attention_is_noticed_and_avoided(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the load-time probe is for: here our attention forgets to scale."""
    truth_model, model = tiny_model(), tiny_model()
    right = attention.causal
    monkeypatch.setattr(attention, "causal", lambda q, k, v, scale, *rest: right(q, k, v, 1.05 * scale, *rest))
    scorer = build_scorer(model)
    assert scorer.layout == "padded"
    (record,) = caplog.records
    assert "batches of this model are padded" in record.message
    assert "shared: log-probabilities differ by" in record.message
    assert "packed: log-probabilities differ by" in record.message
    truth = gradients_of(truth_model, lambda: plain_loss(truth_model, PAIRS_AND_CHATS))
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)


def test_an_attention_that_wants_more_than_we_know_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.tree_attention
    monkeypatch.setattr(attention, "tree_attention", lambda *args, **more: right(*args, **more, s_aux=torch.ones(4)))
    assert build_scorer(tiny_model()).layout == "padded"


def test_a_window_that_only_the_mask_knows_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    """A few tokens lie within every window: log-probabilities alone could not tell."""
    assert build_scorer(tiny_model("qwen2-moe-window")).layout == "padded"
    assert "the model's mask has a window of 5 and its attention is told None" in caplog.text


def test_a_model_that_nothing_here_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutputHead, "_scale", 1.1)
    with pytest.raises(ModelError, match=r"cannot be computed apart from its own forward.*Use a model of another"):
        build_scorer(tiny_model())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_probe_leaves_no_trace(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    model.train()
    model.model.layers[0].eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    kept = [gradient.clone() for gradient in gradients if gradient is not None]
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert build_scorer(model).layout == "shared"
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), kept, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_has_our_attention_already_is_probed_again() -> None:
    """And so is a copy of it, which gives back the attention that the first had."""
    model = tiny_model()
    before = model.config._attn_implementation
    build_scorer(model)
    twin = deepcopy(model)
    for each in (model, twin):
        scorer = build_scorer(each)
        assert scorer.layout == "shared"
        assert scorer.release().config._attn_implementation == before
    assert Scorer(build_scorer(model).model, "padded").model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["mistral", "gemma2", "mixtral", "bloom"])
def test_a_model_in_bfloat16_is_judged_by_what_bfloat16_can_tell(family: str) -> None:
    assert build_scorer(tiny_model(family, torch.bfloat16)).layout == ("padded" if family == "bloom" else "shared")


def test_a_frozen_model_is_judged_by_its_log_probabilities() -> None:
    model = tiny_model()
    assert build_scorer(model.requires_grad_(False)).layout == "shared"
    assert all(parameter.grad is None for parameter in model.parameters())


def adapted(family: str, targets: list[str]) -> Any:
    """A model wrapped by peft, its adapters not zero."""
    config = LoraConfig(r=2, target_modules=targets, lora_dropout=0.3, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(family), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(("family", "layout"), [("mistral", "shared"), ("qwen3", "shared"), ("bloom", "padded")])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft
def test_a_model_wrapped_by_peft(family: str, layout: str) -> None:
    """Where its head is not tied it carries an adapter too, and must be called as a module."""
    targets = ["query_key_value"] if family == "bloom" else ["q_proj", "down_proj", "lm_head"]
    truth_model, model = adapted(family, targets), adapted(family, targets)
    truth = gradients_of(truth_model, lambda: plain_loss(truth_model, PAIRS_AND_CHATS))
    assert any("lm_head" in name for name in truth[1]) or family == "bloom"
    assert all("lora_" in name for name in truth[1])
    scorer = build_scorer(model)
    assert scorer.layout == layout
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)
    with model.disable_adapter():
        assert scorer_loss(scorer, PAIRS_AND_CHATS).item() != pytest.approx(truth[0], rel=1e-3)
    assert scorer.release() is model


@contextmanager
def gathered_only_in_calls(model: nn.Module) -> Iterator[None]:
    """As under ZeRO-3: a module's own weights are there while it runs, and empty else."""
    whole = {parameter: parameter.data for parameter in model.parameters()}

    def gather(module: nn.Module, inputs: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = whole[parameter]

    def release(module: nn.Module, inputs: Any, output: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = whole[parameter].new_empty(0)

    hooks = []
    for module in model.modules():
        release(module, None, None)
        hooks += [module.register_forward_pre_hook(gather), module.register_forward_hook(release)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in whole.items():
            parameter.data = data


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "mixtral", "bloom"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_no_weight_is_touched_outside_its_modules_call(family: str, dtype: torch.dtype) -> None:
    """Trap: "Sharded models touched outside their wrapped forward: reading the head's weight, or calling the body
    alone, ... sees empty weights under ZeRO-3"."""
    scorer = build_scorer(tiny_model(family, dtype))
    batch = collate(PAIRS_AND_CHATS)
    truth = scorer(batch)
    with gathered_only_in_calls(scorer.model):
        assert torch.equal(scorer(batch), truth)


def test_where_only_sharing_is_wrong_prompts_are_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Right log-probabilities are not enough: here shared prompts lose the gradient of their second answer."""
    truth_model, model = tiny_model(), tiny_model()

    def forgetful(ctx: Any, grad_SX: Tensor) -> object:
        return grad_SX.index_select(0, ctx.tree.home_T), None

    monkeypatch.setattr(attention._Spread, "backward", forgetful)
    scorer = build_scorer(model)
    assert scorer.layout == "packed"
    assert "are packed" in caplog.text
    assert "shared: gradients of" in caplog.text
    truth = gradients_of(truth_model, lambda: plain_loss(truth_model, PAIRS_AND_CHATS))
    assert_same(gradients_of(model, lambda: scorer_loss(scorer, PAIRS_AND_CHATS)), truth)


def test_the_model_is_handed_back_as_it_was() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    tokens = torch.arange(9)[None]
    logits = model(input_ids=tokens).logits
    assert torch.equal(build_scorer(model).release()(input_ids=tokens).logits, logits)
    assert model.config._attn_implementation == before
    assert all(p.grad is None for p in model.parameters())


def test_rows_beyond_the_positions_of_a_model_are_refused() -> None:
    model, items = tiny_model(), random_items([(3, 5, 9), (0, 11)])
    model.config.max_position_embeddings = 12
    check_positions(model, items)
    model.config.max_position_embeddings = 11
    with pytest.raises(
        ModelError, match=r"row 'row0': it has 12 tokens, and the model reads 11 at most\. .*max_length: 11"
    ):
        check_positions(model, items)


def test_rows_never_reach_where_longrope_would_change_for_a_whole_batch() -> None:
    """Up to there nothing depends on who shares a batch: it is one of the families that every exactness test reads."""
    check_positions(tiny_model("phi3-longrope"), PAIRS_AND_CHATS)
    with pytest.raises(ModelError, match=r"it has 17 tokens, and the model reads 16 at most"):
        check_positions(tiny_model("phi3-longrope"), random_items([(8, 9, 2)]))
