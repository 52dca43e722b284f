"""Templates, learnt tokens, shared prompts. A docstring that begins with "Trap" quotes the bug it would catch."""

import time
from pathlib import Path

import numpy as np
import pytest
from engine import say, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.errors import ModelError
from potstill.records import Message, ToolCall
from potstill.tokens.tokenization import (
    CHUNK_TEXTS,
    DEFAULT_TEMPLATE,
    LONG_RUN,
    add_tokens,
    control_tokens,
    encode_chat,
    encode_chats,
    encode_pair,
    encode_prompt,
    encode_texts,
    explain,
    render,
    train_tokenizer,
    with_template,
)

CHAT = say("system: be a cat", "user: what is this?", "assistant: it is a cat.", "user: hello", "assistant: the mat.")

GOLDEN = """\
<s>           | -
<|system|>    | -
Ċ             | -
b             | -
e             | -
Ġa            | -
Ġcat          | -
</s>          | -
Ċ             | -
<|user|>      | -
Ċ             | -
what          | -
Ġis           | -
Ġthis         | -
?             | -
</s>          | -
Ċ             | -
<|assistant|> | -
Ċ             | -
it            | learnt
Ġis           | learnt
Ġa            | learnt
Ġcat          | learnt
.             | learnt
</s>          | learnt
Ċ             | -
<|user|>      | -
Ċ             | -
he            | -
llo           | -
</s>          | -
Ċ             | -
<|assistant|> | -
Ċ             | -
the           | learnt
Ġmat          | learnt
.             | learnt
</s>          | learnt
Ċ             | -"""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def fresh(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["the cat sat on the mat. it is a cat.\n"] * 20, 300)
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    return tokenizer


def test_golden_table_of_the_default_template() -> None:
    """Trap: "First answer token never learnt, or the prompt's last token learnt"."""
    assert explain(tiny_tokenizer(), encode_chat(tiny_tokenizer(), CHAT)) == GOLDEN


def test_zephyr_layout_of_the_default_template() -> None:
    text = render(tiny_tokenizer(), CHAT[:2], answer_next=True)
    assert text == "<s><|system|>\nbe a cat</s>\n<|user|>\nwhat is this?</s>\n<|assistant|>\n"


def test_silent_turns_are_read_but_not_learnt() -> None:
    silent = CHAT[2].model_copy(update={"train": False})
    encoded = encode_chat(tiny_tokenizer(), [*CHAT[:2], silent, *CHAT[3:]])
    learnt = [line.split()[0] for line in explain(tiny_tokenizer(), encoded).splitlines() if line.endswith("learnt")]
    assert learnt == ["the", "Ġmat", ".", "</s>"]


@pytest.mark.parametrize("answer", ["", "\nthe cat", "the cat\n", "the </ s> cat", "é𝄞"])
def test_end_token_is_learnt_whatever_the_answer(answer: str) -> None:
    """Trap: "End-of-sequence token masked out because pad = eos"."""
    tokenizer = fresh()
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode_chat(tokenizer, [*say("user: hello"), Message(role="assistant", content=answer)])
    learnt = encoded.ids_L[encoded.learn_L]
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learnt[:-1]) == answer
    assert (encoded.ids_L == tokenizer.eos_token_id).sum() == 2


def test_all_tokens_but_the_first_can_be_learnt() -> None:
    encoded = encode_chat(tiny_tokenizer(), CHAT, learn="all")
    assert not encoded.learn_L[0]
    assert encoded.learn_L[1:].all()


def test_start_token_stands_once_where_tokenizer_and_template_both_add_it() -> None:
    """Trap: "BOS added twice: once by the template, once by the tokenizer"."""
    tokenizer = fresh()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("the cat")["input_ids"][0] == tokenizer.bos_token_id  # it does add one by itself
    encoded = encode_chat(tokenizer, CHAT)
    prompt = encode_prompt(tokenizer, CHAT[:2])
    for ids in (encoded.ids_L, prompt):
        assert (ids == tokenizer.bos_token_id).sum() == 1
        assert ids[0] == tokenizer.bos_token_id


