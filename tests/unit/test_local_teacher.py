"""Local models as teachers: batches, seeds, streams and scores."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import say, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from potstill.errors import ModelError
from potstill.records import Message
from potstill.sources import LocalModel, Model
from potstill.teachers import local
from potstill.teachers.base import Exchange, Reply, Request, request_seed
from potstill.teachers.local import LocalTeacher, answer_logprobs, split_reasoning
from potstill.tokens.tokenization import encode_chat, encode_prompt
from potstill.training import decoding
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


def test_a_model_whose_cache_cannot_be_joined_says_the_same_in_batches(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and by chats, which are one row, never."""
    with LocalTeacher(model) as teacher:
        expected = list(teacher.complete(requests()))
        assert not caplog.messages
        monkeypatch.setattr(decoding, "_kind_of_cache", lambda model: (False, 64))
        assert list(teacher.complete(requests())) == expected
        assert "".join(teacher.stream(requests()[0])) == expected[0].text
    assert caplog.messages == ["local: its cache cannot be joined, so batches last until their longest answer ends"]


def test_requests_are_read_as_places_come_free(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies come in order; one long answer holds up at most REORDER others, and nothing is read far ahead."""
    monkeypatch.setattr(decoding, "MOST_ROWS", 4)
    monkeypatch.setattr(local, "MOST_ROWS", 4)
    monkeypatch.setattr(local, "REORDER", 6)
    ask = [Request(PROMPTS[n % 4], max_tokens=60 if n == 0 else 1 + n % 3, seed=n, temperature=1.0) for n in range(40)]
    read = []

    def source() -> Iterator[Request]:
        for request in ask:
            read.append(request)
            yield request

    with LocalTeacher(model) as teacher:
        teacher.stops = []
        ahead, replies = [], []
        for reply in teacher.complete(source()):
            replies.append(reply)
            ahead.append(len(read) - len(replies))
        assert replies == [reply for request in ask for reply in teacher.complete([request])]
    assert max(ahead) <= 4 + 4 + 6 + 4  # waiting, being written, written out of turn and those that ended with them
    assert [reply.completion_tokens for reply in replies] == [request.max_tokens for request in ask]


def test_a_million_requests_take_no_more_memory_than_a_thousand(model: Model) -> None:
    """Of potstill's objects: what 3,000 requests leave behind at the end is what they left behind in the middle.

    Those of other libraries do not count: threads that an earlier test started go on in this process.
    """
    ours, held = tracemalloc.Filter(True, "*/src/potstill/*"), []
    with LocalTeacher(model) as teacher:
        ask = (Request(PROMPTS[n % 4], max_tokens=1 + n % 3, seed=n) for n in range(3000))
        tracemalloc.start()
        try:
            for number, _ in enumerate(teacher.complete(ask)):
                if number % 1000 == 500:
                    traces = tracemalloc.take_snapshot().filter_traces([ours])
                    held.append(sum(its.size for its in traces.statistics("filename")))
        finally:
            tracemalloc.stop()
    assert held[0] > 0
    assert held[2] - held[0] < 100_000, held  # 2,000 replies kept would be 280,000 and more


def test_an_opening_is_gone_on_from_as_it_stands(model: Model) -> None:
    """What it spells of control tokens steers, nothing is added, and what it writes is not taken apart."""
    with LocalTeacher(model) as teacher:
        text = "<s><|user|>\nwhat is"
        (reply,) = teacher.complete([Request((), 12, opening=text)])
        ids = teacher.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        assert ids[0, 0] == teacher.tokenizer.bos_token_id
        out = teacher.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert reply.text == teacher.tokenizer.decode(out, skip_special_tokens=True)
        assert reply.prompt_tokens == ids.shape[1]


def test_tools_go_through_the_template(model: Model) -> None:
    tool = '{"type": "function", "function": {"name": "look", "parameters": {}}}'
    with LocalTeacher(model) as teacher:
        deaf = "{% set tools = none %}" + teacher.tokenizer.chat_template
        teacher.tokenizer.chat_template = deaf
        with pytest.raises(ModelError, match="leaves out the tools that it offers"):
            list(teacher.complete([Request(PROMPTS[0], 5, tools=(tool,))]))
        teacher.tokenizer.chat_template = "{{ tools | tojson if tools }}" + deaf
        plain, offered = teacher.complete([Request(PROMPTS[0], 5), Request(PROMPTS[0], 5, tools=(tool,))])
        assert offered.prompt_tokens == len(encode_prompt(teacher.tokenizer, PROMPTS[0], [tool])) > plain.prompt_tokens
        answer = say("assistant: mat")
        silent = [message.model_copy(update={"train": False}) for message in PROMPTS[0]]
        bare, told = teacher.score([Exchange("1", PROMPTS[0], answer), Exchange("1", PROMPTS[0], answer, (tool,))])
        assert bare[0] != told[0]
        whole = encode_chat(teacher.tokenizer, [*silent, *answer], tools=[tool])
        assert told[1] == bare[1] == whole.learn_L.sum()


def test_calls_are_read_from_what_it_writes_where_tools_were_offered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 'Let me see. <tool_call>{"name": "look", "arguments": {"n": 1}}</tool_call>'
    monkeypatch.setattr(LocalTeacher, "_reply", lambda self, row, request: Reply(written))
    tool = '{"name": "look"}'
    with LocalTeacher(model) as teacher:
        teacher.tokenizer.chat_template = (
            "{{ tools | tojson if tools }}{% set tools = none %}" + teacher.tokenizer.chat_template
        )
        plain, offered = teacher.complete([Request(PROMPTS[0], 5), Request(PROMPTS[0], 5, tools=(tool,))])
    assert (plain.text, plain.tool_calls) == (written, ())
    assert offered.text == "Let me see."
    assert [(call.name, call.arguments) for call in offered.tool_calls] == [("look", '{"n": 1}')]


def test_it_is_asked_again_until_the_reply_is_accepted(model: Model) -> None:
    """Each time with another seed, as an endpoint is; the last stands; a greedy one is asked once."""
    seen: dict[int, list[Reply]] = {}

    def accept(number: int) -> Callable[[Reply], bool]:
        def judge(reply: Reply) -> bool:
            seen.setdefault(number, []).append(reply)
            return number % 2 == 1 and len(seen[number]) == 3

        return judge

    ask = [
        Request(PROMPTS[n % 4], 8, temperature=0.0 if n == 4 else 1.5, seed=n, sample=n, attempts=4, accept=accept(n))
        for n in range(6)
    ]
    with LocalTeacher(model) as teacher:
        replies = list(teacher.complete(ask))
        for number, (request, reply) in enumerate(zip(ask, replies, strict=True)):
            tried = 1 if number == 4 else 3 if number % 2 else 4
            seeds = [number, *(request_seed(number, "attempt", k) for k in range(1, tried))]
            alone = list(teacher.complete(replace(request, seed=seed, attempts=1) for seed in seeds))
            assert reply == alone[-1]
            assert seen.get(number, []) == alone[: len(seen.get(number, []))]
            assert len(seen.get(number, [])) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 0, 5: 3}[number]
            assert len({one.text for one in alone}) > (number != 4) - (tried == 1)


def test_blanks_alone_are_no_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalTeacher(model) as teacher:
        script = [*teacher.tokenizer.encode(" ", add_special_tokens=False), teacher.tokenizer.eos_token_id]
        monkeypatch.setattr(decoding, "choose", lambda logits_RV, rows: [script[len(row.tokens)] for row in rows])
        empty, cut = teacher.complete([Request(PROMPTS[0], 5), Request(PROMPTS[0], 1)])
    assert (empty.finish, empty.reason, empty.text) == ("empty", "the answer is empty", " ")
    assert (cut.finish, cut.reason) == ("length", "not finished after 1 tokens")


def test_a_bad_row_is_alone_in_its_trouble(model: Model) -> None:
    """Trap: "One bad row that turns its whole batch into nothing (distilabel 864)"."""
    fine = requests()
    bad = [Request(say("user: " + "cat " * 200), 5), Request(PROMPTS[0], 0)]
    with LocalTeacher(model) as teacher:
        expected = list(teacher.complete(fine))
        found = list(teacher.complete([*fine[:3], bad[0], *fine[3:9], bad[1], *fine[9:]]))
    assert [found.pop(10).finish, found.pop(3).finish] == ["error", "error"]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "begun", "reasoning", "answer"),
    [
        ("<think>\nis it?\n</think>\n\nIt is.", False, "is it?", "It is."),
        ("\n<think></think> It is.", False, "", "It is."),
        ("It is a <think>tag</think>.", False, "", "It is a <think>tag</think>."),
        ("is it?\n</think>\n\nIt is. </think>", True, "is it?", "It is. </think>"),
        ("<think>is it", False, "is it", ""),
        ("is it", True, "is it", ""),
        ("", False, "", ""),
    ],
)
def test_what_was_thought_is_told_from_the_answer(text: str, begun: bool, reasoning: str, answer: str) -> None:
    assert split_reasoning(text, begun=begun) == (reasoning, answer)


def test_a_template_may_open_the_thought_itself(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalTeacher(model) as teacher:
        end = teacher.tokenizer.eos_token_id
        script = [*teacher.tokenizer.encode("it is</think>\na cat", add_special_tokens=False), end]
        monkeypatch.setattr(decoding, "choose", lambda logits_RV, rows: [script[len(row.tokens)] for row in rows])
        template = teacher.tokenizer.chat_template
        for opens in ("<think>\n", "<think>"):
            teacher.tokenizer.chat_template = template + opens
            whole, cut, raw = teacher.complete(
                [Request(PROMPTS[0], 40), Request(PROMPTS[0], 2), Request((), 40, opening="hello <think>\n")]
            )
            assert (whole.reasoning, whole.text, whole.finish) == ("it is", "a cat", "stop")
            assert (cut.text, cut.finish) == ("", "length")
            assert (raw.reasoning, raw.text) == ("", "it is</think>\na cat")


def test_scores_are_made_some_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCORE_ROWS", 3)
    rows = [Exchange(str(n), PROMPTS[n % 4], say(f"assistant: {'mat ' * (n + 1)}")) for n in range(8)]
    read = []
    with LocalTeacher(model) as teacher:
        scored = teacher.score(read.append(row) or row for row in rows)  # type: ignore[func-returns-value]
        first = next(scored)
        assert len(read) == 3
        found = [first, *scored]
        alone = [one for row in rows for one in teacher.score([row])]
    assert [count for _, count in found] == [count for _, count in alone] == [n + 3 for n in range(8)]
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in alone], rel=1e-6)


def test_a_row_beyond_the_models_positions_is_named(model: Model) -> None:
    answers = {"fine": "assistant: mat", "row-7": "assistant: " + "mat " * 200}
    rows = [Exchange(name, PROMPTS[0], say(answer)) for name, answer in answers.items()]
    with pytest.raises(
        ModelError, match=r"row 'row-7': it has \d+ tokens, and the model reads 96 at most. Take the row"
    ):
        answer_logprobs(model, rows)


def test_the_likeliest_first_tokens_are_the_models_own(model: Model, tmp_path: Path) -> None:
    """At any temperature those of temperature 1; no row's depend on the batch; and nothing that was kept stands in."""
    asked = [
        Request(messages, max_tokens=3, seed=n, temperature=2.0 * (n % 2), top_logprobs=4)
        for n, messages in enumerate(PROMPTS)
    ]
    with LocalTeacher(model, state=tmp_path) as teacher:
        together = [reply.likeliest for reply in teacher.complete(asked)]
        alone = [next(teacher.complete([request])).likeliest for request in asked]
        for request, found, single in zip(asked, together, alone, strict=True):
            ids = encode_prompt(teacher.tokenizer, request.messages)
            with torch.no_grad():
                logp = teacher.model(torch.tensor([ids.tolist()])).logits[0, -1].log_softmax(-1)
            top = logp.topk(4)
            assert [token for token, _ in found] == [teacher.tokenizer.decode([i]) for i in top.indices.tolist()]
            assert [p for _, p in found] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert [p for _, p in single] == pytest.approx([p for _, p in found], abs=1e-4)
    with LocalTeacher(model, state=tmp_path) as teacher:
        assert [len(reply.likeliest) for reply in teacher.complete(asked)] == [4] * 4
        assert next(teacher.complete([replace(asked[0], top_logprobs=0)])).likeliest == ()
