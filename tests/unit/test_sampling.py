"""A model under training answers. A docstring that begins with "Trap" quotes the bug it would catch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine import FALLBACKS, FAMILIES, VOCABULARY, random_items, tiny_model, tiny_tokenizer
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.likelihood import nll
from potstill.training import decoding
from potstill.training.adapter_config import Adapter
from potstill.training.adapters import attach, hold_base
from potstill.training.batch import Item, collate
from potstill.training.sampling import Prompt, Sampling, Speaker, check_room, longest_answered, openings
from potstill.training.scoring import Scorer

STOPS = frozenset(range(6))
PLAIN = Sampling(sampling_temperature=1.0, top_p=1.0, top_k=0, max_tokens=20)
JOINED = [name for name in FAMILIES if name != "phi3-longrope"]


def prompts(count: int = 12) -> list[Prompt]:
    draw = np.random.default_rng(5)
    return [
        Prompt(f"row{n}", draw.integers(6, VOCABULARY, int(draw.integers(1, 21)), dtype=np.int32), seed=n)
        for n in range(count)
    ]


def speaker(family: str = "mistral", dtype: torch.dtype = torch.float32, **how: Any) -> Speaker:
    scorer = Scorer(tiny_model(family, dtype), FALLBACKS.get(family, "shared"), **how)
    return Speaker(scorer, STOPS, VOCABULARY)


def tokens(items: list[Item]) -> list[list[int]]:
    return [item.answers[0][0].tolist() for item in items]


def drawn_from(one: Speaker, monkeypatch: pytest.MonkeyPatch, sampling: Sampling = PLAIN) -> tuple[list[Item], Tensor]:
    """Answers, and what the distributions that they were drawn from said of their tokens, end to end."""
    said: dict[int, list[float]] = {}
    choose = decoding.choose

    def noting(logits_RV: Tensor, rows: Any) -> list[int]:
        chosen = choose(logits_RV, rows)
        logp_RV = logits_RV.double().log_softmax(-1)
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            said.setdefault(row.seed, []).append(float(logp_RV[place, token]))
        return chosen

    monkeypatch.setattr(decoding, "choose", noting)
    items = one.answer(prompts(), sampling)
    return items, torch.tensor([value for prompt in prompts() for value in said[prompt.seed]], dtype=torch.float64)


@pytest.mark.parametrize("family", JOINED)
def test_what_is_drawn_from_is_what_is_scored(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With caps and scales, windows, experts, a head that is the embeddings, and whatever layout the scorer has."""
    one = speaker(family)
    items, drawn_N = drawn_from(one, monkeypatch)
    scored_N = one.scorer.eval()(collate(items)).detach().double()
    assert torch.allclose(scored_N, drawn_N, atol=2e-4), (scored_N - drawn_N).abs().max()