def test_a_token_that_straddles_the_opening_is_not_learnt_where_offsets_leave_blanks_out() -> None:
    """A tokenizer.json may say (trim_offsets, as Llama 3's does) that a token begins behind its own blank."""
    tokenizer = fresh(DEFAULT_TEMPLATE.replace("'<|assistant|>\\n'", "'<|assistant|> '").replace("'|>\\n'", "'|> '"))
    plain = encode_chat(tokenizer, CHAT)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    encoded = encode_chat(tokenizer, CHAT)
    assert (encoded.ids_L == plain.ids_L).all()
    assert (encoded.learn_L == plain.learn_L).all()
    assert tokenizer.convert_ids_to_tokens(encoded.ids_L[encoded.learn_L].tolist()).count("Ġthe") == 0
    assert tokenizer("a cat", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (2, 5)], "given back"


def test_training_begins_with_exactly_what_generation_is_given() -> None:
    """Trap: "The template used in training is not the one exported with the model"."""
    for tokenizer in (tiny_tokenizer(), fresh(CHATML)):
        prompt = encode_prompt(tokenizer, CHAT[:2])
        whole = encode_chat(tokenizer, CHAT[:3])
        assert (whole.ids_L[: len(prompt)] == prompt).all()
        assert np.flatnonzero(whole.learn_L)[0] == len(prompt)
        ours = tokenizer.apply_chat_template(
            [m.model_dump(include={"role", "content"}) for m in CHAT[:2]], add_generation_prompt=True
        )
        assert ours["input_ids"] == prompt.tolist()


def test_end_of_another_template_is_its_own_control_token() -> None:
    tokenizer = fresh(CHATML)
    encoded = encode_chat(tokenizer, CHAT[1:3])
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids_L.tolist())
    learnt = [token for token, learnt in zip(tokens, encoded.learn_L, strict=True) if learnt]
    assert learnt[-1] == "<|im_end|>"
    assert tokens[-1] == "Ċ"


def test_a_merge_across_the_opening_is_not_split() -> None:
    """Trap: "boundary found by tokenizing halves separately: merges across the boundary shift the mask"."""
    tokenizer = train_tokenizer(["\n\nthe cat\n\nthe cat"] * 20, 300)
    chat = say("user: hello", "assistant: \nthe cat")
    encoded = encode_chat(tokenizer, chat)
    whole = tokenizer(render(tokenizer, chat), add_special_tokens=False)["input_ids"]
    halves = [*encode_prompt(tokenizer, chat[:1]), *tokenizer("\nthe cat</s>\n", add_special_tokens=False)["input_ids"]]
    assert encoded.ids_L.tolist() == whole != halves
    assert "ĊĊ" in tokenizer.convert_ids_to_tokens(whole)
    assert tokenizer.decode(encoded.ids_L[encoded.learn_L]) == "the cat</s>"


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    template = "{% for m in messages %}{{ m['role'] + loop.revindex|string + m['content'] + eos_token }}{% endfor %}"
    tokenizer = fresh()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="writes the beginning of a conversation differently"):
        encode_chat(tokenizer, CHAT)


def test_what_is_learnt_may_follow_on_a_rewritten_past() -> None:
    """Qwen3's way: the thoughts of earlier turns are gone when the next is asked for. So only the last is learnt."""
    tokenizer = fresh()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' }}"
        "{{ m['content'] if loop.last else m['content'].split('>')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    chat = say("user: hi", "assistant: it>the cat", "user: and", "assistant: is>a mat")
    with pytest.raises(ModelError, match="Mark all but the last assistant turn train: false"):
        encode_chat(tokenizer, chat)
    encoded = encode_chat(tokenizer, [chat[0], chat[1].model_copy(update={"train": False}), *chat[2:]])
    assert tokenizer.decode(encoded.ids_L[encoded.learn_L]) == "is>a mat</s>"
    prompt = encode_prompt(tokenizer, chat[:3])
    assert encoded.ids_L[: len(prompt)].tolist() == prompt.tolist(), "learnt behind what will be asked"
    pair = encode_pair(tokenizer, chat[:3], chat[3:], say("assistant: is>a cat"))
    assert pair.prompt_ids.tolist() == prompt.tolist()


