"""Scaled-down twins of the recipes of real size: models of the same architectures, tokenizers of the same kind, rows in
the shapes of the real data sets, and a teacher that answers whatever a stage asks. All of it is made here."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from stub_server import Stub, completion, reply
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

THINGS = ["kettle", "lantern", "bicycle", "violin", "ladder", "compass", "teapot", "hammer", "blanket", "window"]
PLACES = ["harbour", "orchard", "library", "workshop", "valley", "market", "station", "garden"]
OPENINGS = ["How would you", "Write about", "Which of us could", "Explain why nobody would", "Plan", "Is it wise to"]
DEEDS = ["mend", "carry", "paint", "hide", "borrow", "polish", "measure", "sell", "weigh", "sketch", "trade", "clean"]
WAYS = ["slowly", "at dawn", "by hand", "for free", "in winter", "twice", "alone", "with care", "unseen", "in turns"]
ANSWERS = [
    "Put the {thing} behind the {place}, where it stays dry, and look after it once a week.",
    "A {thing} belongs to the {place}. It is old, but it does its work well.",
    "Ask for the {thing} at the gate of the {place}: somebody there will know what to do.",
]


def asked(number: int) -> str:
    """A question that shares few words with the others."""
    draw = random.Random(number)
    things, places = draw.sample(THINGS, 2), draw.sample(PLACES, 2)
    words = [draw.choice(DEEDS), things[0], places[0], draw.choice(WAYS), things[1], places[1]]
    draw.shuffle(words)
    return f"{draw.choice(OPENINGS)} {' '.join(words)}? Note {number}."


def answered(number: int) -> str:
    draw = random.Random(-number - 1)
    return draw.choice(ANSWERS).format(thing=draw.choice(THINGS), place=draw.choice(PLACES))


# Rows, in the columns of the data sets on the Hub.


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ultrachat(first: int, count: int) -> list[dict[str, Any]]:
    """Dialogues of two turns; one has an assistant that has no feelings, one broken capitals."""
    rows = []
    for number in range(first, first + count):
        words = [asked(number), answered(number), f"And then, after step {number}?", answered(number + 7)]
        if number % 23 == 5:
            words[1] = "As an AI language model, I do not have emotions or personal opinions about this."
        if number % 19 == 3:
            words[3] = words[3].lower()
        turns = [turn(("user", "assistant")[place % 2], text) for place, text in enumerate(words)]
        rows.append({"prompt": words[0], "prompt_id": hashlib.sha256(words[0].encode()).hexdigest(), "messages": turns})
    return rows


def ultrafeedback(first: int, count: int) -> list[dict[str, Any]]:
    """Pairs, the prompt inside both conversations, as the binarized set has them. One has nothing to say."""
    rows = []
    for number in range(first, first + count):
        prompt, good, bad = asked(number), answered(number), "No idea." if number % 17 else ""
        chosen, rejected = ([turn("user", prompt), turn("assistant", text)] for text in (good, bad))
        rows.append(
            {
                "prompt": prompt,
                "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
                "chosen": chosen,
                "rejected": rejected,
                "messages": chosen,
                "score_chosen": 8.0,
                "score_rejected": 3.5,
            }
        )
    return rows


def gsm8k(first: int, count: int) -> list[dict[str, Any]]:
    """Problems whose worked answers end with the number behind ####."""
    rows = []
    for number in range(first, first + count):
        a, b = 3 + number, 2 + number * 2 % 11
        thing = THINGS[number % len(THINGS)]
        question = (
            f"Ada has {a} {thing}s and buys {b} more at the {PLACES[number % len(PLACES)]}. How many has she now?"
        )
        rows.append({"question": question, "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"})
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Tokenizers.

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nGREETING<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen's: a system turn of its own where there is none, and turns that end with another token than documents."""
THINKING = (
    "{% for message in messages %}{% set words = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in words %}"
    "{% set words = words.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + words + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen3's: what was thought is left out of the past."""
HEADERS = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday is a day.<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""As Llama 3's, which takes away the blanks around what is said."""


def corpus() -> list[str]:
    rows = [row["question"] + row["answer"] for row in gsm8k(0, 60)]
    return [asked(number) + "\n" + answered(number) for number in range(300)] + rows


def sentencepiece(vocabulary: int = 700) -> PreTrainedTokenizerFast:
    """As Mistral's and Llama 2's: a BPE in which blanks are ▁ and unknown letters are bytes; no chat template."""
    specials, byte_tokens = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    seen = Tokenizer(models.BPE(unk_token="<unk>"))
    seen.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 256, special_tokens=specials, show_progress=False)
    seen.train_from_iterator(corpus(), trainer)
    model = json.loads(seen.to_str())["model"]
    words = {token: index for index, token in enumerate([*specials, *byte_tokens])}
    for token in sorted(model["vocab"], key=lambda token: int(model["vocab"][token])):
        words.setdefault(token, len(words))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(words, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def byte_level(
    specials: Sequence[str], eos: str, *, bos: str | None = None, pad: str | None = None, vocabulary: int = 700
) -> PreTrainedTokenizerFast:
    """As those of Qwen, Llama 3 and StableLM 2: a byte-level BPE with digits by themselves."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\n+|[^\S\n]*[^\s\d]+|\d|[^\S\n]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(specials))
    named: dict[str, Any] = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token is not None},
    )


def qwen(greeting: str, *, aligned: bool, template: str = CHATML) -> PreTrainedTokenizerFast:
    """One vocabulary for base and aligned models, whose end tokens and greetings differ, as Qwen's do."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(specials, "<|im_end|>" if aligned else "<|endoftext|>", pad="<|endoftext|>")
    tokenizer.chat_template = template.replace("GREETING", greeting)
    return tokenizer


# Models: the architecture's own class, small. Tables are padded beyond the tokenizer's, as the real ones are.

SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


def save(folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast, *, padding: int = 9, seed: int = 0) -> Path:
    """Random weights, in bfloat16 as those of the real models."""
    config.vocab_size = len(tokenizer) + padding
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mistral(folder: Path) -> Path:
    """Mistral 7B v0.1: grouped queries and a sliding window, here of 64 tokens, so that dialogues are longer."""
    return save(folder, MistralConfig(**SIZE, sliding_window=64), sentencepiece(), padding=0)


def qwen2_base(folder: Path) -> Path:
    tokenizer = qwen("You are a helpful assistant.", aligned=False)
    return save(folder, Qwen2Config(**SIZE, tie_word_embeddings=True), tokenizer)


def qwen2_aligned(folder: Path) -> Path:
    tokenizer = qwen("You are a twin.", aligned=True)
    return save(folder, Qwen2Config(**{**SIZE, "num_hidden_layers": 3}), tokenizer, padding=137, seed=1)


def qwen3(folder: Path, *, aligned: bool) -> Path:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(specials, "<|im_end|>" if aligned else "<|endoftext|>", pad="<|endoftext|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = THINKING
    config = Qwen3Config(**{**SIZE, "num_hidden_layers": 3 if aligned else 2}, head_dim=16, tie_word_embeddings=True)
    return save(folder, config, tokenizer, seed=int(aligned))


def llama3(folder: Path) -> Path:
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(specials, "<|eot_id|>", bos="<|begin_of_text|>", vocabulary=900)
    tokenizer.chat_template = HEADERS
    return save(folder, LlamaConfig(**SIZE), tokenizer, padding=0)


def stablelm2(folder: Path) -> Path:
    """StableLM 2 1.6B: partial rotary embeddings, biases, LayerNorm; one token begins and ends; no chat template."""
    tokenizer = byte_level(["<|endoftext|>"], "<|endoftext|>", bos="<|endoftext|>", vocabulary=520)
    return save(folder, StableLmConfig(**SIZE, use_qkv_bias=True), tokenizer)


# Whoever is asked.

WANTED = re.compile(r"(?:Name|Write|Describe) (\d+)")


class Voice:
    """Answers each kind of request in the form that it wants; the same request in the same words."""

    def __init__(self, wrong: float = 0.25) -> None:
        self.wrong = wrong
        """The share of problems that it gets wrong."""

    def __call__(self, body: dict[str, Any]) -> str:
        said = str(body["messages"][-1]["content"])
        draw = random.Random(json.dumps([body["messages"], body.get("seed")]))
        for begins, answer in self._forms():
            if said.startswith(begins):
                return answer(said, draw)
        if "step by step" in said:
            return self._solved(said, draw)
        return f"{answered(draw.randrange(10**6))} That answers {draw.randrange(100)}."

    def _forms(self) -> Iterator[tuple[str, Callable[[str, random.Random], str]]]:
        yield from (
            ("# Topics", _topics),
            ("# Questions", _listing),
            ("# Writing tasks", _listing),
            ("# People", _people),
        )
        yield (
            "# More detail",
            lambda said, draw: f"Write a notice about {draw.choice(THINGS)}s for {draw.choice(PLACES)} folk.",
        )
        yield (
            "# Rewrite",
            lambda said, draw: f"{asked(draw.randrange(10**6))} Give three reasons, with {draw.choice(THINGS)}s.",
        )
        yield "# Same or not", lambda said, draw: "not equal"
        yield "# Aspect", _rated
        yield "# Review", _reviewed
        yield "# Comparison", lambda said, draw: f"Rationale: It is clearer.\nBetter: {draw.choice('12')}"
        yield "[Conversation]", _in_conversation

    def _solved(self, said: str, draw: random.Random) -> str:
        a, b = (int(number) for number in re.findall(r"\d+", said)[:2])
        total = a + b + (draw.random() < self.wrong)
        how = draw.choice(["So", "Then", "Now"])
        thought = f"There are {a}, and {b} come. {how} {a} + {b} = {total}."
        return f"<think>\n{thought}\n</think>\n\nShe has {total}.\nAnswer: {total}"


def _topics(said: str, draw: random.Random) -> str:
    wanted = int(WANTED.search(said)[1])  # type: ignore[index]
    return "\n".join(
        f"{n}. {draw.choice(THINGS)} {draw.choice(PLACES)} {draw.randrange(1000)}" for n in range(1, wanted + 1)
    )


def _listing(said: str, draw: random.Random) -> str:
    wanted = int(WANTED.search(said)[1])  # type: ignore[index]
    return "\n".join(f"{n}. {asked(draw.randrange(10**6))}" for n in range(1, wanted + 1))


def _people(said: str, draw: random.Random) -> str:
    wanted = int(WANTED.search(said)[1])  # type: ignore[index]
    return "\n".join(f"{n}. a {draw.choice(PLACES)} keeper with a {draw.choice(THINGS)}" for n in range(1, wanted + 1))


def _rated(said: str, draw: random.Random) -> str:
    texts = len(re.findall(r"^<text \d+>$", said, re.MULTILINE))
    lines = [f"Text {n}\nRating: {draw.randint(1, 5)}\nRationale: It does what it does." for n in range(1, texts + 1)]
    return "\n\n".join(lines)


def _reviewed(said: str, draw: random.Random) -> str:
    verdict, rating = draw.choice([("poor", 2), ("fair", 5), ("good", 8), ("excellent", 9)])
    return f"Rationale: It says what it says.\nVerdict: {verdict}\nRating: {rating}"


def _in_conversation(said: str, draw: random.Random) -> str:
    if "Grade the last answer" in said:
        return f"It serves. Rating: [[{draw.randint(2, 9)}]]"
    return asked(draw.randrange(10**6))


@contextmanager
def served(voice: Voice, weights: Path | None = None) -> Iterator[str]:
    """A server's address. `weights`: whose log-probabilities it tells of a prompt's tokens, as vLLM does."""
    model = None if weights is None else AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)

    async def scored(stub: Stub, body: dict[str, Any], before: int) -> Any:
        if model is None or "prompt_logprobs" not in body:
            return None
        ids, top = body["prompt"], body["prompt_logprobs"]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list[Any] = [None]
        for place in range(1, len(ids)):
            row = logp[place - 1]
            chosen = {ids[place], *row.topk(top).indices.tolist()}
            told.append({str(t): {"logprob": float(row[t]), "rank": int((row > row[t]).sum()) + 1} for t in chosen})
        whole = completion("a")
        choice = {"index": 0, "text": "a", "finish_reason": "length", "prompt_logprobs": told}
        return reply({**whole, "choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})

    with Stub(voice, scored) as server:
        yield server.base_url
