"""The student under a better prompt as its own teacher: other words in front, the same tokens scored."""

import numpy as np
import pytest
import torch
from engine import say, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.records import Message, told
from potstill.tokens.tokenization import encode_chat, encode_prompt
from potstill.training.batch import Item, collate
from potstill.training.guidance import Guide
from potstill.training.sampling import Prompt, answered, openings
from potstill.training.scoring import build_scorer

WORDS = "Answer in one word."
CHATS = {
    "one turn": say("user: what is this?", "assistant: it is a cat."),
    "system": say("system: be kind", "user: what is this?", "assistant: it is a cat."),
    "turns": say("user: hello", "assistant: hello there", "user: what is it?", "assistant: a cat", "user: and this?"),
    "silent first": (
        *say("user: hello", "assistant: hello there", train=False),
        *say("user: what is it?", "assistant: a cat."),
    ),
}


def student(messages: tuple[Message, ...]) -> Item:
    return Item.chat("row", encode_chat(tiny_tokenizer(), messages))


def text(ids: np.ndarray) -> str:
    return str(tiny_tokenizer().decode(ids.tolist()))


def whole(item: Item) -> str:
    return text(np.concatenate([item.prompt_ids, item.answers[0][0]]))


def scored(item: Item) -> list[int]:
    ids_L, learn_L = item.answers[0]
    return ids_L[learn_L].tolist()


@pytest.mark.parametrize("name", CHATS)
def test_the_teacher_reads_the_conversation_that_would_be_written_with_its_words(name: str) -> None:
    """Token for token what the template makes of it, learnt turns and all."""
    messages, item = CHATS[name], student(CHATS[name])
    taught = Guide.of(tiny_tokenizer(), item, messages, WORDS).item(item)
    written = student(told(messages, WORDS))
    assert whole(taught) == whole(written)
    assert scored(taught) == scored(item) == scored(written)
    assert WORDS in text(taught.prompt_ids)
    assert WORDS not in whole(item)
    assert taught.row == item.row


@pytest.mark.parametrize("name", CHATS)
def test_a_sampled_answer_to_any_turn_keeps_its_own_tokens(name: str) -> None:
    """Tokens that no tokenizer would write, ended or cut, behind the turns before them."""
    messages, item = CHATS[name], student(CHATS[name])
    guide = Guide.of(tiny_tokenizer(), item, messages, WORDS)
    learnt = [place for place, message in enumerate(messages) if message.role == "assistant" and message.train]
    for turn, prompt_ids in zip(learnt, openings(item), strict=True):
        own = answered(Prompt("row", prompt_ids, 0), [99, 97, 116, 2])
        taught = guide.item(own)
        assert scored(taught) == scored(own) == [99, 97, 116, 2]
        before = encode_prompt(tiny_tokenizer(), told(messages[:turn], WORDS))
        assert whole(taught) == text(np.concatenate([before, own.answers[0][0]]))


def test_the_rows_own_answers_can_be_shown_to_the_teacher() -> None:
    item = student(CHATS["turns"])
    guide = Guide.of(tiny_tokenizer(), item, CHATS["turns"], "Good answers: {answer}.")
    assert "Good answers: hello there\n\na cat." in text(guide.teacher_ids)


def test_scores_stand_side_by_side() -> None:
    """The n-th of the teacher's log-probabilities is of the student's n-th token: each against a plain forward."""
    model = tiny_model("mistral", torch.float32)
    model.resize_token_embeddings(len(tiny_tokenizer()), mean_resizing=False)
    model.config.max_position_embeddings = 512
    item = student(CHATS["turns"])
    taught = Guide.of(tiny_tokenizer(), item, CHATS["turns"], WORDS).item(item)
    scorer = build_scorer(model).eval()
    batches = collate([item]), collate([taught])
    assert torch.equal(batches[0].targets_N, batches[1].targets_N)
    logp_N = scorer(batches[1]).detach()
    scorer.release()
    ids = np.concatenate([taught.prompt_ids, taught.answers[0][0]]).astype(np.int64)
    plain_LV = model(input_ids=torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
    places = np.flatnonzero(taught.answers[0][1]) + len(taught.prompt_ids)
    expected = torch.stack([plain_LV[place - 1, ids[place]] for place in places]).detach()
    assert torch.allclose(logp_N, expected, atol=1e-4)


def test_a_row_of_another_conversation_is_a_fault() -> None:
    guide = Guide.of(tiny_tokenizer(), student(CHATS["one turn"]), CHATS["one turn"], WORDS)
    with pytest.raises(AssertionError, match="does not begin as its conversation does"):
        guide.item(student(CHATS["system"]))


def test_a_conversation_that_an_assistant_begins_is_refused() -> None:
    messages = say("assistant: hello", "user: what is it?", "assistant: a cat")
    with pytest.raises(DataError, match="row 'row': the conversation begins with an assistant's turn"):
        Guide.of(tiny_tokenizer(), student(messages), messages, WORDS)


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda said: said.strip() and "<" not in said
)


@given(words, st.lists(words, min_size=1, max_size=3), words)
def test_whatever_is_said_the_scored_tokens_are_the_same(system: str, turns: list[str], answer: str) -> None:
    messages = tuple(message for turn in turns for message in say(f"user: {turn}", f"assistant: {answer}"))
    item = student(messages)
    taught = Guide.of(tiny_tokenizer(), item, messages, system).item(item)
    assert scored(taught) == scored(item)
    assert whole(taught) == whole(student(told(messages, system)))
