"""What "auto" becomes: bytes a token by hand, and what is decided where memory is plenty, scarce or gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine import FAMILIES, VOCABULARY, random_items, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from potstill.errors import ModelError
from potstill.objectives.divergence import Divergence
from potstill.training import memory
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.batch import Batch
from potstill.training.layers import Projections
from potstill.training.lesson import Aims
from potstill.training.memory import Plan, bytes_per_token, memory_errors, middling, plan
from potstill.training.scoring import Scorer
from potstill.training.tasks import untaught
from potstill.training.taught_head import room_bytes
from potstill.training.tellers import Present, lessons

ITEMS = random_items([(0, 20 + n) for n in range(12)])
LONGEST = 31


class Known(nn.Module):
    """Saves for the backward: token ids (8 bytes), tanh's 5 numbers, which the product reads too, and exp's 3."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.matrix = nn.Parameter(torch.randn(61, 5)), nn.Parameter(torch.randn(5, 3))

    @contextmanager
    def products(self) -> Iterator[None]:
        yield

    def forward(self, batch: Batch) -> Tensor:
        return (F.embedding(batch.tokens_T, self.embeddings).tanh() @ self.matrix).exp()


def test_bytes_of_a_token_by_hand() -> None:
    """Weights are there anyway, and a tensor that two operations keep is there once."""
    assert bytes_per_token(Known(), middling(ITEMS)) == 8 + 4 * 5 + 4 * 3


def test_what_stands_beside_the_model_is_trained_too() -> None:
    """Projections of hidden states: a gradient and AdamW's two states of each weight, in float32."""
    scorer = Scorer(tiny_model(dtype=torch.float32))
    alone = memory._to_come(scorer, optimizer_states=2)
    scorer.projections.append(Projections(((1, 2), (2, 4)), 16, 20, seed=0))
    assert memory._to_come(scorer, optimizer_states=2) - alone == 3 * 4 * (2 * 16 * 20)


def deep(count: int, **how: Any) -> Scorer:
    config = type(FAMILIES["mistral"])(**{**FAMILIES["mistral"].to_dict(), "num_hidden_layers": count})
    torch.manual_seed(0)
    return Scorer(AutoModelForCausalLM.from_config(config), **how)


def layers(count: int, **how: Any) -> int:
    return bytes_per_token(deep(count, **how), middling(ITEMS))


