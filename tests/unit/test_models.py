"""Models: what is not whole, not its tokenizer's or not safe is refused; what is saved is rounded once; new tokens."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import say, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.teachers.base import Request
from potstill.teachers.local import LocalTeacher
from potstill.tokens.tokenization import DEFAULT_TEMPLATE
from potstill.training import models
from potstill.training.models import Footprint, footprint, load_model, load_tokenizer, resize, save_model

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, sound."""
    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    save_model(MistralForCausalLM(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> PreTrainedModel:
    model = Model("m", LocalModel(path=str(folder)))
    return load_model(model, load_tokenizer(model), CPU)


def edit(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_a_layer(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}


def with_a_nan(weights: Weights) -> Weights:
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    return weights


def with_an_infinity(weights: Weights) -> Weights:
    weights["model.norm.weight"][0] = float("inf")
    return weights


def wider(weights: Weights) -> Weights:
    weights["model.norm.weight"] = torch.ones(17)
    return weights


EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            without_a_layer,
            "its weights lack 9 of the tensors that its config.json asks for, model.layers.1",
        ),
        (with_a_nan, "its weights hold numbers that are not finite, in model.layers.0.mlp.up_proj.weight"),
        (with_an_infinity, "its weights hold numbers that are not finite, in model.norm.weight"),
        (wider, r"its weights hold model.norm.weight as \[17\], and its config.json asks for \[16\]"),
    ],
)
def test_weights_that_are_not_whole(
    folder: Path, damage: Callable[[Weights], Weights], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers would fill the gaps with random numbers, and say so in a table on stderr."""
    whole = (folder / "model.safetensors").read_bytes()
    save_file(damage(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=says):
        load(folder)
    assert capfd.readouterr().err == ""
    (folder / "model.safetensors").write_bytes(whole)
    assert load(folder).config.num_hidden_layers == 2


def test_a_tokenizer_that_makes_tokens_beyond_the_embeddings(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    rows = weights["lm_head.weight"].shape[0] - 10
    cut = {name: tensor[:rows].clone() if name in EMBEDDINGS else tensor for name, tensor in weights.items()}
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, "config.json", vocab_size=rows)
    with pytest.raises(
        ModelError, match=f"it has embeddings for {rows} tokens; its tokenizer makes 10 more, the first"
    ):
        load(folder)


def test_padding_may_stand_beyond_the_embeddings(folder: Path) -> None:
    """As in many checkpoints to whose tokenizer somebody added a padding token."""
    model = Model("m", LocalModel(path=str(folder)))
    requests = [Request(say(f"user: {text}"), max_tokens=4) for text in ("a", "the cat sat on the mat")]
    with LocalTeacher(model) as teacher:
        before = list(teacher.complete(requests))
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    assert tokenizer.pad_token_id == load(folder).config.vocab_size
    tokenizer.save_pretrained(folder)
    with LocalTeacher(model) as teacher:
        assert list(teacher.complete(requests)) == before


def test_tied_weights_and_weights_without_a_place_are_no_fault(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file({**weights, "vision.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, "config.json", tie_word_embeddings=True)
    loaded = load(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "weights that it has no place for: ['vision.weight']" in caplog.text


def test_an_end_token_that_is_none(folder: Path) -> None:
    edit(folder, "generation_config.json", eos_token_id="x")
    with pytest.raises(ModelError, match="names the end token 'x'; expected a token"):
        LocalTeacher(Model("m", LocalModel(path=str(folder))))


def test_a_blank_template_is_none(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", chat_template=" \n")
    tokenizer = load_tokenizer(Model("m", LocalModel(path=str(folder))))
    assert tokenizer.chat_template == DEFAULT_TEMPLATE


# What is not safe, or not a model.


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pickled_weights_are_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    told = refused(folder)
    assert told.startswith("model m: its weights are pickled (pytorch_model.bin in ")
    assert told.endswith("Convert them to safetensors where you trust them, or choose another model.")
    assert not (tmp_path / "sprung").exists()


def test_a_model_s_own_code_is_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'run')!r}).touch()\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(folder, "config.json", auto_map=own, model_type="of_its_own")
    told = refused(folder)
    assert "code of its own" in told
    assert "set trust_remote_code: true" in told
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_no_model(tmp_path: Path, folder: Path) -> None:
    """With peft at hand transformers would fetch the base that it names, and leave the adapter in it."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (alone / file).write_bytes((folder / file).read_bytes())
    assert "holds an adapter, not a whole model. Merge it" in refused(alone)


# What weights are loaded and stored in.


@pytest.mark.parametrize(("stored", "asked"), [("bfloat16", "auto"), ("float32", "auto"), ("float32", "bfloat16")])
@pytest.mark.parametrize("family", ["mistral", "llama-tied"])
def test_weights_are_rounded_once_on_their_way_to_the_disk(
    tmp_path: Path, family: str, stored: str, asked: models.DtypeName
) -> None:
    """Steps too small for bfloat16 add up in float32, and only their sum is rounded."""
    before, after = tmp_path / "before", tmp_path / "after"
    save_model(grown(family), tiny_tokenizer(), before, "bfloat16" if stored == "bfloat16" else "float32")
    model = load(before)
    assert model.dtype == torch.float32
    assert model.config.dtype == getattr(torch, stored)
    start = model.model.norm.weight.detach().clone()
    with torch.no_grad():
        for _ in range(64):
            model.model.norm.weight += 2.0**-12
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_model(model, tiny_tokenizer(), after, asked)
    expected = torch.bfloat16 if "bfloat16" in (stored, asked) else torch.float32
    written = load_file(after / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {expected}
    assert json.loads((after / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")
    assert written["model.norm.weight"].float().equal(start + 2.0**-6)
    assert set(written) == set(held)
    assert all(tensor.equal(held[name].to(expected)) for name, tensor in written.items())
    assert all(p.equal(held[name]) for name, p in model.named_parameters()), "saving changed the model"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (family == "llama-tied")


def grown(family: str) -> PreTrainedModel:
    """A tiny model with a row for every token of the tiny tokenizer."""
    model = tiny_model(family, torch.float32)
    resize(model, tiny_tokenizer(), [])
    return model


@pytest.mark.parametrize("family", ["mistral", "llama-tied"])
def test_a_large_model_is_split_and_the_same_bytes_each_time(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MAX_SHARD", "10KB")
    folders = [tmp_path / place for place in ("one", "two")]
    for path in folders:
        save_model(grown(family), tiny_tokenizer(), path)
    one, two = ({file.name: file.read_bytes() for file in path.iterdir()} for path in folders)
    assert one == two
    assert sum(name.endswith(".safetensors") for name in one) > 2
    loaded = load(folders[0])
    assert all(p.equal(q) for p, q in zip(loaded.parameters(), grown(family).parameters(), strict=True))


def test_what_a_family_keeps_in_float32_is_stored_so(tmp_path: Path) -> None:
    model = grown("mistral")
    model._keep_in_fp32_modules_strict = {"norm"}
    save_model(model, tiny_tokenizer(), tmp_path, "bfloat16")
    kept = {name for name, tensor in load_file(tmp_path / "model.safetensors").items() if tensor.dtype == torch.float32}
    assert kept == {"model.norm.weight"}


# New tokens.


@pytest.mark.parametrize("family", ["mistral", "llama-tied", "gemma2"])
@pytest.mark.parametrize("spare", [0, 1, 9])
def test_new_tokens_begin_as_the_mean_of_the_old(family: str, spare: int) -> None:
    """Rows that padded the vocabulary are used first; the mean is over tokens, and draws nothing."""
    tokenizer = load_copy()
    old = len(tokenizer)
    model = tiny_model(family)
    model.resize_token_embeddings(old + spare, mean_resizing=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    new = list(range(old, old + 3))
    state = torch.get_rng_state()
    resize(model, tokenizer, new)
    assert torch.get_rng_state().equal(state)
    rows = max(old + 3, old + spare)
    assert model.config.vocab_size == rows
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    for name, table in model.named_parameters():
        if name not in EMBEDDINGS:
            assert table.equal(before[name])
            continue
        assert len(table) == rows
        assert table[:old].equal(before[name][:old])
        assert table[old + 3 :].equal(before[name][old + 3 :])
        torch.testing.assert_close(table[new], before[name][:old].mean(0).expand(3, -1))


def load_copy() -> PreTrainedTokenizerBase:
    return copy.deepcopy(tiny_tokenizer())


# Memory.


def test_the_footprint_of_full_training_counts_tied_weights_once() -> None:
    model = tiny_model("llama-tied", torch.float32)
    weights = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    full = footprint(model, optimizer_states=2)
    assert full == Footprint(trained=weights, frozen=buffers, gradients=weights, optimizer=2 * weights)
    assert full.total == 4 * weights + buffers


def test_the_footprint_of_a_frozen_base() -> None:
    """On a model without memory too."""
    model = tiny_model("mistral", torch.float32)
    weights = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
        parameter.data = parameter.data.to(torch.float32 if parameter.ndim == 1 else torch.bfloat16)
    norms = 4 * sum(p.numel() for p in model.parameters() if p.ndim == 1)
    expected = Footprint(norms, (weights - norms) // 2 + buffers, norms, 2 * norms)
    assert footprint(model, 2) == footprint(model.to("meta"), 2) == expected
