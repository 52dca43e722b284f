"""Adapters: nothing at first, exact when merged, and the next stage's reference is the merged model."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine import FAMILIES, random_items, tiny_model, tiny_tokenizer
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import (
    FOLDER,
    adapter_facts,
    attach,
    hold_base,
    is_adapted,
    load_adapter,
    load_base,
    merge,
    save_adapter,
    save_trained,
    without_adapter,
)
from potstill.training.batch import collate
from potstill.training.models import load_model, load_tokenizer, resize, save_model
from potstill.training.scoring import build_scorer

CPU = torch.device("cpu")
KINDS = ["lora", "dora"]
BODY = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
peft_of_its_own = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""Where peft's wrapper is used, which asks the model by an old name."""

IDS_BL = torch.tensor([[5, 9, 33, 2, 17, 40, 8], [60, 1, 1, 7, 22, 3, 50]])


def adapter(kind: str = "lora", **fields: object) -> Adapter:
    return Adapter.model_validate({"kind": kind, "rank": 4, "alpha": 8, **fields})


def logits(model: nn.Module, ids_BL: Tensor = IDS_BL) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids_BL, use_cache=False).logits


def nll(model: nn.Module, ids_BL: Tensor = IDS_BL) -> Tensor:
    logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())


def train(model: nn.Module, steps: int = 3, ids_BL: Tensor = IDS_BL) -> None:
    """A few plain steps, dropout on."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    for _ in range(steps):
        nll(model, ids_BL).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral", "llama-tied", "gemma2"])
def test_before_the_first_step_the_model_is_its_base_to_the_last_bit(family: str, kind: str) -> None:
    model = tiny_model(family, torch.float32)
    before = logits(model)
    attached = attach(model, adapter(kind, dropout=0.5), seed=1)
    assert attached is model
    assert logits(model).equal(before)
    assert adapter_facts(model)["targets"] == BODY
    assert all("lora_" in name for name in trained_names(model))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits(model)
        with without_adapter(model):
            assert logits(model).equal(rounded)


def test_no_dropout_in_a_model_that_is_not_training() -> None:
    """Trap: "Dropout active in the reference". peft's new layers come in training mode, inside an eval model."""
    model = attach(tiny_model(), adapter(dropout=0.5), seed=1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    assert logits(model).equal(logits(model))
    model.train()
    assert not logits(model).equal(logits(model))


def test_one_seed_one_adapter_and_nobody_elses_numbers() -> None:
    state = torch.get_rng_state()
    made = [attach(tiny_model(), adapter(), seed) for seed in (7, 7, 8)]
    torch.set_rng_state(state)
    copy_ = tiny_model()
    state = torch.get_rng_state()
    attach(copy_, adapter(), 7)
    assert torch.get_rng_state().equal(state)
    first, same, other = ({n: p for n, p in m.named_parameters() if ".lora_A." in n} for m in made)
    assert all(p.equal(same[name]) for name, p in first.items())
    assert not any(p.equal(other[name]) for name, p in first.items())


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_computes_what_the_adapter_did(family: str, kind: str) -> None:
    if family == "gpt2":  # its linear layers are convolutions, stored the other way round
        torch.manual_seed(0)
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2)).eval()
    else:
        model = tiny_model(family, torch.float32)
    names = set(model.state_dict())
    base = logits(model)
    attach(model, adapter(kind), seed=1)
    train(model)
    trained = logits(model)
    assert (trained - base).abs().max() > 0.05
    merged = merge(model)
    assert merged is model
    assert not is_adapted(merged)
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_merged_is_the_papers_sum(rslora: bool) -> None:
    """W + alpha / rank * B A (Hu et al. 2021, section 4.1), in float64; alpha / sqrt(rank) for rslora."""
    model = tiny_model()
    weight = model.get_submodule("model.layers.0.self_attn.q_proj").weight.detach().clone()
    attach(model, adapter(rslora=rslora, targets=["q_proj"]), seed=1)
    train(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    merge(model, torch.float64)
    expected = weight + (4.0 if rslora else 2.0) * b @ a
    torch.testing.assert_close(model.get_submodule("model.layers.0.self_attn.q_proj").weight.detach(), expected)


def test_what_dora_merges_has_the_learnt_lengths() -> None:
    """m * (W + s B A) / ||W + s B A||, the norm of each output's row (Liu et al. 2024, eq. 5), in float64."""
    model = tiny_model()
    name = "model.layers.1.mlp.up_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    attach(model, adapter("dora"), seed=1)
    torch.testing.assert_close(
        model.get_submodule(name).lora_magnitude_vector["default"].weight.detach(), weight.norm(dim=1)
    )
    train(model)
    layer = model.get_submodule(name)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    lengths = layer.lora_magnitude_vector["default"].weight.detach().clone()
    merge(model, torch.float64)
    direction = weight + 2.0 * b @ a
    expected = lengths[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.get_submodule(name).weight.detach(), expected)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["qproj"], r"no linear layer 'qproj' that could carry an adapter\. Name others, such as q_proj, "),
        (["q_proj", "embed_tokens"], "no linear layer 'embed_tokens'"),
        (["xyzzy"], "such as down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or set auto"),
        (["lm_head"], "no linear layer 'lm_head'"),
    ],
)
def test_a_target_that_is_no_linear_layer(targets: list[str], says: str) -> None:
    model = tiny_model("llama-tied")
    with pytest.raises(ModelError, match=says) as caught:
        attach(model, adapter(targets=targets), seed=1)
    assert "\n" not in str(caught.value)
    assert not is_adapted(model)


