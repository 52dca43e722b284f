"""Tokenizers of several families, built on the spot, and chat templates that differ as those of real models do."""

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from potstill.tokens.tokenization import DEFAULT_TEMPLATE, ROLE_MARKERS, train_tokenizer

TEXTS = [
    "the cat sat on the mat. it is a cat!\n\nhello there, hello world\n",
    "the dog is not a cat.\tit sat;  it ran\n",
    "eine Katze saß auf der Matte. naïve café\n",
    "猫がマットの上に座っていた。\n",
    "say 😀 or 👩‍👩‍👧 and 12345\n",
] * 8

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BREAK_BEFORE_END = CHATML.replace("message['content'] + '<|im_end|>", "message['content'] + '\\n<|im_end|>")
TRIMMED = CHATML.replace("message['content'] +", "message['content'] | trim +")
BLANK_BEFORE_WORDS = (  # as Llama 2 and Mistral have it
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
SHOUTED = CHATML.replace("message['content'] +", "message['content'] | replace('the', 'THE') +")
TEMPLATES = {
    "default": DEFAULT_TEMPLATE,
    "chatml": CHATML,
    "break": BREAK_BEFORE_END,
    "blank": BLANK_BEFORE_WORDS,
}


def finished(tokenizer: Tokenizer, template: str) -> PreTrainedTokenizerFast:
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[*ROLE_MARKERS, "<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        **settings,
    )
    fast.chat_template = template
    return fast


SPECIALS = ["<unk>", "<pad>", "<s>", "</s>", *ROLE_MARKERS, "<|im_start|>", "<|im_end|>"]
KNOWN = frozenset("abcdefghijklmnopqrst.,!ßéï猫上😀")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(vocabulary: int, template: str = DEFAULT_TEMPLATE) -> PreTrainedTokenizerFast:
    """As this house trains them."""
    tokenizer = train_tokenizer(TEXTS, vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def foreign_byte_level(
    vocabulary: int, template: str = DEFAULT_TEMPLATE, *, prefix: bool = False, nfc: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that leaves blanks out of its offsets, as RoBERTa's and Llama 3's do.

    It merges across what others keep apart (a mark and a line break) or, with `prefix`, puts a blank before a text;
    with `nfc` it composes characters, as Qwen's does.
    """
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(r"[^\r\n]{1,12}[\r\n]*|[\r\n]+"), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=prefix)
    tokenizer.pre_tokenizer = plain if prefix else pre_tokenizers.Sequence([pieces, plain])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return finished(tokenizer, template)


def metaspace(vocabulary: int, template: str = DEFAULT_TEMPLATE, *, legacy: bool = False) -> PreTrainedTokenizerFast:
    """A BPE as sentencepiece makes them: blanks are ▁, one stands before a text, unknown letters become bytes."""
    seen = Tokenizer(models.BPE(unk_token="<unk>"))
    seen.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(BYTES), special_tokens=SPECIALS, show_progress=False)
    seen.train_from_iterator(["".join(c if c in KNOWN else " " for c in text) for text in TEXTS], trainer)
    model = json.loads(seen.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in BYTES:
        vocab[byte] = len(vocab)
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:  # Llama 2's way
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.add_special_tokens(SPECIALS)
    return finished(tokenizer, template)


def unigram(vocabulary: int, template: str = DEFAULT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Pieces by likelihood, of a text whose characters are made compatible first (NFKC: ½ becomes three)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return finished(tokenizer, template)


def words(template: str = DEFAULT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Whole words and single marks; blanks are in no token, letters are small, and much is unknown."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return finished(tokenizer, template)


FAMILIES = {
    "small": lambda template: byte_level(280, template),
    "large": lambda template: byte_level(500, template),
    "greedy": lambda template: foreign_byte_level(420, template),
    "nfc": lambda template: foreign_byte_level(420, template, nfc=True),
    "prefix": lambda template: foreign_byte_level(420, template, prefix=True),
    "metaspace": lambda template: metaspace(420, template),
    "legacy": lambda template: metaspace(420, template, legacy=True),
    "unigram": lambda template: unigram(150, template),
    "words": lambda template: words(template),
}


@cache
def family(name: str, template: str = "default") -> PreTrainedTokenizerFast:
    """One tokenizer of each, with one of TEMPLATES."""
    return FAMILIES[name](TEMPLATES.get(template, template))
