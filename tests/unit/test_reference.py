"""The reference's column: right, computed once, kept by what it depends on. "Trap" quotes the bug it would catch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import random_items, tiny_model
from transformers import PreTrainedModel

from potstill.errors import StorageError
from potstill.training import reference
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach
from potstill.training.batch import Item
from potstill.training.reference import Cache, column, content_hash, weights_hash, with_reference
from potstill.training.scoring import Scorer
from potstill.training.team import Team

PAIRS = random_items([(6, 5, 9), (3, 4, 4), (8, 12, 2), (0, 6, 7), (1, 3, 3), (5, 10, 1)])


def team_of(model: PreTrainedModel, **how: Any) -> Team:
    team = Team()
    team.prepare(Scorer(model, **how), [])
    return team


def passes(team: Team) -> list[tuple[str, ...]]:
    """The rows of every batch that the team scores from now on."""
    seen: list[tuple[str, ...]] = []
    team.scorer.register_forward_pre_hook(lambda module, given: seen.append(given[0].row_ids))
    return seen


def refer(items: Sequence[Item], team: Team, folder: Path, budget: int = 1000) -> list[Item]:
    return with_reference(items, team, Cache(folder), budget, lambda done, total: None)


def plain(model: PreTrainedModel, item: Item, answer: int) -> np.ndarray:
    """An answer's scored tokens by the model's own forward over the whole sequence."""
    ids_L, learn_L = item.answers[answer]
    whole = torch.from_numpy(np.concatenate([item.prompt_ids, ids_L]).astype(np.int64))
    with torch.no_grad():
        logp_LV = model(input_ids=whole[None], use_cache=False).logits[0].double().log_softmax(-1)
    at = torch.from_numpy(np.flatnonzero(learn_L) + len(item.prompt_ids))
    return logp_LV[at - 1, whole[at]].numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_it_is_what_the_model_says_of_every_answer_alone(tmp_path: Path, dtype: torch.dtype, budget: int) -> None:
    model = tiny_model(dtype=dtype)
    told: list[tuple[int, int]] = []
    items = with_reference(PAIRS, team_of(model), Cache(tmp_path), budget, lambda *given: told.append(given))
    assert [item.row for item in items] == [item.row for item in PAIRS]
    alone = tiny_model(dtype=dtype)
    for item, bare in zip(items, PAIRS, strict=True):
        assert replace(item, signals=()) == bare
        assert [len(signal) for signal in item.signals] == [int(learn_L.sum()) for _, learn_L in item.answers]
        for answer, signal in enumerate(item.signals):
            assert signal == pytest.approx(plain(alone, item, answer), rel=2e-5, abs=2e-5)
    total = sum(item.tokens for item in PAIRS)
    assert told[-1] == (total, total)


def test_nothing_is_random_in_it(tmp_path: Path) -> None:
    """Trap: "Dropout active in the reference". NEFTune's noise neither, although training has begun."""
    model = attach(tiny_model(dtype=torch.float32), Adapter(rank=2, dropout=0.5), seed=1)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    for name, parameter in model.named_parameters():  # an adapter that adds nothing would hide what is dropped of it
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    team = team_of(model, neftune_alpha=50.0)
    team.scorer.train()
    before = torch.get_rng_state()
    first, second = (column(team, PAIRS, 30) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    team.scorer.eval()
    calm = team_of(model)
    assert all(np.array_equal(a, b) for a, b in zip(first, column(calm, PAIRS, 30), strict=True))


def test_what_was_computed_is_read_again(tmp_path: Path) -> None:
    """Whatever a row is called, and in whatever order rows come; several rows of one content are computed once."""
    team = team_of(tiny_model())
    seen = passes(team)
    first = refer(PAIRS, team, tmp_path)
    assert sorted(row for batch in seen for row in batch) == sorted(item.row for item in PAIRS)
    seen.clear()
    again = refer([replace(item, row=f"other/{item.row}") for item in reversed(PAIRS)], team, tmp_path)
    assert seen == []
    for one, two in zip(reversed(first), again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.signals, two.signals, strict=True))
    twins = [replace(PAIRS[0], row="a"), replace(PAIRS[0], row="b")]
    both = refer(twins, team, tmp_path / "twins")
    assert len(seen) == 1
    assert [item.row for item in both] == ["a", "b"]


def changed_token(item: Item) -> Item:
    ids_L, learn_L = item.answers[1]
    other = ids_L.copy()
    other[-1] = (other[-1] + 1) % 61
    return replace(item, answers=(item.answers[0], (other, learn_L)))


