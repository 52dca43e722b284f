"""Shapes of models that are not here: the table's parameters are those that cards and papers state."""

from pathlib import Path

import pytest
from engine import FAMILIES

from potstill.errors import ModelError
from potstill.estimates.answering import count_parameters
from potstill.estimates.models import Known
from potstill.sources import LocalModel
from potstill.training.known import SAME, SHAPES, config_of, known_shape, make

STATED = {
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "stablelm-2-1_6b": 1_644_515_328,
    "phi-3-mini-4k": 3_821_079_552,
}
"""As the Hub's safetensors headers and the cards state them."""
QUICK = [name for name in STATED if SHAPES[name].layers <= 32]


@pytest.mark.parametrize("name", QUICK)
def test_the_parameters_are_those_that_are_stated(name: str) -> None:
    assert count_parameters(Known(name, make(SHAPES[name]), "")) == STATED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STATED if name not in QUICK])
def test_the_parameters_of_deep_ones_too(name: str) -> None:
    assert count_parameters(Known(name, make(SHAPES[name]), "")) == STATED[name]


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral-7b-v0.1"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b-v0.1"),
        ("HuggingFaceH4/zephyr-7b-beta", "mistral-7b-v0.1"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.2-1B", "llama-3.2-1b"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("google/gemma-2-2b-it", "gemma-2-2b"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("someone/llama-3-80b", ""),
        ("someone/qwen3-80b", ""),
        ("someone/nothing", ""),
    ],
)
def test_names_on_the_hub(path: str, shape: str) -> None:
    assert known_shape(path) == shape


def test_what_is_the_same_is_in_the_table() -> None:
    assert set(SAME.values()) <= set(SHAPES)


def test_a_folder_says_itself_what_it_is(tmp_path: Path) -> None:
    FAMILIES["qwen3"].save_pretrained(tmp_path)
    config, found = config_of(LocalModel(path=str(tmp_path)), "mine")
    assert (config.model_type, found) == ("qwen3", "config.json")


def test_an_unknown_model_is_one_line_with_a_remedy() -> None:
    with pytest.raises(ModelError, match=r"someone/nothing is made of is not known here.*config.json") as caught:
        config_of(LocalModel(path="someone/nothing"), "mine")
    assert "\n" not in str(caught.value)


def test_a_broken_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        config_of(LocalModel(path=str(tmp_path)), "mine")
