"""Before the first step of a distillation: do the teacher and the student speak of the same tokens?

Two models are compared token by token only where every number stands for the same token with both. The functions here
say in one line what differs first, and nothing where nothing does; who calls them refuses, and says what to do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.artifact import digest
from potstill.errors import ModelError
from potstill.records import Chat, Message, ToolCall
from potstill.tokens.learnt import Spelling
from potstill.tokens.tokenization import Tools, backend_of, encode_opening, render
from potstill.training.models import rows_of, wrong_vocabulary

TEXTS = (
    "Hello there, what's this? It's 12,345.67 kg (about 3/4 of a tonne)!",
    "  two blanks before, two behind  \n\n\tand a tab\r\n",
    "def f(x_1: int) -> str:\n    return f'{x_1:>8}'  # == 0x1F\n",
    "naïve café, nai\u0308ve cafe\u0301, ﬁne Ⅳ ½ ß İ",
    "Привет, мир! 你好，世界。こんにちは カタカナ 안녕하세요 שלום مرحبا नमस्ते สวัสดี",
    "👩\u200d💻🏳️\u200d🌈 1️⃣ \u00a0\u2009\u200b\ufeff…—“quotes” «et» ‚so‘",
    "0 1 12 123 1234 12345 123456789 3.14159 1e-10 ٣٤",
    "WORDS Words wOrDs aaaaaaaaaaaaaaaaaaaaaaaa ---- ==== ....",
    '<b>tags</b> &amp; {"json": [1, null]} \\frac{a}{b} $x^2$ http://a.b/c?d=e',
)
"""Tokenized by both: what tokenizers do differently with the same vocabulary shows in one of them, as a rule."""

SYSTEM, ASKED, SAID, MORE = (
    Message(role="system", content="Answer in one word."),
    Message(role="user", content="What is it?\n\nSay it plainly."),
    Message(role="assistant", content="A cat."),
    Message(role="user", content="  And this?  "),
)
TOOL = json.dumps(
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "The sum of two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    }
)
CALLED = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments='{"a": 1, "b": 2}', id="c"),))
RETURNED = Message(role="tool", content="3", name="add", tool_call_id="c")
PROBES: Mapping[str, tuple[tuple[Message, ...], Tools]] = {
    "a question": ((ASKED,), ()),
    "a question and its answer": ((ASKED, SAID), ()),
    "a dialogue": ((ASKED, SAID, MORE, SAID), ()),
    "a question behind a system turn": ((SYSTEM, ASKED), ()),
    "a dialogue behind a system turn": ((SYSTEM, ASKED, SAID, MORE, SAID), ()),
    "a question with a tool": ((ASKED,), (TOOL,)),
    "a dialogue with a tool's call": ((ASKED, CALLED, RETURNED, SAID), (TOOL,)),
}
"""Conversations that both templates should write alike, where both can write them at all."""

NEIGHBOURS = 3
"""How many tokens on either side are shown."""


# Tokenizers.


def first_token_difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str:
    """The first thing that one tokenizer does otherwise, in a line; empty where their tokens are the same.

    First the vocabularies, number by number, with added and control tokens; then what decides how text becomes tokens:
    some texts are tokenized, and the rules themselves compared. Rows of a model's table beyond its tokens are none.
    """
    ours, theirs = _tokens(student), _tokens(teacher)
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            return _differing(number, ours, theirs)
    for text in TEXTS:
        said, other = (_spelt(one, encode_opening(one, text)) for one in (student, teacher))
        if wrong := _first_difference(said, other, student):
            return f"of {text!r} they make other tokens: {wrong}"
    rules, others = _rules(student), _rules(teacher)
    return _other_rule("", rules, others) if rules != others else ""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the tokens by their numbers and of all that decides how text becomes tokens; the chat template is no part.

    Two tokenizers have the same where `first_token_difference` finds none.
    """
    return digest([sorted(_tokens(tokenizer).items()), _rules(tokenizer)])[:32]


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Every token by its number, added ones too."""
    return {number: token for token, number in sorted(tokenizer.get_vocab().items(), reverse=True)}


def _differing(number: int, ours: Mapping[int, str], theirs: Mapping[int, str]) -> str:
    if number in ours and number in theirs:
        return f"token {number} is {ours[number]!r} to the student and {theirs[number]!r} to the teacher"
    lacks, token = ("student", theirs[number]) if number in theirs else ("teacher", ours[number])
    sizes = f"the teacher has {len(theirs):,} tokens and the student {len(ours):,}"
    return f"{sizes}; the first that the {lacks} lacks is {token!r} ({number})"


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides which of its tokens a text becomes, as JSON, in the order in which it happens.

    Whether an added token counts as a control token is no part: it is found in text in either case.
    """
    whole = json.loads(backend_of(tokenizer).to_str())
    model = dict(whole["model"])
    if isinstance(model.get("vocab"), dict):
        del model["vocab"]  # the tokens, which the vocabulary has with the added ones
    added = [{name: value for name, value in token.items() if name != "special"} for token in whole["added_tokens"]]
    return {
        "added tokens": sorted(added, key=lambda token: int(token["id"])),
        "normalizer": whole["normalizer"],
        "pre-tokenizer": whole["pre_tokenizer"],
        "merges": model.pop("merges", None),
        "model": model,
    }