TOOLS = (
    "{% if tools %}{{ '<|system|>' + tools|tojson + eos_token }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '[' + call.function.name + call.function.arguments|tojson + ']' }}"
    "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OFFER = ('{"type": "function", "function": {"name": "sit"}}',)
CALLING = (
    *say("user: sit", "assistant: a"),
    Message(role="tool", content="is", name="sit"),
    *say("assistant: it is"),
)
CALLING = (
    CALLING[0],
    CALLING[1].model_copy(update={"tool_calls": (ToolCall(name="sit", arguments={"on": "mat"}),)}),
    *CALLING[2:],
)

GOLDEN_TOOLS = """\
<|user|>      | -
s             | -
i             | -
t             | -
</s>          | -
<|assistant|> | -
a             | learnt
[             | learnt
s             | learnt
i             | learnt
t             | learnt
{             | learnt
"             | learnt
on            | learnt
"             | learnt
:             | learnt
Ġ             | learnt
"             | learnt
mat           | learnt
"             | learnt
}             | learnt
]             | learnt
</s>          | learnt
<             | -
|             | -
t             | -
o             | -
o             | -
l             | -
|             | -
>             | -
i             | -
s             | -
</s>          | -
<|assistant|> | -
i             | learnt
t             | learnt
Ġis           | learnt
</s>          | learnt"""


def test_golden_table_of_a_conversation_with_a_call() -> None:
    """What an assistant calls is learnt as it is written; what the tool answers is read."""
    tokenizer = fresh()
    tokenizer.chat_template = TOOLS
    table = explain(tokenizer, encode_chat(tokenizer, CALLING, tools=OFFER))
    offer, rest = table.split("</s>", 1)
    assert "{" in offer
    assert "learnt" not in offer
    assert rest.split("\n", 1)[1] == GOLDEN_TOOLS


def test_what_offers_tools_in_training_offers_them_when_asked() -> None:
    tokenizer = fresh()
    tokenizer.chat_template = TOOLS
    prompt = encode_prompt(tokenizer, CALLING[:1], OFFER)
    whole = encode_chat(tokenizer, CALLING, tools=OFFER)
    assert whole.ids_L[: len(prompt)].tolist() == prompt.tolist()
    assert np.flatnonzero(whole.learn_L)[0] == len(prompt)
    assert '"name": "sit"' in tokenizer.decode(prompt)


SAYS = "m['content'] }}"
DEAF = TOOLS.replace(SAYS, "(m['content'] if m['role'] != 'tool' else '') }}")
MUTE = TOOLS.replace(SAYS, "(m['content'] if not m['tool_calls'] else '') }}")
NO_TOOLS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ONE_CALL = TOOLS.replace("m['tool_calls'] or []", "(m['tool_calls'] or [])[:1]")
TWICE = (CALLING[0], CALLING[1].model_copy(update={"tool_calls": CALLING[1].tool_calls * 2}))


@pytest.mark.parametrize(
    ("template", "messages", "tools", "says"),
    [
        (NO_TOOLS, CALLING[:1], OFFER, "leaves out the tools that it offers"),
        (NO_TOOLS, CALLING[:2], (), "leaves out a tool's call in turn 2"),
        (MUTE, CALLING, (), "leaves out what is said in turn 2"),
        (DEAF, CALLING, (), "leaves out what is said in turn 3"),
        (ONE_CALL, TWICE, (), "leaves out a tool's call in turn 2"),
    ],
)
def test_a_template_that_leaves_tools_out_is_refused(
    template: str, messages: tuple[Message, ...], tools: tuple[str, ...], says: str
) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=says):
        render(tokenizer, messages, tools)


