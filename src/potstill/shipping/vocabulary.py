"""A tokenizer as llama.cpp knows it: tokens, their kinds, merges or scores, and where a text gets its start token."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.shipping.pieces import Cut, cut_of, is_byte_level
from potstill.tokens.tokenization import backend_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""gguf's TokenType."""
BREAK = "Ċ"
"""A line break as byte-level tokens write it."""
BLANK = "▁"
NOT_COMPOSED = (
    "transformers composes characters (NFC) before it reads a text; llama.cpp does not, so texts that are not composed "
    "already are other tokens there."
)
NO_BLANK = (
    "A text that begins with no control token gets a blank before it in transformers, and none in llama.cpp. What the "
    "chat template writes begins with one."
)
LAST = -1e6
"""The score of what no merge makes."""
REMEDY = "Export it with --format hub, and convert that folder with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """gpt2: byte-level merges; llama: as sentencepiece does."""
    tokens: tuple[str, ...]
    """By id, as many as the embeddings have rows."""
    kinds: tuple[int, ...]
    merges: tuple[tuple[str, str], ...] = ()
    scores: tuple[float, ...] = ()
    cut: Cut | None = None
    space_prefix: bool = False
    """Whether a blank comes before a text, and before what stands behind a control token."""
    add_bos: bool = False
    """Whether llama.cpp puts the start token before a text. Never where the chat template writes it: some of its
    programs would then put two."""
    special: Mapping[str, int] | None = None
    """The ids of bos, eos, eot, eom, unk and pad, as far as there are."""
    template: str = ""
    nfc: bool = False
    """Whether transformers composes characters first, which llama.cpp does not."""
    opening: str = ""
    """What texts begin with wherever the two read alike: the start token, where only what stands behind none gets a
    blank in transformers."""
    notes: tuple[str, ...] = ()
    """What differs, in sentences."""


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Sequence[int]) -> Vocabulary:
    """What to write. `rows`: of the embeddings; `ends`: the tokens that end an answer. Raises ModelError."""
    backend: dict[str, Any] = json.loads(backend_of(tokenizer).to_str())
    _refuse_strange(tokenizer, backend)
    known = (
        _byte_level(tokenizer, backend, rows) if is_byte_level(backend) else _sentencepiece(tokenizer, backend, rows)
    )
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise _refused(tokenizer, "it has several chat templates, and GGUF's readers take one")
    adds = [*tokenizer("x")["input_ids"]][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    writes = tokenizer.bos_token is not None and _renders(tokenizer).startswith(str(tokenizer.bos_token))
    return replace(known, add_bos=adds and not writes, special=_special(tokenizer, ends), template=template)


def _renders(tokenizer: PreTrainedTokenizerBase) -> str:
    rows = [{"role": "user", "content": "x"}]
    return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True))


def _refuse_strange(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any]) -> None:
    model = backend["model"]
    if model["type"] != "BPE":
        raise _refused(tokenizer, f"its tokenizer is of the kind {model['type']}; potstill writes BPE")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused(tokenizer, "its tokenizer marks where words go on, or drops merges")
    for token in backend["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(
                tokenizer, f"its token {token['content']!r} takes the blanks beside it, or stands alone only"
            )


def _refused(tokenizer: PreTrainedTokenizerBase, what: str) -> ModelError:
    return ModelError(str(tokenizer.name_or_path), what, REMEDY)


def _special(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, int]:
    """The first end token is the tokenizer's own; llama.cpp stops at three of them at the most."""
    named = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    own = tokenizer.eos_token_id
    order = sorted(ends, key=lambda end: (end != own, end))
    if not order or len(order) > 3:
        raise _refused(tokenizer, f"{len(order)} tokens end its answers; GGUF has room for one to three")
    named |= dict(zip(("eos", "eot", "eom"), order, strict=False))
    return {name: token for name, token in named.items() if token is not None}


def _listed(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The tokens by id with their kinds; rows that no token has are unused."""
    names = {index: token for token, index in backend["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for token in backend["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = backend["model"].get("unk_token")
    if unknown is not None:
        kinds[backend["model"]["vocab"][unknown]] = UNKNOWN
    beyond = [names[index] for index in sorted(names) if index >= rows and names[index] != tokenizer.pad_token]
    if beyond:
        raise _refused(tokenizer, f"it has {rows} embeddings, and none for its token {beyond[0]!r}")
    free = {index: f"[PAD{index}]" for index in range(rows) if index not in names}
    tokens = [names.get(index) or free[index] for index in range(rows)]
    if len(set(tokens)) < len(tokens):
        raise _refused(tokenizer, "two of its tokens are written alike")
    return tokens, [kinds.get(index, UNUSED) for index in range(rows)]


def _byte_level(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any], rows: int) -> Vocabulary:
    cut = cut_of(backend)
    if cut is None:
        what = "it cuts texts before it merges in a way that llama.cpp knows none like, so its tokens would differ"
        raise _refused(tokenizer, what)
    normalizer = backend["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(tokenizer, f"it changes texts first ({normalizer['type']}), which llama.cpp does not")
    tokens, kinds = _listed(tokenizer, backend, rows)
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in backend["model"]["merges"]
    ]
    if cut.whole_breaks:
        for index, token in enumerate(tokens):
            if kinds[index] == NORMAL and len(token) > 1 and not token.strip(BREAK):
                tokens[index], kinds[index] = "\n" * len(token), USER_DEFINED
        merges = [merge for merge in merges if "".join(merge).strip(BREAK)]
    nfc = normalizer is not None
    notes = (NOT_COMPOSED,) if nfc else ()
    return Vocabulary(
        "gpt2", tuple(tokens), tuple(kinds), tuple((a, b) for a, b in merges), cut=cut, nfc=nfc, notes=notes
    )


def _sentencepiece(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any], rows: int) -> Vocabulary:
    """llama.cpp joins whatever two neighbours are a token together, the best score first: the order of the merges."""
    if not backend["model"].get("byte_fallback"):
        raise _refused(
            tokenizer, "it is neither byte-level nor falls back to bytes, and llama.cpp reads such two kinds"
        )
    tokens, kinds = _listed(tokenizer, backend, rows)
    for index, token in enumerate(tokens):
        if kinds[index] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[index] = BYTE
    rank: dict[str, float] = {}
    for place, merge in enumerate(backend["model"]["merges"]):
        rank.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), -float(place + 1))
    prefix, notes = _blank_before(tokenizer, backend)
    scores = tuple(rank.get(token, LAST) for token in tokens)
    opening = str(tokenizer.bos_token or tokenizer.eos_token) if notes else ""
    return Vocabulary(
        "llama", tuple(tokens), tuple(kinds), scores=scores, space_prefix=prefix, opening=opening, notes=notes
    )


def _blank_before(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a text gets a blank before it, from either of the two ways in which tokenizer.json says so."""
    cut, change = backend["pre_tokenizer"], backend["normalizer"]
    if cut is not None and cut["type"] == "Metaspace" and change is None and not cut.get("split", False):
        if cut["prepend_scheme"] == "first":
            return False, (NO_BLANK,)
        return cut["prepend_scheme"] == "always", ()
    steps = change["normalizers"] if change is not None and change["type"] == "Sequence" else [change] if change else []
    written = [
        (step["type"], step.get("prepend"), (step.get("pattern") or {}).get("String"), step.get("content"))
        for step in steps
    ]
    swap = ("Replace", None, " ", BLANK)
    if cut is None and written in ([swap], [("Prepend", BLANK, None, None), swap]):
        return len(written) == 2, ()
    raise _refused(tokenizer, "it changes or cuts texts in a way that llama.cpp knows none like")