def test_targets_by_name() -> None:
    chosen = ["layers.1.mlp.up_proj", "lm_head", "v_proj"]
    model = attach(tiny_model(), adapter(targets=chosen), seed=1)
    carriers = {name.split(".lora_")[0] for name in trained_names(model)}
    values = {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)}
    assert carriers == {"model.layers.1.mlp.up_proj", "lm_head", *values}


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}, {"kind": "ia3"}])
def test_a_config_out_of_bounds(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Adapter.model_validate(fields)


# From one stage to the next.


@pytest.fixture
def base(tmp_path: Path) -> Model:
    """A model on disk that nothing was trained on yet, stored in bfloat16."""
    return stored(tmp_path / "base", "mistral")


def stored(path: Path, family: str) -> Model:
    model = tiny_model(family, torch.float32)
    tokenizer = tiny_tokenizer()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.dtype = torch.bfloat16
    save_model(model, tokenizer, path)
    return Model(path.name, LocalModel(path=str(path)))


def load(model: Model) -> PreTrainedModel:
    return load_model(model, load_tokenizer(model), CPU)


def answer_logps(model: nn.Module) -> Tensor:
    """The two rows of IDS_BL as a chosen and a rejected answer; shape (2,)."""
    logp_BLV = model(input_ids=IDS_BL, use_cache=False).logits[:, :-1].log_softmax(-1)
    return logp_BLV.gather(-1, IDS_BL[:, 1:, None]).sum((1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dpo_adapter_starts_from_the_merged_sft_model(base: Model, tmp_path: Path, kind: str) -> None:
    """Trap: "SFT adapter not merged before the DPO adapter is added; the reference is then the base model"."""
    tokenizer = load_tokenizer(base)
    policy = attach(load(base), adapter(kind), seed=1)
    train(policy)
    learnt = logits(policy)
    save_trained(policy, base, tokenizer, tmp_path / "sft", "float32")

    sft = Model("sft", LocalModel(path=str(tmp_path / "sft")))
    merged = load(sft)
    assert merged.config.dtype == torch.float32
    torch.testing.assert_close(logits(merged), learnt, rtol=0, atol=1e-5)
    reference_2 = answer_logps(merged).detach()
    assert (reference_2 - answer_logps(load(base)).detach()).abs().min() > 0.1

    policy = attach(merged, adapter(kind), seed=2)
    policy.eval()
    policy_2 = answer_logps(policy)
    assert policy_2.detach().equal(reference_2)
    chosen, rejected = policy_2 - reference_2
    assert F.softplus(-0.1 * (chosen - rejected)).item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-7)


def test_a_second_adapter_needs_the_first_merged() -> None:
    """Trap: "SFT adapter not merged before the DPO adapter is added"."""
    model = attach(tiny_model(), adapter(), seed=1)
    with pytest.raises(AssertionError, match="is to be merged first"):
        attach(model, adapter(), seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapter_the_model_is_the_reference(kind: str) -> None:
    """Trap: "a LoRA reference with the adapter still on"."""
    model = tiny_model(dtype=torch.float32)
    tokens = [3, 17]
    reference = answer_logps(model).detach()
    attach(model, adapter(kind), seed=1, new_tokens=tokens)
    train(model)
    policy, names = answer_logps(model).detach(), trained_names(model)
    with without_adapter(model):
        assert answer_logps(model).detach().equal(reference)
    assert answer_logps(model).detach().equal(policy)
    assert not policy.equal(reference)
    assert trained_names(model) == names
    nll(model).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@peft_of_its_own
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral", "llama-tied"])
def test_the_kept_adapter_is_peft_s(tmp_path: Path, family: str, kind: str) -> None:
    base = stored(tmp_path / "base", family)
    policy = attach(load(base), adapter(kind), seed=1)
    train(policy)
    learnt = logits(policy)
    save_trained(policy, base, load_tokenizer(base), tmp_path / "sealed")

    theirs = PeftModel.from_pretrained(load(base), str(tmp_path / "sealed" / FOLDER)).eval()
    assert logits(theirs).equal(learnt)
    ours = load_adapter(load(base), tmp_path / "sealed" / FOLDER)
    assert logits(ours).equal(learnt)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "sealed")
    assert plain.dtype == torch.bfloat16
    assert not is_adapted(plain)
    merged = merge(ours)
    assert all(p.to(torch.bfloat16).equal(plain.get_parameter(name)) for name, p in merged.named_parameters())


def test_the_same_adapter_is_the_same_bytes_and_names_no_folder(base: Model, tmp_path: Path) -> None:
    for place in ("one", "two"):
        policy = attach(load(base), adapter(), seed=1)
        save_adapter(policy, tmp_path / place)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files["adapter_config.json"])
    assert config["target_modules"] == BODY
    assert config["base_model_name_or_path"] is None
    assert str(tmp_path).encode() not in b"".join(files.values())


# What the base is held in.


def test_a_base_in_bfloat16_is_merged_in_float32(base: Model) -> None:
    """Rounded once: adding in bfloat16 would lose the small additions that training makes."""
    exact = attach(load(base), adapter("dora"), seed=1)
    train(exact)
    held = copy.deepcopy(exact)
    hold_base(held, torch.bfloat16)
    layer = held.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert held.get_input_embeddings().weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(held).equal(logits(exact))
    rounded = merge(copy.deepcopy(held), torch.bfloat16)
    whole, wide = merge(exact), merge(held)
    for name, parameter in whole.named_parameters():
        assert wide.get_parameter(name).equal(parameter)
        assert rounded.get_parameter(name).equal(parameter.to(torch.bfloat16))
    frequencies = rounded.get_submodule("model.rotary_emb").inv_freq
    assert frequencies.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_base_loaded_in_bfloat16(base: Model, kind: str) -> None:
    """peft would make it in bfloat16, and DoRA's lengths rounded: not the base any more."""
    narrow = attach(load_model(base, load_tokenizer(base), CPU, torch.bfloat16), adapter(kind), seed=1)
    whole = attach(load(base), adapter(kind), seed=1)
    assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.float32}
    for name in trained_names(whole):
        if "magnitude" in name:
            torch.testing.assert_close(narrow.get_parameter(name), whole.get_parameter(name))
    hold_base(narrow, torch.bfloat16)
    hold_base(whole, torch.bfloat16)
    assert {n: p.dtype for n, p in narrow.named_parameters()} == {n: p.dtype for n, p in whole.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [[], [3, 17]])
