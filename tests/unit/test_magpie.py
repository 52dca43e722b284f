"""Magpie: what a template writes before a user, what a model says as one, and that rounds end at what was asked for."""

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from data_stages import Made, endpoint, make
from engine import tiny_tokenizer
from stub_server import Stub, refusal, reply
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from potstill.errors import ModelError, TeacherError
from potstill.records import Message
from potstill.sources import LocalModel, Model
from potstill.stages.magpie import Magpie
from potstill.tokens.tokenization import DEFAULT_TEMPLATE, encode_opening, encode_prompt, user_frame
from potstill.training.models import save_model

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (head if loop.index0 == 0 else '') + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WITH_A_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}" + CHATML
)


def speaking(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of its own, with that template."""
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "opening", "closing", "with_system"),
    [
        (DEFAULT_TEMPLATE, "<s><|user|>\n", "</s>\n", "<s><|system|>\nBe brief.</s>\n<|user|>\n"),
        (CHATML, "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
        (
            LLAMA3,
            "<s><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|>",
            f"<s>{LLAMA3_SYSTEM}<|start_header_id|>user<|end_header_id|>\n\n",
        ),
        (LLAMA2, "<s>[INST] ", " [/INST]", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"),
        (
            WITH_A_SYSTEM,
            "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
        ),
    ],
    ids=["zephyr", "chatml", "llama-3", "llama-2", "a system turn of its own"],
)
def test_what_a_template_writes_around_a_users_words(
    template: str, opening: str, closing: str, with_system: str
) -> None:
    tokenizer = speaking(template)
    assert user_frame(tokenizer) == (opening, closing)
    assert user_frame(tokenizer, "Be brief.") == (with_system, closing)


def test_what_is_gone_on_from_begins_every_prompt_of_that_template() -> None:
    """Trap: BOS added twice, once by the template, once by the tokenizer. The opening's tokens are those with which a
    rendered prompt begins, the start token once among them."""
    tokenizer = speaking(DEFAULT_TEMPLATE)
    opening, _ = user_frame(tokenizer)
    ids = encode_opening(tokenizer, opening).tolist()
    whole = encode_prompt(tokenizer, [Message(role="user", content="the cat")]).tolist()
    assert whole[: len(ids)] == ids
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", ["nothing", "{{ messages[-1].content }}{{ messages[-1].content }}"])
def test_a_template_that_hides_or_doubles_the_user_is_refused(template: str) -> None:
    tokenizer = speaking(template)
    with pytest.raises(ModelError, match="leaves out what the user says"):
        user_frame(tokenizer)


def test_a_template_that_has_no_place_for_a_system_turn_is_refused() -> None:
    tokenizer = speaking(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="leaves out what the system says"):
        user_frame(tokenizer, "Be brief.")


WORDS = ("river", "lamp", "bread", "clock", "boat", "glass", "rope", "paper", "hill", "stone")


def says(text: str, finish: str = "stop") -> Any:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return reply({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})


class Aligned:
    """Goes on from a plain opening, now and then with something of no use."""

    def __init__(self) -> None:
        self.openings: list[str] = []

    async def __call__(self, stub: Stub, body: dict[str, Any], before: int) -> Any:
        if "prompt" not in body:
            return refusal(400, "this is no opening")
        self.openings.append(body["prompt"])
        chance = random.Random(body["seed"])
        text = "How do I make a " + " ".join(chance.sample(WORDS, 4))
        kind = chance.random()
        if kind < 0.1:
            return says(text, "length")
        if kind < 0.2:
            return says("Hi")
        return says(f" {text}?\n<|im_end|>\n<|im_start|>assistant\nLike this.")


def magpie(folder: Path, stub: Stub, **fields: Any) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"kind": "magpie", "teacher": "m", "opening": "<|im_start|>user\n", "closing": "<|im_end|>", **fields}
    return make(folder, config, None, {"teacher": endpoint(stub.base_url)})


def test_as_many_as_were_asked_for_whatever_came_between(tmp_path: Path) -> None:
    with Stub(fault=(aligned := Aligned())) as stub:
        one = magpie(tmp_path / "one", stub, count=60)
        assert set(aligned.openings) == {"<|im_start|>user\n"}
        asked = stub.seen.total()
        other = magpie(tmp_path / "other", stub, count=60)
        again = magpie(tmp_path / "one", stub, count=60)
        assert stub.seen.total() == 2 * asked, "the journal had every reply"
    assert one.files == other.files == again.files
    texts = [row.messages[0].content for row in one.rows]
    assert len(texts) == len(set(texts)) == 60
    assert all(text.startswith("How do I make a ") and text.endswith("?") for text in texts)
    assert set(one.facts["dropped"]) <= {"reply_length", "too_short", "beyond_count", "duplicate"}
    assert one.facts["dropped"]["reply_length"] > 0
    assert one.facts["dropped"]["too_short"] > 0
    assert one.facts["requests"] == 60 + len(one.dropped)
    assert one.facts["short_by"] == 0


def test_it_stops_at_the_most_requests_and_says_how_many_are_missing(tmp_path: Path) -> None:
    with Stub(fault=Aligned()) as stub:
        made = magpie(tmp_path, stub, count=60, max_requests=30)
    assert made.facts["requests"] == 30
    assert made.facts["short_by"] == 60 - made.facts["rows"] > 30


def test_a_cut_prompt_follows_the_policy_unless_it_had_ended(tmp_path: Path) -> None:
    async def cut(stub: Stub, body: dict[str, Any], before: int) -> Any:
        chance = random.Random(body["seed"])
        text = "How do I make a " + " ".join(chance.sample(WORDS, 4))
        return says(f"{text}<|im_end|> and", "length") if chance.random() < 0.5 else says(text, "length")

    with Stub(fault=cut) as stub:
        made = magpie(tmp_path / "drop", stub, count=40, max_requests=40)
        kept = magpie(tmp_path / "keep", stub, count=40, max_requests=40, truncated="keep")
    assert 0 < made.facts["rows"] < 40
    assert made.facts["dropped"] == {"reply_length": 40 - made.facts["rows"]}
    assert kept.facts["rows"] == 40
    assert not any("<|im_end|>" in row.messages[0].content for row in kept.rows)


def test_nothing_to_keep_is_an_error(tmp_path: Path) -> None:
    async def silent(stub: Stub, body: dict[str, Any], before: int) -> Any:
        return says("")

    with Stub(fault=silent) as stub, pytest.raises(TeacherError, match=r"none of 50 replies .* \(50 reply_empty\)"):
        magpie(tmp_path, stub, count=5)


def test_what_cannot_be_is_refused() -> None:
    base = {"kind": "magpie", "teacher": "m", "count": 1}
    with pytest.raises(ValueError, match="opening and system exclude each other"):
        Magpie.model_validate({**base, "opening": "x", "system": "y"})
    with pytest.raises(ValueError, match="nothing would be kept"):
        Magpie.model_validate({**base, "min_words": 9, "max_words": 8})


def test_weights_at_hand_need_no_opening(tmp_path: Path) -> None:
    """The opening is read off the model's own template, and the model goes on from exactly that."""
    tokenizer = speaking(DEFAULT_TEMPLATE)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    save_model(MistralForCausalLM(config), tokenizer, tmp_path / "model")
    model = Model("pupil", LocalModel(path=str(tmp_path / "model")))
    fields = {"kind": "magpie", "teacher": "m", "count": 4, "max_tokens": 24, "min_words": 1, "truncated": "keep"}
    made = [make(tmp_path, {**fields, **more}, None, {"teacher": model}) for more in ({}, {"system": "the cat"})]
    assert made[0].facts["opening"] == "<s><|user|>\n"
    assert made[1].facts["opening"] == "<s><|system|>\nthe cat</s>\n<|user|>\n"
    assert made[0].facts["rows"] == made[1].facts["rows"] == 4
    assert made[0].rows != made[1].rows
    again = make(tmp_path, fields, None, {"teacher": model})
    assert again.files == made[0].files
