"""Local models as teachers: batches, seeds, streams and scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine import say, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from potstill.records import Message
from potstill.sources import LocalModel, Model
from potstill.teachers.base import Exchange, Request
from potstill.teachers.local import LocalTeacher, answer_logprobs
from potstill.tokenization import encode_chat, encode_prompt
from potstill.training.models import save_model

PROMPTS = [
    say("user: the cat"),
    say("user: what is this? it is a cat."),
    say("system: hello", "user: a"),
    say("user: mat"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    made = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
        made.lm_head.weight[tokenizer.eos_token_id] *= 3  # so that it stops now and then
    path = tmp_path_factory.mktemp("teacher")
    save_model(made, tokenizer, path)
    return Model("local", LocalModel(path=str(path)))


def requests(**changes: float) -> list[Request]:
    return [
        Request(messages, max_tokens=5 + 4 * (n % 3), seed=n, temperature=1.0 if n % 2 else 0.0, **changes)  # type: ignore[arg-type]
        for n, messages in enumerate(PROMPTS * 4)
    ]


def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    """Greedy and sampled rows of many lengths together give what each gives alone."""
    with LocalTeacher(model) as teacher:
        together = list(teacher.complete(requests(top_p=0.95, top_k=40)))
        alone = [reply for request in requests(top_p=0.95, top_k=40) for reply in teacher.complete([request])]
    assert together == alone
    assert {reply.finish for reply in together} == {"stop", "length"}


def test_greedy_equals_transformers_own_generation(model: Model) -> None:
    with LocalTeacher(model) as teacher:
        for messages in PROMPTS:
            (reply,) = teacher.complete([Request(messages, max_tokens=20)])
            prompt = torch.from_numpy(encode_prompt(teacher.tokenizer, messages).astype(np.int64))[None]
            out = teacher.model.generate(input_ids=prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
            assert reply.text == teacher.tokenizer.decode(out, skip_special_tokens=True)
            assert reply.completion_tokens == len(out)
            assert reply.prompt_tokens == prompt.shape[1]


def test_sampling_follows_the_seed_the_sample_and_the_distribution(model: Model) -> None:
    ask = [Request(PROMPTS[0], max_tokens=1, temperature=1.5, seed=7, sample=n) for n in range(3000)]
    with LocalTeacher(model) as teacher:
        replies = list(teacher.complete(ask))
        assert replies[:50] == list(teacher.complete(ask[:50]))
        prompt = torch.from_numpy(encode_prompt(teacher.tokenizer, PROMPTS[0]).astype(np.int64))[None]
        p = (teacher.model(input_ids=prompt).logits[0, -1].detach() / 1.5).softmax(-1)
        likely = int(p.argmax())
        text = teacher.tokenizer.decode([likely], skip_special_tokens=True)
        expected = float(
            p[[i for i in range(len(p)) if teacher.tokenizer.decode([i], skip_special_tokens=True) == text]].sum()
        )
    share = sum(reply.text == text for reply in replies) / len(replies)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(replies)) ** 0.5


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(model: Model) -> None:
    with LocalTeacher(model) as teacher:
        (greedy,) = teacher.complete([Request(PROMPTS[1], 12)])
        for change in ({"top_k": 1}, {"top_p": 1e-9}):
            (reply,) = teacher.complete([Request(PROMPTS[1], 12, temperature=2.0, seed=5, **change)])  # type: ignore[arg-type]
            assert reply == greedy


def test_a_stream_is_the_same_answer_in_pieces(model: Model) -> None:
    with LocalTeacher(model) as teacher:
        for request in requests()[:8]:
            (whole,) = teacher.complete([request])
            pieces = list(teacher.stream(request))
            assert "".join(pieces) == whole.text
            assert all(pieces)


def test_what_does_not_fit_is_said(model: Model) -> None:
    with LocalTeacher(model) as teacher:
        long, near = teacher.complete(
            [Request(say("user: " + "cat " * 200), 5), Request(say("user: " + "cat " * 80), 500, temperature=1.0)]
        )
    assert (long.finish, long.text) == ("error", "")
    assert "the model reads 96" in long.reason
    assert near.prompt_tokens + near.completion_tokens <= 96
    if near.finish == "length":
        assert "not finished after" in near.reason


def test_scores_are_the_models_own_log_probabilities(model: Model) -> None:
    answers = [say("assistant: it is a cat."), say("assistant: "), say("assistant: hello", "user: a", "assistant: mat")]
    prompts = [*PROMPTS[:2], (*PROMPTS[2], *say("assistant: hi", "user: b"))]
    rows = [Exchange(str(n), *both) for n, both in enumerate(zip(prompts, answers, strict=True))]
    scores = answer_logprobs(model, rows)
    with LocalTeacher(model) as teacher:
        for row, (ours, count) in zip(rows, scores, strict=True):
            silent: list[Message] = [message.model_copy(update={"train": False}) for message in row.prompt]
            encoded = encode_chat(teacher.tokenizer, [*silent, *row.answer])
            ids = torch.from_numpy(encoded.ids_L.astype(np.int64))
            logp = (
                teacher.model(input_ids=ids[None])
                .logits[0, :-1]
                .detach()
                .log_softmax(-1)
                .gather(1, ids[1:, None])[:, 0]
            )
            assert ours == pytest.approx(float(logp[torch.from_numpy(encoded.learn_L[1:])].sum()), rel=1e-5)
            assert count == encoded.learn_L.sum()


def test_a_scored_model_can_still_answer(model: Model, tmp_path: Path) -> None:
    with LocalTeacher(model) as teacher:
        before = list(teacher.complete(requests()[:3]))
        list(teacher.score([Exchange("1", PROMPTS[0], say("assistant: mat"))]))
        assert list(teacher.complete(requests()[:3])) == before