def test_checkpointed_activations_give_the_same_gradients(kind: str, tokens: list[int]) -> None:
    """Nothing that enters a frozen base has a gradient; what is computed again must give one, with the same dropout."""
    model = attach(tiny_model(), adapter(kind, dropout=0.3), seed=1, new_tokens=tokens)
    train(model, 1)
    batch = collate(random_items([(5, 4, 6), (0, 7)]))
    gradients = []
    for again in (False, True):
        scorer = build_scorer(model, torch.float64, checkpoint_activations=again).train()
        torch.manual_seed(5)
        scorer(batch).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad(set_to_none=True)
        scorer.release()
    whole, again_ = gradients
    assert whole.keys() == again_.keys() == trained_names(model)
    assert all(gradient.equal(again_[name]) for name, gradient in whole.items())


# New tokens.


@peft_of_its_own
@pytest.mark.parametrize("family", ["mistral", "llama-tied"])
def test_new_tokens_train_their_rows_and_no_others(tmp_path: Path, family: str) -> None:
    base = stored(tmp_path / "base", family)
    tokenizer = load_tokenizer(base)
    model = load(base)
    old = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<a>", "<b>"]})
    new = [old, old + 1]
    resize(model, tokenizer, new)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grown = copy.deepcopy(model)
    attach(model, adapter(), seed=1, new_tokens=new)
    rows = {name: p.shape for name, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in name}
    tied = family == "llama-tied"
    assert list(rows.values()) == [(2, 16)] * (1 if tied else 2)
    ids_BL = torch.tensor([[5, *new, 2, 17, new[0], 8], [60, new[1], 1, 7, 22, 3, 50]])
    train(model, ids_BL=ids_BL)
    learnt = logits(model, ids_BL)
    save_trained(model, base, tokenizer, tmp_path / "sealed", "float32")
    merged = load(Model("sealed", LocalModel(path=str(tmp_path / "sealed"))))
    torch.testing.assert_close(logits(merged, ids_BL), learnt, rtol=0, atol=1e-5)
    theirs = PeftModel.from_pretrained(grown, str(tmp_path / "sealed" / FOLDER)).eval()
    torch.testing.assert_close(logits(theirs, ids_BL), learnt, rtol=0, atol=1e-6)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        table = merged.get_parameter(name)
        assert table[:old].equal(before[name][:old])
        assert not (table[new] == before[name][new]).any()
    stored_names = set(load_file(tmp_path / "sealed" / "model.safetensors"))
    assert ("lm_head.weight" in stored_names) != tied


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral", "llama-tied"])
def test_the_scorer_sees_the_adapter_and_the_new_rows(family: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its probe finds the packed and shared layout exact, and every trained weight gets its gradient there."""
    batch = collate(random_items([(5, 4, 6), (0, 7)]))
    tokens = batch.tokens_T.unique().tolist()[:2]
    merged = attach(tiny_model(family, torch.float32), adapter(kind), seed=1, new_tokens=tokens)
    train(merged)
    scorer = build_scorer(copy.deepcopy(merged))
    assert scorer.layout == "shared"
    assert not caplog.records
    logp_N = scorer(batch)
    torch.testing.assert_close(logp_N, build_scorer(merge(merged))(batch), rtol=0, atol=1e-5)
    logp_N.sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in scorer.parameters() if p.requires_grad)


def test_a_head_with_a_bias_takes_no_new_tokens() -> None:
    """peft's rows would silently drop the bias."""
    model = tiny_model()
    model.lm_head = nn.Linear(16, 61, bias=True, dtype=torch.float64)
    with pytest.raises(ModelError, match="its head has a bias"):
        attach(model, adapter(), seed=1, new_tokens=[3])


# QLoRA.

needs_four_bits = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="there is no CUDA device, or bitsandbytes, the extra `qlora`, is not installed",
)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cpu", "adapter: qlora: 4-bit weights need a CUDA device, and this is cpu. Set kind: lora."),
        (
            "cuda",
            "adapter: qlora: bitsandbytes is not installed. Run pip install 'potstill[qlora]', or set kind: lora.",
        ),
    ],
)
def test_qlora_where_it_cannot_be(base: Model, device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError) as caught:
        load_base(base, load_tokenizer(base), torch.device(device), adapter("qlora"))
    assert str(caught.value) == says