def test_a_template_for_images_that_reads_no_plain_text_is_refused() -> None:
    tokenizer = fresh()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(ModelError, match=f"leaves out what the {CHAT[0].role} says in turn 1"):
        encode_chat(tokenizer, CHAT[:3])


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_template_that_has_no_place_for_a_role_is_refused(role: str) -> None:
    """What it leaves out would not be learnt from, and nobody would know."""
    tokenizer = fresh()
    tokenizer.chat_template = DEFAULT_TEMPLATE.replace(
        "{%- for message in messages %}", "{%- for message in messages if message['role'] != '" + role + "' %}"
    )
    chat = say("system: be brief", "user: which colour?", "assistant: red")
    with pytest.raises(ModelError, match=f"leaves out what the {role} says in turn"):
        encode_chat(tokenizer, chat)


def test_a_template_that_is_broken_is_told_from_one_that_refuses() -> None:
    tokenizer = fresh()
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(ModelError, match=r"refuses a conversation of .*Bring the conversations into the order"):
        encode_chat(tokenizer, CHAT[:3])
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ModelError, match=r"fails at a conversation of .*Mend the tokenizer's chat template"):
        encode_chat(tokenizer, CHAT[:3])


def test_a_control_token_is_no_new_token() -> None:
    """Rows that spell it would end or open turns in their middle."""
    tokenizer = fresh()
    with pytest.raises(ModelError, match=r"new_tokens: '</s>' is a control token of this tokenizer already"):
        add_tokens(tokenizer, ["<think>", "</s>"])


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    """Trap: "the model never learns to stop". GLM's way: the next turn's opening is what ends a turn."""
    tokenizer = fresh()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    with pytest.raises(ModelError, match="nobody would learn to stop"):
        encode_chat(tokenizer, CHAT)
    assert encode_chat(tokenizer, [m.model_copy(update={"train": False}) for m in CHAT]).learn_L.sum() == 0
    assert encode_chat(tokenizer, CHAT, learn="all").learn_L[1:].all()


def test_the_default_template_writes_what_tools_answer() -> None:
    assert "<|tool|>\n42</s>" in render(
        fresh(), [*CALLING[:1], *say("assistant: a"), Message(role="tool", content="42")]
    )


OLD_DEFAULT = """\
{{- bos_token if bos_token is defined and bos_token else '' }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


def test_where_no_tools_are_the_default_template_is_zephyrs_to_the_letter() -> None:
    tokenizer, zephyr = fresh(), fresh()
    zephyr.chat_template = OLD_DEFAULT
    for chat in (CHAT, CHAT[1:], CHAT[:2], CALLING[2:]):
        for answer_next in (False, True):
            ours = render(tokenizer, chat, answer_next=answer_next)
            assert ours == render(zephyr, chat, answer_next=answer_next)


DEFAULT_WITH_TOOLS = """\
<s><|system|>
be a cat