def _other_rule(name: str, ours: Any, theirs: Any) -> str:
    """Down to the smallest part: one of a hundred thousand merges is to be named."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
        return _other_rule(f"{name}, {key}" if name else key, ours.get(key), theirs.get(key))
    if isinstance(ours, list) and isinstance(theirs, list):
        place = next(index for index, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
        here, there = (rule[place] if place < len(rule) else None for rule in (ours, theirs))
        return _other_rule(f"{name}, number {place}", here, there)
    student, teacher = (_short(json.dumps(rule, ensure_ascii=False)) for rule in (ours, theirs))
    return f"they make tokens by other rules ({name}): {student} is the student's, {teacher} the teacher's"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


# Templates.


def first_template_difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, rows: Sequence[tuple[str, Chat]] = ()
) -> str:
    """The first token that one chat template writes otherwise, in a line with its neighbours; empty where none does.

    Made-up conversations are written by both, where both can; then `rows`, each with its name, which both have to.
    """
    for what, (messages, tools) in PROBES.items():
        said, other = _written(student, messages, tools), _written(teacher, messages, tools)
        if isinstance(said, list) and isinstance(other, list) and (wrong := _first_difference(said, other, student)):
            return f"of {what} the chat templates make other tokens: {wrong}"
    for name, row in rows:
        said, other = _written(student, row.messages, row.tools), _written(teacher, row.messages, row.tools)
        for whose, one in (("student", said), ("teacher", other)):
            if isinstance(one, ModelError):
                return f"row '{name}' cannot be written for the {whose}: {one.what}"
        if isinstance(said, list) and isinstance(other, list) and (wrong := _first_difference(said, other, student)):
            return f"of row '{name}' the chat templates make other tokens: {wrong}"
    return ""


def _written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools) -> list[str] | ModelError:
    """The tokens of a conversation, with the opening of an answer where one is due; or why there are none."""
    try:
        text = render(tokenizer, messages, tools, answer_next=messages[-1].role in ("user", "tool"))
    except ModelError as error:
        return error
    return _spelt(tokenizer, encode_opening(tokenizer, text))


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids.tolist())]


def _first_difference(student: Sequence[str], teacher: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Where two sequences of its tokens part, with what stands around, as text; empty where they do not."""
    place = next((index for index, (a, b) in enumerate(zip_longest(student, teacher)) if a != b), None)
    if place is None:
        return ""
    ours, theirs = (_around(_read(tokenizer, tokens), place) for tokens in (student, teacher))
    if ours == theirs:  # one text in two tokens, such as a byte's and a letter's
        ours, theirs = _around(student, place), _around(teacher, place)
    return f"token {place} is {ours} to the student and {theirs} to the teacher"


def _read(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[str]:
    spelling, numbers = Spelling.of(tokenizer), tokenizer.get_vocab()
    return [spelling.text_of(numbers.get(token, -1), token) for token in tokens]


def _around(tokens: Sequence[str], place: int) -> str:
    """A token in brackets between its neighbours."""
    return " ".join(_neighbourhood(tokens, place))


def _neighbourhood(tokens: Sequence[str], place: int) -> Iterator[str]:
    first, last = max(0, place - NEIGHBOURS), place + NEIGHBOURS + 1
    if first > 0:
        yield "…"
    yield from tokens[first:place]
    yield f"[{tokens[place]}]" if place < len(tokens) else "[the end]"
    yield from tokens[place + 1 : last]
    if last < len(tokens):
        yield "…"


# Models.


def vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of both heads stand for tokens; see `vocabulary_of`."""
    return min(vocabulary_of(student, tokenizer, "the student"), vocabulary_of(teacher, tokenizer, "the teacher"))


def vocabulary_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whose: str) -> int:
    """How many rows of a model's head stand for tokens of the tokenizer; `whose` is "the teacher", for the message.

    What it has beyond is padding, up to 151,936 rows here and 152,064 there for 151,665 tokens, and takes part in no
    comparison. ModelError where there are too few, in its embeddings or in its head.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    rows = [rows_of(table) for table in (model.get_input_embeddings(), head)]
    if wrong := wrong_vocabulary(min(rows), tokenizer):
        remedy = "Choose models of one vocabulary, or an objective across tokenizers"
        raise ModelError(whose, wrong, remedy)
    return 1 + max(number for number in tokenizer.get_vocab().values() if number < min(rows))
