"""From conversations to token ids, and which of them are learnt. The only place that knows a template.

Suffixes: L tokens of one sequence.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potstill.errors import ModelError
from potstill.records import Message

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]

LONG_RUN = re.compile(r"(\S{256}|\s{256})")
ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")

# Zephyr's layout, with the start token inside, so that every caller who renders it gets exactly one of them.
DEFAULT_TEMPLATE = """\
{{- bos_token if bos_token is defined and bos_token else '' }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens."""

    ids_L: Ids
    learn_L: Mask
    """True where the token is to be learnt: what an assistant says, and the token that ends it."""
    turn_ends: tuple[int, ...]
    """How many tokens there are up to the end of each assistant turn: where a conversation may be cut."""

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
    if not (tokenizer.chat_template or "").strip():
        if tokenizer.eos_token is None:
            raise ModelError(
                str(tokenizer.name_or_path),
                "its tokenizer has neither a chat template nor an end token",
                "Set eos_token in its tokenizer_config.json",
            )
        tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool = False) -> str:
    """The text that the model reads; `answer_next` opens an assistant turn at its end."""
    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=answer_next)
    except Exception as error:  # templates raise whatever they like: TemplateError, TypeError, ...
        raise ModelError(
            str(tokenizer.name_or_path),
            f"its chat template refuses a conversation of {', '.join(m.role for m in messages)}: {error}",
            "Bring the conversations into the order that the template accepts, or choose another model",
        ) from error
    assert isinstance(text, str)
    return text


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that steer and are never text. A message that spells one would end or open a turn in its middle."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Ids:
    """What a model is given to answer, ending where its answer begins."""
    text = render(tokenizer, messages, answer_next=True)
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], learn: str = "assistant") -> Encoded:
    """One conversation; see `encode_chats`."""
    return encode_chats(tokenizer, [messages], learn)[0]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]], learn: str = "assistant"
) -> list[Encoded]:
    """Conversations as tokens, each rendered whole and tokenized once, so that no merge at a boundary is lost.

    `learn` is "assistant" (what assistants say, with the token that ends it, unless the message says `train: false`)
    or "all" (every token but the first, which nothing predicts).
    """
    if not chats:
        return []
    texts = [render(tokenizer, chat) for chat in chats]
    tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    specials = set(control_tokens(tokenizer).values())
    encoded = []
    for chat, text, ids, offsets in zip(chats, texts, tokens["input_ids"], tokens["offset_mapping"], strict=True):
        ids_L, offsets_L2 = np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        learn_L, ends = np.zeros(len(ids_L), dtype=np.bool_), []
        for message, (start, end) in _assistant_spans(tokenizer, chat, text):
            first, last = _tokens_within(ids_L, offsets_L2, start, end, specials)
            learn_L[first:last] |= message.train
            ends.append(last)
        if learn == "all":
            learn_L[:] = True
        learn_L[:1] = False
        encoded.append(Encoded(ids_L, learn_L, tuple(ends)))
    return encoded


def _assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str
) -> Iterable[tuple[Message, tuple[int, int]]]:
    """Where in the rendered text each assistant turn stands, from behind its opening to before the next turn."""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        opening = render(tokenizer, messages[:index], answer_next=True) if index else ""
        through = text if index + 1 == len(messages) else render(tokenizer, messages[: index + 1])
        if not (text.startswith(opening) and text.startswith(through)):
            raise ModelError(
                str(tokenizer.name_or_path),
                "its chat template writes the beginning of a conversation differently once the conversation goes on, "
                "so what is learnt would not be what is asked for later",
                "Choose a template that keeps earlier turns as they are, or split the data into single turns",
            )
        yield message, (len(opening), len(through))


def _tokens_within(
    ids_L: Ids, offsets_L2: NDArray[np.int64], start: int, end: int, specials: set[int]
) -> tuple[int, int]:
    """The tokens of one assistant turn: those that begin behind its opening, up to the token that ends the turn.

    A token that straddles the opening is not among them: it is never what the model is asked for.
    What a template writes behind the end token (a line break) is left out as well.
    """
    first = int(np.searchsorted(offsets_L2[:, 0], start, side="left"))
    last = int(np.searchsorted(offsets_L2[:, 0], end, side="left"))
    for index in range(last - 1, first - 1, -1):
        if int(ids_L[index]) in specials:
            return first, index + 1
    return first, last


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Sequence[Message], Sequence[Message], Sequence[Message]]],
) -> list[EncodedPair]:
    """(prompt, chosen, rejected) as tokens. Both conversations are tokenized whole; what they share is found after."""
    flat = []
    for prompt, chosen, rejected in pairs:
        silent = [message.model_copy(update={"train": False}) for message in prompt]
        flat += [[*silent, *chosen], [*silent, *rejected]]
    whole = encode_chats(tokenizer, flat)
    return [
        _share(whole[2 * i], whole[2 * i + 1], len(encode_prompt(tokenizer, pairs[i][0]))) for i in range(len(pairs))
    ]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
) -> EncodedPair:
    """One pair; see `encode_pairs`."""
    return encode_pairs(tokenizer, [(prompt, chosen, rejected)])[0]


def _share(chosen: Encoded, rejected: Encoded, prompt_length: int) -> EncodedPair:
    """Split off the longest common beginning, but never past the prompt: answers may begin alike, and are scored."""
    limit = min(prompt_length, len(chosen), len(rejected))
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
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return [np.asarray([*start, *encoding.ids, *end], dtype=np.int32) for encoding in encodings]


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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

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
