"""Continuous batching: every row says what it says alone, whoever joins, leaves or is sent back beside it."""

from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine import EXPERTS, FAMILIES, SIZE, VOCABULARY, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.errors import ModelError
from potstill.training import decoding
from potstill.training.decoding import Batch, Row, choose
from potstill.training.probe import position_limit

STOPS = list(range(6))
LINEAR: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **EXPERTS, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip
JOINED = [name for name in FAMILIES if name != "phi3-longrope"]  # its frequencies go by the longest row of a batch


def made(family: str) -> PreTrainedModel:
    if family not in LINEAR:
        return tiny_model(family, torch.float32)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZE, **LINEAR[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model


def some_rows(count: int, seed: int = 0) -> list[Row]:
    """Prompts and limits of many lengths, every second row greedy."""
    draw = np.random.default_rng(seed)
    return [
        Row(
            prompt_ids=draw.integers(6, VOCABULARY, int(draw.integers(1, 21)), dtype=np.int32),
            limit=int(draw.integers(1, 26)),
            temperature=0.0 if index % 2 else 1.3,
            top_p=1.0 if index % 3 else 0.8,
            top_k=0 if index % 4 else 12,
            seed=index,
        )
        for index in range(count)
    ]


@torch.inference_mode()
def alone(model: PreTrainedModel, row: Row) -> list[int]:
    """The same row with no batch and no cache: its whole text through the model at every step."""
    row = deepcopy(row)
    while len(row.tokens) < row.limit and not (row.tokens and row.tokens[-1] in STOPS):
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.tokens]])
        row.tokens += choose(model(input_ids=ids, use_cache=False).logits[:, -1], [row])
    return row.tokens


@cache
def expected(family: str) -> list[list[int]]:
    return [alone(made(family), row) for row in some_rows(16)]


@pytest.mark.parametrize("family", [*JOINED, *LINEAR])
@pytest.mark.parametrize("cache_tokens", [1, 90, 100_000])
def test_rows_say_what_they_say_alone(family: str, cache_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; with rows that are sent back and read again; all at once. Windows of 4 to 6 are outgrown."""
    monkeypatch.setattr(decoding, "HEADROOM", 2)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 64)
    rows = some_rows(16)
    batch, waiting = Batch(made(family), STOPS, cache_tokens), deque(rows)
    assert batch.joins == (family in JOINED)
    while waiting or batch.rows:
        batch.step(waiting)
    assert [row.tokens for row in rows] == expected(family)
    assert {row.tokens[-1] in STOPS for row in rows} == {True, False}


def test_places_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of ten tokens beside five of two: ten steps, where batches that wait for their longest take fourteen."""
    monkeypatch.setattr(decoding, "MOST_ROWS", 2)
    rows = some_rows(6)
    for row, limit in zip(rows, [10, 2, 2, 2, 2, 2], strict=True):
        row.limit = limit
    batch, waiting, steps = Batch(made("mistral"), [], cache_tokens=10_000), deque(rows), 0
    while waiting or batch.rows:
        batch.step(waiting)
        steps += 1
    assert steps == 10


def test_the_cache_keeps_to_its_budget_and_to_what_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "HEADROOM", 3)
    batch, waiting = Batch(made("mistral"), [], cache_tokens=120), deque(some_rows(40))
    sent_back, fullest = 0, 0
    while waiting or batch.rows:
        before = set(batch.rows)
        ended = set(batch.step(waiting))
        sent_back += len(before - ended - set(batch.rows))
        held = batch.cache.layers[0].keys.shape if batch.rows else (0, 0, 0)
        assert held[0] == len(batch.rows)
        assert held[2] == batch.columns == max((len(row) - 1 for row in batch.rows), default=0)
        fullest = max(fullest, held[0] * held[2])
    assert sent_back
    assert 100 < fullest <= 120


def test_a_window_is_all_that_is_held() -> None:
    batch = Batch(made("gemma3"), [], cache_tokens=10_000)
    rows = some_rows(6)
    for row in rows:
        row.limit = 30
    waiting = deque(rows)
    for _ in range(12):
        batch.step(waiting)
    assert [layer.keys.shape[2] for layer in batch.cache.layers] == [3, batch.columns]
    assert batch.columns > 12


def test_what_cannot_be_joined_waits_until_all_have_ended() -> None:
    batch, waiting = Batch(made("lfm2"), [], cache_tokens=60), deque(some_rows(12))
    while waiting or batch.rows:
        before = set(batch.rows)
        batch.step(waiting)
        assert not before or set(batch.rows) <= before


