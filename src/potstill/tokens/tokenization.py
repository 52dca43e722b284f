"""From conversations to token ids, and which of them are learnt. The only place that knows a template.

Suffixes: L tokens of one sequence.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potstill.errors import ModelError
from potstill.records import Message

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]
Tools = Sequence[str]
"""What an assistant may call: JSON Schemas as text."""

CHUNK_TEXTS = 256
"""Tokenized at once: enough for every core, few enough that what is said of their tokens stays small."""

LONG_RUN = re.compile(r"(\S{256}|\s{256})")
ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")

# Zephyr's layout, with the start token inside, so that every caller who renders it gets exactly one of them. Where
# tools are offered they stand behind the system's words, and calls are written as Hermes does; all else stays.
DEFAULT_TEMPLATE = """\
{{- bos_token if bos_token is defined and bos_token else '' }}
{%- set begins = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' %}
{%- if tools %}
{{- '<|system|>\\n' + begins + ('\\n\\n' if begins else '') + '<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '</tools>' + eos_token + '\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message['role'] == 'system') %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] }}
{%- for call in message['tool_calls'] or [] %}
{{- '\\n' if message['content'] or not loop.first else '' }}
{{- '<tool_call>\\n{"name": ' + call['function']['name'] | tojson + ', "arguments": ' }}
{{- call['function']['arguments'] | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- eos_token + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens."""

    ids_L: Ids
    learn_L: Mask
    """True where the token is to be learnt: what an assistant says, and the token that ends it."""
    turn_ends: tuple[int, ...]
    """How many tokens there are up to the end of each learnt turn: where a conversation may be cut."""

    def __len__(self) -> int:
        return len(self.ids_L)

    def cut(self, max_length: int) -> "Encoded | None":
        """The whole turns that fit into `max_length` tokens, ending with an assistant; None where not even one does."""
        if len(self) <= max_length:
            return self
        ends = tuple(end for end in self.turn_ends if end <= max_length)
        if not ends or not self.learn_L[: ends[-1]].any():
            return None
        return Encoded(self.ids_L[: ends[-1]], self.learn_L[: ends[-1]], ends)


@dataclass(frozen=True)
class Traced:
    """One conversation as tokens, with what they were made of."""

    encoded: Encoded
    text: str
    """As the template renders it."""
    encoding: Encoding
    """What the tokenizer says of the text."""
    turns: tuple[tuple[int, int, int], ...]
    """Each learnt turn: from which character of the text on, and from which token to which."""


@dataclass(frozen=True)
class EncodedPair:
    """A prompt and two answers. What the two share stands once, in `prompt_ids`."""

    prompt_ids: Ids
    chosen: Encoded
    rejected: Encoded
    """Both without the shared prompt."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations."""
        return len(self.prompt_ids) + max(len(self.chosen), len(self.rejected))


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, given the default template where it came with none. It is saved with the model it belongs to."""
    if not tokenizer.is_fast:
        raise ModelError(
            str(tokenizer.name_or_path),
            f"its tokenizer ({type(tokenizer).__name__}) does not tell where in the text a token stands",
            "Choose a model with a tokenizer.json",
        )
    template = tokenizer.chat_template or ""  # or several by name, one of them for tools
    if isinstance(template, str) and not template.strip():
        if tokenizer.eos_token is None:
            raise ModelError(
                str(tokenizer.name_or_path),
                "its tokenizer has neither a chat template nor an end token",
                "Set eos_token in its tokenizer_config.json",
            )
        tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = (), *, answer_next: bool = False
) -> str:
    """The text that the model reads; `answer_next` opens an assistant turn at its end.

    ModelError where the template refuses the conversation, or leaves out how a turn ends (those for images read no
    plain text, some have no place for a system's turn) or what it knows of tools.
    """
    text = _apply(tokenizer, messages, tools, answer_next)
    for index, message in enumerate(messages):
        if not all(
            word in text for word in message.content.split()[-1:]
        ):  # what comes before may be left out of the past
            raise _unseen(tokenizer, f"what the {message.role} says in turn {index + 1}")
    if tools and _apply(tokenizer, messages, (), answer_next) == text:
        raise _unseen(tokenizer, "the tools that it offers")
    for index, message in enumerate(messages):
        for what, lesser in _lesser(message):
            try:
                rest = [*messages[:index], lesser, *messages[index + 1 :]]
                same = _apply(tokenizer, rest, tools, answer_next) == text
            except ModelError:  # it misses what is gone
                same = False
            if same:
                raise _unseen(tokenizer, f"{what} in turn {index + 1}")
    return text


def _lesser(message: Message) -> Iterator[tuple[str, Message]]:
    """A turn without one of the things that only some templates write."""
    if message.tool_calls:
        yield "a tool's call", message.model_copy(update={"tool_calls": message.tool_calls[:-1]})
    if message.content and (message.tool_calls or message.role == "tool"):
        yield "what is said", message.model_copy(update={"content": ""})


def _unseen(tokenizer: PreTrainedTokenizerBase, what: str) -> ModelError:
    return ModelError(
        str(tokenizer.name_or_path),
        f"its chat template leaves out {what}; expected one that writes it",
        "Give the tokenizer another chat template, or take the rows that need one out of the data",
    )


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = (), answer_next: bool = False
) -> str:
    offered = [json.loads(tool) for tool in tools] or None
    rows = [_as_templates_know_it(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(rows, tools=offered, tokenize=False, add_generation_prompt=answer_next)
    except Exception as error:  # templates raise whatever they like: TemplateError, TypeError, ...
        said = type(error) is TemplateError  # by the template itself; its own faults are of other kinds
        raise ModelError(
            str(tokenizer.name_or_path),
            f"its chat template {'refuses' if said else 'fails at'} a conversation of "
            f"{', '.join(m.role for m in messages)}: {error}",
            "Bring the conversations into the order that the template accepts, or choose another model"
            if said
            else "Mend the tokenizer's chat template, or choose another model",
        ) from error
    assert isinstance(text, str)
    return text


def _as_templates_know_it(message: Message) -> dict[str, Any]:
    """OpenAI's columns, but a call's arguments as an object, which is what templates write out."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    return row | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that steer and are never text. A message that spells one would end or open a turn in its middle."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> int:
    """Make each text one token that nothing splits or merges; returns how many the tokenizer did not have.

    They are text, not control tokens: rows may spell them, documents too, and decoded answers show them.
    """
    for token in tokens:
        if not token.strip():
            raise ModelError("new_tokens", f"{token!r} is blank; expected text", "Remove it")
        if token in control_tokens(tokenizer):  # rows that spell it would steer
            raise ModelError("new_tokens", f"{token!r} is a control token of this tokenizer already", "Remove it")
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    return len(tokenizer) - before


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools = ()) -> Ids:
    """What a model is given to answer, ending where its answer begins."""
    (encoding,) = _encodings(tokenizer, [render(tokenizer, messages, tools, answer_next=True)])
    return _ids(encoding)


def encode_opening(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Text to go on from as it stands: no template, nothing added; what it spells of control tokens steers."""
    (encoding,) = _encodings(tokenizer, [text])
    return _ids(encoding)


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What makes tokens of text. It neither cuts nor fills: a tokenizer.json may ask for either, and would in silence;
    and a tokenizer notes there how it was last used."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


PROBE = "\ue000"
"""Stands for what somebody says while a template is looked at. A private character: no template holds it."""


def user_frame(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> tuple[str, str]:
    """What the chat template writes before and behind a user's first words, the start token included.

    A model that is given the first goes on as a user would (Magpie, Xu et al. 2024); the second is where it ends.
    ModelError where the template refuses the conversation or changes what the user says.
    """
    turns = [] if system is None else [Message(role="system", content=system)]
    before, found, behind = _apply(tokenizer, [*turns, Message(role="user", content=PROBE)]).partition(PROBE)
    if not found or PROBE in behind:
        raise _unseen(tokenizer, "what the user says in turn 1, or writes it twice")
    if system is not None and system.strip() not in before:
        raise _unseen(tokenizer, "what the system says in turn 1, or writes it behind the user's turn")
    return before, behind


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], learn: str = "assistant", tools: Tools = ()
) -> Encoded:
    """One conversation; see `encode_chats`."""
    return encode_chats(tokenizer, [messages], learn, [tools])[0]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    learn: str = "assistant",
    tools: Sequence[Tools] | None = None,
) -> list[Encoded]:
    """Conversations as tokens, each rendered whole and tokenized once, so that no merge at a boundary is lost.

    `learn` is "assistant" (what assistants say and call, with the token that ends it, unless the message says
    `train: false`) or "all" (every token but the first, which nothing predicts). `tools`: those of each conversation.
    """
    return [traced.encoded for traced in trace_chats(tokenizer, chats, learn, tools)]


def trace_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    learn: str = "assistant",
    tools: Sequence[Tools] | None = None,
) -> Iterator[Traced]:
    """The same as `encode_chats`, one at a time, with the text that was read and where in it the learnt turns stand."""
    offered = tools or [()] * len(chats)
    texts = [render(tokenizer, chat, its) for chat, its in zip(chats, offered, strict=True)]
    specials = set(control_tokens(tokenizer).values())
    atoms = specials.union(tokenizer.added_tokens_decoder)
    for chat, its, text, encoding in zip(chats, offered, texts, _encodings(tokenizer, texts), strict=True):
        ids_L, starts_L = _ids(encoding), _starts(encoding)
        learn_L, places = np.full(len(ids_L), learn == "all"), []
        for start, end in _learnt_spans(tokenizer, chat, its, text, learn):
            first, last = _tokens_within(ids_L, starts_L, start, end, specials)
            if learn == "assistant" and atoms.isdisjoint(ids_L[first:last].tolist()):
                raise ModelError(
                    str(tokenizer.name_or_path),
                    "its chat template ends an assistant's turn with no control token, so nobody would learn to stop",
                    "Give the tokenizer a chat template that writes eos_token behind what assistants say",
                )
            learn_L[first:last] = True
            places.append((start, first, last))
        learn_L[:1] = False
        encoded = Encoded(ids_L, learn_L, tuple(last for _, _, last in places))
        yield Traced(encoded, text, encoding, tuple(places))


def _encodings(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, steering: bool = True
) -> Iterator[Encoding]:
    """What the tokenizer says of each text. Where not `steering`, a text may not spell a control token.

    Some at a time: what a tokenizer says of a token takes hundreds of bytes until it is an array.
    """
    backend = backend_of(tokenizer)
    for first in range(0, len(texts), CHUNK_TEXTS):
        before, backend.encode_special_tokens = backend.encode_special_tokens, not steering
        # It adds nothing here, but may leave blanks out of a token's offsets: one that straddles a turn's opening would
        # seem to begin behind it.
        trimming, backend.post_processor = backend.post_processor, None
        try:
            encodings = backend.encode_batch(texts[first : first + CHUNK_TEXTS], add_special_tokens=False)
        finally:
            backend.encode_special_tokens, backend.post_processor = before, trimming
        yield from encodings


def _ids(encoding: Encoding) -> Ids:
    return np.array(encoding.ids, dtype=np.int32)


def _starts(encoding: Encoding) -> NDArray[np.int64]:
    """Where in the text each token begins."""
    return np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding))


def _learnt_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools, text: str, learn: str
) -> Iterator[tuple[int, int]]:
    """Where in the rendered text each learnt turn stands, from behind its opening to before the next turn.

    The opening is what the model will be given when it is asked for that turn: what is learnt must follow on it.
    """
    for index, message in enumerate(messages):
        if message.role != "assistant" or not (message.train or learn == "all"):
            continue
        opening = _apply(tokenizer, messages[:index], tools, answer_next=True) if index else ""
        through = text if index + 1 == len(messages) else _apply(tokenizer, messages[: index + 1], tools)
        if not (text.startswith(opening) and text.startswith(through)):
            raise ModelError(
                str(tokenizer.name_or_path),
                "its chat template writes the beginning of a conversation differently once the conversation goes on, "
                "so what is learnt would not be what is asked for later",
                "Mark all but the last assistant turn train: false, or choose a template that keeps turns as they are",
            )
        yield len(opening), len(through)


def _tokens_within(
    ids_L: Ids, starts_L: NDArray[np.int64], start: int, end: int, specials: set[int]
) -> tuple[int, int]:
    """The tokens of one assistant turn: those that begin behind its opening, up to the token that ends the turn.

    A token that straddles the opening is not among them: it is never what the model is asked for.
    What a template writes behind the end token (a line break) is left out as well.
    """
    first, last = (int(np.searchsorted(starts_L, place, side="left")) for place in (start, end))
    for index in range(last - 1, first - 1, -1):
        if int(ids_L[index]) in specials:
            return first, index + 1
    return first, last


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Sequence[Message], Sequence[Message], Sequence[Message]]],
    tools: Sequence[Tools] | None = None,
) -> list[EncodedPair]:
    """(prompt, chosen, rejected) as tokens. Both conversations are tokenized whole; what they share is found after."""
    flat: list[list[Message]] = []
    for prompt, chosen, rejected in pairs:
        silent = [message.model_copy(update={"train": False}) for message in prompt]
        flat += [[*silent, *chosen], [*silent, *rejected]]
    whole = encode_chats(tokenizer, flat, tools=tools and [its for its in tools for _ in range(2)])
    return [_share(*whole[first : first + 2]) for first in range(0, len(whole), 2)]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
) -> EncodedPair:
    """One pair; see `encode_pairs`."""
    return encode_pairs(tokenizer, [(prompt, chosen, rejected)])[0]


def _share(chosen: Encoded, rejected: Encoded) -> EncodedPair:
    """Split off the longest common beginning, but nothing that is learnt: answers may begin alike, and are scored."""
    limit = min(len(chosen), len(rejected))
    for encoded in (chosen, rejected):
        learnt = np.flatnonzero(encoded.learn_L)
        limit = min(limit, int(learnt[0]) if len(learnt) else limit)
    differs = np.flatnonzero(chosen.ids_L[:limit] != rejected.ids_L[:limit])
    shared = int(differs[0]) if len(differs) else limit
    return EncodedPair(chosen.ids_L[:shared], *(_behind(encoded, shared) for encoded in (chosen, rejected)))


def _behind(encoded: Encoded, start: int) -> Encoded:
    ends = tuple(end - start for end in encoded.turn_ends if end > start)
    return Encoded(encoded.ids_L[start:], encoded.learn_L[start:], ends)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Plain documents, each between the start and the end token (where the tokenizer has them).

    Text that spells a control token is read as text.
    """
    start, end = (
        np.array([] if token is None else [token], dtype=np.int32)
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    )
    read = _encodings(tokenizer, texts, steering=False)
    return [np.concatenate([start, _ids(encoding), end]) for encoding in read]


def explain(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    """One line a token: the token as the tokenizer spells it, and whether it is learnt. For people and golden tests."""
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids_L.tolist())
    width = max((len(token) for token in tokens), default=0)
    return "\n".join(
        f"{token:<{width}} | {'learnt' if learnt else '-'}"
        for token, learnt in zip(tokens, encoded.learn_L, strict=True)
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) with the default chat template.

    The same texts in the same order give the same tokenizer, byte for byte. Numbers are split into digits. No merge is
    learnt across the cuts of a run of 256 characters without a blank: training takes the square of a word's length.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

    specials = ["<pad>", "<s>", "</s>", *ROLE_MARKERS]
    smallest = len(specials) + len(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < smallest:
        raise ModelError(
            "vocabulary",
            f"{vocabulary} tokens cannot hold the 256 bytes and {len(specials)} control tokens",
            f"Set {smallest} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|[^\S\n]*[^\s\d]+|[^\S\n]*\d|[^\S\n]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in LONG_RUN.split(text) if piece), trainer)
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        extra_special_tokens=list(ROLE_MARKERS),
        chat_template=DEFAULT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        **settings,
    )