<tools>
{"type": "function", "function": {"name": "sit"}}
</tools></s>
<|user|>
sit</s>
<|assistant|>
a
<tool_call>
{"name": "sit", "arguments": {"on": "mat"}}
</tool_call></s>
<|tool|>
is</s>
<|assistant|>
it is</s>
"""


def test_the_default_template_offers_tools_and_writes_calls() -> None:
    tokenizer = fresh()
    assert render(tokenizer, [*CHAT[:1], *CALLING], OFFER) == DEFAULT_WITH_TOOLS
    silent = [CALLING[0], CALLING[1].model_copy(update={"content": ""})]
    assert "<|assistant|>\n<tool_call>\n{" in render(tokenizer, silent, OFFER)
    encoded = encode_chat(tokenizer, [*CHAT[:1], *CALLING], tools=OFFER)
    learnt = tokenizer.decode(encoded.ids_L[encoded.learn_L])
    assert learnt == DEFAULT_WITH_TOOLS.split("<|assistant|>\n")[1].split("\n<|tool|>")[0] + "it is</s>"


def test_added_tokens_are_atoms_that_texts_may_spell(tmp_path: Path) -> None:
    tokenizer = fresh()
    before = len(tokenizer)
    assert add_tokens(tokenizer, ["<think>", "</think>", "<think>"]) == 2
    assert add_tokens(tokenizer, ["</think>"]) == 0
    ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert ids == [before, before + 1]
    text = "the<think> cat</think>\nsat"
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        encoded = encode_chat(one, [*say("user: hi"), Message(role="assistant", content=text)])
        learnt = encoded.ids_L[encoded.learn_L]
        assert [learnt.tolist().count(token) for token in ids] == [1, 1]
        assert one.decode(learnt, skip_special_tokens=True) == text, "an answer shows them"
        (document,) = encode_texts(one, [text])
        assert [document.tolist().count(token) for token in ids] == [1, 1], "and so do documents"
        assert not control_tokens(one).keys() & {"<think>", "</think>"}
    with pytest.raises(ModelError, match="is blank"):
        add_tokens(tokenizer, [" "])


def test_a_tokenizer_that_came_with_truncation_cuts_nothing(tmp_path: Path) -> None:
    """A tokenizer.json may hold both, and its own `encode_batch` obeys them."""
    tokenizer = fresh()
    expected = [ids.tolist() for ids in encode_texts(tokenizer, ["the cat sat on the mat", "it"])]
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert [ids.tolist() for ids in encode_texts(tokenizer, ["the cat sat on the mat", "it"])] == expected
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert explain(tokenizer, encode_chat(tokenizer, CHAT)) == explain(fresh(), encode_chat(fresh(), CHAT))


def test_many_texts_are_tokenized_as_each_alone() -> None:
    chats = [say(f"user: {number}", "assistant: " + "the cat " * (number % 7)) for number in range(2 * CHUNK_TEXTS + 3)]
    together = encode_chats(tiny_tokenizer(), chats)
    for number in (0, CHUNK_TEXTS - 1, CHUNK_TEXTS, 2 * CHUNK_TEXTS + 2):
        assert explain(tiny_tokenizer(), together[number]) == explain(
            tiny_tokenizer(), encode_chat(tiny_tokenizer(), chats[number])
        )


def test_a_template_that_raises_is_one_clear_line() -> None:
    tokenizer = fresh()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(ModelError, match=r"refuses a conversation of system, user.*no system turns here"):
        encode_chat(tokenizer, CHAT[:3])


def test_a_tokenizer_without_a_template_gets_the_default_one() -> None:
    tokenizer = fresh()
    tokenizer.chat_template = None
    with_template(tokenizer)
    assert explain(tokenizer, encode_chat(tokenizer, CHAT[1:3])).startswith("<s> ")
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(ModelError, match="neither a chat template nor an end token"):
        with_template(tokenizer)


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared_answer"),
    [("the cat", "the mat", False), ("the cat", "the cat sat", False), ("it", "\nit", False)],
)
def test_a_pair_shares_its_prompt_and_no_more(chosen: str, rejected: str, shared_answer: bool) -> None:
    tokenizer = tiny_tokenizer()
    prompt = say("user: what is this?")
    pair = encode_pair(tokenizer, prompt, say(f"assistant: {chosen}"), say(f"assistant: {rejected}"))
    for answer, text in ((pair.chosen, chosen), (pair.rejected, rejected)):
        whole = encode_chat(tokenizer, [*prompt, *say(f"assistant: {text}")])
        assert np.concatenate([pair.prompt_ids, answer.ids_L]).tolist() == whole.ids_L.tolist()
        assert answer.learn_L.tolist() == whole.learn_L[len(pair.prompt_ids) :].tolist()
        assert answer.learn_L.sum() == whole.learn_L.sum()
    assert len(pair.prompt_ids) <= len(encode_prompt(tokenizer, prompt))
    assert len(pair.prompt_ids) >= len(encode_prompt(tokenizer, prompt)) - 1


def test_answers_of_a_prompt_are_not_learnt_in_a_pair() -> None:
    pair = encode_pair(tiny_tokenizer(), CHAT[:4], say("assistant: the mat."), say("assistant: a cat."))
    assert explain(tiny_tokenizer(), pair.chosen).splitlines()[0] == "the  | learnt"
    assert pair.chosen.learn_L.sum() == 4


def test_long_conversations_lose_whole_turns() -> None:
    """Trap: "A conversation cut in the middle of the answer and still trained with an end token"."""
    tokenizer = tiny_tokenizer()
    whole = encode_chat(tokenizer, CHAT)
    first_turn = encode_chat(tokenizer, CHAT[:3])
    for length in range(len(whole) + 2):
        kept = whole.cut(length)
        if length >= len(whole):
            assert kept is whole
        elif length >= whole.turn_ends[1]:  # only what stands behind the last end token is gone
            assert kept is not None
            assert kept.learn_L.sum() == whole.learn_L.sum()
        elif length >= whole.turn_ends[0]:
            assert kept is not None
            assert kept.ids_L.tolist() == first_turn.ids_L[: whole.turn_ends[0]].tolist()
            assert kept.learn_L[-1]
        else:
            assert kept is None


def test_plain_text_never_steers() -> None:
    tokenizer = tiny_tokenizer()
    (ids,) = encode_texts(tokenizer, ["the </s> cat"])
    assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids[1:-1]) == "the </s> cat"
    assert tokenizer("</s>")["input_ids"] == [tokenizer.eos_token_id]  # as it was before


def test_the_same_texts_make_the_same_tokenizer(tmp_path: object) -> None:
    texts = [f"entity {number} is a town near number {number % 7}" for number in range(200)]
    first, second = (train_tokenizer(texts, 400).backend_tokenizer.to_str() for _ in range(2))
    assert first == second
    assert len(train_tokenizer(texts, 290)) == 290


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot hold the 256 bytes"):
        train_tokenizer(["a"], 100)


@pytest.mark.parametrize("word", ["pot", "\n", "1_", " "])
def test_one_endless_word_takes_a_tokenizer_no_time(word):
    """BPE training goes through a word again for each merge, and through 2 MB of it for ever."""
    endless = word * (2_000_000 // len(word))
    began = time.perf_counter()
    tokenizer = train_tokenizer(["the cat sat on the mat.\n" * 20, endless], 400)
    ids = tokenizer(endless, add_special_tokens=False)["input_ids"]
    assert time.perf_counter() - began < 60
    assert tokenizer.decode(ids) == endless


def test_a_run_of_ordinary_length_is_learnt_as_ever():
    texts = ["pot" * 80 + " " + "\n" * 200]
    tokenizer = train_tokenizer(texts, 300)
    assert [piece for piece in LONG_RUN.split(texts[0]) if piece] == texts
    assert len(tokenizer("pot" * 80, add_special_tokens=False)["input_ids"]) < 40


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    (ids,) = encode_texts(tiny_tokenizer(), [text])
    assert tiny_tokenizer().decode(ids[1:-1]) == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<|>")), min_size=1, max_size=3))
def test_what_is_learnt_is_what_assistants_say(answers: list[str]) -> None:
    chat = [turn for text in answers for turn in (*say("user: hi"), Message(role="assistant", content=text))]
    tokenizer = tiny_tokenizer()
    encoded = encode_chat(tokenizer, chat)
    ends = [0, *encoded.turn_ends]
    for start, end, text in zip(ends, ends[1:], answers, strict=False):
        learnt = encoded.ids_L[start:end][encoded.learn_L[start:end]]
        assert learnt[-1] == tokenizer.eos_token_id
        said = tokenizer.decode(learnt[:-1])
        # Line breaks at the start may belong to a token that begins in the template's own.
        assert text.endswith(said)
        assert not text.removesuffix(said).strip("\n")


def test_the_table_is_the_same_after_saving(tmp_path: object) -> None:
    tiny_tokenizer().save_pretrained(tmp_path, save_jinja_files=False)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert explain(again, encode_chat(again, CHAT)) == GOLDEN