def test_a_cache_of_another_kind_is_refused() -> None:
    """Mamba ignores the cache that it is given: it would begin anew at every token."""
    config = AutoConfig.for_model("mamba", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match=r"in another way than transformers' DynamicCache. Serve it"):
        Batch(AutoModelForCausalLM.from_config(config).eval(), STOPS)


def test_the_budget_is_memory_by_what_a_token_takes() -> None:
    model = made("mistral")
    per_token = 2 * 2 * 2 * 4 * 4  # keys and values, layers, heads, width of a head, bytes
    assert Batch(model, []).budget == decoding.CACHE_BYTES // per_token


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (1.0, 3), (0.6, 0), (0.9, 2)])
def test_draws_follow_the_distribution_that_is_cut_as_asked(top_p: float, top_k: int) -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1 out of order; top-p keeps the fewest that reach it, top-k the first k."""
    p_V = torch.tensor([0.2, 0.4, 0.1, 0.3])
    kept = {(1.0, 0): [0, 1, 2, 3], (1.0, 3): [0, 1, 3], (0.6, 0): [1, 3], (0.9, 2): [1, 3]}[top_p, top_k]
    rows = [Row(np.zeros(1, dtype=np.int32), 1, 2.0, top_p, top_k, seed) for seed in range(4000)]
    drawn = torch.tensor(choose(2 * p_V.log().expand(4000, 4), rows))
    for token in range(4):
        share = p_V[token] / p_V[kept].sum() if token in kept else torch.tensor(0.0)
        assert abs((drawn == token).float().mean() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


def test_many_rows_are_drawn_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_RV = torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(1))
    whole = choose(logits_RV, some_rows(20))
    monkeypatch.setattr(decoding, "CHUNK_LOGITS", 3 * VOCABULARY)
    assert choose(logits_RV, some_rows(20)) == whole
    assert [token for token, row in zip(whole, some_rows(20), strict=True) if row.temperature == 0] == [
        int(logits_V.argmax()) for logits_V in logits_RV[1::2]
    ]


def test_longrope_is_read_as_far_as_its_frequencies_stay() -> None:
    """Beyond, transformers takes the frequencies of the longest row of a batch for all its rows."""
    assert position_limit(tiny_model("phi3-longrope")) == 16
    assert position_limit(tiny_model("mistral")) == 64


def decoded(model: PreTrainedModel, rows: list[Row], seen: dict[tuple[int, int], bytes], steps: int) -> list[Row]:
    """Rows through a batch for so many steps; what ended, and in `seen` the bits of all logits by row and token."""

    def recorded(logits_RV: torch.Tensor, drawn: Sequence[Row]) -> list[int]:
        for row, logits_V in zip(drawn, logits_RV, strict=True):
            seen[row.seed, len(row.tokens)] = logits_V.numpy().tobytes()
        return choose(logits_RV, drawn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "choose", recorded)
        batch, waiting, ended = Batch(model, STOPS, 90), deque(rows), list[Row]()
        while (waiting or batch.rows) and steps:
            ended += batch.step(waiting)
            steps -= 1
    return ended


@pytest.mark.parametrize("family", ["mistral", "gemma2", "qwen3-moe", *LINEAR])
def test_known_rows_leave_the_rest_its_very_bits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed anywhere, with rows that were sent back: what is computed anew rounds as it did, and no more of it is."""
    monkeypatch.setattr(decoding, "HEADROOM", 2)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 64)
    model, whole = made(family), dict[tuple[int, int], bytes]()
    expected = {row.seed: row.tokens for row in decoded(model, some_rows(48), whole, 10_000)}
    for steps in (6, 40, 70):
        known = {row.seed: row.tokens for row in decoded(model, some_rows(48), {}, steps)}
        again, bits = some_rows(48), dict[tuple[int, int], bytes]()
        for row in again:
            row.known = known.get(row.seed, ())
        found = {row.seed: row.tokens for row in decoded(model, again, bits, 10_000)}
        assert found == expected
        assert list(found) == list(expected), "rows end in the same order"
        new = {place: value for place, value in bits.items() if place[0] not in known}
        assert new
        assert new == {place: value for place, value in whole.items() if place[0] not in known}
        if steps == 70:
            assert len(bits) < len(whole), "some of what is known was not computed"


def test_all_rows_known_compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = made("mistral"), some_rows(8)
    answers = {row.seed: row.tokens for row in decoded(model, some_rows(8), {}, 10_000)}
    for row in rows:
        row.known = answers[row.seed]
    seen: dict[tuple[int, int], bytes] = {}
    assert {row.seed: row.tokens for row in decoded(model, rows, seen, 10_000)} == answers
    assert seen == {}
