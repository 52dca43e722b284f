"""Writes a small model as GGUF and asks llama.cpp. Arguments: FOLDER FAMILY TYPE; prints one JSON line."""

import dataclasses
import json
import sys
from pathlib import Path

from shipped_models import small, tokenizer
from test_gguf import LLAMA_3_STRETCH, qwens, sentencepiece
from transformers import AutoTokenizer

from potstill.records import Message
from potstill.shipping.gguf_file import Naming, write_gguf
from potstill.shipping.measured import measure
from potstill.shipping.twin import hard_texts
from potstill.shipping.vocabulary import read_vocabulary
from potstill.tokens.tokenization import backend_of, encode_prompt, render

ASKED = ("the cat?", "don't sit", "hello\n\nthere 12", "a dog  is not")


def main() -> None:
    folder, family, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    words = {"qwen2": qwens, "sentencepiece": lambda: sentencepiece(legacy=True)}.get(family, tokenizer)()
    changes = {"rope_parameters": LLAMA_3_STRETCH} if family == "stretched" else {}
    arch = family if family in ("llama", "mistral", "qwen2", "qwen3") else "llama"
    model = small(folder / "m", arch, words, **changes)
    file = write_gguf(model, folder / "m.gguf", kind, Naming("m")).path
    words = AutoTokenizer.from_pretrained(model)
    vocabulary = read_vocabulary(words, len(words), [words.eos_token_id])
    pieces = [backend_of(words).decode([index], skip_special_tokens=False) for index in range(len(words))]
    texts = [vocabulary.opening + text for text in hard_texts(vocabulary, pieces)]
    chats = [[Message(role="user", content=text)] for text in ASKED]
    found = measure(model, file, [encode_prompt(words, chat) for chat in chats], texts)

    import llama_cpp

    read = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    shown = read.tokenize(render(words, chats[0], answer_next=True).encode(), add_bos=True, special=True)
    bos = words.bos_token_id
    starts = 1 if words.bos_token is None or bos not in backend_of(words).encode(
        render(words, chats[0], answer_next=True), add_special_tokens=False
    ).ids else shown.count(bos)  # fmt: skip
    sys.stdout.write(json.dumps({**dataclasses.asdict(found), "starts": starts}) + "\n")


main()