def changed_prompt(item: Item) -> Item:
    other = item.prompt_ids.copy()
    other[0] = (other[0] + 1) % 61
    return replace(item, prompt_ids=other)


def changed_mask(item: Item) -> Item:
    ids_L, learn_L = item.answers[0]
    other = learn_L.copy()
    other[1] = not other[1]
    return replace(item, answers=((ids_L, other), item.answers[1]))


def moved_border(item: Item) -> Item:
    """The same tokens in the same order, of which one more belongs to the prompt."""
    (first_L, learn_L), second = item.answers
    prompt = np.concatenate([item.prompt_ids, first_L[:1]])
    return replace(item, prompt_ids=prompt, answers=((first_L[1:], learn_L[1:]), second))


def swapped(item: Item) -> Item:
    return replace(item, answers=item.answers[::-1])


@pytest.mark.parametrize("change", [changed_token, changed_prompt, changed_mask, moved_border, swapped])
def test_a_row_that_says_something_else_is_computed_anew(tmp_path: Path, change: Callable[[Item], Item]) -> None:
    team = team_of(tiny_model())
    refer(PAIRS, team, tmp_path)
    seen = passes(team)
    rows = [change(PAIRS[0]), *PAIRS[1:]]
    assert content_hash(rows[0]) != content_hash(PAIRS[0])
    (item, *_) = refer(rows, team, tmp_path)
    assert seen == [("row0",)]
    assert item.signals[0] == pytest.approx(plain(tiny_model(), rows[0], 0), rel=2e-5)


def test_one_weight_makes_another_reference() -> None:
    """Trap: "reference computed with the model that is being trained": what it is kept under is what it came from."""
    model = tiny_model(dtype=torch.float32)
    known = weights_hash(model, torch.float32)
    assert weights_hash(tiny_model(dtype=torch.float32), torch.float32) == known
    assert weights_hash(model, torch.bfloat16) != known
    seen = {known}
    for parameter in (model.lm_head.weight, model.model.embed_tokens.weight, model.model.norm.weight):
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(weights_hash(model, torch.float32))
    assert len(seen) == 4
    assert weights_hash(model.to(torch.bfloat16), torch.bfloat16) not in seen


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SHARD_TOKENS", 15)


@pytest.mark.usefixtures("small_shards")
def test_after_a_crash_no_more_than_a_shard_is_computed_anew(tmp_path: Path) -> None:
    team = team_of(tiny_model())
    whole = refer(PAIRS, team, tmp_path / "whole")
    assert len(shards(tmp_path / "whole")) >= 4

    def die(done: int, total: int) -> None:
        if len(shards(tmp_path / "killed")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_reference(PAIRS, team, Cache(tmp_path / "killed"), 1000, die)
    kept = len(Cache(tmp_path / "killed").read())
    assert 0 < kept < len(PAIRS)
    seen = passes(team)
    told: list[tuple[int, int]] = []
    again = with_reference(PAIRS, team, Cache(tmp_path / "killed"), 1000, lambda *given: told.append(given))
    assert sum(len(batch) for batch in seen) == len(PAIRS) - kept
    assert told[-1][1] < sum(item.tokens for item in PAIRS)  # progress is of what is missing
    for one, two in zip(whole, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.signals, two.signals, strict=True))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("cut", [0.0, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_torn_shard_is_computed_anew_and_harms_no_other(tmp_path: Path, cut: float, which: int) -> None:
    team = team_of(tiny_model())
    whole = refer(PAIRS, team, tmp_path)
    torn = shards(tmp_path)[which]
    torn.write_bytes(torn.read_bytes()[: int(cut * torn.stat().st_size)])
    left = Cache(tmp_path).read()
    seen = passes(team)
    again = refer(PAIRS, team, tmp_path)
    assert {row for batch in seen for row in batch} == {i.row for i in PAIRS if content_hash(i) not in left}
    assert seen
    for one, two in zip(whole, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.signals, two.signals, strict=True))
    seen.clear()
    refer(PAIRS, team, tmp_path)
    assert seen == []  # what was computed anew was kept, and overwrote nothing


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    """What a bad disk gives back is not trained on."""
    team = team_of(tiny_model())
    refer(PAIRS, team, tmp_path)
    (file,) = shards(tmp_path)
    damaged = bytearray(file.read_bytes())
    middle = damaged.index(b"values.npy") + 200
    damaged[middle] ^= 0xFF
    file.write_bytes(bytes(damaged))
    assert Cache(tmp_path).read() == {}


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="the disk is full"):
        refer(PAIRS, team_of(tiny_model()), tmp_path)
    assert Cache(tmp_path).read() == {}