def test_bytes_of_a_token_grow_with_the_layers_and_fall_where_they_are_computed_again() -> None:
    one, two, four = (layers(count) for count in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    # A layer keeps at least: two normed inputs, queries, keys, values, what attention gives, and of the MLP three.
    width, inner, heads = 16, 24, 16 + 8 + 8 + 16
    least = 4 * (2 * width + heads + 3 * inner)
    assert least < two - one < 4 * least
    again = [layers(count, checkpoint_activations=True) for count in (1, 2, 4)]
    assert again[2] - again[1] == pytest.approx(2 * 4 * width, rel=0.2)  # a layer's input alone
    assert again[2] < four / 3


def test_where_layers_are_computed_again_one_of_them_is_at_work() -> None:
    a_layer = layers(3) - layers(2)
    for count in (2, 6):
        scorer, kept = deep(count, checkpoint_activations=True), layers(count, checkpoint_activations=True)
        assert memory.bytes_at_once(scorer, middling(ITEMS)) - kept == pytest.approx(memory.AGAIN * a_layer, rel=0.15)
        assert bytes_per_token(scorer, middling(ITEMS)) == kept  # all are computed again as before
        assert memory.bytes_at_once(deep(count), middling(ITEMS)) == layers(count)


def test_counting_leaves_no_trace() -> None:
    scorer = Scorer(attach(tiny_model(dtype=torch.float32), Adapter(dropout=0.3), seed=1), neftune_alpha=5.0)
    scorer.eval()
    state = torch.get_rng_state()
    first = bytes_per_token(scorer, middling(ITEMS))
    assert torch.equal(torch.get_rng_state(), state)
    assert not scorer.training
    assert all(p.grad is None for p in scorer.parameters())
    assert bytes_per_token(scorer, middling(ITEMS)) == first


def decided(
    monkeypatch: pytest.MonkeyPatch,
    tokens: float,
    micro_tokens: int | None = None,
    checkpoint: bool | None = None,
    workers: int = 1,
) -> tuple[Plan, Scorer]:
    """The plan where memory is left for so many tokens with remembered activations, beside all that is for good."""
    scorer = deep(8)
    weights = sum(p.nbytes for p in scorer.parameters())
    to_come = (1 + 2) * weights // workers  # gradients, and what AdamW keeps
    free = int(tokens * bytes_per_token(scorer, middling(ITEMS)) / memory.HEADROOM) + to_come + 8
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    return plan(scorer, ITEMS, 2, workers, micro_tokens, checkpoint), scorer


@pytest.mark.parametrize(
    ("tokens", "expected", "remembered"),
    [
        (1e6, memory.PREFERRED_TOKENS["cpu"], True),  # more makes nothing faster
        (1000, 512, True),  # a power of two: a little more or less free memory changes nothing
        (1023, 512, True),
        (1025, 1024, True),
        (LONGEST, LONGEST, True),  # the longest row just fits
        (LONGEST - 2, 64, False),  # it does not: layers are computed again, and more fits
        (0, LONGEST, False),  # nothing fits: the least that can be tried
        (-1e6, LONGEST, False),
    ],
)
def test_what_is_decided(monkeypatch: pytest.MonkeyPatch, tokens: float, expected: int, remembered: bool) -> None:
    found, scorer = decided(monkeypatch, tokens)
    if tokens == LONGEST - 2:
        assert LONGEST < found.micro_tokens <= 256
        assert found.micro_tokens.bit_count() == 1
    else:
        assert found.micro_tokens == expected
    assert found.checkpoint_activations == (not remembered) == scorer.checkpoint_activations
    assert found.notes() == {
        "micro_batch_tokens": found.micro_tokens,
        "activation_checkpointing": found.checkpoint_activations,
    }


def test_what_the_user_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, 0, micro_tokens=77)[0].micro_tokens == 77
    assert decided(monkeypatch, 1e6, micro_tokens=7)[0].micro_tokens == 7
    found, scorer = decided(monkeypatch, 1e6, checkpoint=True)
    assert found.checkpoint_activations
    assert scorer.checkpoint_activations
    found, scorer = decided(monkeypatch, 0, checkpoint=False)
    assert not found.checkpoint_activations
    assert not scorer.checkpoint_activations


def test_workers_share_what_is_there_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, 1025, workers=4)[0].micro_tokens == 1024


def test_memory_that_a_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    alone = memory.free_bytes(torch.device("cpu"))
    assert alone > 1 << 20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory.free_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20


@pytest.mark.parametrize("how", ["cpu", "cuda", "mps"])
def test_memory_that_ran_out_is_one_line(how: str) -> None:
    with pytest.raises(ModelError, match="micro-batches of 512 tokens: the device's memory ran out") as caught:
        run_out(how)
    assert "Set micro_batch_tokens: 256 or activation_checkpointing: true and run again" in str(caught.value)
    assert "\n" not in str(caught.value)


def run_out(how: str) -> None:
    with memory_errors(512):
        if how == "cpu":
            torch.empty(1 << 55, dtype=torch.uint8)
        if how == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors(512):
        raise RuntimeError("shape '[3]' is invalid")


@pytest.mark.parametrize("layers", [{}, {1: 1, 2: 2}])
def test_what_a_lesson_holds_is_counted(layers: dict[int, int]) -> None:
    """A teacher's hidden states, 16 numbers of each token in float32, and those of each layer that is compared; but no
    gradient of the head, which is as large for one token as for many."""
    teacher, student = (Scorer(tiny_model(dtype=torch.float32)) for _ in range(2))
    items = random_items([(0, 40)])
    aims = Aims(Divergence("forward_kl", None, 1.0), VOCABULARY)
    told = bytes_per_token(
        student, middling(items), lessons(aims, [Present(teacher.eval(), VOCABULARY, layers=layers)])
    )
    alone = bytes_per_token(student, middling(items), lessons(replace(aims, likelihood_weight=1.0), []))
    scored = items[0].scored / items[0].tokens
    assert told - alone == pytest.approx(scored * 4 * 16 * (1 + len(layers)), abs=2)


def test_a_lesson_takes_room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(tiny_model(dtype=torch.float32))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 33)
    teach = lessons(Aims(Divergence("forward_kl", None, 1.0), VOCABULARY, likelihood_weight=1.0), [])
    plain, taught = (plan(scorer, ITEMS, 2, 1, None, None, how).free_bytes for how in (untaught, teach))
    assert plain - taught == room_bytes(VOCABULARY)
