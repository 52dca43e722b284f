"""Duplicates by meaning: the definition, whatever the blocks; embeddings that padding does not change."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from data_stages import given, make
from engine import tiny_tokenizer
from test_curation import chat
from transformers import BertConfig, BertModel, MistralConfig, MistralForCausalLM

from potstill.curation import meaning
from potstill.curation.deduplicate import Duplicate, save, saved
from potstill.curation.meaning import Embedder, same_meaning
from potstill.errors import ModelError
from potstill.sources import LocalModel, Model


@pytest.fixture(scope="module", params=["causal", "encoder"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    if request.param == "causal":
        made = MistralForCausalLM(MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    else:
        made = BertModel(BertConfig(**sizes, num_attention_heads=4))
    path = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Model(request.param, LocalModel(path=str(path)))


def vectors(count: int) -> np.ndarray:
    """Some close to earlier ones."""
    chance = np.random.default_rng(0)
    found = chance.normal(size=(count, 6))
    for row in range(3, count, 3):
        found[row] = found[chance.integers(row)] + chance.normal(size=6) * 0.15
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def by_definition(given_: np.ndarray, threshold: float) -> dict[int, int]:
    stay: list[int] = []
    found = {}
    for row in range(len(given_)):
        near = next((other for other in stay if given_[row] @ given_[other] >= threshold), None)
        if near is None:
            stay.append(row)
        else:
            found[row] = near
    return found


@pytest.mark.parametrize(("block", "kept"), [(512, 8192), (7, 5), (1, 1), (50, 3)])
def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, kept: int) -> None:
    monkeypatch.setattr(meaning, "BLOCK", block)
    monkeypatch.setattr(meaning, "KEPT_BLOCK", kept)
    known = vectors(200)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return known[[int(text) for text in texts]]

    numbered = [(10 * row, str(row)) for row in range(200)]
    found = list(same_meaning(numbered, embed, 0.9, tmp_path))
    expected = by_definition(known, 0.9)
    assert {duplicate.row: duplicate.of for duplicate in found} == {10 * a: 10 * b for a, b in expected.items()}
    assert [duplicate.row for duplicate in found] == sorted(duplicate.row for duplicate in found)
    assert 20 < len(found) < 100
    for duplicate in found:
        cosine = known[duplicate.row // 10] @ known[duplicate.of // 10]
        assert duplicate.similarity == pytest.approx(float(cosine), abs=1e-5)
    assert not list(tmp_path.iterdir())


def test_an_embedding_is_the_mean_of_the_hidden_states_whatever_stands_beside_it(model: Model) -> None:
    embed = Embedder(model, 64)
    texts = ["the cat", "what is this? it is a cat.", "a", ""]
    together = embed(texts)
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together[:3], axis=1), 1, atol=1e-5)
    ids = torch.tensor([embed._tokenizer(texts[1])["input_ids"]])
    with torch.no_grad():
        mean = embed._model(input_ids=ids).last_hidden_state.mean(dim=1)[0].numpy()
    np.testing.assert_allclose(together[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_curation_drops_what_means_the_same_after_what_says_the_same(tmp_path: Path, model: Model) -> None:
    chats = [
        chat("a", "what is this?", "it is a cat."),
        chat("copy", "what is this?", "it is a cat."),
        chat("b", "the mat", "a dog and a cat and a hat"),
        chat("again", "what is this?", "it is a cat"),
    ]
    config = {"kind": "curate", "data": "chats", "deduplicate": "exact", "meaning": {"model": "m", "threshold": 0.999}}
    data, models = {"data": given(tmp_path, "chats", chats)}, {"meaning.model": model}
    dropped = {row.id: (row.reason, row.detail) for row in make(tmp_path, config, data, models).dropped}
    assert dropped["copy"] == ("duplicate", "a")
    loose = {**config, "meaning": {"model": "m", "threshold": 0.01}}
    reasons = {row.id: row.reason for row in make(tmp_path, loose, data, models).dropped}
    assert reasons["again"] == "same_meaning"
    assert reasons["copy"] == "duplicate"


def test_what_is_no_model_at_hand_is_one_line(tmp_path: Path) -> None:
    config = {"kind": "curate", "data": "chats", "meaning": {"model": "m"}}
    data = {"data": given(tmp_path, "chats", [chat("a", "what", "that")])}
    with pytest.raises(ModelError):
        make(tmp_path, config, data, {"meaning.model": Model("m", LocalModel(path=str(tmp_path)))})


def test_saved_duplicates_come_back(tmp_path: Path) -> None:
    found = [Duplicate(1, 0, None), Duplicate(2**40, 3, 0.75)]
    save(tmp_path / "found", found)
    assert list(saved(tmp_path / "found")) == found
