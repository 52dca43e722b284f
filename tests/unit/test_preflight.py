"""What is compared before a distillation's first step: planted differences are named, and nothing else is."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import FAMILIES, say, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from potstill.errors import ModelError
from potstill.records import Chat, Message, ToolCall
from potstill.tokens.tokenization import DEFAULT_TEMPLATE, train_tokenizer
from potstill.training.preflight import (
    TOOL,
    first_template_difference,
    first_token_difference,
    tokenizer_hash,
    vocabulary,
    vocabulary_of,
)

Rules = dict[str, Any]
SIZE = len(tiny_tokenizer())
RULES = "they make tokens by other rules ({}): "
LACKS = "the teacher has {} tokens and the student {}; the first that the {} lacks is '<think>' ({})"


def changed(change: Callable[[Rules], None]) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with its rules edited, as somebody edits a tokenizer.json."""
    tokenizer = deepcopy(tiny_tokenizer())
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    change(rules)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(rules))
    return tokenizer


def swap_two(rules: Rules) -> None:
    words = rules["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]


def lower(rules: Rules) -> None:
    rules["normalizer"] = {"type": "Lowercase"}


def digits_together(rules: Rules) -> None:
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\n+|[^\S\n]*[^\s\d]+|[^\S\n]*\d+|[^\S\n]+"


def swap_merges(rules: Rules) -> None:
    merges = rules["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def forget_a_merge(rules: Rules) -> None:
    rules["model"]["merges"].remove(["h", "e"])


def eat_blanks(rules: Rules) -> None:
    rules["added_tokens"][4]["lstrip"] = True


def fall_back(rules: Rules) -> None:
    rules["model"]["byte_fallback"] = True


def with_a_token(token: str) -> PreTrainedTokenizerFast:
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([AddedToken(token, special=True)])
    return tokenizer


def nothing(rules: Rules) -> None: ...


# Tokenizers.


def test_the_same_tokenizer_differs_in_nothing(tmp_path: Path) -> None:
    """Wherever it was saved, and however it was last used: a tokenizer notes that it was asked to cut."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again("hello there, what is this?", truncation=True, max_length=3, padding="max_length")
    other = deepcopy(tokenizer)
    other.chat_template = "{{ messages }}"
    for one in (again, other, changed(nothing)):
        assert first_token_difference(one, tokenizer) == ""
        assert tokenizer_hash(one) == tokenizer_hash(tokenizer)


def test_two_tokens_with_each_others_numbers() -> None:
    """Trap: "Same size is not same vocabulary: compare id-to-token maps." """
    student = changed(swap_two)
    assert len(student) == SIZE
    number = min(tiny_tokenizer().get_vocab()[letter] for letter in "ab")
    assert first_token_difference(student, tiny_tokenizer()) == (
        f"token {number} is 'b' to the student and 'a' to the teacher"
    )


def test_two_vocabularies_of_one_size_from_other_texts() -> None:
    """Trap: "Same size is not same vocabulary"; here they were learnt apart."""
    one, other = (train_tokenizer([text] * 20, 270) for text in ("the cat sat on the mat", "no dog ran by my door"))
    assert len(one) == len(other)
    assert first_token_difference(one, other).startswith("token 262 is ")


def test_a_token_that_one_lacks() -> None:
    less, more = tiny_tokenizer(), with_a_token("<think>")
    assert first_token_difference(less, more) == LACKS.format(SIZE + 1, SIZE, "student", SIZE)
    assert first_token_difference(more, less) == LACKS.format(SIZE, SIZE + 1, "teacher", SIZE)
    assert first_token_difference(with_a_token("<a>"), with_a_token("<b>")) == (
        f"token {SIZE} is '<a>' to the student and '<b>' to the teacher"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lower, "of \"Hello there, what's this?"),
        (forget_a_merge, "of \"Hello there, what's this?"),
        (swap_merges, "they make tokens by other rules (merges, number 27, number 0): "),
        (
            eat_blanks,
            "they make tokens by other rules (added tokens, number 4, lstrip): true is the student's, false the",
        ),
        (
            fall_back,
            "they make tokens by other rules (model, byte_fallback): true is the student's, false the teacher's",
        ),
    ],
)
def test_the_same_vocabulary_by_other_rules(change: Callable[[Rules], None], says: str) -> None:
    """What texts show is shown by a text; what none of them shows is found in the rules, however deep it lies."""
    student = changed(change)
    assert student.get_vocab() == tiny_tokenizer().get_vocab()
    assert first_token_difference(student, tiny_tokenizer()).startswith(says)


def test_a_text_that_becomes_other_tokens_shows_where() -> None:
    assert first_token_difference(changed(lower), tiny_tokenizer()) == (
        "of \"Hello there, what's this? It's 12,345.67 kg (about 3/4 of a tonne)!\" they make other tokens: token 0 is "
        '["he"] "llo" " there" "," … to the student and ["H"] "e" "llo" " there" … to the teacher'
    )


def test_whether_a_token_counts_as_a_control_token_is_no_difference() -> None:
    """It is found in text in either case, and its number is the same."""
    plain = changed(lambda rules: rules["added_tokens"][4].update(special=False))
    assert first_token_difference(plain, tiny_tokenizer()) == ""
    assert tokenizer_hash(plain) == tokenizer_hash(tiny_tokenizer())


@pytest.mark.parametrize(
    "change", [swap_two, lower, digits_together, swap_merges, forget_a_merge, eat_blanks, fall_back, nothing]
)
def test_the_hash_is_the_same_where_no_difference_is_found_and_nowhere_else(change: Callable[[Rules], None]) -> None:
    one, other = changed(change), tiny_tokenizer()
    same = first_token_difference(one, other) == ""
    assert (tokenizer_hash(one) == tokenizer_hash(other)) == same == (change is nothing)
    assert (first_token_difference(other, one) == "") == same


# Templates.


def templated(template: str) -> PreTrainedTokenizerFast:
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: str, tools: tuple[str, ...] = ()) -> tuple[str, Chat]:
    return "chats/7", Chat(id="7", messages=say(*turns), tools=tools)


HELLO = chat("user: hello", "assistant: the cat")
CALLS = (
    "chats/8",
    Chat(
        id="8",
        messages=(
            *say("user: hello"),
            Message(role="assistant", content="", tool_calls=(ToolCall(name="add"),)),
            Message(role="tool", content="3"),
            *say("assistant: the cat"),
        ),
        tools=(TOOL,),
    ),
)


def test_the_same_template_differs_in_nothing() -> None:
    said = deepcopy(tiny_tokenizer())
    assert first_template_difference(said, tiny_tokenizer(), [HELLO, CALLS]) == ""
    spaced = templated("{# said otherwise, written alike #}" + DEFAULT_TEMPLATE)
    assert first_template_difference(spaced, tiny_tokenizer(), [HELLO, CALLS]) == ""


def test_a_line_break_at_the_end() -> None:
    """The first token that differs stands in brackets, between what both wrote before it and what comes behind."""
    student = templated(DEFAULT_TEMPLATE + "{{ '\\n' }}")
    assert first_template_difference(student, tiny_tokenizer()) == (
        'of a question the chat templates make other tokens: token 27 is … "\\n" "<|assistant|>" "\\n" ["\\n"] '
        'to the student and … "\\n" "<|assistant|>" "\\n" [the end] to the teacher'
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "eos_token + '\\n' }}\n{%- endif %}\n{%- endfor",
            "eos_token }}\n{%- endif %}\n{%- endfor",
            "of a question the",
        ),
        ("'<|assistant|>\\n'", "'<|assistant|>'", "of a question the chat templates make other tokens: token "),
        ("bos_token if bos_token is defined", "'' if bos_token is defined", "of a question the chat templates make"),
        (
            "{%- for message in messages %}",
            "{%- for message in messages %}{{ 'so: ' if message['role'] == 'system' }}",
            "of a question behind a system turn the chat templates make other tokens: token 1 is ",
        ),
        (
            "<tools>",
            "<t>",
            "of a question with a tool the chat templates make other tokens: token ",
        ),
        (
            "{%- for message in messages %}",
            "{%- for message in messages %}{{ 'hm' if 'hello' in message['content'] }}",
            'of row \'chats/7\' the chat templates make other tokens: token 1 is "<s>" ["h"] "m" ',
        ),
    ],
)
def test_a_template_that_writes_otherwise(old: str, new: str, says: str) -> None:
    assert DEFAULT_TEMPLATE.count(old) >= 1
    student = templated(DEFAULT_TEMPLATE.replace(old, new))
    assert first_template_difference(student, tiny_tokenizer(), [HELLO]).startswith(says)
    assert first_template_difference(tiny_tokenizer(), student, [HELLO]) != ""


def test_what_only_one_template_can_write_matters_where_the_rows_have_it() -> None:
    """Many know no tools, or no system's turn: a difference only for rows that have some."""
    deaf = DEFAULT_TEMPLATE.replace("{%- if tools %}", "{%- if false %}")
    silent = (
        "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{%- endif %}"
        + DEFAULT_TEMPLATE
    )
    for template, row, why in (
        (deaf, CALLS, "its chat template leaves out the tools that it offers"),
        (
            silent,
            chat("system: be brief", "user: hello", "assistant: the cat"),
            "its chat template refuses a conversation",
        ),
    ):
        other = templated(template)
        assert first_template_difference(other, tiny_tokenizer(), [HELLO]) == ""
        wrong = first_template_difference(other, tiny_tokenizer(), [HELLO, row])
        assert wrong.startswith(f"row '{row[0]}' cannot be written for the student: {why}")
        wrong = first_template_difference(tiny_tokenizer(), other, [HELLO, row])
        assert wrong.startswith(f"row '{row[0]}' cannot be written for the teacher: {why}")


# Models.


def model(rows: int) -> PreTrainedModel:
    config = deepcopy(FAMILIES["mistral"])
    config.vocab_size = rows
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 27), (27, 0), (5, 40), (40, 5)])
def test_padding_is_no_token(ours: int, theirs: int) -> None:
    """Trap: "Teacher and student vocabularies padded to different sizes (151,665 / 151,936 / 152,064)"."""
    assert vocabulary(model(SIZE + ours), model(SIZE + theirs), tiny_tokenizer()) == SIZE
    assert vocabulary_of(model(SIZE + theirs), tiny_tokenizer(), "the teacher") == SIZE