@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_drawn_in_the_precision_of_training_adapters_on(adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 products, logits in full precision; a frozen base is held in bfloat16."""
    model = tiny_model("mistral", torch.float32)
    if adapted:
        attach(model, Adapter(rank=3, dropout=0.3), seed=1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        hold_base(model, torch.bfloat16)
    one = Speaker(Scorer(model, precision=torch.bfloat16).train(), STOPS, VOCABULARY)
    items, drawn_N = drawn_from(one, monkeypatch)
    scored_N = one.scorer.eval()(collate(items)).detach().double()
    difference_N = (scored_N - drawn_N).abs()
    assert difference_N.mean() < 0.05  # attention is computed by another kernel
    assert difference_N.max() > 0
    assert tokens(items) != tokens(speaker().answer(prompts(), PLAIN))
    assert tokens(items) == tokens(one.answer(prompts(), PLAIN))


def test_afterwards_all_is_as_it_was() -> None:
    """Gradients under dropout and noise, of layers that are computed twice, are the same bits with and without."""

    def gradients(answers: bool) -> list[Tensor]:
        model = attach(tiny_model("mistral", torch.float32), Adapter(rank=2, dropout=0.3), seed=1)
        scorer = Scorer(model, checkpoint_activations=True, neftune_alpha=5.0).train()
        torch.manual_seed(4)
        if answers:
            Speaker(scorer, STOPS, VOCABULARY).answer(prompts(), PLAIN)
        assert all(module.training for module in scorer.modules())
        scorer(collate(random_items([(3, 5), (0, 7)]))).sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))


def test_also_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    one = speaker()
    one.scorer.train()
    monkeypatch.setattr(decoding, "choose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.answer(prompts(), PLAIN)
    assert one.scorer.training
    one.scorer(collate(random_items([(3, 5)])))  # its own attention would not know the tree


def test_the_end_is_learnt_where_the_model_wrote_it_and_nowhere_else() -> None:
    items = speaker().answer(prompts(40), replace(PLAIN, max_tokens=9))
    one, kinds = speaker(), set()
    for item, prompt in zip(items, prompts(40), strict=True):
        ((ids_L, learn_L),) = item.answers
        assert (item.row, item.prompt_ids.tolist()) == (prompt.row, prompt.ids.tolist())
        assert learn_L.all()
        assert not STOPS & set(ids_L[:-1].tolist())
        assert one.is_cut(item) == (int(ids_L[-1]) not in STOPS)
        assert len(ids_L) == 9 if one.is_cut(item) else len(ids_L) <= 9
        kinds.add((one.is_cut(item), len(ids_L) == 1))
    assert kinds == {(True, False), (False, False), (False, True)}  # cut, ended, ended at once


def test_tokens_are_those_that_were_drawn() -> None:
    """Trap: an answer that is decoded and read again may be of other tokens than the model drew (TRL's on-policy
    trainers did so). A tokenizer would never write most of what a random model draws."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("mistral", torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    one = Speaker(Scorer(model), frozenset(), len(tokenizer))
    items = one.answer(prompts(8), PLAIN)
    texts = [tokenizer.decode(ids) for ids in tokens(items)]
    again = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [len(ids) for ids in tokens(items)] == [20] * 8
    assert any(ids != other for ids, other in zip(tokens(items), again, strict=True))


def test_a_head_that_is_filled_up_never_says_its_filling() -> None:
    """Trap: "Teacher and student vocabularies padded to different sizes (151,665 / 151,936 / 152,064): slice to the
    tokenizer". An id that no tokenizer has would be beyond the teacher's embeddings."""
    one = replace(speaker(), vocabulary=40)
    drawn = tokens(one.answer(prompts(40), PLAIN))
    assert max(map(max, drawn)) == 39
    assert max(map(max, tokens(speaker().answer(prompts(40), PLAIN)))) == VOCABULARY - 1


def test_ends_and_words_are_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("mistral", torch.float32)
    model.resize_token_embeddings(len(tokenizer) + 30, mean_resizing=False)
    one = Speaker.of(Scorer(model), tokenizer)
    assert (one.stop_ids, one.vocabulary) == ({tokenizer.eos_token_id}, len(tokenizer))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_sampling_temperature_is_in_no_loss(temperature: float) -> None:
    """Trap: "the sampling temperature used in the loss (TRL 5731)". One token is left to draw, so that temperatures
    draw alike: then loss and gradient are alike."""
    one = speaker()
    greedy = one.answer(prompts(), replace(PLAIN, sampling_temperature=0.0))
    heated = one.answer(prompts(), replace(PLAIN, sampling_temperature=temperature, top_k=1))
    losses = []
    for items in (greedy, heated):
        batch = collate(items)
        one.scorer.zero_grad()
        nll(one.scorer(batch), batch.weights_N).sum.backward()
        losses.append([parameter.grad.clone() for parameter in one.scorer.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*losses, strict=True))


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    one, some = speaker(), prompts()
    whole = dict(zip([p.row for p in some], tokens(one.answer(some, PLAIN)), strict=True))
    assert tokens(one.answer(some[7:], PLAIN)) == [whole[prompt.row] for prompt in some[7:]]
    assert tokens(one.answer(some[::-1], PLAIN)) == list(whole.values())[::-1]
    other = [replace(prompt, seed=prompt.seed + 100) for prompt in some]
    assert tokens(one.answer(other, PLAIN)) != list(whole.values())


def conversation() -> Item:
    """Two learnt turns, of tokens 3 and 4, and of 7."""
    learn_L = np.array([False, False, False, True, True, False, False, True])
    return Item("c", np.zeros(0, dtype=np.int32), ((np.arange(8, dtype=np.int32), learn_L),))


def test_prompts_are_what_stands_before_learnt_turns() -> None:
    assert [ids.tolist() for ids in openings(conversation())] == [[0, 1, 2], list(range(7))]
    shared = Item("s", np.array([9], dtype=np.int32), ((np.array([1, 2], dtype=np.int32), np.array([True, True])),))
    assert [ids.tolist() for ids in openings(shared)] == [[9]]
    assert longest_answered([shared, conversation()], 5).tokens == 12


def test_prompt_and_answer_have_to_fit_into_the_positions() -> None:
    model = tiny_model()  # 64 positions
    check_room(model, [conversation()], 57)
    with pytest.raises(ModelError, match=r"row 'c': its prompt of 7 tokens and an answer of max_tokens: 58 come to 65"):
        check_room(model, [conversation()], 58)
    with pytest.raises(ModelError, match="Set max_tokens: 57"):
        check_room(model, [conversation()], 60)
