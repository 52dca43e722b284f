"""Loading: a checkpoint that is not whole, or not its tokenizer's, is refused before anything is learnt or answered."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import say, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from potstill.errors import ModelError
from potstill.sources import LocalModel, Model
from potstill.teachers.base import Request
from potstill.teachers.local import LocalTeacher
from potstill.tokenization import DEFAULT_TEMPLATE
from potstill.training.models import load_model, load_tokenizer, save_model

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