def test_a_model_with_fewer_rows_than_there_are_tokens() -> None:
    """A teacher with fewer tokens than the student, or the other way round; the first that is missing is named."""
    token = tiny_tokenizer().convert_ids_to_tokens(SIZE - 3)
    what = f"it has embeddings for {SIZE - 3} tokens; its tokenizer makes 3 more, the first {token!r} ({SIZE - 3})"
    with pytest.raises(ModelError) as caught:
        vocabulary(model(SIZE), model(SIZE - 3), tiny_tokenizer())
    assert str(caught.value).startswith(f"the teacher: {what}. ")
    with pytest.raises(ModelError) as caught:
        vocabulary(model(SIZE - 3), model(SIZE), tiny_tokenizer())
    assert str(caught.value).startswith(f"the student: {what}. ")


def test_a_head_with_fewer_rows_than_the_embeddings() -> None:
    short = model(SIZE)
    short.lm_head = torch.nn.Linear(16, SIZE - 1, bias=False)
    with pytest.raises(ModelError, match=f"the teacher: it has embeddings for {SIZE - 1} tokens"):
        vocabulary(model(SIZE), short, tiny_tokenizer())


def test_a_padding_token_beyond_a_models_rows_does_not_count() -> None:
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    assert vocabulary(model(SIZE), model(SIZE + 9), tokenizer) == SIZE
    assert vocabulary(model(SIZE + 9), model(SIZE + 9), tokenizer) == SIZE + 1