@needs_four_bits
@pytest.mark.filterwarnings("ignore")  # bitsandbytes and what it imports warn of things to come
def test_qlora_is_merged_into_the_unquantised_base(base: Model, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    model = load_base(base, tokenizer, torch.device("cuda"), adapter("qlora"))
    old = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<a>"]})
    resize(model, tokenizer, [old])
    attach(model, adapter("qlora"), seed=1, new_tokens=[old])
    weight = model.get_submodule("model.layers.0.mlp.up_proj").base_layer.weight
    assert weight.dtype == torch.uint8
    before = frozen(model)
    hold_base(model, torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        train(model, ids_BL=IDS_BL.cuda())
    assert all(p.equal(before[name]) for name, p in frozen(model).items())
    save_trained(model, base, tokenizer, tmp_path / "sealed", "float32")

    whole = load(base)
    resize(whole, tokenizer, [old])
    expected = merge(load_adapter(whole, tmp_path / "sealed" / FOLDER))
    merged = load(Model("sealed", LocalModel(path=str(tmp_path / "sealed"))))
    assert "quantization_config" not in json.loads((tmp_path / "sealed" / "config.json").read_text())
    assert all(p.equal(expected.get_parameter(name)) for name, p in merged.named_parameters())
    learnt, untrained = logits(model, IDS_BL.cuda()).cpu()[..., :old], logits(load(base))
    assert (logits(merged)[..., :old] - learnt).norm() < 0.5 * (untrained - learnt).norm()  # 4 bits are coarse
